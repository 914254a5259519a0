//! Snapshots: the objects at one log position, as a file that another member can be given.
//!
//! ```text
//!   "tandem-snapshot 1\n"   length, header as JSON   (1, length, row, checksum)...   0, number of rows, checksum of all
//! ```
//!
//! Nothing is written before somebody needs the file: the index remembers how things were at a revision.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tandem_api::Key;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::{
    codec::VersionRow,
    disk::{DurableStep, Edge, Folder, Owner},
    index::{Horizons, Slice},
    log_rows::damaged,
    replica::Replica,
    types::{SnapshotMeta, StateRow},
};

const MAGIC: &[u8] = b"tandem-snapshot 1\n";
const FAMILY: &[u8] = b"tandem-snapshot ";
const PREFIX: &str = "snapshot-";

/// Rows copied out of the index at once.
const SLICE: usize = 1_000;

/// The longest row that is believed; a command is far smaller.
const ROW_BYTES_MAX: usize = 256 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    cluster: String,
    state: StateRow,
}

/// A state that is to be written down as it is now, whatever happens to the index meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct Frozen {
    pub(crate) replica: Arc<Replica>,
    pub(crate) folder: Arc<Folder>,
    pub(crate) owner: Owner,
    pub(crate) row: StateRow,
}

/// What raft hands from one member's state machine to another's.
#[derive(Debug)]
pub(crate) enum SnapshotData {
    /// Of this member, not written yet.
    Frozen(Frozen),
    /// A file, of this member or received from another one.
    File(SnapshotFile),
}

impl SnapshotData {
    /// The snapshot as a file, written now if it was not before.
    pub(crate) async fn into_file(self) -> io::Result<SnapshotFile> {
        match self {
            SnapshotData::Frozen(frozen) => frozen.folder.clone().blocking(move || frozen.write()).await,
            SnapshotData::File(file) => Ok(file),
        }
    }
}

/// A whole snapshot on disk; removed when it is dropped.
#[derive(Debug)]
pub(crate) struct SnapshotFile {
    path: PathBuf,
}

impl Drop for SnapshotFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a snapshot could not be removed; the next start will");
        }
    }
}

/// Removes what an earlier run of the process left.
pub(crate) fn remove_leftovers(folder: &Folder) -> io::Result<()> {
    for entry in std::fs::read_dir(&folder.path)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A file that is being written: there whole in the end, also after a power cut, or not at all.
struct Partial {
    path: PathBuf,
    partial: PathBuf,
}

impl Partial {
    fn create(folder: &Folder) -> io::Result<(Partial, File)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.path.join(format!("{PREFIX}{number}"));
        let partial = folder.path.join(format!("{PREFIX}{number}.partial"));
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
        Ok((Partial { path, partial }, file))
    }

    fn finish(self, folder: &Folder, file: &File) -> io::Result<SnapshotFile> {
        folder.disk.reached(DurableStep::SnapshotBuild, Edge::Before);
        file.sync_all()?;
        folder.disk.reached(DurableStep::SnapshotBuild, Edge::After);
        folder.disk.reached(DurableStep::SnapshotRename, Edge::Before);
        std::fs::rename(&self.partial, &self.path)?;
        folder.sync()?;
        folder.disk.reached(DurableStep::SnapshotRename, Edge::After);
        Ok(SnapshotFile { path: self.path.clone() })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Renamed when all went well; otherwise half a file is of no use, and the next start would remove it.
        drop(std::fs::remove_file(&self.partial));
    }
}

/// Writes a snapshot. Blocks.
fn write_whole(
    folder: &Folder,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<SnapshotFile> {
    let (partial, file) = Partial::create(folder)?;
    let mut writer = BufWriter::new(file);
    write(&mut writer)?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    partial.finish(folder, &file)
}

fn put(writer: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::Error::other("a row is too long for a snapshot"))?;
    writer.write_all(&length.to_be_bytes())?;
    writer.write_all(bytes)
}

