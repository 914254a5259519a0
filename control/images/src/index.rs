use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tandem_client::kube;
use tandem_component::Interface;

use crate::name::{Digest, Reference, Repository};

/// What a manifest is, as far as running it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// A wasm component or core module.
    Component,
    Container,
    /// Several images, one for each platform.
    Index,
    /// Neither: a signature, a chart, a WIT package.
    Artifact,
}

/// A manifest in a repository, under one of its names: its digest, or a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub repository: Repository,
    pub reference: Reference,
    pub digest: Digest,
    pub media_type: String,
    pub size: u64,
    pub kind: Kind,
    /// What a component needs and nobody provided when it was pushed is decided from these, not kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub imports: Vec<Interface>,
    /// Why a wasm image cannot run at all, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifest that this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Blobs and manifests that must not go while this one is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<Digest>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Why the index did not answer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("the image index could not {operation}: {source}")]
    File { operation: &'static str, source: std::io::Error },
    #[error("the image index file {path} cannot be read: {source}")]
    Format { path: String, source: serde_json::Error },
    #[error("the image index file {path} has format {found}; this version reads {expected}")]
    Version { path: String, found: u32, expected: u32 },
    #[error("the cluster's API could not {operation}: {source}")]
    Api { operation: &'static str, source: Box<kube::Error> },
    #[error("image {name} is written by too many at once")]
    Contended { name: String },
}

/// Which images there are and what they are called.
///
/// A put that returned survives a restart, and every later get sees it.
#[async_trait]
pub trait Index: Send + Sync + 'static {
    async fn get(&self, repository: &Repository, reference: &Reference) -> Result<Option<Entry>, IndexError>;

    /// All entries of the repository, sorted by reference.
    async fn list(&self, repository: &Repository) -> Result<Vec<Entry>, IndexError>;

    /// All repositories that have an entry, sorted.
    async fn repositories(&self) -> Result<Vec<Repository>, IndexError>;

    /// Puts an entry in the place of the one with the same name.
    async fn put(&self, entry: Entry) -> Result<(), IndexError>;

    /// Whether there was one to delete.
    async fn delete(&self, repository: &Repository, reference: &Reference) -> Result<bool, IndexError>;
}
