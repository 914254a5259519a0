//! What becomes of files that are found damaged: they are kept aside, and the member comes back as a new one.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;

use crate::{
    Error, SqliteFiles, SystemDisk,
    disk::{Folder, data_error, storage_error},
    files::{LOG_FILE, STATE_FILE},
};

const PREFIX: &str = "damaged-";

/// How often a member's files may be kept aside before somebody has to look at them.
pub const QUARANTINES_MAX: usize = 3;

/// Moves a member's files into a folder beside them, and gives back which. Nothing is left that could vote: the member
/// joins as a new one ([`crate::Change::Join`] with [`crate::Aim::Replace`]) and is opened with [`crate::Begin::Member`].
pub fn quarantine(dir: &Path, at: Timestamp) -> Result<PathBuf, Error> {
    let folder = Folder::hold(dir, Arc::new(SqliteFiles), Arc::new(SystemDisk))?;
    let failed = |error: io::Error| storage_error("keep damaged files aside", error);
    let kept = names(dir, PREFIX).map_err(failed)?;
    if kept.len() >= QUARANTINES_MAX {
        let why = format!("holds {} sets of damaged files already; look at the disk, and remove them", kept.len());
        return Err(data_error(dir, why));
    }
    let aside = dir.join(format!("{PREFIX}{}", at.as_millisecond()));
    DirBuilder::new().mode(0o700).create(&aside).map_err(failed)?;
    // The state goes first: without it the log alone is refused, and without both the member is as good as new.
    for file in [STATE_FILE, LOG_FILE] {
        for name in names(dir, file).map_err(failed)? {
            std::fs::rename(dir.join(&name), aside.join(&name)).map_err(failed)?;
        }
    }
    std::fs::File::open(&aside).and_then(|aside| aside.sync_all()).map_err(failed)?;
    folder.sync().map_err(failed)?;
    tracing::warn!(path = %aside.display(), "this member's files are damaged; they were kept aside");
    Ok(aside)
}

/// The names in a folder that begin with `prefix`.
fn names(dir: &Path, prefix: &str) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            found.push(name);
        }
    }
    Ok(found)
}
