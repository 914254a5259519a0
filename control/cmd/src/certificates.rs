//! The member's certificates: issued at start, issued again in the running process before they end.

use std::{net::IpAddr, sync::Arc};

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use parking_lot::RwLock;
use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tandem_api::{Clock, Settings};
use tandem_peers::Identity;
use tandem_pki::{CertificateRequest, Leaf, Pki, Usage};
use tokio_util::sync::CancellationToken;

use crate::join;

/// A third of a certificate's year: renewed long before anybody could notice.
const RENEWAL: SignedDuration = SignedDuration::from_hours(120 * 24);

/// The API server's certificate, always a fresh one, with the CA behind it so that a join token can pin it.
#[derive(Debug)]
pub(crate) struct ServerCertificate {
    pki: Arc<Pki>,
    dns_names: Vec<String>,
    addresses: Vec<IpAddr>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ServerCertificate {
    pub(crate) fn issue(
        pki: Arc<Pki>,
        settings: &Settings,
        addresses: &[IpAddr],
        clock: &dyn Clock,
    ) -> anyhow::Result<Arc<ServerCertificate>> {
        let domain = &settings.dns_domain;
        let mut dns_names: Vec<String> =
            ["localhost", tandem_api::CLUSTER_REGISTRY, "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
                .map(ToOwned::to_owned)
                .to_vec();
        dns_names.push(format!("kubernetes.default.svc.{domain}"));
        let mut all: Vec<IpAddr> = vec![IpAddr::from([127, 0, 0, 1]), settings.kubernetes_service().into()];
        all.extend(addresses.iter().filter(|address| !address.is_unspecified()));
        all.sort();
        all.dedup();
        let first = certified(&pki, &dns_names, &all, clock)?;
        Ok(Arc::new(ServerCertificate { pki, dns_names, addresses: all, current: RwLock::new(first) }))
    }

    /// Renews the certificate in time, until shutdown.
    pub(crate) async fn keep_fresh(self: Arc<Self>, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
        let wait = RENEWAL.unsigned_abs();
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => return,
            }
            match certified(&self.pki, &self.dns_names, &self.addresses, clock.as_ref()) {
                Ok(fresh) => *self.current.write() = fresh,
                Err(error) => tracing::error!(%error, "the API server's certificate could not be renewed"),
            }
        }
    }
}

impl ServerCertificate {
    /// When the certificate that is shown now ends.
    pub(crate) fn not_after(&self) -> Option<Timestamp> {
        let current = self.current.read().clone();
        let shown = join::to_pem(current.cert.first()?);
        tandem_pki::not_after(&shown).ok()
    }
}

/// Renews the certificate that other members know this one by, until shutdown.
pub(crate) async fn renew_identity(
    pki: Arc<Pki>,
    identity: Arc<Identity>,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(RENEWAL.unsigned_abs()) => {}
            () = shutdown.cancelled() => return,
        }
        let leaf = identity.name().issue(&pki.members, clock.now());
        let renewed = leaf.map_err(|error| error.to_string());
        if let Err(error) = renewed.and_then(|leaf| identity.renew(&leaf).map_err(|error| error.to_string())) {
            tracing::error!(error, "the certificate for other members could not be renewed");
        }
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().clone())
    }
}

fn certified(
    pki: &Pki,
    dns_names: &[String],
    addresses: &[IpAddr],
    clock: &dyn Clock,
) -> anyhow::Result<Arc<CertifiedKey>> {
    let request = CertificateRequest {
        common_name: "kube-apiserver",
        organizations: &[],
        dns_names,
        addresses,
        usage: Usage::Server,
    };
    let leaf = pki.cluster.issue(&request, clock.now())?;
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).context("the API server's key")?;
    let chain = [leaf.certificate.as_str(), pki.cluster.certificate()]
        .into_iter()
        .map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()))
        .collect::<Result<Vec<_>, _>>()
        .context("the API server's certificate")?;
    Ok(Arc::new(CertifiedKey::new(chain, any_supported_type(&key)?)))
}

/// A client certificate of the cluster CA.
pub(crate) fn client(pki: &Pki, common_name: &str, groups: &[&str], clock: &dyn Clock) -> anyhow::Result<Leaf> {
    let request =
        CertificateRequest { common_name, organizations: groups, dns_names: &[], addresses: &[], usage: Usage::Client };
    Ok(pki.cluster.issue(&request, clock.now())?)
}
