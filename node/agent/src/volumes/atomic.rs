//! Files of a volume that change all at once.
//!
//! ```text
//!  key ─> ..data/key      ..data ─> ..2026_01_02_03_04_05.123456789
//! ```
//!
//! A reader that opens `key` sees either all of the old content or all of the new: the swap is one rename.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use jiff::Timestamp;

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// One file of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
}

/// Files by their path in the volume.
pub(super) type Payload = BTreeMap<String, File>;

/// Makes the folder show exactly this payload. Nothing is written where it already does.
pub(super) fn write(folder: &Path, payload: &Payload, group: Option<i64>, now: Timestamp) -> io::Result<()> {
    let current = fs::read_link(folder.join(DATA)).ok();
    if let Some(current) = &current
        && same(&folder.join(current), payload)?
    {
        return link_names(folder, payload);
    }
    let name = format!("..{}.{:09}", now.strftime("%Y_%m_%d_%H_%M_%S"), now.subsec_nanosecond());
    let next = folder.join(&name);
    // Left by an attempt that did not come to its end at the same instant.
    if next.exists() {
        fs::remove_dir_all(&next)?;
    }
    fs::create_dir(&next)?;
    fs::set_permissions(&next, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let target = next.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &file.content)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
    }
    if let Some(group) = group {
        give_to_group(&next, group, false)?;
    }
    match fs::remove_file(folder.join(DATA_NEXT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(&name, folder.join(DATA_NEXT))?;
    fs::rename(folder.join(DATA_NEXT), folder.join(DATA))?;
    link_names(folder, payload)?;
    remove_old(folder, &name)
}

/// The content and modes on disk are those of the payload.
fn same(current: &Path, payload: &Payload) -> io::Result<bool> {
    let mut found = 0;
    let mut open = vec![current.to_owned()];
    while let Some(folder) = open.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
                continue;
            }
            let path = entry.path();
            let name = path.strip_prefix(current).ok().and_then(Path::to_str).unwrap_or_default();
            let matches =
                payload.get(name).is_some_and(|file| fs::read(&path).is_ok_and(|content| content == file.content));
            if !matches {
                return Ok(false);
            }
            found += 1;
        }
    }
    Ok(found == payload.len())
}

/// The names that the container sees lead through `..data`; names of the past go.
fn link_names(folder: &Path, payload: &Payload) -> io::Result<()> {
    let first = |path: &String| path.split('/').next().map(str::to_owned);
    let wanted: BTreeSet<String> = payload.keys().filter_map(first).collect();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !wanted.contains(&name) {
            fs::remove_file(entry.path())?;
        }
    }
    for name in wanted {
        let link = folder.join(&name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(&name), link)?;
        }
    }
    Ok(())
}

fn remove_old(folder: &Path, current: &str) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("..") && name != current && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Lets a group read, and write where `writable`, everything below; new files of a folder stay the group's.
pub(super) fn give_to_group(path: &Path, group: i64, writable: bool) -> io::Result<()> {
    let group = u32::try_from(group).map_err(|_| io::Error::other("the group number is out of range"))?;
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_symlink() {
        return Ok(());
    }
    std::os::unix::fs::chown(path, None, Some(group))?;
    let shared = if writable { 0o660 } else { 0o440 };
    let folder = if metadata.is_dir() { 0o2110 } else { 0 };
    let mode = metadata.permissions().mode() & 0o7777;
    fs::set_permissions(path, fs::Permissions::from_mode(mode | shared | folder))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            give_to_group(&entry?.path(), group.into(), writable)?;
        }
    }
    Ok(())
}
