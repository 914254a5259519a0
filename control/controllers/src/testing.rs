//! Services and pods from short texts, and an API that answers by a script, for tests.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerPort, Pod, PodCondition, PodIP, PodSpec, PodStatus, Service, ServicePort, ServiceSpec,
    },
    apimachinery::pkg::{apis::meta::v1::Time, util::intstr::IntOrString},
};
use kube::api::ObjectMeta;
use parking_lot::Mutex;

use crate::{Asked, SignError, Signer, Usage};

/// `PORT:TARGET` for each port; words: headless, publish, manual (no selector).
pub(crate) fn service(text: &str) -> Service {
    let has = |word| text.split_whitespace().any(|other| other == word);
    let ports: Vec<ServicePort> = text
        .split_whitespace()
        .filter_map(|word| word.split_once(':'))
        .map(|(port, target)| ServicePort {
            port: port.parse().unwrap(),
            target_port: Some(target.parse().map_or_else(|_| IntOrString::String(target.into()), IntOrString::Int)),
            ..ServicePort::default()
        })
        .collect();
    let selector = [("app".to_owned(), "web".to_owned())];
    Service {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("default".into()),
            uid: Some("service".into()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            ports: Some(ports).filter(|ports| !ports.is_empty()),
            selector: (!has("manual")).then(|| selector.into()),
            cluster_ip: Some(if has("headless") { "None" } else { "10.96.0.7" }.into()),
            publish_not_ready_addresses: Some(has("publish")),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// `name:word…`; words: ready, deleting, ip=, node=, host= (below the Service), and NAME=NUMBER for a named port.
pub(crate) fn pod(text: &str) -> Pod {
    let mut words = text.split(':');
    let name = words.next().unwrap();
    let words: Vec<&str> = words.collect();
    let value = |key: &str| words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('=').map(str::to_owned));
    let ready = if words.contains(&"ready") { "True" } else { "False" };
    let ports = words.iter().filter_map(|word| word.split_once('=')).filter_map(|(name, number)| {
        let container_port = number.parse().ok()?;
        Some(ContainerPort { name: Some(name.into()), container_port, ..ContainerPort::default() })
    });
    let container = Container { ports: Some(ports.collect()), ..Container::default() };
    Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("default".into()),
            uid: Some(name.into()),
            labels: Some([("app".into(), "web".into())].into()),
            deletion_timestamp: words.contains(&"deleting").then_some(Time(jiff::Timestamp::UNIX_EPOCH)),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: vec![container],
            node_name: value("node"),
            hostname: value("host"),
            subdomain: value("host").map(|_| "web".into()),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some("Running".into()),
            pod_ips: value("ip").map(|ip| vec![PodIP { ip }]),
            conditions: Some(vec![PodCondition {
                type_: "Ready".into(),
                status: ready.into(),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        }),
    }
}

/// What the fake API says to a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// The object was written at this revision.
    Written(u64),
    Forbidden(&'static str),
    Conflict,
    NotFound,
    /// The namespace is on its way out.
    Terminating,
    /// The object, as JSON.
    Body(&'static str),
    Never,
}

impl Answer {
    fn response(self) -> http::Response<kube::client::Body> {
        let status = |code: u16, reason: &str, message: &str, cause: &str| {
            let body = format!(
                r#"{{"kind":"Status","status":"Failure","code":{code},"reason":"{reason}","message":"{message}","details":{{"causes":[{{"reason":"{cause}","message":"","field":""}}]}}}}"#
            );
            (code, body)
        };
        let (code, body) = match self {
            Answer::Written(revision) => {
                (200, format!(r#"{{"metadata":{{"name":"made","resourceVersion":"{revision}"}}}}"#))
            }
            Answer::Forbidden(message) => status(403, "Forbidden", message, ""),
            Answer::Conflict => status(409, "Conflict", "changed", ""),
            Answer::NotFound => status(404, "NotFound", "not found", ""),
            Answer::Body(json) => (200, json.to_owned()),
            Answer::Never => (500, String::new()),
            Answer::Terminating => status(403, "Forbidden", "going", "NamespaceTerminating"),
        };
        let body = kube::client::Body::from(body.into_bytes());
        http::Response::builder().status(code).body(body).unwrap()
    }
}

/// An API that answers by a script and remembers what it was asked.
#[derive(Clone)]
pub(crate) struct Server {
    script: Arc<dyn Fn(&str) -> Answer + Send + Sync>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// The script sees the method and the path: `POST /api/v1/namespaces/ns/pods`.
    pub(crate) fn new(script: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Server {
        Server { script: Arc::new(script), asked: Arc::default() }
    }

    pub(crate) fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let asked = format!("{} {}", request.method(), request.uri().path());
            let answer = (server.script)(&asked);
            server.asked.lock().push(asked);
            async move {
                if matches!(answer, Answer::Never) {
                    std::future::pending::<()>().await;
                }
                Ok::<_, std::convert::Infallible>(answer.response())
            }
        });
        kube::Client::new(service, "default")
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

struct NoSigner;

impl Signer for NoSigner {
    fn sign(&self, _: &str, _: Usage) -> Result<String, SignError> {
        Err(SignError("nothing is signed here".into()))
    }

    fn read(&self, _: &str) -> Result<Asked, SignError> {
        Err(SignError("nothing is read here".into()))
    }
}

pub(crate) fn refuse_all_signing() -> Arc<dyn Signer> {
    Arc::new(NoSigner)
}
