//! How fast nodes are given up: zone by zone, slower the more of a zone is unwell, as in Kubernetes.
//!
//! <https://kubernetes.io/docs/concepts/architecture/nodes/#rate-limits-on-eviction>

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;

use super::{READY, status_of};
use crate::object;

/// Between two nodes of a zone: Kubernetes' `node-eviction-rate` of 0.1 a second.
const PAUSE_SECONDS: i64 = 10;
/// The same where most of a large zone is unwell: `secondary-node-eviction-rate`, 0.01 a second.
const SLOW_PAUSE_SECONDS: i64 = 100;
/// From this share of unwell nodes on a zone is disrupted: `unhealthy-zone-threshold`.
const DISRUPTED_PERCENT: usize = 55;
/// In a disrupted zone of at most so many nodes none is given up: `large-cluster-size-threshold`.
const SMALL_ZONE_NODES: usize = 50;
/// Fewer unwell nodes than this disrupt no zone.
const DISRUPTED_NODES_MIN: usize = 3;
const REGION_LABEL: &str = "topology.kubernetes.io/region";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Region and zone.
pub(super) type Zone = (String, String);

pub(super) fn zone_of(node: &Node) -> Zone {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned();
    (label(REGION_LABEL).unwrap_or_default(), label(ZONE_LABEL).unwrap_or_default())
}

/// How long to wait after a node of the zone before the next one is given up; `None` for ever.
pub(super) fn pause<'a>(nodes: impl Iterator<Item = &'a Node>) -> Option<i64> {
    let (mut unwell, mut all) = (0, 0);
    for node in nodes {
        all += 1;
        unwell += usize::from(status_of(node, READY) != "True");
    }
    let is_disrupted = unwell < all && unwell >= DISRUPTED_NODES_MIN && unwell * 100 >= all * DISRUPTED_PERCENT;
    match is_disrupted {
        // Of a zone that is down as a whole the nodes go as usual: other zones are well.
        false => Some(PAUSE_SECONDS),
        true if all > SMALL_ZONE_NODES => Some(SLOW_PAUSE_SECONDS),
        true => None,
    }
}

/// When the last node of each zone was given up. Bounded by the number of zones and of nodes.
#[derive(Debug, Default)]
pub(super) struct Pace {
    zones: HashMap<Zone, Timestamp>,
    /// Nodes that may be given up, and are not yet: their turn does not pass when a write fails.
    granted: HashMap<String, Timestamp>,
}

impl Pace {
    /// Whether the node may be given up now; if not, how long until it may be asked for again, if that is known.
    pub(super) fn ask(&mut self, name: &str, zone: Zone, pause: Option<i64>, now: Timestamp) -> Turn {
        if self.granted.contains_key(name) {
            return Turn::Now;
        }
        let Some(pause) = pause else { return Turn::Never };
        if let Some(last) = self.zones.get(&zone) {
            let rest = object::until(object::after(*last, pause), now);
            if !rest.is_zero() {
                return Turn::In(rest);
            }
        }
        self.zones.insert(zone, now);
        self.granted.insert(name.to_owned(), now);
        Turn::Now
    }

    /// The node is given up, is well again, or is gone.
    pub(super) fn settle(&mut self, name: &str) {
        self.granted.remove(name);
    }
}

/// When a node may be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Now,
    In(Duration),
    /// Not while its zone is as it is.
    Never,
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeCondition, NodeStatus};

    use super::*;

    fn nodes(ready: usize, unwell: usize) -> Vec<Node> {
        let node = |status: &str| {
            let ready = NodeCondition { type_: READY.into(), status: status.into(), ..NodeCondition::default() };
            Node {
                status: Some(NodeStatus { conditions: Some(vec![ready]), ..NodeStatus::default() }),
                ..Node::default()
            }
        };
        (0..ready).map(|_| node("True")).chain((0..unwell).map(|_| node("Unknown"))).collect()
    }

    #[test]
    fn a_zone_that_is_mostly_unwell_is_given_up_slowly_or_not_at_all() {
        for (ready, unwell, wanted) in [
            (9, 1, Some(10)),
            (1, 2, Some(10)),
            (1, 3, None),
            (3, 3, Some(10)),
            (20, 30, None),
            (24, 27, Some(10)),
            (20, 31, Some(100)),
            (0, 5, Some(10)),
        ] {
            assert_eq!(pause(nodes(ready, unwell).iter()), wanted, "{ready} ready, {unwell} unwell");
        }
    }

    #[test]
    fn nodes_of_a_zone_take_turns() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let zone = |name: &str| (String::new(), name.to_owned());
        let mut pace = Pace::default();
        assert_eq!(pace.ask("a", zone("x"), Some(10), at(0)), Turn::Now);
        assert_eq!(pace.ask("b", zone("x"), Some(10), at(4)), Turn::In(Duration::from_secs(6)));
        assert_eq!(pace.ask("a", zone("x"), None, at(4)), Turn::Now, "its turn does not pass");
        assert_eq!(pace.ask("c", zone("y"), Some(10), at(4)), Turn::Now, "another zone");
        assert_eq!(pace.ask("b", zone("x"), None, at(10)), Turn::Never);
        assert_eq!(pace.ask("b", zone("x"), Some(10), at(10)), Turn::Now);
        pace.settle("a");
        assert_eq!(pace.ask("a", zone("x"), Some(100), at(20)), Turn::In(Duration::from_secs(90)));
    }
}
