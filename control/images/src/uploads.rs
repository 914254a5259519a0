use std::{
    collections::HashMap,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::body::BodyDataStream;
use futures::StreamExt;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};
use tandem_api::Identity;
use tokio::{
    fs::{File, OpenOptions},
    io::{AsyncSeekExt, AsyncWriteExt},
    sync::{Mutex as AsyncMutex, MutexGuard},
};
use uuid::Uuid;

use crate::{
    blobs::{Blobs, blocking},
    durable,
    error::Error,
    name::{Algorithm, Digest, Repository},
};

/// How long an upload that nothing arrives for is kept.
pub(crate) const EXPIRY: Duration = Duration::from_secs(24 * 3600);

/// The bytes that a chunk says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Range {
    pub(crate) fn length(self) -> u64 {
        self.last - self.first + 1
    }
}

/// What must survive a restart: whose upload it is. How far it came is the length of its file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ticket {
    repository: Repository,
    owner: String,
}

/// An upload that has not ended.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) id: Uuid,
    ticket: Ticket,
    session: AsyncMutex<Session>,
}

impl Upload {
    /// The right to write to it. A second writer is told, rather than made to wait for a body that may never end.
    pub(crate) fn hold(&self) -> Result<MutexGuard<'_, Session>, Error> {
        let Ok(session) = self.session.try_lock() else {
            return Err(Error::busy("another request writes this upload"));
        };
        if session.ended { Err(Error::upload_unknown(&self.id.to_string())) } else { Ok(session) }
    }
}

/// How far an upload came.
#[derive(Debug)]
pub(crate) struct Session {
    path: PathBuf,
    file: File,
    /// What has arrived and is part of the hash.
    arrived: u64,
    hasher: Sha256,
    touched: Timestamp,
    ended: bool,
}

/// The uploads that have not ended, each one's bytes in a file.
#[derive(Debug)]
pub(crate) struct Uploads {
    folder: PathBuf,
    open_max: usize,
    open: Mutex<HashMap<Uuid, Arc<Upload>>>,
}

impl Uploads {
    pub(crate) fn open(root: &Path, open_max: usize) -> io::Result<Uploads> {
        let folder = root.join("uploads");
        durable::make_folder(&folder)?;
        Ok(Uploads { folder, open_max, open: Mutex::default() })
    }

    fn paths(&self, id: Uuid) -> (PathBuf, PathBuf) {
        (self.folder.join(id.to_string()), self.folder.join(format!("{id}.json")))
    }

    pub(crate) async fn start(
        &self,
        repository: &Repository,
        owner: &Identity,
        now: Timestamp,
    ) -> Result<Arc<Upload>, Error> {
        if self.open.lock().len() >= self.open_max {
            return Err(Error::busy("too many uploads are under way"));
        }
        let id = Uuid::new_v4();
        let (path, ticket_path) = self.paths(id);
        let ticket = Ticket { repository: repository.clone(), owner: owner.name.clone() };
        let text = serde_json::to_vec(&ticket).map_err(|error| Error::internal("note an upload", &error))?;
        let data = path.clone();
        let file = blocking("start an upload", move || {
            std::fs::write(ticket_path, text)?;
            std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(data)
        })
        .await?;
        let (file, hasher) = (File::from_std(file), Sha256::new());
        let session = Session { path, file, arrived: 0, hasher, touched: now, ended: false };
        let upload = Arc::new(Upload { id, ticket, session: AsyncMutex::new(session) });
        self.open.lock().insert(id, Arc::clone(&upload));
        Ok(upload)
    }

    /// The upload, if it is this owner's in this repository; also after a restart.
    pub(crate) async fn find(
        &self,
        id: &str,
        repository: &Repository,
        owner: &Identity,
        now: Timestamp,
    ) -> Result<Arc<Upload>, Error> {
        let unknown = || Error::upload_unknown(id);
        let uuid = Uuid::try_parse(id).map_err(|_| unknown())?;
        let known = self.open.lock().get(&uuid).cloned();
        let upload = match known {
            Some(upload) => upload,
            None => self.resume(uuid, now).await?.ok_or_else(unknown)?,
        };
        let mine = upload.ticket.repository == *repository && upload.ticket.owner == owner.name;
        if mine { Ok(upload) } else { Err(unknown()) }
    }

    /// Takes up an upload that an earlier process began.
    async fn resume(&self, id: Uuid, now: Timestamp) -> Result<Option<Arc<Upload>>, Error> {
        let (path, ticket_path) = self.paths(id);
        if !path.exists() || !ticket_path.exists() {
            return Ok(None);
        }
        let data = path.clone();
        let (ticket, arrived, hasher) = blocking("resume an upload", move || {
            let ticket: Ticket = serde_json::from_slice(&std::fs::read(ticket_path)?)?;
            let mut hasher = Sha256::new();
            let arrived = hash_file(&data, |bytes| hasher.update(bytes))?;
            Ok((ticket, arrived, hasher))
        })
        .await?;
        let file = OpenOptions::new().read(true).write(true).open(&path).await;
        let file = file.map_err(|error| Error::storage("resume an upload", &error))?;
        let session = Session { path, file, arrived, hasher, touched: now, ended: false };
        let upload = Arc::new(Upload { id, ticket, session: AsyncMutex::new(session) });
        // Two requests may resume it at once: both must get the same one.
        Ok(Some(Arc::clone(self.open.lock().entry(id).or_insert(upload))))
    }

