//! One webhook's connections.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use super::{ClientConfig, trust};

const HTTPS: u16 = 443;
/// Connections that wait for the next call, and for how long.
const IDLE_MAX: usize = 8;
const IDLE_TIME_MAX: Duration = Duration::from_secs(30);

pub(super) type Sender = SendRequest<Full<Bytes>>;

/// Where a webhook is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Also the name in the webhook's certificate.
    pub(super) host: String,
    pub(super) port: u16,
    /// Whether the port stands in URLs that are shown.
    pub(super) is_port_told: bool,
    pub(super) path: String,
    /// Namespace and name of the Service that leads there.
    pub(super) service: Option<(String, String)>,
}

impl Place {
    pub(super) fn of(config: &ClientConfig) -> Result<Place, String> {
        if let Some(service) = &config.service {
            return Ok(Place {
                host: format!("{}.{}.svc", service.name, service.namespace),
                port: service.port.unwrap_or(HTTPS),
                is_port_told: true,
                path: service.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned()),
                service: Some((service.namespace.clone(), service.name.clone())),
            });
        }
        let url = config.url.as_deref().ok_or("the webhook has neither a url nor a service")?;
        let parsed: http::Uri = url.parse().map_err(|why| format!("parse {url:?}: {why}"))?;
        if parsed.scheme_str() != Some("https") {
            return Err(format!("parse {url:?}: 'https' is the only allowed URL scheme"));
        }
        Ok(Place {
            host: parsed.host().unwrap_or_default().to_owned(),
            port: parsed.port_u16().unwrap_or(HTTPS),
            is_port_told: parsed.port_u16().is_some(),
            path: parsed.path().to_owned(),
            service: None,
        })
    }

    pub(super) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

struct Idle {
    sender: Sender,
    since: Instant,
}

pub(super) struct Client {
    pub(super) place: Place,
    tls: TlsConnector,
    idle: Mutex<Vec<Idle>>,
}

impl Client {
    pub(super) fn new(config: &ClientConfig) -> Result<Client, String> {
        let bundle = config.ca_bundle.as_deref().unwrap_or_default();
        let bundle = STANDARD.decode(bundle).map_err(|why| format!("unable to load root certificates: {why}"))?;
        let tls = trust::client(&bundle)?;
        Ok(Client { place: Place::of(config)?, tls: TlsConnector::from(Arc::new(tls)), idle: Mutex::default() })
    }

    pub(super) fn has_connections(&self) -> bool {
        !self.idle.lock().is_empty()
    }

    /// A connection that waits, the one that was used last.
    pub(super) fn idle(&self) -> Option<Sender> {
        let mut idle = self.idle.lock();
        idle.retain(|one| one.since.elapsed() < IDLE_TIME_MAX && !one.sender.is_closed());
        idle.pop().map(|one| one.sender)
    }

    pub(super) fn keep(&self, sender: Sender) {
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(Idle { sender, since: Instant::now() });
        }
    }

    pub(super) async fn handshake(&self, stream: TcpStream, tasks: &TaskTracker) -> Result<Sender, String> {
        let name = self.place.host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(name).map_err(|why| why.to_string())?;
        stream.set_nodelay(true).map_err(|why| why.to_string())?;
        let stream = self.tls.connect(name, stream).await.map_err(|why| trust::told(&why))?;
        let (sender, connection) =
            http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.map_err(|why| why.to_string())?;
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a webhook ended");
            }
        });
        Ok(sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::ServiceReference;

    #[test]
    fn places() {
        let check = |url: &str, shown: &str| {
            let place = Place::of(&ClientConfig { url: Some(url.to_owned()), ..ClientConfig::default() });
            assert_eq!(place.map_or_else(|why| why, |place| place.authority() + &place.path), shown);
        };
        check("https://a.example.com/x", "a.example.com:443/x");
        check("https://[::1]:9443", "[::1]:9443/");
        check("http://a.example.com", "parse \"http://a.example.com\": 'https' is the only allowed URL scheme");
        let service = ServiceReference { namespace: "n".into(), name: "s".into(), path: None, port: None };
        let place = Place::of(&ClientConfig { service: Some(service), ..ClientConfig::default() }).unwrap();
        assert_eq!(place.authority() + &place.path, "s.n.svc:443/");
    }
}
