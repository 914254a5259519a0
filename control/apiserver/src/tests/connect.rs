use std::{io, net::SocketAddr};

use async_trait::async_trait;
use axum::routing::get;
use hyper_util::rt::TokioIo;

use super::*;
use crate::{NodeDialer, NodeStream};

/// A node whose server is a router at the other end of a pipe.
struct Pipe(Router);

#[async_trait]
impl NodeDialer for Pipe {
    async fn dial(&self, node: &str, _: SocketAddr) -> io::Result<NodeStream> {
        if node != "n1" {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (here, there) = tokio::io::duplex(64 * 1024);
        let service = hyper_util::service::TowerToHyperService::new(self.0.clone());
        let serving =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(there), service).with_upgrades();
        tokio::spawn(serving);
        Ok(Box::new(here))
    }
}

/// Takes the connection over, sends back what it gets, and says goodbye.
async fn echo(mut request: axum::extract::Request) -> axum::response::Response {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let protocol = request.headers()[header::SEC_WEBSOCKET_PROTOCOL].clone();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        let mut buffer = [0; 64];
        loop {
            let read = stream.read(&mut buffer).await.unwrap();
            if read == 0 {
                break;
            }
            stream.write_all(&buffer[..read]).await.unwrap();
        }
        stream.write_all(b"bye").await.unwrap();
        stream.shutdown().await.unwrap();
    });
    axum::response::Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_PROTOCOL, protocol)
        .body(Body::empty())
        .unwrap()
}

pub(super) async fn server() -> Server {
    let node = Router::new()
        .route(
            "/containerLogs/default/a/c",
            get(async |uri: http::Uri| format!("log {}", uri.query().unwrap_or_default())),
        )
        .route("/exec/default/a/c", get(async || (StatusCode::BAD_REQUEST, "no such shell")))
        .route("/attach/default/a/c", get(echo))
        .route("/stats/summary", get(async || "stats"));
    server_of(node).await
}

/// The nodes n1, which is the router, and n2, which does not answer, with the pods a and b.
pub(super) async fn server_of(node: Router) -> Server {
    let server = Server::with(Parts { nodes: Some(Arc::new(Pipe(node))), ..Parts::default() }).await;
    server.default_account().await;
    for name in ["n1", "n2"] {
        server.create("/api/v1/nodes", &json!({ "metadata": { "name": name } })).await;
        let status = json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }], "daemonEndpoints": { "kubeletEndpoint": { "Port": 10250 } } } });
        let patched =
            server.patch(&format!("/api/v1/nodes/{name}/status"), "application/merge-patch+json", &status).await;
        assert_eq!(patched.code, 200, "{}", patched.text());
    }
    for (name, node) in [("a", "n1"), ("b", "n2")] {
        server.create(&in_default("pods"), &pod(name)).await;
        let bind = json!({ "target": { "kind": "Node", "name": node } });
        server.create(&in_default(&format!("pods/{name}/binding")), &bind).await;
    }
    server
}

#[tokio::test]
async fn logs_come_from_the_node() {
    let server = server().await;
    let log = server.get(&in_default("pods/a/log?tailLines=3&pretty=true")).await;
    assert_eq!((log.code, log.text().as_str()), (200, "log tailLines=3"));
    let refused = server.get(&in_default("pods/b/log")).await;
    assert!(
        refused.status().contains("error dialing backend: node n2: dial tcp 127.0.0.1:10250"),
        "{}",
        refused.status()
    );
    server.create(&in_default("pods"), &pod("waiting")).await;
    assert_eq!(server.get(&in_default("pods/waiting/log")).await.text(), "");
    assert_eq!(server.get(&in_default("pods/none/log")).await.code, 404);
    assert_eq!(server.get(&in_default("pods/a/log?container=x")).await.code, 400);
}

#[tokio::test]
async fn what_the_node_refuses_is_told() {
    let server = server().await;
    let exec = server.get(&in_default("pods/a/exec?command=sh&stdout=true")).await;
    assert_eq!(exec.status(), "400 BadRequest: no such shell");
    assert_eq!(server.get("/api/v1/nodes/n1/proxy/stats/summary").await.text(), "stats");
}

#[tokio::test]
async fn proxying_refuses_what_is_not_a_pod() {
    let server = Server::start().await;
    server.default_account().await;
    server.create(&in_default("pods"), &pod("a")).await;
    assert_eq!(server.get(&in_default("pods/a:80/proxy/")).await.code, 400);
    let status = json!({ "status": { "podIP": "127.0.0.1" } });
    server.patch(&in_default("pods/a/status"), "application/merge-patch+json", &status).await;
    assert_eq!(server.get(&in_default("pods/a:80/proxy/")).await.status(), "400 BadRequest: address not allowed");
    let service = json!({ "metadata": { "name": "web" }, "spec": { "ports": [{ "name": "http", "port": 80 }] } });
    server.create(&in_default("services"), &service).await;
    assert_eq!(server.get(&in_default("services/web/proxy/")).await.code, 503);
    assert_eq!(server.get(&in_default("services/none/proxy/")).await.code, 404);
}
