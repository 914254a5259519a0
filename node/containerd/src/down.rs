//! Ending a containerd with everything that it runs.

use std::{
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use futures::{StreamExt, stream};
use rustix::{
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, kill_process},
};
use tandem_cri::CriRuntime;
use tandem_runtime::Runtime;

use crate::{Error, cgroup, files::Layout, options, process::Process, programs};

/// How many sandboxes are removed at the same time; each runs the network plugins.
const PARALLEL: usize = 8;

/// Ends the containerd of this folder, its containers and shims, and unmounts what it mounted. What can be ended in
/// order is, so that networks and host ports are given back; the rest by force. Images stay.
pub async fn down(dir: &Path) -> Result<(), Error> {
    let layout = Layout::new(dir)?;
    if let Some(process) = Process::find(&layout) {
        remove_sandboxes(&layout.socket()).await;
        process.end().await.map_err(|source| Error::System { action: "end containerd", source })?;
    }
    remove_containers(&layout).await;
    end_shims(&layout.socket());
    let mounts = mounts_below(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(), dir);
    for mount in mounts {
        unmount(&mount, UnmountFlags::DETACH)
            .map_err(|error| Error::System { action: "unmount what containerd mounted", source: error.into() })?;
    }
    cgroup::remove(dir);
    for file in [layout.pid(), layout.socket()] {
        match fs::remove_file(&file) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(Error::Write { path: file, source }),
            _ => {}
        }
    }
    Ok(())
}

async fn remove_sandboxes(socket: &Path) {
    let runtime = CriRuntime::lazy(socket, options(socket, true));
    let sandboxes = match runtime.list().await {
        Ok(sandboxes) => sandboxes,
        Err(error) => {
            tracing::warn!(%error, "list sandboxes; they are ended by force");
            return;
        }
    };
    let runtime = &runtime;
    stream::iter(sandboxes)
        .for_each_concurrent(PARALLEL, |sandbox| async move {
            for container in &sandbox.containers {
                if let Err(error) = runtime.stop(&container.id, Duration::ZERO).await {
                    tracing::warn!(%error, "stop a container");
                }
            }
            if let Err(error) = runtime.remove_sandbox(&sandbox.id).await {
                tracing::warn!(%error, "remove a sandbox; it is ended by force");
            }
        })
        .await;
}

/// Containers that containerd could not remove: runc still knows them.
async fn remove_containers(layout: &Layout) {
    let root = layout.runc().join("k8s.io");
    let Ok(entries) = fs::read_dir(&root) else { return };
    for entry in entries.flatten() {
        let removed = tokio::process::Command::new("runc")
            .env("PATH", programs::path())
            .arg("--root")
            .arg(&root)
            .args(["delete", "--force"])
            .arg(entry.file_name())
            .stdin(Stdio::null())
            .output()
            .await;
        match removed {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                tracing::warn!(error = %String::from_utf8_lossy(&output.stderr).trim(), "remove a container by force");
            }
            Err(error) => tracing::warn!(%error, "run runc"),
        }
    }
}

/// Shims end by themselves when their sandbox is removed; these have lost it.
fn end_shims(socket: &Path) {
    let Ok(entries) = fs::read_dir("/proc") else { return };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        let Ok(command) = fs::read(entry.path().join("cmdline")) else { continue };
        if is_shim(&command, socket)
            && let Err(error) = kill_process(pid, Signal::KILL)
        {
            tracing::warn!(%pid, %error, "end a shim");
        }
    }
}

fn is_shim(command: &[u8], socket: &Path) -> bool {
    let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
    let program = words.first().and_then(|program| program.rsplit(|byte| *byte == b'/').next());
    let address = words.windows(2).find(|pair| pair[0] == b"-address").map(|pair| pair[1]);
    program.is_some_and(|program| program.starts_with(b"containerd-shim"))
        && address == Some(socket.as_os_str().as_encoded_bytes())
}

/// Mount points below `dir`, the innermost first.
fn mounts_below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    let point = |line: &str| line.split(' ').nth(4).map(unescaped);
    let mut found: Vec<PathBuf> =
        mountinfo.lines().filter_map(point).filter(|path| path.starts_with(dir) && path != dir).collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    found
}

/// mountinfo writes blanks and backslashes as `\040`.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_folder_the_innermost_first() {
        let mountinfo = "\
            1 0 8:1 / / rw - ext4 /dev/vda rw\n\
            2 1 0:30 / /d/state/a/rootfs rw - overlay overlay rw\n\
            3 1 0:31 / /d/state/with\\040blank/b/rootfs/deep rw - tmpfs tmpfs rw\n\
            4 1 0:32 / /data rw - tmpfs tmpfs rw\n";
        let found: Vec<String> =
            mounts_below(mountinfo, Path::new("/d")).iter().map(|path| path.display().to_string()).collect();
        assert_eq!(found, ["/d/state/with blank/b/rootfs/deep", "/d/state/a/rootfs"]);
    }

    #[test]
    fn only_our_shims_are_ended() {
        let command = |socket: &str| {
            format!("/usr/bin/containerd-shim-runc-v2\0-namespace\0k8s.io\0-id\0x\0-address\0{socket}\0").into_bytes()
        };
        let socket = Path::new("/d/containerd.sock");
        assert!(is_shim(&command("/d/containerd.sock"), socket));
        assert!(!is_shim(&command("/run/containerd/containerd.sock"), socket));
        assert!(!is_shim(b"vim\0-address\0/d/containerd.sock\0", socket));
    }
}
