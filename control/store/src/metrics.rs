//! What the store tells about itself.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::Member;

/// The other member that a number is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Peer {
    member: u64,
}

/// What the leader knows of each of the other members. Nobody else shows anything.
#[derive(Clone, Debug, Default)]
pub(crate) struct PeerMetrics {
    lag: Family<Peer, Gauge>,
    reachable: Family<Peer, Gauge>,
    shown: Arc<Mutex<BTreeSet<u64>>>,
}

impl PeerMetrics {
    /// Shows these members, and forgets all others.
    pub(crate) fn show(&self, members: &[Member], own: u64) {
        let known = members.iter().filter(|member| member.id != own);
        let known = known.filter_map(|member| Some((member.id, member.lag?, member.reachable?)));
        let mut gone = self.shown.lock();
        let mut now = BTreeSet::new();
        for (member, lag, reachable) in known {
            self.lag.get_or_create(&Peer { member }).set(shown(lag));
            self.reachable.get_or_create(&Peer { member }).set(i64::from(reachable));
            now.insert(member);
        }
        for member in gone.difference(&now).copied() {
            self.lag.remove(&Peer { member });
            self.reachable.remove(&Peer { member });
        }
        *gone = now;
    }
}

/// Handles of the store's metrics; clones share their values. Default ones count without being shown anywhere.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// One durable commit of the log or one checkpoint of the state.
    pub(crate) fsync_seconds: Histogram,
    /// From the proposal of a command to its reply.
    pub(crate) commit_seconds: Histogram,
    pub(crate) applied_index: Gauge,
    pub(crate) revision: Gauge,
    pub(crate) term: Gauge,
    pub(crate) leader: Gauge,
    pub(crate) log_bytes: Gauge,
    pub(crate) state_bytes: Gauge,
    pub(crate) watchers: Gauge,
    pub(crate) differing_members: Gauge,
    /// Bytes of the log's write-ahead file, as of the last commit.
    pub(crate) wal_bytes: Gauge,
    /// Entries that the member that is farthest behind lacks, on the leader.
    pub(crate) lag: Gauge,
    pub(crate) quorum: Gauge,
    pub(crate) peers: PeerMetrics,
}

impl Default for Metrics {
    fn default() -> Metrics {
        // 0.1 ms to 6.5 s: from a commit in memory to a disk that is about to fail.
        let seconds = || Histogram::new(exponential_buckets(0.0001, 2.0, 17));
        Metrics {
            fsync_seconds: seconds(),
            commit_seconds: seconds(),
            applied_index: Gauge::default(),
            revision: Gauge::default(),
            term: Gauge::default(),
            leader: Gauge::default(),
            log_bytes: Gauge::default(),
            state_bytes: Gauge::default(),
            watchers: Gauge::default(),
            differing_members: Gauge::default(),
            wal_bytes: Gauge::default(),
            lag: Gauge::default(),
            quorum: Gauge::default(),
            peers: PeerMetrics::default(),
        }
    }
}

impl Metrics {
    /// New metrics that `registry` shows under the prefix `tandem_store`.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        let registry = registry.sub_registry_with_prefix("tandem_store");
        let Metrics {
            fsync_seconds,
            commit_seconds,
            applied_index,
            revision,
            term,
            leader,
            log_bytes,
            state_bytes,
            watchers,
            differing_members,
            wal_bytes,
            lag,
            quorum,
            peers,
        } = metrics.clone();
        registry.register_with_unit("fsync_duration", "Time of one durable commit", Unit::Seconds, fsync_seconds);
        registry.register_with_unit(
            "commit_duration",
            "Time from a command's proposal to its reply",
            Unit::Seconds,
            commit_seconds,
        );
        registry.register("applied_index", "Log index of the last applied entry", applied_index);
        registry.register("revision", "Newest revision applied", revision);
        registry.register("term", "Present raft term", term);
        registry.register("leader", "1 when this member leads", leader);
        registry.register_with_unit("log_size", "Size of the log's file", Unit::Bytes, log_bytes);
        registry.register_with_unit("state_size", "Size of the state's file", Unit::Bytes, state_bytes);
        registry.register("watchers", "Open watches", watchers);
        let help = "Members that have applied something else than the leader, which compares";
        registry.register("differing_members", help, differing_members);
        registry.register_with_unit("wal_size", "Size of the log's write-ahead file", Unit::Bytes, wal_bytes);
        registry.register("lag_entries", "Entries that the slowest member lacks, on the leader", lag);
        registry.register("quorum", "1 when a quorum has lately confirmed a leader", quorum);
        let help = "Entries that another member lacks, on the leader";
        registry.register("peer_lag_entries", help, peers.lag);
        let help = "1 when another member has lately answered the leader, which shows this";
        registry.register("peer_reachable", help, peers.reachable);
        metrics
    }
}

/// Counts a watch as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted(Gauge);

impl Counted {
    pub(crate) fn new(gauge: &Gauge) -> Counted {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A number as a gauge shows it.
pub(crate) fn shown(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
