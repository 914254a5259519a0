//! The cgroup that holds a pod, on every hierarchy of the machine.

use std::{
    io,
    path::{Path, PathBuf},
};

use tandem_runtime::Limits;

const MOUNT: &str = "/sys/fs/cgroup";
/// Hierarchies of cgroup v1 that limits are written to, and those that a runtime makes a folder in.
const CONTROLLERS: &[&str] =
    &["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "net_cls", "hugetlb", "systemd"];

/// The cgroup file systems of the machine: one of version 2, or one for each controller of version 1.
#[derive(Clone, Debug)]
pub(crate) struct Hierarchies {
    roots: Vec<PathBuf>,
    unified: bool,
}

impl Hierarchies {
    pub(crate) fn of_machine() -> Hierarchies {
        Hierarchies::at(Path::new(MOUNT))
    }

    fn at(mount: &Path) -> Hierarchies {
        if mount.join("cgroup.controllers").exists() {
            return Hierarchies { roots: vec![mount.to_owned()], unified: true };
        }
        let roots = CONTROLLERS.iter().map(|controller| mount.join(controller)).filter(|root| root.is_dir());
        Hierarchies { roots: roots.collect(), unified: false }
    }

    /// A machine without cgroups, for tests.
    #[cfg(test)]
    pub(crate) fn none() -> Hierarchies {
        Hierarchies { roots: Vec::new(), unified: false }
    }

    fn controller(&self, name: &str) -> Option<&PathBuf> {
        self.roots.iter().find(|root| self.unified || root.file_name().is_some_and(|file| file == name))
    }

    /// Makes the pod's cgroup with its limits. What the machine does not have is left out.
    pub(crate) fn create(&self, path: &str, limits: &Limits) -> io::Result<()> {
        for root in &self.roots {
            self.make(root, path.trim_start_matches('/'))?;
        }
        self.set(path, limits)
    }

    /// Sets the limits of a pod's cgroup; there is none for what they do not name.
    pub(crate) fn set(&self, path: &str, limits: &Limits) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        let number = |value: Option<String>, none: &str| value.unwrap_or_else(|| none.to_owned());
        let memory = limits.memory_bytes.map(|bytes| bytes.to_string());
        let write = |controller: &str, file: &str, value: String| {
            let Some(root) = self.controller(controller) else { return Ok(()) };
            let target = root.join(path).join(file);
            if target.exists() { std::fs::write(target, value) } else { Ok(()) }
        };
        if self.unified {
            write("memory", "memory.max", number(memory, "max"))?;
            let cpu = limits.cpu_quota_us.zip(limits.cpu_period_us);
            write("cpu", "cpu.max", number(cpu.map(|(quota, period)| format!("{quota} {period}")), "max"))?;
            if let Some(shares) = limits.cpu_shares {
                write("cpu", "cpu.weight", weight(shares).to_string())?;
            }
            return Ok(());
        }
        write("memory", "memory.limit_in_bytes", number(memory, "-1"))?;
        if let Some(period) = limits.cpu_period_us {
            write("cpu", "cpu.cfs_period_us", period.to_string())?;
        }
        write("cpu", "cpu.cfs_quota_us", number(limits.cpu_quota_us.map(|quota| quota.to_string()), "-1"))?;
        if let Some(shares) = limits.cpu_shares {
            write("cpu", "cpu.shares", shares.to_string())?;
        }
        Ok(())
    }

    fn make(&self, root: &Path, path: &str) -> io::Result<()> {
        let mut current = root.to_owned();
        for part in path.split('/') {
            if self.unified {
                // A child has the controllers that its parent hands on; some may not be available.
                for controller in ["cpu", "memory", "pids", "cpuset", "io"] {
                    drop(std::fs::write(current.join("cgroup.subtree_control"), format!("+{controller}")));
                }
            }
            let parent = current.clone();
            current.push(part);
            match std::fs::create_dir(&current) {
                Ok(()) => inherit_cpuset(&parent, &current)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes the cgroup and what a runtime left below it; it is no error if it is gone.
    pub(crate) fn remove(&self, path: &str) -> io::Result<()> {
        for root in &self.roots {
            remove_tree(&root.join(path.trim_start_matches('/')))?;
        }
        Ok(())
    }
}

/// A new cpuset of version 1 is empty, and nothing can be put into it until it has what its parent has.
fn inherit_cpuset(parent: &Path, child: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if child.join(file).exists() && std::fs::read_to_string(child.join(file))?.trim().is_empty() {
            std::fs::write(child.join(file), std::fs::read_to_string(parent.join(file))?)?;
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Shares of version 1 as a weight of version 2, by the formula that runtimes share.
fn weight(shares: i64) -> i64 {
    (1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142).clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_cgroup_is_made_and_removed_on_every_hierarchy() {
        let mount = tempfile::tempdir().unwrap();
        for controller in ["memory", "cpu", "pids"] {
            std::fs::create_dir(mount.path().join(controller)).unwrap();
        }
        let hierarchies = Hierarchies::at(mount.path());
        assert!(!hierarchies.unified);
        let limits = Limits { memory_bytes: Some(1 << 20), ..Limits::default() };
        hierarchies.create("/tandem-x/pods/uid", &limits).unwrap();
        hierarchies.create("/tandem-x/pods/uid", &limits).unwrap();
        std::fs::create_dir(mount.path().join("cpu/tandem-x/pods/uid/left")).unwrap();
        assert!(mount.path().join("memory/tandem-x/pods/uid").is_dir());
        hierarchies.remove("/tandem-x/pods/uid").unwrap();
        hierarchies.remove("/tandem-x/pods/uid").unwrap();
        assert!(!mount.path().join("cpu/tandem-x/pods/uid").exists());
    }

    #[test]
    fn version_two_is_told_by_its_controllers() {
        let mount = tempfile::tempdir().unwrap();
        std::fs::write(mount.path().join("cgroup.controllers"), "cpu memory").unwrap();
        let hierarchies = Hierarchies::at(mount.path());
        assert!(hierarchies.unified);
        hierarchies.create("/a/b", &Limits::default()).unwrap();
        assert!(mount.path().join("a/b").is_dir());
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 39, 10_000));
    }
}
