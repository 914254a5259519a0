//! A registry by itself, on plain HTTP, for clients and conformance suites: `serve FOLDER ADDRESS TOKEN`.
//!
//! Whoever has the token, as a password or as a bearer token, may do everything.

use std::{error::Error, path::Path, sync::Arc};

use futures::FutureExt;
use tandem_api::{Identity, SystemClock};
use tandem_images::{Config, FileIndex, Limits, Registry, Verifier};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(address), Some(token)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: serve FOLDER ADDRESS TOKEN".into());
    };
    let verifier: Verifier = Arc::new(move |given| {
        let known = given == token;
        async move { known.then(Identity::administrator) }.boxed()
    });
    std::fs::create_dir_all(&folder)?;
    let config = Config {
        folder: Path::new(&folder).to_owned(),
        index: Arc::new(FileIndex::open(&Path::new(&folder).join("index.json"))?),
        clock: Arc::new(SystemClock),
        verifier: Some(verifier),
        others: None,
        limits: Limits::default(),
    };
    let registry = Arc::new(Registry::open(config)?);
    axum::serve(TcpListener::bind(address).await?, registry.router()).await?;
    Ok(())
}
