//! One suite for every index: the file, and objects behind the real API server.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, path::Path, sync::Arc};

use tandem_api::{Identity, SeededEntropy, Settings, SystemClock};
use tandem_apiserver::ApiServer;
use tandem_client::in_process;
use tandem_component::Interface;
use tandem_images::{Digest, Entry, FileIndex, Index, IndexError, Kind, ObjectIndex, Reference, Repository};
use tandem_registry::Registry;
use tandem_store::MemoryStore;

async fn objects() -> ObjectIndex {
    let api = ApiServer::new(tandem_apiserver::Config {
        storage: Arc::new(MemoryStore::new()),
        leadership: tokio::sync::watch::channel(tandem_store::Leadership::default()).1,
        registry: Arc::new(Registry::builtin()),
        settings: Settings::default(),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SeededEntropy::new(1)),
        service_account_key: None,
        nodes: None,
        images: None,
        endpoints: Arc::new(tandem_apiserver::Outward),
        pki: None,
        audit: None,
        metric_resolution: tandem_apiserver::METRIC_RESOLUTION,
        ready: Vec::new(),
        quorum: None,
        metrics: Arc::default(),
    });
    api.bootstrap().await.expect("bootstrap");
    ObjectIndex::new(in_process(api.router(), Identity::controller("image")))
}

fn repository(name: &str) -> Repository {
    name.parse().unwrap()
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn entry(repository_name: &str, name: &str, content: &str) -> Entry {
    Entry {
        repository: repository(repository_name),
        reference: reference(name),
        digest: Digest::of(content.as_bytes()),
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        size: 5_000_000_000,
        kind: Kind::Component,
        imports: vec![Interface::new("wasi:cli/environment@0.2.0")],
        broken: Some("why".to_owned()),
        artifact_type: Some("a/b".to_owned()),
        subject: Some(Digest::of(b"subject").to_string()),
        references: vec![Digest::of(b"layer")],
        annotations: BTreeMap::from([("key".to_owned(), "value".to_owned())]),
    }
}

async fn suite(index: Arc<dyn Index>) {
    let (a, b) = (repository("library/a"), repository("b"));
    assert_eq!(index.get(&a, &reference("1")).await.unwrap(), None);
    assert_eq!(index.list(&a).await.unwrap(), []);
    assert!(!index.delete(&a, &reference("1")).await.unwrap());

    let first = entry("library/a", "1", "first");
    index.put(first.clone()).await.unwrap();
    assert_eq!(index.get(&a, &reference("1")).await.unwrap().as_ref(), Some(&first));
    assert_eq!(index.get(&b, &reference("1")).await.unwrap(), None);

    // A tag moves; putting it again changes nothing.
    let moved = entry("library/a", "1", "second");
    for _ in 0..2 {
        index.put(moved.clone()).await.unwrap();
    }
    assert_eq!(index.get(&a, &reference("1")).await.unwrap().as_ref(), Some(&moved));

    let digest = Digest::of(b"first").to_string();
    for other in [entry("library/a", &digest, "first"), entry("library/a", "0", "zero"), entry("b", "1", "b")] {
        index.put(other).await.unwrap();
    }
    let names: Vec<String> = index.list(&a).await.unwrap().iter().map(|entry| entry.reference.to_string()).collect();
    assert_eq!(names, ["0", "1", &digest]);
    assert_eq!(index.repositories().await.unwrap(), [b.clone(), a.clone()]);

    assert!(index.delete(&b, &reference("1")).await.unwrap());
    assert_eq!(index.repositories().await.unwrap(), std::slice::from_ref(&a));

    // Many writers of one name: all succeed, one wins.
    let writers = (0..8).map(|writer| index.put(entry("library/a", "race", &writer.to_string())));
    for outcome in futures::future::join_all(writers).await {
        outcome.unwrap();
    }
    let won = index.get(&a, &reference("race")).await.unwrap().unwrap();
    assert!((0..8).any(|writer: i32| won.digest == Digest::of(writer.to_string().as_bytes())));
}

#[tokio::test]
async fn a_file() {
    let folder = tempfile::tempdir().unwrap();
    suite(Arc::new(FileIndex::open(&folder.path().join("index.json")).unwrap())).await;
}

#[tokio::test]
async fn objects_of_the_cluster() {
    suite(Arc::new(objects().await)).await;
}

#[tokio::test]
async fn lists_are_read_page_by_page() {
    let index = objects().await;
    let puts = (0..1200).map(|number| index.put(entry("many", &format!("t{number}"), "same")));
    for outcome in futures::future::join_all(puts).await {
        outcome.unwrap();
    }
    assert_eq!(index.list(&repository("many")).await.unwrap().len(), 1200);
}

fn open(path: &Path) -> Result<FileIndex, IndexError> {
    FileIndex::open(path)
}

#[tokio::test]
async fn a_file_survives_and_refuses_what_it_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.json");
    open(&path).unwrap().put(entry("a", "1", "content")).await.unwrap();
    let again = open(&path).unwrap();
    assert_eq!(again.get(&repository("a"), &reference("1")).await.unwrap(), Some(entry("a", "1", "content")));
    std::fs::write(&path, r#"{"format":2,"entries":[]}"#).unwrap();
    assert!(matches!(open(&path), Err(IndexError::Version { found: 2, .. })));
    std::fs::write(&path, "{").unwrap();
    assert!(matches!(open(&path), Err(IndexError::Format { .. })));
}
