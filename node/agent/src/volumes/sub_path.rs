//! Mounts that the agent itself makes: memory volumes and parts of volumes.

use std::{
    fs::File,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags},
    mount::{MountFlags, UnmountFlags},
};

/// Binds `path` below `root` to `target`, and gives the target.
///
/// A container may change what is in its volume while this runs: the path is resolved by the kernel below `root`
/// only, and what was found is bound by its file descriptor, so that no symbolic link leads out.
pub(super) fn bind(root: &Path, path: &str, target: &Path, read_only: bool) -> Result<PathBuf, String> {
    if !super::is_below(path) {
        return Err(format!("subPath \"{path}\" must be relative and must not contain '..'"));
    }
    let told = |what: &str, error: &dyn std::fmt::Display| format!("subPath \"{path}\": {what}: {error}");
    let volume = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| told("cannot open the volume", &error))?;
    let found = match resolve(&volume, path) {
        Err(rustix::io::Errno::NOENT) if !read_only => {
            create(&volume, path).map_err(|error| told("cannot make it", &error))?;
            resolve(&volume, path)
        }
        other => other,
    };
    let found = found.map_err(|error| told("cannot open it", &error))?;
    let kind = rustix::fs::fstat(&found).map_err(|error| told("cannot look at it", &error))?;
    if is_mounted(target)? {
        rustix::mount::unmount(target, UnmountFlags::DETACH).map_err(|error| told("cannot renew it", &error))?;
    }
    let is_directory = rustix::fs::FileType::from_raw_mode(kind.st_mode) == rustix::fs::FileType::Directory;
    prepare(target, is_directory).map_err(|error| told("cannot make its place", &error))?;
    let source = format!("/proc/self/fd/{}", found.as_raw_fd());
    rustix::mount::mount_bind(source.as_str(), target).map_err(|error| told("cannot bind it", &error))?;
    Ok(target.to_owned())
}

fn resolve(volume: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(volume, path, flags, Mode::empty(), inside)
}

/// Makes the folders of the path one by one, each found below the one before and as open as the volume itself: whoever
/// may write to the volume may write to a part of it.
fn create(volume: &OwnedFd, path: &str) -> rustix::io::Result<()> {
    let mut current = rustix::fs::openat(volume, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let whole = rustix::fs::fstat(&current)?;
    for part in Path::new(path).components() {
        let name = part.as_os_str();
        let made = match rustix::fs::mkdirat(&current, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => true,
            Err(rustix::io::Errno::EXIST) => false,
            Err(error) => return Err(error),
        };
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        let found = rustix::fs::openat2(&current, name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), inside)?;
        let parent = std::mem::replace(&mut current, found);
        if made {
            let (user, group) = (rustix::fs::Uid::from_raw(whole.st_uid), rustix::fs::Gid::from_raw(whole.st_gid));
            let owned = match rustix::fs::fchown(&current, Some(user), Some(group)) {
                // Some network file systems keep root from that.
                Err(rustix::io::Errno::PERM) => Ok(()),
                owned => owned,
            };
            // After the owner: a change of that clears the set-group bit. The process' mask has no say here.
            let opened = owned.and_then(|()| rustix::fs::fchmod(&current, Mode::from_raw_mode(whole.st_mode)));
            if opened.is_err() {
                // The next try must not take it for one that was there; what cannot be changed may not be removable.
                let _removed = rustix::fs::unlinkat(&parent, name, rustix::fs::AtFlags::REMOVEDIR);
            }
            opened?;
        }
    }
    Ok(())
}

fn prepare(target: &Path, directory: bool) -> std::io::Result<()> {
    if directory {
        return std::fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    File::options().create(true).append(true).open(target).map(drop)
}

/// A file system in memory on this folder, once.
pub(super) fn mount_memory(folder: &Path, size_bytes: Option<i64>) -> Result<(), String> {
    if is_mounted(folder)? {
        return Ok(());
    }
    let options = size_bytes.map_or_else(|| "mode=0777".to_owned(), |size| format!("mode=0777,size={size}"));
    let options = std::ffi::CString::new(options).map_err(|error| error.to_string())?;
    rustix::mount::mount("tmpfs", folder, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, options.as_c_str())
        .map_err(|error| format!("cannot mount a memory volume on {}: {error}", folder.display()))
}

/// The mount points of this process, from the kernel's list.
fn mount_points() -> Result<Vec<PathBuf>, String> {
    let list = rustix::fs::openat(CWD, "/proc/self/mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| format!("cannot read the list of mounts: {error}"))?;
    let text = std::io::read_to_string(File::from(list))
        .map_err(|error| format!("cannot read the list of mounts: {error}"))?;
    let point = |line: &str| line.split(' ').nth(4).map(|path| PathBuf::from(unescape(path)));
    Ok(text.lines().filter_map(point).collect())
}

/// The kernel writes blanks in paths as `\040`.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn is_mounted(path: &Path) -> Result<bool, String> {
    // The kernel lists real paths; a folder that is not there is no mount point.
    let Ok(real) = path.canonicalize() else { return Ok(false) };
    Ok(mount_points()?.contains(&real))
}

/// Unmounts everything below a folder, the innermost first.
pub(super) fn unmount_below(folder: &Path) -> Result<(), String> {
    let Ok(real) = folder.canonicalize() else { return Ok(()) };
    let mut below: Vec<PathBuf> = mount_points()?.into_iter().filter(|point| point.starts_with(&real)).collect();
    below.sort_by_key(|point| std::cmp::Reverse(point.as_os_str().len()));
    for point in below {
        rustix::mount::unmount(&point, UnmountFlags::DETACH)
            .map_err(|error| format!("cannot unmount {}: {error}", point.display()))?;
    }
    Ok(())
}
