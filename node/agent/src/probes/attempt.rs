use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Container as Spec, Probe};
use tandem_runtime::{ContainerId, Error, Runtime};
use tokio::net::TcpStream;

use super::grpc;
use crate::hooks;

/// What is kept of a body or an output, to be told.
const TOLD_MAX: usize = 1024;

pub(super) struct Target {
    pub(super) address: Option<Ipv4Addr>,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) id: ContainerId,
}

/// Why a probe did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// The container is not well.
    Failed(String),
    /// The probe could not be made.
    Errored(String),
}

/// What probes call themselves.
pub(super) fn user_agent() -> String {
    format!("kube-probe/1.{}", tandem_api::KUBERNETES_MINOR)
}

/// Probes once.
pub(super) async fn attempt(
    probe: &Probe,
    spec: &Spec,
    target: &Target,
    http: &reqwest::Client,
    timeout: Duration,
) -> Result<(), Problem> {
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        return executed(target.runtime.exec(&target.id, &command, timeout).await, &command, timeout);
    }
    if let Some(get) = &probe.http_get {
        let request = hooks::request(get, spec, target.address, http).map_err(Problem::Errored)?;
        return fetched(request.header(http::header::USER_AGENT, user_agent()).timeout(timeout)).await;
    }
    if let Some(socket) = &probe.tcp_socket {
        let port = hooks::port(&socket.port, spec).map_err(Problem::Errored)?;
        let given = socket.host.clone().filter(|host| !host.is_empty());
        let host = given.or_else(|| target.address.map(|address| address.to_string()));
        let host = host.ok_or_else(|| Problem::Errored("the pod has no address".to_owned()))?;
        return match tokio::time::timeout(timeout, TcpStream::connect((host.as_str(), port))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Problem::Failed(format!("dial tcp {host}:{port}: connect: {error}"))),
            Err(_) => Err(Problem::Failed(format!("dial tcp {host}:{port}: i/o timeout"))),
        };
    }
    if let Some(action) = &probe.grpc {
        let address = target.address.ok_or_else(|| Problem::Errored("the pod has no address".to_owned()))?;
        return grpc::check(action, address, timeout).await;
    }
    Err(Problem::Errored("missing probe handler".to_owned()))
}

fn executed(
    result: tandem_runtime::Result<tandem_runtime::ExecOutput>,
    command: &[String],
    timeout: Duration,
) -> Result<(), Problem> {
    match result {
        Ok(output) if output.code == 0 => Ok(()),
        Ok(output) => Err(Problem::Failed(told(&[output.stdout, output.stderr].concat()))),
        Err(Error::Timeout { .. }) => {
            let command = command.join(" ");
            Err(Problem::Failed(format!("command timed out: \"{command}\" timed out after {}s", timeout.as_secs())))
        }
        Err(error) => Err(Problem::Errored(error.to_string())),
    }
}

async fn fetched(request: reqwest::RequestBuilder) -> Result<(), Problem> {
    let (client, request) = request.build_split();
    let request = request.map_err(|error| Problem::Errored(error.to_string()))?;
    let url = request.url().to_string();
    match client.execute(request).await {
        // A redirect is an answer: where it leads is not the container's health.
        Ok(response) if response.status().is_success() || response.status().is_redirection() => Ok(()),
        Ok(response) => {
            Err(Problem::Failed(format!("HTTP probe failed with statuscode: {}", response.status().as_u16())))
        }
        Err(error) if error.is_timeout() => Err(Problem::Failed(format!(
            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        ))),
        Err(error) => Err(Problem::Failed(format!("Get \"{url}\": {}", root(&error)))),
    }
}

/// The innermost reason, which is the one that says something.
pub(super) fn root(error: &dyn std::error::Error) -> String {
    let mut current = error;
    while let Some(source) = current.source() {
        current = source;
    }
    current.to_string()
}

