//! The API server alone, over the memory store, on plain HTTP at a loopback port, everybody an administrator.
//!
//! ```text
//! cargo run -p tandem-apiserver --example api_only -- 127.0.0.1:8001
//! kubectl --server http://127.0.0.1:8001 get namespaces
//! ```
//!
//! Nothing acts here: no controller, no scheduler, no node. It is for looking at what clients send and get.

use std::sync::Arc;

use axum::extract::Request;
use tandem_api::{Identity, Settings, SystemClock, SystemEntropy};
use tandem_apiserver::{ApiServer, Config};
use tandem_registry::Registry;
use tandem_store::MemoryStore;
use tokio::net::TcpListener;
use tower::{Layer as _, util::MapRequestLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8001".to_owned());
    let directory = tempfile::tempdir()?;
    let pki = tandem_pki::Pki::open(directory.path(), tandem_api::Clock::now(&SystemClock))?;
    let api = ApiServer::new(Config {
        storage: Arc::new(MemoryStore::new()),
        registry: Arc::new(Registry::builtin()),
        settings: Settings::default(),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
        service_account_key: Some(pki.service_accounts.clone()),
        nodes: None,
        images: None,
        ready: Vec::new(),
        metrics: Arc::default(),
    });
    api.bootstrap().await?;
    let administrator = MapRequestLayer::new(|mut request: Request| {
        request.extensions_mut().insert(Identity::administrator());
        request
    });
    let service = administrator.layer(api.router());
    let listener = TcpListener::bind(address).await?;
    axum::serve(listener, axum::ServiceExt::<Request>::into_make_service(service)).await?;
    Ok(())
}
