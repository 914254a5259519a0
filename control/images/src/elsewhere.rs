//! What this member does not hold, fetched from one that does: checked by its digest, then kept.

use std::{io, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use sha2::{Digest as _, Sha256, Sha512};
use tokio::{fs::File, io::AsyncWriteExt as _, sync::Semaphore};
use uuid::Uuid;

use crate::{
    blobs::Blobs,
    error::Error,
    name::{Algorithm, Digest, Repository},
};

/// The header of a request by which one member asks another: it is answered from what that member holds itself.
pub const HERE_ONLY: &str = "tandem-here-only";
/// Content that is fetched at the same time.
const FETCHES_MAX: usize = 8;

/// The registries of other members.
#[async_trait]
pub trait Elsewhere: Send + Sync + 'static {
    /// What another member answers to a request for this path (`/v2/…`), sent with [`HERE_ONLY`]; `None` where none of
    /// them has it.
    async fn fetch(&self, path: &str) -> io::Result<Option<BoxStream<'static, io::Result<Bytes>>>>;
}

pub(crate) struct Fetches {
    others: Option<Arc<dyn Elsewhere>>,
    slots: Semaphore,
}

impl Fetches {
    pub(crate) fn new(others: Option<Arc<dyn Elsewhere>>) -> Fetches {
        Fetches { others, slots: Semaphore::new(FETCHES_MAX) }
    }

    /// Has a blob of a repository here, if any member has it.
    pub(crate) async fn blob(
        &self,
        blobs: &Blobs,
        repository: &Repository,
        digest: &Digest,
        limit: u64,
    ) -> Result<(), Error> {
        if self.others.is_none() || blobs.size_in(repository, digest).await?.is_some() {
            return Ok(());
        }
        let path = format!("/v2/{repository}/blobs/{digest}");
        if self.content(blobs, &path, digest, limit).await? {
            blobs.link(repository, digest).await?;
        }
        Ok(())
    }

    /// Has the bytes of a manifest here, if any member has them.
    pub(crate) async fn manifest(
        &self,
        blobs: &Blobs,
        repository: &Repository,
        digest: &Digest,
        limit: u64,
    ) -> Result<(), Error> {
        if self.others.is_none() || blobs.holds(digest).await? {
            return Ok(());
        }
        self.content(blobs, &format!("/v2/{repository}/manifests/{digest}"), digest, limit).await.map(drop)
    }

    async fn content(&self, blobs: &Blobs, path: &str, digest: &Digest, limit: u64) -> Result<bool, Error> {
        let Some(others) = &self.others else { return Ok(false) };
        let failed = |error: io::Error| Error::storage("fetch from another member", &error);
        let _slot = self.slots.acquire().await.map_err(|error| failed(io::Error::other(error)))?;
        let Some(mut content) = others.fetch(path).await.map_err(failed)? else { return Ok(false) };
        let scratch = Scratch(blobs.scratch().join(Uuid::new_v4().to_string()));
        let mut file = File::create(&scratch.0).await.map_err(failed)?;
        let (mut hash, mut length) = (Hash::of(digest.algorithm()), 0);
        while let Some(bytes) = content.next().await {
            let bytes = bytes.map_err(failed)?;
            length += bytes.len() as u64;
            if length > limit {
                return Err(Error::too_large("what another member sends", limit));
            }
            hash.update(&bytes);
            file.write_all(&bytes).await.map_err(failed)?;
        }
        file.sync_all().await.map_err(failed)?;
        let found = hash.end();
        if found != *digest {
            let why = format!("another member sent {found} instead of {digest}");
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        blobs.publish(scratch.0.clone(), digest).await?;
        Ok(true)
    }
}

/// Removed when it is dropped, unless it was moved to its place.
struct Scratch(std::path::PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "a scratch file stays until the next start");
        }
    }
}

enum Hash {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hash {
    fn of(algorithm: Algorithm) -> Hash {
        match algorithm {
            Algorithm::Sha256 => Hash::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hash::Sha512(Sha512::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Sha512(hash) => hash.update(bytes),
        }
    }

    fn end(self) -> Digest {
        match self {
            Hash::Sha256(hash) => Digest::new(Algorithm::Sha256, &hash.finalize()),
            Hash::Sha512(hash) => Digest::new(Algorithm::Sha512, &hash.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member that answers every request with the same bytes.
    struct Other(Option<&'static [u8]>);

    #[async_trait]
    impl Elsewhere for Other {
        async fn fetch(&self, _: &str) -> io::Result<Option<BoxStream<'static, io::Result<Bytes>>>> {
            Ok(self.0.map(|bytes| futures::stream::iter(bytes.chunks(2).map(|chunk| Ok(chunk.into()))).boxed()))
        }
    }

    async fn fetched(sent: Option<&'static [u8]>, limit: u64) -> (Result<(), String>, Option<u64>, usize) {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        let fetches = Fetches::new(Some(Arc::new(Other(sent))));
        let (repository, digest) = ("a/b".parse().unwrap(), Digest::of(b"hello"));
        let result = fetches.blob(&blobs, &repository, &digest, limit).await;
        let held = blobs.size_in(&repository, &digest).await.unwrap();
        let left = std::fs::read_dir(blobs.scratch()).unwrap().count();
        (result.map_err(|error| error.code.to_owned()), held, left)
    }

    #[tokio::test]
    async fn only_what_has_the_digest_is_kept() {
        assert_eq!(fetched(Some(b"hello"), 100).await, (Ok(()), Some(5), 0));
        assert_eq!(fetched(None, 100).await, (Ok(()), None, 0));
        let (wrong, held, left) = fetched(Some(b"hellO"), 100).await;
        assert!(wrong.is_err());
        assert_eq!((held, left), (None, 0));
        let (long, held, left) = fetched(Some(b"hello"), 4).await;
        assert_eq!((long, held, left), (Err("SIZE_INVALID".to_owned()), None, 0));
    }
}