impl Frozen {
    /// Writes the snapshot. Blocks; fails when history passed this state meanwhile.
    pub(crate) fn write(&self) -> io::Result<SnapshotFile> {
        let revision = self.row.revision;
        // Who begins from a snapshot knows nothing of what was before.
        let state = StateRow { horizons: Horizons { lists: revision, watches: revision }, ..self.row.clone() };
        let header = Header { cluster: self.owner.cluster.clone(), state };
        write_whole(&self.folder, |writer| {
            writer.write_all(MAGIC)?;
            put(writer, &serde_json::to_vec(&header).map_err(io::Error::other)?)?;
            let (mut count, mut whole) = (0u64, crc32fast::Hasher::new());
            let mut after: Option<Key> = None;
            loop {
                let slice = self.replica.slice(&Key::from_raw(""), after.as_ref(), revision, SLICE);
                let Slice { items, more } = slice.map_err(io::Error::other)?;
                after = items.last().map(|stored| stored.key.clone());
                for stored in items {
                    let row = VersionRow {
                        key: stored.key,
                        revision: stored.revision,
                        created: stored.created,
                        value: Some(stored.value),
                    };
                    let checksum = row.checksum().to_be_bytes();
                    writer.write_all(&[1])?;
                    put(writer, &row.encode())?;
                    writer.write_all(&checksum)?;
                    whole.update(&checksum);
                    count += 1;
                }
                if !more {
                    break;
                }
            }
            writer.write_all(&[0])?;
            writer.write_all(&count.to_be_bytes())?;
            writer.write_all(&whole.finalize().to_be_bytes())
        })
    }
}

impl SnapshotFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps a snapshot that lies elsewhere. Blocks.
    pub(crate) fn copy(folder: &Folder, path: &Path) -> io::Result<SnapshotFile> {
        let mut from = File::open(path)?;
        write_whole(folder, |writer| io::copy(&mut from, writer).map(drop))
    }

    /// Keeps what comes over a connection, which are so many bytes.
    pub(crate) async fn receive(
        folder: &Arc<Folder>,
        from: impl AsyncRead + Send + Unpin,
        bytes: u64,
    ) -> io::Result<SnapshotFile> {
        let (partial, file) = Partial::create(folder)?;
        let mut file = tokio::fs::File::from_std(file);
        let received = tokio::io::copy(&mut from.take(bytes), &mut file).await?;
        if received < bytes {
            return Err(damaged(format!("the snapshot ended after {received} of {bytes} bytes")));
        }
        file.flush().await?;
        let file = file.into_std().await;
        let within = folder.clone();
        folder.blocking(move || partial.finish(&within, &file)).await
    }

    /// What raft wants to know of a snapshot before it is installed. Blocks shortly.
    pub(crate) fn meta(&self) -> io::Result<SnapshotMeta> {
        self.open()?.1.state.snapshot_meta().map_err(damaged)
    }

    fn open(&self) -> io::Result<(Reader, Header)> {
        let mut reader = Reader(BufReader::new(File::open(&self.path)?));
        let magic: [u8; MAGIC.len()] = reader.array()?;
        if magic != MAGIC {
            let newer = magic.starts_with(FAMILY);
            let why = if newer { "is of a newer format; run the newer release" } else { "is something else" };
            return Err(damaged(format!("the snapshot {why}")));
        }
        let header = serde_json::from_slice(&reader.bytes()?)
            .map_err(|error| damaged(format!("the snapshot's header is damaged: {error}")))?;
        Ok((reader, header))
    }

    /// Everything in the file, checked, in the order of revisions. Blocks.
    pub(crate) fn read(&self, owner: &Owner) -> io::Result<(StateRow, Vec<VersionRow>)> {
        let (mut reader, header) = self.open()?;
        if header.cluster != owner.cluster {
            let why = format!("the snapshot belongs to cluster {}, not to {}", header.cluster, owner.cluster);
            return Err(damaged(why));
        }
        let (mut rows, mut whole) = (Vec::new(), crc32fast::Hasher::new());
        while reader.array::<1>()? == [1] {
            let row = VersionRow::decode(Bytes::from(reader.bytes()?)).map_err(io::Error::other)?;
            let checksum: [u8; 4] = reader.array()?;
            if checksum != row.checksum().to_be_bytes() {
                return Err(damaged(format!("the snapshot is damaged at {}", row.key)));
            }
            whole.update(&checksum);
            rows.push(row);
        }
        let count = u64::from_be_bytes(reader.array()?);
        if count != rows.len() as u64 || reader.array()? != whole.finalize().to_be_bytes() {
            return Err(damaged("the snapshot is not whole"));
        }
        rows.sort_by_key(|row| row.revision);
        Ok((header.state, rows))
    }
}

struct Reader(BufReader<File>);

impl Reader {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn bytes(&mut self) -> io::Result<Vec<u8>> {
        let length = u32::from_be_bytes(self.array()?) as usize;
        if length > ROW_BYTES_MAX {
            return Err(damaged("the snapshot has a row that is too long"));
        }
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
