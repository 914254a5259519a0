use std::{io, path::PathBuf, sync::Arc, time::Duration};

use axum::Router;
use bytes::Bytes;
use tandem_api::Clock;
use tandem_component::{
    Component, Interface,
    image::{ImageKind, kind},
    refuse,
};
use tokio::sync::{RwLock, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    access::Verifier,
    blobs::Blobs,
    elsewhere::{Elsewhere, Fetches},
    error::Error,
    index::{Entry, Index, IndexError, Kind},
    manifest::Sound,
    name::{Digest, ImageName, Reference, Repository, Tag},
    uploads::Uploads,
};

/// How much one client, or all together, may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub manifest_bytes: u64,
    pub blob_bytes: u64,
    /// Bodies that are being written at the same time.
    pub bodies: usize,
    /// Uploads that have begun and not ended.
    pub uploads: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { manifest_bytes: 4 << 20, blob_bytes: 16 << 30, bodies: 64, uploads: 1024 }
    }
}

/// What a registry needs from the one who starts it.
#[derive(Clone)]
pub struct Config {
    /// `D/images`.
    pub folder: PathBuf,
    pub index: Arc<dyn Index>,
    pub clock: Arc<dyn Clock>,
    /// For requests that carry a token which the layers in front did not look at.
    pub verifier: Option<Verifier>,
    /// Where content is fetched from that is not here; `None` for a registry that is alone.
    pub others: Option<Arc<dyn Elsewhere>>,
    pub limits: Limits,
}

/// What is known about an image before a node has seen it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub kind: Kind,
    /// Interfaces that the component imports and nobody provides.
    pub refused: Vec<Interface>,
    /// Why a wasm image cannot run at all, if so.
    pub broken: Option<String>,
}

/// The registry: blobs on disk, names in the index.
pub struct Registry {
    pub(crate) blobs: Blobs,
    pub(crate) uploads: Uploads,
    pub(crate) index: Arc<dyn Index>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) verifier: Option<Verifier>,
    pub(crate) limits: Limits,
    pub(crate) fetches: Fetches,
    pub(crate) bodies: Semaphore,
    /// Deletions hold it alone, so that nothing goes between a manifest's check and its put.
    pub(crate) changes: RwLock<()>,
}

const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// Configs are small; one that is not cannot be an image's.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

impl Registry {
    pub fn open(config: Config) -> io::Result<Registry> {
        Ok(Registry {
            blobs: Blobs::open(&config.folder)?,
            uploads: Uploads::open(&config.folder, config.limits.uploads)?,
            index: config.index,
            clock: config.clock,
            verifier: config.verifier,
            fetches: Fetches::new(config.others),
            bodies: Semaphore::new(config.limits.bodies),
            limits: config.limits,
            changes: RwLock::new(()),
        })
    }

    /// Everything under `/v2/`.
    pub fn router(self: &Arc<Self>) -> Router {
        crate::http::router(Arc::clone(self))
    }

