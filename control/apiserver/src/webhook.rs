//! Webhooks that the API server calls, for admission and for conversion: HTTPS with one JSON body each way.
//!
//! ```text
//!  ClientConfig ─ Place (url, TLS name) ─ idle connection, or: Service -> endpoint -> TCP -> TLS (Trust) ─> POST
//! ```
//! What they answer is not trusted: it is bounded in size and time, and redirects are not followed.

mod connection;
mod trust;

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use tandem_api::Entropy;
use tandem_registry::Registry;
use tandem_store::Consistency;
use tokio::{net::TcpStream, time::timeout};
use tokio_util::task::TaskTracker;

use crate::{
    objects::Objects,
    services::{self, EndpointDialer as _, Outward},
};
use connection::{Client, Place, Sender};

/// The largest answer that is read.
const ANSWER_MAX_BYTES: usize = 8 * 1024 * 1024;
/// What is shown of an answer that is an error.
const SHOWN_MAX_BYTES: usize = 1024;
/// Clients that are kept, with their connections; beyond them those without a connection go first, then all.
const CLIENTS_MAX: usize = 256;
const USER_AGENT: &str = concat!("tandem-apiserver/", env!("CARGO_PKG_VERSION"));

/// How a webhook is reached, as the configurations say it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ClientConfig {
    pub(crate) url: Option<String>,
    pub(crate) service: Option<ServiceReference>,
    /// Certificates in PEM, in base64.
    pub(crate) ca_bundle: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceReference {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) path: Option<String>,
    pub(crate) port: Option<u16>,
}

/// Why a webhook gave no answer, in the words of Kubernetes' client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Calls webhooks, and keeps the connections to them.
pub(crate) struct Webhooks {
    objects: Objects,
    builtin: Arc<Registry>,
    pub(crate) entropy: Arc<dyn Entropy>,
    tasks: TaskTracker,
    clients: Mutex<HashMap<ClientConfig, Arc<Client>>>,
}

impl Webhooks {
    pub(crate) fn new(
        objects: Objects,
        builtin: Arc<Registry>,
        entropy: Arc<dyn Entropy>,
        tasks: TaskTracker,
    ) -> Webhooks {
        Webhooks { objects, builtin, entropy, tasks, clients: Mutex::default() }
    }

    /// Posts a body; the body of a good answer.
    pub(crate) async fn call(
        &self,
        config: &ClientConfig,
        patience: Duration,
        body: impl Into<Bytes>,
    ) -> Result<Bytes, Failure> {
        let client = self.client(config)?;
        let (path, body) = (format!("{}?timeout={}s", client.place.path, patience.as_secs()), body.into());
        let failed = |why: String| {
            let Place { host, port, .. } = &client.place;
            let port = if client.place.is_port_told { format!(":{port}") } else { String::new() };
            Failure(format!("Post \"https://{host}{port}{path}\": {why}"))
        };
        let exchange = async {
            let (mut sender, response) = self.send(&client, &path, body).await.map_err(failed)?;
            let code = response.status();
            let most = if code.is_success() { ANSWER_MAX_BYTES } else { SHOWN_MAX_BYTES };
            let read = Limited::new(response.into_body(), most).collect().await;
            if !code.is_success() {
                let shown = read.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                return Err(Failure(refused(code, &shown)));
            }
            let body = read.map_err(|why| failed(format!("reading the answer: {why}")))?.to_bytes();
            if sender.ready().await.is_ok() {
                client.keep(sender);
            }
            Ok(body)
        };
        timeout(patience, exchange).await.unwrap_or_else(|_| Err(failed("context deadline exceeded".to_owned())))
    }

    fn client(&self, config: &ClientConfig) -> Result<Arc<Client>, Failure> {
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(config) {
            return Ok(client.clone());
        }
        if clients.len() >= CLIENTS_MAX {
            clients.retain(|_, client| client.has_connections());
        }
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        let client = Arc::new(Client::new(config).map_err(Failure)?);
        clients.insert(config.clone(), client.clone());
        Ok(client)
    }

