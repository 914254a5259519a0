use std::net::{Ipv4Addr, SocketAddr};

use axum::routing::get;
use tandem_api::Identity;

use super::*;
use crate::{
    layers::limits::{READS_MAX, WAITING_OF_ONE_MAX},
    server::Peer,
};

const WAIT: std::time::Duration = std::time::Duration::from_secs(10);

async fn with(routes: Router) -> Server {
    let server = Server::start().await;
    let router = server.api.layers(routes);
    Server { router, ..server }
}

async fn panics() -> &'static str {
    panic!("as the test asks")
}

#[tokio::test]
async fn a_panic_is_an_answer() {
    let server = with(Router::new().route("/panic", get(panics))).await;
    let answer = server.get("/panic").await;
    assert_eq!(
        answer.status(),
        "500 InternalError: This request caused apiserver to panic. Look in the logs for details."
    );
    assert_eq!(server.get("/version").await.code, 200);
}

#[tokio::test]
async fn requests_beyond_the_limit_wait_and_those_of_who_floods_are_refused() {
    let server = with(Router::new().route("/stuck", get(std::future::pending::<()>))).await;
    let send = |uri: &str, user: &str| {
        let mut request = ask("GET", uri).by(Identity::user(user, &["system:masters"])).build();
        request.extensions_mut().insert(Peer(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))));
        server.router.clone().oneshot(request)
    };
    let mut flood = tokio::task::JoinSet::new();
    let refused = async {
        loop {
            flood.spawn(send("/stuck", "jane"));
            if let Some(ended) = flood.try_join_next() {
                return ended.unwrap().unwrap();
            }
            tokio::task::yield_now().await;
        }
    };
    let refused = tokio::time::timeout(WAIT, refused).await.expect("nothing is refused");
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
    assert!(flood.len() >= READS_MAX + WAITING_OF_ONE_MAX, "{}", flood.len());
    // Clients inside the process are not part of the crowd, and others have their place in the queue.
    assert_eq!(server.get("/version").await.code, 200);
    let mut patient = tokio::spawn(send("/version", "joe"));
    assert!(tokio::time::timeout(WAIT / 100, &mut patient).await.is_err(), "there is no slot yet");
    flood.shutdown().await;
    assert_eq!(patient.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn without_a_quorum_clients_are_sent_away_at_once() {
    let (quorum, told) = tokio::sync::watch::channel(true);
    let server = Server::with(Parts { quorum: Some(told), ..Parts::default() }).await;
    let outside = |uri: &str| {
        let mut request = ask("GET", uri).build();
        request.extensions_mut().insert(Peer(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))));
        server.router.clone().oneshot(request)
    };
    let namespaces = "/api/v1/namespaces?resourceVersion=0";
    assert_eq!(outside(namespaces).await.unwrap().status(), StatusCode::OK);
    quorum.send_replace(false);
    let refused = outside(namespaces).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
    assert_eq!(outside("/readyz").await.unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
    for own in ["/livez", "/version", "/metrics"] {
        assert_eq!(outside(own).await.unwrap().status(), StatusCode::OK, "{own}");
    }
    assert_eq!(server.get(namespaces).await.code, 200, "the process's own clients keep what they know");
    quorum.send_replace(true);
    assert_eq!(outside(namespaces).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_leader_of_the_past_changes_nothing() {
    let server = Server::start().await;
    let create = |name: &str, term: u64| {
        let mut request = ask("POST", &in_default("configmaps")).json(&config_map(name)).build();
        request.extensions_mut().insert(tandem_api::Fence(term));
        server.router.clone().oneshot(request)
    };
    assert_eq!(create("now", tandem_store::MEMORY_TERM).await.unwrap().status(), StatusCode::CREATED);
    let refused = create("late", tandem_store::MEMORY_TERM - 1).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(server.get(&format!("{}/late", in_default("configmaps"))).await.code, 404);
}

#[tokio::test]
async fn keys_are_published() {
    let server = Server::start().await;
    let configuration = server.get("/.well-known/openid-configuration").await.json();
    assert_eq!(configuration["issuer"], "https://kubernetes.default.svc.cluster.local");
    let keys = server.get("/openid/v1/jwks").await;
    assert_eq!(keys.header(header::CONTENT_TYPE), "application/jwk-set+json");
    assert_eq!(
        (keys.json()["keys"][0]["kty"].as_str(), keys.json()["keys"][0]["alg"].as_str()),
        (Some("EC"), Some("ES256"))
    );
}
