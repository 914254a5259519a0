use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tandem_pki::{CertificateRequest, ServiceAccountKey, Usage};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{Authentication, tls};

/// An issuer of tokens: its configuration and keys over HTTPS.
struct Issuer {
    url: String,
    pki: Pki,
    _directory: tempfile::TempDir,
    shutdown: CancellationToken,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Issuer {
    async fn start() -> Issuer {
        let directory = tempfile::tempdir().unwrap();
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let pki = Pki::open(directory.path(), now).unwrap();
        let request = CertificateRequest {
            common_name: "issuer",
            organizations: &[],
            dns_names: &["localhost".to_owned()],
            addresses: &[],
            usage: Usage::Server,
        };
        let leaf = pki.cluster.issue(&request, now).unwrap();
        let certificates = CertificateDer::pem_slice_iter(leaf.certificate.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
        let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        let resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(certificates, key)));
        let config = tls::server_config(resolver, pki.cluster.certificate()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let keys = json!({ "keys": [{ "kty": "unknown" }, pki.service_accounts.public()] }).to_string();
        let own = json!({ "issuer": url, "jwks_uri": format!("{url}/keys") }).to_string();
        let router = Router::new()
            .route("/.well-known/openid-configuration", axum::routing::get(async move || own))
            .route("/keys", axum::routing::get(async move || keys));
        let shutdown = CancellationToken::new();
        tokio::spawn(crate::serve(listener, config, router, shutdown.clone()));
        Issuer { url, pki, _directory: directory, shutdown }
    }

    fn configuration(&self) -> String {
        json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
            "jwt": [{
                "issuer": { "url": self.url, "audiences": ["tandem"], "certificateAuthority": self.pki.cluster.certificate() },
                "claimMappings": { "username": { "claim": "sub", "prefix": "oidc:" } },
            }],
            "anonymous": { "enabled": true, "conditions": [{ "path": "/livez" }] },
        })
        .to_string()
    }

    fn token(&self, key: &ServiceAccountKey) -> String {
        // 2026-01-01T00:10:00Z
        key.sign(&json!({ "iss": self.url, "aud": "tandem", "sub": "jane", "exp": 1_767_226_200 })).unwrap()
    }
}

async fn whoami(server: &Server, token: &str) -> (u16, Value) {
    let review = json!({ "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1" });
    let uri = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let asked = ask("POST", uri).json(&review).unknown().header("authorization", &format!("Bearer {token}"));
    let answer = server.send(asked).await;
    (answer.code, answer.json()["status"]["userInfo"]["username"].clone())
}

#[tokio::test]
async fn tokens_of_an_issuer_are_taken() {
    let issuer = Issuer::start().await;
    let authentication = Authentication::parse(&issuer.configuration(), "https://own").unwrap();
    let server = Server::with(Parts { authentication: Some(authentication), ..Parts::default() }).await;
    let sound = issuer.token(&issuer.pki.service_accounts);
    assert_eq!(whoami(&server, &sound).await, (201, json!("oidc:jane")));
    let forged = issuer.token(&server.pki.service_accounts);
    assert_eq!(whoami(&server, &forged).await.0, 401);
    // The keys are known by now.
    issuer.shutdown.cancel();
    assert_eq!(whoami(&server, &sound).await.0, 201);
    assert_eq!(whoami(&server, "a.b.c").await.0, 401);
    assert_eq!(server.send(ask("GET", "/livez").unknown()).await.code, 200);
    assert_eq!(server.send(ask("GET", "/version").unknown()).await.code, 401);
}
