//! `tandem down`: stops what runs on this machine and removes what was made there. The data stays.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio_util::sync::CancellationToken;

use crate::{
    data::{self, DataFolder, InUse},
    node::cgroup_root,
    program,
    terminal::{Progress, remark},
};

const STOP_WAIT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

pub(crate) async fn down(folder: &Path) -> anyhow::Result<()> {
    if !data::is_data(folder) {
        bail!("{} is no data folder of tandem: name one with --data-dir", folder.display());
    }
    let progress = Progress::begin();
    let data = stop_owner(folder, &progress).await?;
    let node = data.node();
    if !node.exists() {
        progress.done("nothing runs here: this data folder has no node");
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        bail!("ending pods needs root. Type: sudo tandem down --data-dir {}", folder.display());
    }
    if node.join("wasm").exists() {
        tandem_wasm::down(&node.join("wasm")).await.context("the WebAssembly host does not end")?;
        progress.done("components ended");
    }
    if node.join("containerd").exists() {
        end_containers(&node).await?;
        progress.done("containers ended");
    }
    tandem_agent::unmount_volumes(&node).context("volumes cannot be unmounted")?;
    tandem_net::node::remove(&node).await.context("the node's network cannot be removed")?;
    progress.done("namespaces, rules and routes removed");
    remove_cgroups(&cgroup_root(&node));
    progress.done(&format!("the data stays in {}", folder.display()));
    Ok(())
}

/// The network plugins of containers that end give addresses back, so somebody has to take them.
async fn end_containers(node: &Path) -> anyhow::Result<()> {
    let over = CancellationToken::new();
    let taking = tandem_net::node::serve_addresses(node, over.clone()).context("addresses cannot be given back")?;
    let ended = async {
        let ended = tandem_containerd::down(&node.join("containerd")).await;
        over.cancel();
        ended.context("containerd does not end")
    };
    tokio::join!(ended, taking).0
}

/// Ends the process that uses the folder, and takes the folder over.
async fn stop_owner(folder: &Path, progress: &Progress) -> anyhow::Result<DataFolder> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let deadline = Instant::now() + STOP_WAIT;
    let mut told = None;
    loop {
        let refused = match DataFolder::open(folder) {
            Ok(data) => return Ok(data),
            Err(error) => error,
        };
        let Some(held) = refused.downcast_ref::<InUse>() else { return Err(refused) };
        let owner = held.owner.parse().ok().and_then(Pid::from_raw);
        if let Some(pid) = owner.filter(|pid| told != Some(*pid))
            && stop(pid, &own).context("cannot stop the tandem that uses this folder")?
        {
            progress.done("tandem told to stop");
            told = Some(pid);
        }
        if Instant::now() >= deadline {
            let unknown = || {
                let lock = folder.join("lock");
                let lock = lock.display();
                format!(
                    "cannot tell which process to stop; `fuser {lock}` names it: end it, and run `tandem down` again"
                )
            };
            return Err(if told.is_some() { refused } else { refused.context(unknown()) });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Tells a process to stop if it runs the program `own`, and says whether it did: the lock file may name a process
/// that is gone, and whose number is another's now.
fn stop(pid: Pid, own: &Path) -> io::Result<bool> {
    // Holds on to the process, so that it is the one that is looked at that gets the signal.
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(false),
        process => process?,
    };
    let executable = match fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        executable => executable?,
    };
    if !program::is_same(&executable, own) {
        return Ok(false);
    }
    match pidfd_send_signal(process, Signal::TERM) {
        Err(Errno::SRCH) => Ok(false),
        sent => Ok(sent.map(|()| true)?),
    }
}

/// Empty groups only can be removed; one that is not is said, since something of ours still runs.
fn remove_cgroups(root: &str) {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([Path::new("/sys/fs/cgroup").to_owned()]) {
        let group = hierarchy.join(root.trim_start_matches('/'));
        if let Err(error) = remove_tree(&group)
            && error.kind() != io::ErrorKind::NotFound
        {
            remark(&format!("the cgroup {} stays: {error}", group.display()));
        }
    }
}

fn remove_tree(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::ExitStatusExt as _,
        process::{Child, Command, Stdio},
    };

    use super::*;

    /// A process that does nothing.
    fn bystander() -> Child {
        Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap()
    }

    fn pid(child: &Child) -> Pid {
        Pid::from_child(child)
    }

    #[test]
    fn only_a_process_of_this_program_is_told_to_stop() {
        let mut child = bystander();
        let running = fs::read_link(format!("/proc/{}/exe", child.id())).unwrap();
        assert!(!stop(pid(&child), Path::new("/usr/bin/tandem")).unwrap());
        assert!(child.try_wait().unwrap().is_none(), "it still runs");
        assert!(stop(pid(&child), &running).unwrap());
        assert_eq!(child.wait().unwrap().signal(), Some(15));
        assert!(!stop(pid(&child), &running).unwrap(), "a process that is gone is no error");
    }

    #[tokio::test]
    async fn a_folder_that_is_not_held_ends_nobody() {
        let folder = tempfile::tempdir().unwrap();
        drop(DataFolder::open(folder.path()).unwrap());
        let mut child = bystander();
        fs::write(folder.path().join("lock"), format!("{}\n", child.id())).unwrap();
        let progress = Progress::begin();
        assert!(stop_owner(folder.path(), &progress).await.is_ok(), "a lock file that names a process is no lock");
        fs::write(folder.path().join("format"), "tandem-data 99\n").unwrap();
        fs::write(folder.path().join("lock"), format!("{}\n", child.id())).unwrap();
        let error = stop_owner(folder.path(), &progress).await.unwrap_err();
        assert!(error.to_string().contains("use the newer version"), "{error}");
        assert!(child.try_wait().unwrap().is_none(), "it still runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
