use std::{
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use tokio::{fs::File, task::spawn_blocking};
use uuid::Uuid;

use crate::{
    durable,
    error::Error,
    name::{Digest, Repository},
};

/// Content by digest, and which repository has which.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    blobs: PathBuf,
    links: PathBuf,
    scratch: PathBuf,
}

/// No segment of a repository's name starts with an underscore, so links never meet a repository's folder.
const LINKS: &str = "_";

impl Blobs {
    pub(crate) fn open(root: &Path) -> io::Result<Blobs> {
        let blobs = Blobs { blobs: root.join("blobs"), links: root.join("links"), scratch: root.join("scratch") };
        // What a crash left half written.
        if blobs.scratch.is_dir() {
            std::fs::remove_dir_all(&blobs.scratch)?;
        }
        for folder in [&blobs.blobs, &blobs.links, &blobs.scratch] {
            durable::make_folder(folder)?;
        }
        Ok(blobs)
    }

    /// Where content is written before it is known to be whole.
    pub(crate) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Whether the content is here, whoever may see it.
    pub(crate) async fn holds(&self, digest: &Digest) -> Result<bool, Error> {
        let found = tokio::fs::try_exists(self.path(digest)).await;
        found.map_err(|error| Error::storage("look for a blob", &error))
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let hash = digest.hash();
        self.blobs.join(digest.algorithm().name()).join(&hash[..2]).join(hash)
    }

    fn link_path(&self, repository: &Repository, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}", digest.algorithm().name(), digest.hash());
        self.links.join(repository.as_str()).join(LINKS).join(name)
    }

    /// The blob as this repository sees it, with its size.
    pub(crate) async fn open_in(&self, repository: &Repository, digest: &Digest) -> Result<(File, u64), Error> {
        let unknown = || Error::blob_unknown(digest.as_str());
        if !self.is_linked(repository, digest).await? {
            return Err(unknown());
        }
        let file = match File::open(self.path(digest)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown()),
            other => other.map_err(|error| Error::storage("open a blob", &error))?,
        };
        let size = file.metadata().await.map_err(|error| Error::storage("read a blob's size", &error))?.len();
        Ok((file, size))
    }

    /// The size of the blob, if this repository has it.
    pub(crate) async fn size_in(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>, Error> {
        match self.open_in(repository, digest).await {
            Ok((_, size)) => Ok(Some(size)),
            Err(error) if error.code == "BLOB_UNKNOWN" => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn is_linked(&self, repository: &Repository, digest: &Digest) -> Result<bool, Error> {
        let path = self.link_path(repository, digest);
        tokio::fs::try_exists(path).await.map_err(|error| Error::storage("look for a blob", &error))
    }

    /// All bytes of a blob that is at most `limit` long, hashed again on the way in.
    pub(crate) async fn read(&self, digest: &Digest, limit: u64) -> Result<Bytes, Error> {
        let path = self.path(digest);
        let size = match tokio::fs::metadata(&path).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::blob_unknown(digest.as_str())),
            other => other.map_err(|error| Error::storage("read a blob's size", &error))?.len(),
        };
        if size > limit {
            return Err(Error::too_large("the blob", limit));
        }
        let bytes = tokio::fs::read(path).await.map_err(|error| Error::storage("read a blob", &error))?;
        if crate::uploads::hash_of(digest.algorithm(), &bytes) != *digest {
            let corrupt = io::Error::new(io::ErrorKind::InvalidData, format!("{digest} does not have its digest"));
            return Err(Error::storage("read a blob", &corrupt));
        }
        Ok(bytes.into())
    }

    /// Keeps bytes under the digest that they were found to have. Returns when they are on disk.
    pub(crate) async fn write(&self, digest: &Digest, bytes: Bytes) -> Result<(), Error> {
        let (to, scratch) = (self.path(digest), self.scratch.join(Uuid::new_v4().to_string()));
        blocking("write a blob", move || durable::write(&scratch, &to, &bytes)).await
    }

    /// Moves a flushed file, found to have this digest, to its place.
    pub(crate) async fn publish(&self, from: PathBuf, digest: &Digest) -> Result<(), Error> {
        let to = self.path(digest);
        blocking("keep a blob", move || durable::publish(&from, &to)).await
    }

    /// Makes the blob visible in the repository.
    pub(crate) async fn link(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        let (path, scratch) = (self.link_path(repository, digest), self.scratch.join(Uuid::new_v4().to_string()));
        blocking("link a blob", move || if path.exists() { Ok(()) } else { durable::write(&scratch, &path, b"") }).await
    }

    /// Hides the blob from the repository.
    pub(crate) async fn unlink(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        let path = self.link_path(repository, digest);
        let unknown = Error::blob_unknown(digest.as_str());
        match spawn_blocking(move || std::fs::remove_file(path)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Err(unknown),
            Ok(Err(error)) => Err(Error::storage("unlink a blob", &error)),
            Err(error) => Err(Error::internal("unlink a blob", &error)),
        }
    }
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    match spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| Error::storage(operation, &error)),
        Err(error) => Err(Error::internal(operation, &error)),
    }
}
