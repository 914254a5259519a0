use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tandem_component::{Component, Inspection};

use super::{
    Credentials, PullError, Reference, Registries,
    client::{Client, Fetched, aside},
    reference::valid_digest,
};

const INDEX_VERSION: u32 = 1;

/// An image that is on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stored {
    /// The digest of its manifest.
    pub(crate) id: String,
    /// The digest of its wasm file.
    pub(crate) file: String,
    pub(crate) size: u64,
    pub(crate) inspection: Inspection,
    /// `HOST/REPOSITORY:TAG`.
    pub(crate) tags: BTreeSet<String>,
    /// `HOST/REPOSITORY`.
    pub(crate) repositories: BTreeSet<String>,
}

impl Stored {
    /// `REPOSITORY@DIGEST`, preferring the repository that the caller named.
    pub(crate) fn digest(&self, reference: &str) -> String {
        let named = Reference::parse(reference).map(|reference| reference.name());
        let repository = named.filter(|name| self.repositories.contains(name));
        match repository.or_else(|| self.repositories.first().cloned()) {
            Some(repository) => format!("{repository}@{}", self.id),
            None => self.id.clone(),
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    version: u32,
    images: BTreeMap<String, Stored>,
}

/// The images of this node.
pub(crate) struct Images {
    folder: PathBuf,
    index: RwLock<Index>,
}

impl Images {
    pub(crate) fn open(folder: PathBuf) -> io::Result<Images> {
        std::fs::create_dir_all(folder.join("blobs"))?;
        let index = match std::fs::read(folder.join("index.json")) {
            Ok(bytes) => read_index(&bytes, &folder)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Index::default(),
            Err(error) => return Err(error),
        };
        Ok(Images { folder, index: RwLock::new(index) })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn all(&self) -> Vec<Stored> {
        self.index.read().images.values().cloned().collect()
    }

    /// By id, by `REPOSITORY@DIGEST`, or by name.
    pub(crate) fn find(&self, reference: &str) -> Option<Stored> {
        let index = self.index.read();
        if let Some(stored) = index.images.get(reference) {
            return Some(stored.clone());
        }
        let reference = Reference::parse(reference)?;
        let name = reference.name();
        if let Some(digest) = &reference.digest {
            return index.images.get(digest).filter(|stored| stored.repositories.contains(&name)).cloned();
        }
        let tag = reference.to_string();
        index.images.values().find(|stored| stored.tags.contains(&tag)).cloned()
    }

    /// Where a wasm file is.
    pub(crate) fn file(&self, digest: &str) -> Option<PathBuf> {
        let digest = valid_digest(digest)?;
        Some(self.folder.join("blobs").join(digest.replace(':', "-")))
    }

    pub(crate) async fn pull(
        &self,
        text: &str,
        registries: &Registries,
        credentials: Option<&Credentials>,
    ) -> Result<Stored, PullError> {
        let reference = Reference::parse(text).ok_or_else(|| PullError::Name(text.to_owned()))?;
        let fetched = Client::new(registries, &reference, credentials)?.fetch().await?;
        let looked = aside(&reference, move || Looked::at(fetched)).await?;
        self.keep(&reference, looked)
    }

    fn keep(&self, reference: &Reference, looked: Looked) -> Result<Stored, PullError> {
        let Looked { fetched: Fetched { id, bytes }, file, inspection } = looked;
        let io = |source| PullError::Io { reference: reference.to_string(), source };
        let not_wasm = |message| PullError::NotWasm { reference: reference.to_string(), message };
        let inspection = inspection.map_err(|error| not_wasm(error.to_string()))?;
        let path = self.file(&file).ok_or_else(|| not_wasm("its file has no digest".to_owned()))?;
        if !path.exists() {
            let temporary = path.with_extension("new");
            std::fs::write(&temporary, &bytes).and_then(|()| std::fs::rename(&temporary, &path)).map_err(io)?;
        }
        let mut index = self.index.write();
        let tag = reference.digest.is_none().then(|| reference.to_string());
        if let Some(tag) = &tag {
            // A name means one image: the newest that was pulled under it.
            for stored in index.images.values_mut() {
                stored.tags.remove(tag);
            }
        }
        let size = bytes.len() as u64;
        let stored = index.images.entry(id.clone()).or_insert_with(|| Stored {
            id,
            file,
            size,
            inspection,
            tags: BTreeSet::new(),
            repositories: BTreeSet::new(),
        });
        stored.tags.extend(tag);
        stored.repositories.insert(reference.name());
        let stored = stored.clone();
        self.save(&mut index).map_err(io)?;
        Ok(stored)
    }

    /// Forgets the image; its file goes when no other image has it. What already runs goes on.
    pub(crate) fn remove(&self, reference: &str) -> io::Result<Option<Stored>> {
        let Some(stored) = self.find(reference) else { return Ok(None) };
        let mut index = self.index.write();
        index.images.remove(&stored.id);
        self.save(&mut index)?;
        if !index.images.values().any(|other| other.file == stored.file)
            && let Some(path) = self.file(&stored.file)
        {
            std::fs::remove_file(path)?;
        }
        Ok(Some(stored))
    }

    /// Whether no image has this wasm file any more.
    pub(crate) fn file_is_gone(&self, file: &str) -> bool {
        !self.index.read().images.values().any(|stored| stored.file == file)
    }

    fn save(&self, index: &mut Index) -> io::Result<()> {
        index.version = INDEX_VERSION;
        let bytes = serde_json::to_vec(&*index).map_err(io::Error::other)?;
        let temporary = self.folder.join("index.new");
        std::fs::write(&temporary, bytes)?;
        std::fs::rename(temporary, self.folder.join("index.json"))
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.index
            .read()
            .images
            .values()
            .map(|stored| (stored.file.clone(), stored.size))
            .collect::<BTreeMap<_, _>>()
            .values()
            .sum()
    }
}

/// What came from a registry, and what it is.
struct Looked {
    fetched: Fetched,
    /// The digest of the wasm file.
    file: String,
    inspection: Result<Inspection, tandem_component::Error>,
}

impl Looked {
    fn at(fetched: Fetched) -> Looked {
        let inspection = Component::inspect(&fetched.bytes);
        Looked { file: tandem_component::image::digest(&fetched.bytes), inspection, fetched }
    }
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Images can be pulled again, so an index that cannot be read is only a loss of time.
fn read_index(bytes: &[u8], folder: &Path) -> io::Result<Index> {
    if let Ok(Versioned { version }) = serde_json::from_slice(bytes)
        && version > INDEX_VERSION
    {
        let text = format!(
            "{} has images in format {version}; this version of tandem reads {INDEX_VERSION}",
            folder.display()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(serde_json::from_slice(bytes).unwrap_or_else(|error| {
        tracing::error!(%error, folder = %folder.display(), "the list of images cannot be read; they are pulled again");
        Index::default()
    }))
}