    /// Sweeps expired uploads until it is told to stop.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(SWEEP_EVERY);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            match self.uploads.expire(self.clock.now()).await {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "removed uploads that nothing arrived for"),
                Err(error) => tracing::warn!(%error, "sweeping uploads"),
            }
        }
    }

    /// What is known about the `image` of a container; none when this registry does not have it.
    pub async fn known(&self, image: &str) -> Result<Option<Known>, Error> {
        let Ok(name) = image.parse::<ImageName>() else { return Ok(None) };
        if !name.is_local() {
            return Ok(None);
        }
        let Some(mut entry) = self.entry(&name.repository, &name.reference()).await? else { return Ok(None) };
        if entry.kind == Kind::Index {
            entry.kind = self.kind_of_children(&entry).await?;
        }
        Ok(Some(Known { kind: entry.kind, refused: refuse(&entry.imports), broken: entry.broken }))
    }

    /// An index is a component only if all of its images are.
    async fn kind_of_children(&self, index: &Entry) -> Result<Kind, Error> {
        for digest in &index.references {
            let child = self.entry(&index.repository, &Reference::Digest(digest.clone())).await?;
            if child.is_none_or(|child| child.kind != Kind::Component) {
                return Ok(Kind::Container);
            }
        }
        Ok(if index.references.is_empty() { Kind::Artifact } else { Kind::Component })
    }

    pub(crate) async fn entry(&self, repository: &Repository, reference: &Reference) -> Result<Option<Entry>, Error> {
        self.index.get(repository, reference).await.map_err(|error| failed(&error))
    }

    pub(crate) async fn entries(&self, repository: &Repository) -> Result<Vec<Entry>, Error> {
        self.index.list(repository).await.map_err(|error| failed(&error))
    }

    /// Stores a sound manifest under its digest and these tags.
    pub(crate) async fn put(
        &self,
        repository: &Repository,
        tags: &[Tag],
        digest: &Digest,
        bytes: Bytes,
        sound: Sound,
    ) -> Result<(), Error> {
        let _change = self.changes.read().await;
        self.check_references(repository, &sound).await?;
        let entry = self.describe(repository, digest, bytes.len() as u64, sound).await?;
        self.blobs.write(digest, bytes).await?;
        // Under its digest first: a tag never points to what cannot be had by digest.
        let references = std::iter::once(Reference::Digest(digest.clone()));
        for reference in references.chain(tags.iter().cloned().map(Reference::Tag)) {
            self.index.put(Entry { reference, ..entry.clone() }).await.map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// Has a blob here that only another member has: it may have been uploaded there.
    pub(crate) async fn fetch_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        self.fetches.blob(&self.blobs, repository, digest, self.limits.blob_bytes).await
    }

    pub(crate) async fn fetch_manifest(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        self.fetches.manifest(&self.blobs, repository, digest, self.limits.manifest_bytes).await
    }

    async fn check_references(&self, repository: &Repository, sound: &Sound) -> Result<(), Error> {
        for blob in &sound.blobs {
            self.fetch_blob(repository, blob).await?;
            if !self.blobs.is_linked(repository, blob).await? {
                return Err(Error::manifest_blob_unknown(blob.as_str()));
            }
        }
        for child in &sound.children {
            if self.entry(repository, &Reference::Digest(child.clone())).await?.is_none() {
                return Err(Error::manifest_blob_unknown(child.as_str()));
            }
        }
        Ok(())
    }

    async fn describe(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: u64,
        sound: Sound,
    ) -> Result<Entry, Error> {
        let (kind, imports, broken) = match self.classify(repository, &sound).await? {
            Class::Plain(kind) => (kind, Vec::new(), None),
            Class::Component(imports) => (Kind::Component, imports, None),
            Class::Broken(why) => (Kind::Component, Vec::new(), Some(why)),
        };
        let config_type = sound.manifest.config.as_ref().map(|config| config.media_type.clone());
        Ok(Entry {
            repository: repository.clone(),
            reference: Reference::Digest(digest.clone()),
            digest: digest.clone(),
            media_type: sound.media_type,
            size,
            kind,
            imports,
            broken,
            artifact_type: sound.manifest.artifact_type.or(config_type),
            subject: sound.subject.map(String::from),
            references: sound.blobs.into_iter().chain(sound.children).collect(),
            annotations: sound.manifest.annotations,
        })
    }

    /// What the image is, from its bytes where it says that it is wasm.
    async fn classify(&self, repository: &Repository, sound: &Sound) -> Result<Class, Error> {
        let config = match sound.manifest.config.as_ref().map(|config| config.digest.parse::<Digest>()).transpose()? {
            Some(digest) if self.is_small(repository, &digest).await? => {
                self.blobs.read(&digest, CONFIG_BYTES_MAX).await?
            }
            _ => Bytes::new(),
        };
        let form = match kind(&sound.manifest, &config) {
            Ok(ImageKind::Container) => return Ok(Class::Plain(Kind::Container)),
            Ok(ImageKind::Index) => return Ok(Class::Plain(Kind::Index)),
            Ok(ImageKind::Artifact(_)) => return Ok(Class::Plain(Kind::Artifact)),
            Ok(ImageKind::Wasm(form)) => form,
            Err(error) => return Ok(Class::Broken(error.to_string())),
        };
        let layers = sound.manifest.layers.as_deref().unwrap_or_default();
        let tandem_component::image::Form::Layer(index) = form else { return Ok(Class::Component(Vec::new())) };
        let Some(layer) = layers.get(index) else { return Ok(Class::Plain(Kind::Artifact)) };
        let bytes = match self.blobs.read(&layer.digest.parse()?, tandem_component::SIZE_MAX).await {
            Ok(bytes) => bytes,
            Err(error) if error.code == "SIZE_INVALID" => return Ok(Class::Broken(error.to_string())),
            Err(error) => return Err(error),
        };
        let inspected = tokio::task::spawn_blocking(move || Component::inspect(&bytes)).await;
        match inspected.map_err(|error| Error::internal("inspect a component", &error))? {
            Ok(inspection) => Ok(Class::Component(inspection.imports)),
            Err(tandem_component::Error::WitPackage) => Ok(Class::Plain(Kind::Artifact)),
            Err(error) => Ok(Class::Broken(error.to_string())),
        }
    }

    async fn is_small(&self, repository: &Repository, digest: &Digest) -> Result<bool, Error> {
        Ok(self.blobs.size_in(repository, digest).await?.is_some_and(|size| size <= CONFIG_BYTES_MAX))
    }
}

enum Class {
    Plain(Kind),
    Component(Vec<Interface>),
    Broken(String),
}

pub(crate) fn failed(error: &IndexError) -> Error {
    Error::internal("use its index", error)
}