    /// Forgets an upload and its bytes.
    pub(crate) async fn cancel(&self, id: Uuid) -> Result<(), Error> {
        self.open.lock().remove(&id);
        let (path, ticket) = self.paths(id);
        blocking("cancel an upload", move || remove_both(&path, &ticket)).await
    }

    /// Makes the upload a blob, if its bytes have the digest.
    pub(crate) async fn finish(
        &self,
        id: Uuid,
        session: &mut Session,
        digest: &Digest,
        blobs: &Blobs,
    ) -> Result<(), Error> {
        let found = session.digest(digest.algorithm()).await?;
        if found != *digest {
            session.end();
            self.cancel(id).await?;
            return Err(Error::digest_invalid(format!("the uploaded bytes have the digest {found}, not {digest}")));
        }
        session.file.sync_all().await.map_err(|error| Error::storage("flush an upload", &error))?;
        blobs.publish(session.path.clone(), digest).await?;
        session.end();
        self.cancel(id).await
    }

    /// Removes uploads that nothing arrived for in a day. Returns how many.
    pub(crate) async fn expire(&self, now: Timestamp) -> Result<usize, Error> {
        let folder = self.folder.clone();
        let on_disk = blocking("list uploads", move || {
            let mut found = Vec::new();
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                if let Ok(id) = Uuid::try_parse(&entry.file_name().to_string_lossy()) {
                    found.push((id, entry.metadata()?.modified()?));
                }
            }
            Ok(found)
        })
        .await?;
        let mut removed = 0;
        for (id, modified) in on_disk {
            let known = self.open.lock().get(&id).cloned();
            let touched = match known.as_ref().map(|upload| upload.session.try_lock()) {
                Some(Ok(session)) => session.touched,
                Some(Err(_)) => now,
                None => Timestamp::try_from(modified).unwrap_or(now),
            };
            if now.duration_since(touched).unsigned_abs() > EXPIRY && touched < now {
                self.cancel(id).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

fn remove_both(data: &Path, ticket: &Path) -> io::Result<()> {
    for path in [data, ticket] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

impl Session {
    pub(crate) fn arrived(&self) -> u64 {
        self.arrived
    }

    /// Nobody can write to it from now on.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// Appends a body. What arrived of a body that breaks off stays, so that the client can go on from there.
    pub(crate) async fn append(
        &mut self,
        body: BodyDataStream,
        range: Option<Range>,
        limit: u64,
        now: Timestamp,
    ) -> Result<(), Error> {
        if let Some(range) = range
            && range.first != self.arrived
        {
            let message = format!("the chunk starts at {}, but {} bytes have arrived", range.first, self.arrived);
            return Err(Error::range(message, self.arrived));
        }
        let before = (self.arrived, self.hasher.clone());
        let outcome = self.take(body, range.map_or(limit, |range| limit.min(range.last + 1)), limit).await;
        self.touched = now;
        if let (Ok(()), Some(range)) = (&outcome, range)
            && self.arrived != range.last + 1
        {
            (self.arrived, self.hasher) = before;
            let message = format!("the chunk says that it has {} bytes, but fewer arrived", range.length());
            return Err(Error::upload_invalid(message));
        }
        outcome
    }

    async fn take(&mut self, mut body: BodyDataStream, end: u64, limit: u64) -> Result<(), Error> {
        let storage = |error: io::Error| Error::storage("write an upload", &error);
        // An append that was dropped half way may have left bytes that are not in the hash.
        self.file.flush().await.map_err(storage)?;
        self.file.set_len(self.arrived).await.map_err(storage)?;
        self.file.seek(io::SeekFrom::Start(self.arrived)).await.map_err(storage)?;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| Error::upload_invalid(format!("the body broke off: {error}")))?;
            let arrived = self.arrived + chunk.len() as u64;
            if arrived > limit {
                return Err(Error::too_large("the blob", limit));
            }
            if arrived > end {
                return Err(Error::upload_invalid("the chunk has more bytes than it says"));
            }
            self.file.write_all(&chunk).await.map_err(storage)?;
            self.hasher.update(&chunk);
            self.arrived = arrived;
        }
        self.file.flush().await.map_err(storage)
    }

    async fn digest(&mut self, algorithm: Algorithm) -> Result<Digest, Error> {
        match algorithm {
            Algorithm::Sha256 => Ok(Digest::new(algorithm, &self.hasher.clone().finalize())),
            Algorithm::Sha512 => {
                let path = self.path.clone();
                let hash = blocking("hash an upload", move || {
                    let mut hasher = Sha512::new();
                    hash_file(&path, |bytes| hasher.update(bytes))?;
                    Ok(hasher.finalize())
                });
                Ok(Digest::new(algorithm, &hash.await?))
            }
        }
    }
}

fn hash_file(path: &Path, mut update: impl FnMut(&[u8])) -> io::Result<u64> {
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(total);
        }
        update(&buffer[..count]);
        total += count as u64;
    }
}

/// The digest of bytes by this algorithm.
pub(crate) fn hash_of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    match algorithm {
        Algorithm::Sha256 => Digest::new(algorithm, &Sha256::digest(bytes)),
        Algorithm::Sha512 => Digest::new(algorithm, &Sha512::digest(bytes)),
    }
}
