//! The image registries of the other members, for what this one does not hold.

use std::{io, net::SocketAddr, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use tandem_images::{Elsewhere, HERE_ONLY};
use tandem_pki::Leaf;
use tokio::sync::watch;

const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How long another member may send nothing.
const SILENCE_MAX: Duration = Duration::from_secs(10);

pub(crate) struct OtherRegistries {
    client: reqwest::Client,
    own: SocketAddr,
    members: watch::Receiver<Vec<SocketAddr>>,
}

impl OtherRegistries {
    /// `leaf` is the certificate by which the others know that a member asks.
    pub(crate) fn new(
        authority: &str,
        leaf: &Leaf,
        own: SocketAddr,
        members: watch::Receiver<Vec<SocketAddr>>,
    ) -> anyhow::Result<OtherRegistries> {
        let identity = [leaf.certificate.as_bytes(), leaf.key.as_bytes()].concat();
        let client = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(authority.as_bytes())?])
            .identity(reqwest::Identity::from_pem(&identity)?)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_MAX)
            .read_timeout(SILENCE_MAX)
            .build()?;
        Ok(OtherRegistries { client, own, members })
    }
}

#[async_trait]
impl Elsewhere for OtherRegistries {
    async fn fetch(&self, path: &str) -> io::Result<Option<BoxStream<'static, io::Result<Bytes>>>> {
        let others: Vec<SocketAddr> = self.members.borrow().iter().copied().filter(|it| *it != self.own).collect();
        for member in others {
            let asked = self.client.get(format!("https://{member}{path}")).header(HERE_ONLY, "true");
            match asked.header(reqwest::header::ACCEPT, "*/*").send().await {
                Ok(answer) if answer.status().is_success() => {
                    let content = answer.bytes_stream().map(|bytes| bytes.map_err(io::Error::other));
                    return Ok(Some(content.boxed()));
                }
                Ok(answer) => tracing::debug!(%member, path, status = %answer.status(), "another member has it not"),
                Err(error) => tracing::info!(%member, path, %error, "another member could not be asked for an image"),
            }
        }
        Ok(None)
    }
}
