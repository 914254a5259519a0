//! The cluster CA, as the certificate signing controller and the API server ask for it.

use std::sync::Arc;

use tandem_api::Clock;
use tandem_controllers::{Asked, SignError, Signer, Usage};
use tandem_pki::{Authority, Pki};

pub(crate) struct ClusterSigner {
    pub(crate) pki: Arc<Pki>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Signer for ClusterSigner {
    fn sign(&self, request_pem: &str, usage: Usage) -> Result<String, SignError> {
        let usage = match usage {
            Usage::Client => tandem_pki::Usage::Client,
            Usage::Server => tandem_pki::Usage::Server,
        };
        self.pki.cluster.sign(request_pem, usage, self.clock.now()).map_err(|error| SignError(error.to_string()))
    }

    fn read(&self, request_pem: &str) -> Result<Asked, SignError> {
        let asked = Authority::requested(request_pem).map_err(|error| SignError(error.to_string()))?;
        Ok(Asked {
            common_name: asked.common_name,
            organizations: asked.organizations,
            dns_names: asked.dns_names,
            addresses: asked.addresses,
        })
    }
}