    /// Sends over a connection that is there, or over a new one. Nothing is sent twice.
    async fn send(
        &self,
        client: &Client,
        path: &str,
        body: Bytes,
    ) -> Result<(Sender, http::Response<hyper::body::Incoming>), String> {
        loop {
            let (mut sender, is_kept) = match client.idle() {
                Some(sender) => (sender, true),
                None => (self.connect(client).await?, false),
            };
            let request = Request::post(path)
                .header(header::HOST, client.place.authority())
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::ACCEPT, "application/json")
                .header(header::USER_AGENT, USER_AGENT)
                .body(Full::new(body.clone()))
                .map_err(|why| why.to_string())?;
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((sender, response)),
                // The webhook had closed a connection that was kept.
                Err(mut error) => {
                    if !is_kept || error.take_message().is_none() {
                        return Err(error.into_error().to_string());
                    }
                }
            }
        }
    }

    async fn connect(&self, client: &Client) -> Result<Sender, String> {
        let stream = match &client.place.service {
            Some((namespace, name)) => {
                let address = self.resolve(namespace, name, client.place.port).await?;
                Outward.dial(address).await.map_err(|why| format!("dial tcp {address}: connect: {why}"))?
            }
            None => {
                let host = client.place.host.trim_start_matches('[').trim_end_matches(']');
                let dialed = TcpStream::connect((host, client.place.port)).await;
                dialed.map_err(|why| format!("dial tcp {}: connect: {why}", client.place.authority()))?
            }
        };
        client.handshake(stream, &self.tasks).await
    }

    async fn resolve(&self, namespace: &str, name: &str, port: u16) -> Result<std::net::SocketAddr, String> {
        let row = |group: &str, plural: &str| {
            self.builtin.by_path(group, "v1", plural).ok_or_else(|| format!("{plural} are not served"))
        };
        let (rows, slices) = (row("", "services")?, row("discovery.k8s.io", "endpointslices")?);
        let found = self.objects.get(&rows, Some(namespace), name, Consistency::Any).await;
        let service = found.map_err(|error| error.message)?.ok_or_else(|| format!("service {name:?} not found"))?;
        if service.str_at(&["spec", "type"]) == Some("ExternalName") {
            return Err(format!("service {name:?} is of the type ExternalName, by which no webhook is reached"));
        }
        let has_port = |own: &Value| services::number(own.get("port")) == Some(port);
        if !service.array_at(&["spec", "ports"]).iter().any(has_port) {
            return Err(format!("no service port {port} found for service {name:?}"));
        }
        let asked = port.to_string();
        let found = services::endpoints_of(&self.objects, &slices, self.entropy.as_ref(), &service, &asked).await;
        let first = found.map_err(|error| error.message)?.into_iter().next();
        first.ok_or_else(|| services::no_endpoints(service.name()).message)
    }
}

/// What Kubernetes says to an answer that is no success.
fn refused(code: StatusCode, body: &[u8]) -> String {
    let status: Option<Value> = serde_json::from_slice(body).ok();
    let status = status.filter(|status| status.get("kind").and_then(Value::as_str) == Some("Status"));
    if let Some(message) = status.as_ref().and_then(|status| status.get("message")).and_then(Value::as_str) {
        return message.to_owned();
    }
    match code.as_u16() {
        401 => "the server has asked for the client to provide credentials".to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        400..=499 => format!("the server rejected our request for an unknown reason ({code})"),
        500.. => {
            let text: String =
                String::from_utf8_lossy(body).trim().chars().filter(|letter| !letter.is_control()).collect();
            format!("an error on the server ({text:?}) has prevented the request from succeeding")
        }
        _ => format!("the server answered {code}, and only success is an answer"),
    }
}
