//! Keeps the logs of containers from filling the disk: one that has grown is put aside under the time of day, and its
//! runtime goes on in a new file.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tandem_runtime::{ContainerId, State};
use tokio_util::sync::CancellationToken;

use crate::{context::Context, observed::Kind, sandbox::NODE_ANNOTATION};

/// How often logs are looked at.
const PERIOD: Duration = Duration::from_secs(10);
/// The kubelet's `containerLogMaxSize`.
const BYTES_MAX: u64 = 10 << 20;
/// The kubelet's `containerLogMaxFiles`: the log and what is aside, together.
const FILES_MAX: usize = 5;

/// What is done with a log that has grown.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rotation {
    /// What it is called from now on.
    aside: String,
    /// What was put aside before and is too much.
    removed: Vec<String>,
}

/// `log` is the file's name, `aside` those of what was put aside before, in no order.
fn rotation(log: &str, bytes: u64, mut aside: Vec<String>, now: Timestamp) -> Option<Rotation> {
    if bytes <= BYTES_MAX {
        return None;
    }
    // The names end with the time, so the oldest is the first.
    aside.sort();
    let kept = FILES_MAX - 2;
    aside.truncate(aside.len().saturating_sub(kept));
    Some(Rotation { aside: format!("{log}.{}", now.strftime("%Y%m%d-%H%M%S")), removed: aside })
}

/// A log and everything of it that was put aside.
pub(crate) fn parts(log: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let aside = format!("{name}.");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let own = |path: &PathBuf| {
        let found = path.file_name().and_then(|found| found.to_str());
        found.is_some_and(|found| found == name || found.starts_with(&aside))
    };
    entries.filter(own).collect()
}

/// A log that something may still be written to.
struct Log {
    kind: Kind,
    container: ContainerId,
    path: PathBuf,
}

pub(crate) async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = shutdown.cancelled() => return,
        }
        round(&context).await;
    }
}

/// Looks at the log of every container that runs once.
pub(crate) async fn round(context: &Context) {
    for log in growing(context) {
        let Some(runtime) = context.runtimes.get(log.kind) else { continue };
        let Some(aside) = put_aside(&log.path, context.clock.now()) else { continue };
        let Err(error) = runtime.reopen_log(&log.container).await else { continue };
        // What is written from now on would be lost to readers.
        let restored = std::fs::rename(&aside, &log.path);
        tracing::warn!(%error, ?restored, path = %log.path.display(), "a log cannot be rotated");
    }
}

fn growing(context: &Context) -> Vec<Log> {
    let mut logs = Vec::new();
    context.observer.visit(|seen| {
        if seen.sandbox.annotations.get(NODE_ANNOTATION) != Some(&context.node_name) {
            return;
        }
        let pod = &seen.sandbox.pod;
        let folder = context.directories.logs_of(&pod.namespace, &pod.name, &pod.uid);
        let running = seen.sandbox.containers.iter().filter(|it| matches!(it.state, State::Running { .. }));
        logs.extend(running.map(|it| Log {
            kind: seen.kind,
            container: it.id.clone(),
            path: folder.join(&it.log_path),
        }));
    });
    logs
}

/// Gives the log that is too large another name, which is returned, and removes what is too much.
fn put_aside(path: &Path, now: Timestamp) -> Option<PathBuf> {
    match try_put_aside(path, now) {
        Ok(aside) => aside,
        // The container may have been removed meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "a log cannot be rotated");
            None
        }
    }
}

fn try_put_aside(path: &Path, now: Timestamp) -> io::Result<Option<PathBuf>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(None);
    };
    let bytes = std::fs::metadata(path)?.len();
    if bytes <= BYTES_MAX {
        return Ok(None);
    }
    let prefix = format!("{name}.");
    let names = std::fs::read_dir(folder)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let Some(rotation) = rotation(name, bytes, names.filter(|name| name.starts_with(&prefix)).collect(), now) else {
        return Ok(None);
    };
    for old in rotation.removed {
        std::fs::remove_file(folder.join(old))?;
    }
    let aside = folder.join(rotation.aside);
    std::fs::rename(path, &aside)?;
    Ok(Some(aside))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use tandem_runtime::Program;

    use super::*;
    use crate::testing::{
        at,
        node::{TestNode, is_ready},
        pod,
    };

    #[test]
    fn a_log_has_parts_and_others_have_theirs() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["1.log", "1.log.20260101-000000", "11.log", "1.logs"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let mut found = parts(&folder.path().join("1.log"));
        found.sort();
        assert_eq!(found, ["1.log", "1.log.20260101-000000"].map(|name| folder.path().join(name)));
        assert_eq!(parts(&folder.path().join("gone/1.log")), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_log_that_has_grown_is_put_aside_and_the_oldest_goes() {
        let names = |seconds: &[u32]| seconds.iter().map(|second| format!("0.log.20260101-0000{second:02}")).collect();
        assert_eq!(rotation("0.log", BYTES_MAX, names(&[1]), at(9)), None);
        let with = |aside| rotation("0.log", BYTES_MAX + 1, aside, at(9)).unwrap();
        assert_eq!(with(names(&[])), Rotation { aside: "0.log.20260101-000009".to_owned(), removed: Vec::new() });
        assert_eq!(with(names(&[3, 1, 2])).removed, Vec::<String>::new());
        assert_eq!(with(names(&[4, 1, 3, 2, 5])).removed, names(&[1, 2]));
    }

    #[tokio::test]
    async fn containers_and_components_go_on_in_new_files() {
        let node = TestNode::new().await;
        for name in ["a", "component-a"] {
            node.offer(name, Program::waits());
        }
        node.api.put_pod(Pod { status: None, ..pod(&["a", "component-a"]) });
        let agent = node.start();
        node.until_pod("a ready pod", is_ready).await;
        let folder = agent.context.directories.logs(&node.api.pod("web").unwrap());
        let logs = ["a/0.log", "component-a/0.log"].map(|log| folder.join(log));
        let length = |path: &PathBuf| std::fs::metadata(path).unwrap().len();
        for log in &logs {
            std::fs::File::options().write(true).open(log).unwrap().set_len(BYTES_MAX + 1).unwrap();
        }
        round(&agent.context).await;
        round(&agent.context).await;
        for log in &logs {
            assert_eq!(length(log), 0);
            let beside = std::fs::read_dir(log.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
            assert_eq!(
                beside.filter(|path| path != log).map(|path| length(&path)).collect::<Vec<_>>(),
                [BYTES_MAX + 1]
            );
        }
        // A runtime that does not go on in a new file keeps the one that it has.
        for runtime in [&node.containers, &node.components] {
            runtime.fail_next("reopen_log", tandem_runtime::Error::Unsupported("reopen_log"));
        }
        std::fs::File::options().write(true).open(&logs[0]).unwrap().set_len(BYTES_MAX + 2).unwrap();
        round(&agent.context).await;
        assert_eq!(length(&logs[0]), BYTES_MAX + 2);
        agent.end().await;
    }
}
