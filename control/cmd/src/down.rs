//! `tandem down`: stops what runs on this machine and removes what was made there. The data stays.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio_util::sync::CancellationToken;

use crate::{
    data::{self, DataFolder},
    node::cgroup_root,
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
    let deadline = Instant::now() + STOP_WAIT;
    let mut told = None;
    loop {
        let refused = match DataFolder::open(folder) {
            Ok(data) => return Ok(data),
            Err(error) => error,
        };
        let owner = fs::read_to_string(folder.join("lock")).unwrap_or_default();
        let owner = owner.trim().parse().ok().and_then(Pid::from_raw);
        match owner {
            Some(pid) if told != Some(pid) => {
                kill_process(pid, Signal::TERM).context("cannot stop the tandem that uses this folder")?;
                progress.done("tandem told to stop");
                told = Some(pid);
            }
            Some(_) if Instant::now() < deadline => {}
            _ => return Err(refused),
        }
        tokio::time::sleep(LOOK).await;
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
