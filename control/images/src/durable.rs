//! Files that are there whole, or not at all, whatever happens to the machine.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
};

/// Flushes a folder, so that the names in it survive a loss of power.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes a folder and the ones above it, each with its name flushed.
pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let Some(parent) = folder.parent() else { return Ok(()) };
    make_folder(parent)?;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(parent),
    }
}

/// Gives a flushed file its final name. An existing file of that name is replaced at once.
pub(crate) fn publish(from: &Path, to: &Path) -> io::Result<()> {
    let folder = to.parent().ok_or_else(|| io::Error::other("a file without a folder"))?;
    make_folder(folder)?;
    std::fs::rename(from, to)?;
    sync_folder(folder)
}

/// Writes a file through `scratch`, which must be on the same file system.
pub(crate) fn write(scratch: &Path, to: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(scratch)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    publish(scratch, to)
}
