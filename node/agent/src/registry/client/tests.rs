use axum::{Router, extract::Path, response::IntoResponse, routing::get};

use super::*;

async fn serve(router: Router) -> String {
    drop(rustls::crypto::ring::default_provider().install_default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address.to_string()
}

fn manifest_of(name: &str) -> axum::response::Response {
    let wasm = r#"{"config":{"mediaType":"application/vnd.wasm.config.v0+json","digest":"sha256:c","size":2}}"#;
    match name {
        "wasm" => ([("docker-content-digest", "sha256:w")], wasm).into_response(),
        "limited" => StatusCode::TOO_MANY_REQUESTS.into_response(),
        _ => {
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            (StatusCode::NOT_FOUND, body).into_response()
        }
    }
}

fn registry() -> Router {
    Router::new()
        .route("/v2/team/app/manifests/{name}", get(|Path(name): Path<String>| async move { manifest_of(&name) }))
        .route(
            "/v2/team/app/blobs/{digest}",
            get(|| async { r#"{"component":{"imports":["wasi:sockets/tcp@0.2.3"]}}"# }),
        )
}

#[tokio::test]
async fn a_registry_says_what_an_image_is() {
    let host = serve(registry()).await;
    let resolver = Resolver::new(Registries::default());
    let ask = async |tag: &str| resolver.kind(&Reference::parse(&format!("{host}/team/app:{tag}")).unwrap(), &[]).await;
    assert_eq!(ask("wasm").await.unwrap(), ImageKind { kind: Kind::Component, sockets: true });
    let missing = ask("missing").await.unwrap_err();
    assert_eq!(missing.to_string(), format!("{host}/team/app:missing: not found: MANIFEST_UNKNOWN: manifest unknown"));
    assert!(matches!(ask("limited").await.unwrap_err(), Error::Refused { .. }));
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_told_from_one_that_refuses() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let resolver = Resolver::new(Registries::default());
    let reference = Reference::parse("127.0.0.1:1/app").unwrap();
    assert!(matches!(resolver.kind(&reference, &[]).await, Err(Error::Unreachable { .. })));
}

#[test]
fn challenges_are_read() {
    let mut headers = HeaderMap::new();
    let value = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="x""#;
    headers.insert(header::WWW_AUTHENTICATE, value.parse().unwrap());
    let wanted =
        Challenge { realm: "https://auth.example/token".to_owned(), service: Some("registry.example".to_owned()) };
    assert_eq!(Challenge::of(&headers), Some(wanted));
}

#[test]
fn credentials_go_to_the_registry_that_they_are_for() {
    let document = br#"{"auths":{
        "https://index.docker.io/v1/":{"username":"hub","password":"1"},
        "ghcr.io/team":{"auth":"dGVhbTpzZWNyZXQ="},
        "ghcr.io":{"username":"all","password":"2"}}}"#;
    let names = |reference: &str| -> Vec<String> {
        let reference = Reference::parse(reference).unwrap();
        let name = |auth: RegistryAuth| match auth {
            RegistryAuth::Basic { username, .. } => username,
            RegistryAuth::Token(token) => token,
        };
        credentials(document, &reference).into_iter().map(name).collect()
    };
    assert_eq!(names("nginx"), ["hub"]);
    assert_eq!(names("ghcr.io/team/app"), ["team", "all"]);
    assert_eq!(names("ghcr.io/teams/app"), ["all"]);
    assert!(names("quay.io/x").is_empty());
}
