//! Gives the files of a volume to a group while others may change them.

use std::{
    fs::Permissions,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, fstat};

/// Folders in folders that are gone into.
const DEPTH_MAX: usize = 128;
const READ_WRITE: u32 = 0o660;
/// A folder's new files stay the group's, and the group may look into it.
const ENTER: u32 = 0o2110;

/// Lets a group read and write everything below; `lazily` only where the root is not the group's yet.
///
/// Another pod may change the tree meanwhile: each thing is opened below its folder without following links, and is
/// changed by its descriptor. The root comes last, so that it tells whether all was done.
///
/// <https://kubernetes.io/docs/tasks/configure-pod-container/security-context/#configure-volume-permission-and-ownership-change-policy-for-pods>
pub(super) fn give(root: &Path, group: i64, lazily: bool) -> Result<(), String> {
    let group = u32::try_from(group).map_err(|_| "the group number is out of range".to_owned())?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let told = |error: rustix::io::Errno| format!("{}: {error}", root.display());
    let folder = rustix::fs::openat(CWD, root, flags, Mode::empty()).map_err(told)?;
    let found = fstat(&folder).map_err(told)?;
    if lazily && found.st_gid == group && found.st_mode & (READ_WRITE | ENTER) == READ_WRITE | ENTER {
        return Ok(());
    }
    give_folder(&folder, group, 0)
}

fn give_folder(folder: &OwnedFd, group: u32, depth: usize) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err(format!("folders are deeper than {DEPTH_MAX}"));
    }
    let told = |error: rustix::io::Errno| error.to_string();
    for entry in Dir::read_from(folder).map_err(told)? {
        let entry = entry.map_err(told)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
            // Removed meanwhile.
            Err(rustix::io::Errno::NOENT) => continue,
            found => found.map_err(told)?,
        };
        match FileType::from_raw_mode(fstat(&found).map_err(told)?.st_mode) {
            FileType::Directory => {
                let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
                let below = rustix::fs::openat(&found, ".", flags, Mode::empty()).map_err(told)?;
                give_folder(&below, group, depth + 1)?;
            }
            FileType::RegularFile | FileType::Fifo | FileType::Socket => change(found.as_fd(), group, READ_WRITE)?,
            _ => {}
        }
    }
    change(folder.as_fd(), group, READ_WRITE | ENTER)
}

fn change(thing: BorrowedFd<'_>, group: u32, shared: u32) -> Result<(), String> {
    let told = |error: rustix::io::Errno| error.to_string();
    let mode = fstat(thing).map_err(told)?.st_mode & 0o7777;
    rustix::fs::chownat(thing, "", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH).map_err(told)?;
    // By the descriptor's own path: a descriptor of a path alone cannot be changed otherwise.
    let path = format!("/proc/self/fd/{}", thing.as_raw_fd());
    std::fs::set_permissions(path, Permissions::from_mode(mode | shared)).map_err(|error| error.to_string())
}
