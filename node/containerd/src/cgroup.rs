//! A cgroup of its own for containerd, in every hierarchy: service managers end what is in a service's cgroup, and
//! containerd must outlive the service that started it.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use rustix::process::Pid;
use sha2::{Digest, Sha256};

/// The cgroup of the containerd in `dir`, below the root of each hierarchy.
fn name(dir: &Path) -> PathBuf {
    let digest = hex::encode(Sha256::digest(dir.as_os_str().as_encoded_bytes()));
    PathBuf::from("tandem").join(format!("containerd-{}", &digest[..8]))
}

/// Moves the process. A hierarchy that does not take it is left as it is: the others may do.
pub(crate) fn enter(dir: &Path, pid: Pid) {
    for hierarchy in hierarchies() {
        let cgroup = hierarchy.join(name(dir));
        let moved = fs::create_dir_all(&cgroup)
            .and_then(|()| fs::write(cgroup.join("cgroup.procs"), pid.as_raw_nonzero().to_string()));
        if let Err(error) = moved {
            tracing::warn!(cgroup = %cgroup.display(), %error, "containerd stays in this program's cgroup");
        }
    }
}

/// Removes the cgroups; they must be empty.
pub(crate) fn remove(dir: &Path) {
    for hierarchy in hierarchies() {
        let cgroup = hierarchy.join(name(dir));
        match fs::remove_dir(&cgroup) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(cgroup = %cgroup.display(), %error, "remove a cgroup");
            }
            _ => {}
        }
        // Others may have theirs beside it.
        if let Some(parent) = cgroup.parent() {
            drop(fs::remove_dir(parent));
        }
    }
}

fn hierarchies() -> BTreeSet<PathBuf> {
    parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// Where cgroups are mounted, without cpuset: it takes no process before its processors are set, and nobody ends
/// processes by it.
fn parse(mountinfo: &str) -> BTreeSet<PathBuf> {
    let mount = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut words = filesystem.split(' ');
        let (kind, options) = (words.next()?, words.nth(1)?);
        let wanted = kind == "cgroup2" || kind == "cgroup" && !options.split(',').any(|option| option == "cpuset");
        let point = mount.split(' ').nth(4)?;
        wanted.then(|| PathBuf::from(point))
    };
    mountinfo.lines().filter_map(mount).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_hierarchies_but_cpuset_are_used() {
        let mountinfo = "\
            23 18 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            24 23 0:21 / /sys/fs/cgroup/cpu rw shared:1 - cgroup cgroup rw,cpu\n\
            25 23 0:22 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
            26 23 0:23 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            27 23 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found: Vec<String> = parse(mountinfo).iter().map(|path| path.display().to_string()).collect();
        assert_eq!(found, ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"]);
    }
}