pub(super) fn told(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..TOLD_MAX).unwrap_or(bytes)).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::StatusCode, routing::get};
    use k8s_openapi::{
        api::core::v1::{ExecAction, GRPCAction, HTTPGetAction, TCPSocketAction},
        apimachinery::pkg::util::intstr::IntOrString,
    };
    use tandem_api::SystemClock;
    use tandem_runtime::Fake;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    async fn check(probe: Probe) -> Result<(), Problem> {
        drop(rustls::crypto::ring::default_provider().install_default());
        let fake = Fake::new("fake", Arc::new(SystemClock));
        let target =
            Target { address: Some(Ipv4Addr::LOCALHOST), runtime: Arc::new(fake), id: ContainerId("none".to_owned()) };
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        attempt(&probe, &Spec::default(), &target, &http, TIMEOUT).await
    }

    async fn serve() -> i32 {
        let router = Router::new()
            .route("/ok", get(|| async { "fine" }))
            .route("/moved", get(|| async { (StatusCode::FOUND, [("location", "/nowhere")]) }))
            .route("/bad", get(|| async { StatusCode::SERVICE_UNAVAILABLE }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, router).await });
        port.into()
    }

    fn get_probe(port: i32, path: &str) -> Probe {
        let get =
            HTTPGetAction { path: Some(path.to_owned()), port: IntOrString::Int(port), ..HTTPGetAction::default() };
        Probe { http_get: Some(get), ..Probe::default() }
    }

    #[tokio::test]
    async fn http_probes_look_at_the_status() {
        let port = serve().await;
        assert_eq!(check(get_probe(port, "/ok")).await, Ok(()));
        assert_eq!(check(get_probe(port, "moved")).await, Ok(()));
        let bad = Problem::Failed("HTTP probe failed with statuscode: 503".to_owned());
        assert_eq!(check(get_probe(port, "/bad")).await, Err(bad));
        let refused = check(get_probe(1, "/")).await.unwrap_err();
        assert!(matches!(&refused, Problem::Failed(why) if why.contains("refused")), "{refused:?}");
    }

    #[tokio::test]
    async fn tcp_probes_connect() {
        let port = serve().await;
        let probe = |port| {
            let socket = TCPSocketAction { host: None, port: IntOrString::Int(port) };
            Probe { tcp_socket: Some(socket), ..Probe::default() }
        };
        assert_eq!(check(probe(port)).await, Ok(()));
        assert!(matches!(check(probe(1)).await, Err(Problem::Failed(_))));
    }

    fn grpc_probe(port: u16, service: &str) -> Probe {
        let action = GRPCAction { port: port.into(), service: Some(service.to_owned()) };
        Probe { grpc: Some(action), ..Probe::default() }
    }

    #[tokio::test]
    async fn grpc_probes_ask_for_the_health_of_a_service() {
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status("up", tonic_health::ServingStatus::Serving).await;
        reporter.set_service_status("down", tonic_health::ServingStatus::NotServing).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(health).serve_with_incoming(incoming));
        assert_eq!(check(grpc_probe(port, "")).await, Ok(()));
        assert_eq!(check(grpc_probe(port, "up")).await, Ok(()));
        let failed = async |port, service| match check(grpc_probe(port, service)).await {
            Err(Problem::Failed(why)) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(failed(port, "down").await, "service unhealthy (responded with \"NOT_SERVING\")");
        assert!(failed(port, "unknown").await.starts_with("error: health rpc probe failed: "));
        assert!(failed(1, "").await.starts_with("error: failed to connect service at \"127.0.0.1:1\": "));
        let http = u16::try_from(serve().await).unwrap();
        let other = failed(http, "").await;
        assert!(other.starts_with("error: "), "{other}");
    }

    #[tokio::test]
    async fn a_grpc_service_that_says_nothing_has_failed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let action = GRPCAction { port: port.into(), service: None };
        let asked = super::grpc::check(&action, Ipv4Addr::LOCALHOST, Duration::from_millis(50)).await;
        let Err(Problem::Failed(why)) = asked else { panic!("nobody answers") };
        assert!(why.starts_with("timeout: "), "{why}");
    }

    #[tokio::test]
    async fn what_cannot_be_probed_is_an_error() {
        let grpc = Probe { grpc: Some(GRPCAction::default()), ..Probe::default() };
        let exec = Probe { exec: Some(ExecAction { command: None }), ..Probe::default() };
        for probe in [grpc, exec, Probe::default(), get_probe(0, "/")] {
            assert!(matches!(check(probe).await, Err(Problem::Errored(_))));
        }
    }
}
