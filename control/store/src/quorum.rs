//! Whether this member is part of a quorum, found out by what matters: can a linearizable read be answered?

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::{sync::watch, time::Instant};

use crate::{
    cluster::Cluster,
    leader::CONFIRMATION_TIMEOUT,
    members::{listed, metrics_of},
    metrics::shown,
};

/// How long no quorum may have confirmed the leader before this member counts as cut off.
pub const QUORUM_SILENCE: Duration = CONFIRMATION_TIMEOUT;

/// How often a member of several looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Ends when a quorum that was there is lost; when there is none already, after a while.
pub(crate) async fn lost(mut quorum: watch::Receiver<bool>) {
    if !*quorum.borrow_and_update() {
        let back = tokio::time::timeout(QUORUM_SILENCE, quorum.wait_for(|quorum| *quorum)).await;
        if back.is_err() {
            return;
        }
    }
    // The sender lives as long as the store does; without it the process ends.
    drop(quorum.wait_for(|quorum| !*quorum).await);
}

/// How old a confirmation may be: from one look to the end of the next.
const CONFIRMATION_AGE_MAX: Duration = QUORUM_SILENCE.saturating_add(LOOK_INTERVAL);

/// How long after a look that failed the next one comes.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);

/// How long a member without a quorum keeps its watches. Nothing will come of them: whoever watches is better off with
/// another member.
pub const WATCH_SILENCE_MAX: Duration = Duration::from_secs(10);

/// Keeps looking, and tells.
pub(crate) async fn observe(cluster: Cluster, told: watch::Sender<bool>, watch_silence: Duration) {
    let mut server = cluster.raft().server_metrics();
    let mut stale_at = Instant::now();
    let mut here_at = Instant::now();
    loop {
        let begun = Instant::now();
        let mut until = begun + QUORUM_SILENCE;
        if *told.borrow() {
            until = until.min(stale_at);
        }
        let confirmed = matches!(tokio::time::timeout_at(until, cluster.confirm()).await, Ok(Ok(())));
        if confirmed {
            stale_at = begun + CONFIRMATION_AGE_MAX;
        }
        let here = Instant::now() < stale_at;
        if here {
            here_at = Instant::now();
        }
        cluster.leader.replica.cut_off(here_at.elapsed() >= watch_silence);
        told.send_if_modified(|before| std::mem::replace(before, here) != here);
        let members = listed(&metrics_of(cluster.raft()));
        let slowest = members.iter().filter_map(|member| member.lag).max();
        cluster.leader.metrics.quorum.set(i64::from(here));
        cluster.leader.metrics.lag.set(shown(slowest.unwrap_or(0)));
        cluster.leader.metrics.peers.show(&members, cluster.node);
        // A voter that is alone has a quorum as long as nothing changes: no look, no wake-up.
        let alone = cluster.is_alone() && members.len() == 1;
        let pause = async {
            match confirmed {
                true if alone => std::future::pending().await,
                true => tokio::time::sleep(LOOK_INTERVAL).await,
                false => tokio::time::sleep(FAILURE_PAUSE).await,
            }
        };
        tokio::select! {
            () = pause => (),
            changed = server.changed() => if changed.is_err() {
                told.send_replace(false);
                return;
            },
        }
        if confirmed && alone {
            here_at = Instant::now();
            stale_at = here_at + CONFIRMATION_AGE_MAX;
        }
    }
}
