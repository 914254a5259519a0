//! What policies denied: a metric, and an Event on the pod.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    sync::Arc,
};

use k8s_openapi::api::core::v1::ObjectReference;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde::Deserialize;
use tandem_client::events::{Note, Recorder, Severity};

use super::Key;
use crate::{
    nft,
    rules::{POLICY_TABLE, PodFacts},
};

/// Events at each look: a scan of a network is one thing to say, not thousands.
const EVENTS_MAX: usize = 16;
const REASON: &str = "NetworkPolicyDenied";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    direction: &'static str,
}

/// The metrics of one node's policies.
#[derive(Clone, Debug)]
pub struct Metrics(Family<Labels, Counter>);

impl Metrics {
    pub fn new(registry: &mut Registry) -> Metrics {
        let denied = Family::default();
        let help = "Packets that began a connection which no NetworkPolicy allows";
        registry.register("tandem_network_policy_denied_packets", help, denied.clone());
        Metrics(denied)
    }
}

/// A connection that was denied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Attempt {
    direction: &'static str,
    pod: Ipv4Addr,
    peer: Ipv4Addr,
    protocol: String,
    port: u64,
}

pub(super) struct Denied {
    metrics: Metrics,
    recorder: Recorder,
    /// The kernel's counters at the last look.
    packets: HashMap<&'static str, u64>,
    attempts: HashMap<Attempt, u64>,
}

impl Denied {
    pub(super) fn new(metrics: Metrics, recorder: Recorder) -> Denied {
        Denied { metrics, recorder, packets: HashMap::new(), attempts: HashMap::new() }
    }

    pub(super) async fn look(&mut self, pods: &BTreeMap<Key, Arc<PodFacts>>) {
        let table: Vec<&str> = ["counters", "table"].into_iter().chain(POLICY_TABLE.split(' ')).collect();
        let counters: Listed = match nft::list(&table).await {
            Ok(counters) => counters,
            // Without rules there is no table.
            Err(error) => return tracing::debug!(%error, "what policies denied"),
        };
        let mut seen = HashMap::new();
        for direction in ["ingress", "egress"] {
            let packets = counter(&counters, &format!("denied_{direction}_packets"));
            let before = self.packets.insert(direction, packets).unwrap_or_default();
            // A table that was built anew counts from nothing.
            let new = if packets >= before { packets - before } else { packets };
            if new == 0 {
                continue;
            }
            self.metrics.0.get_or_create(&Labels { direction }).inc_by(new);
            let set: Vec<&str> =
                ["set"].into_iter().chain(POLICY_TABLE.split(' ')).chain([denied_set(direction)]).collect();
            match nft::list(&set).await {
                Ok(set) => seen.extend(attempts(set, direction)),
                Err(error) => tracing::debug!(%error, "what policies denied"),
            }
        }
        if !seen.is_empty() {
            let notes = notes(&self.attempts, &seen, pods);
            notes.into_iter().take(EVENTS_MAX).for_each(|note| self.recorder.record(note));
            self.attempts = seen;
        }
    }
}

fn denied_set(direction: &str) -> &'static str {
    if direction == "ingress" { "denied_ingress" } else { "denied_egress" }
}

/// What `nft -j list` says, as far as it matters here.
#[derive(Deserialize)]
struct Listed {
    nftables: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    counter: Option<Counted>,
    set: Option<Set>,
}

#[derive(Deserialize)]
struct Counted {
    #[serde(default)]
    name: String,
    packets: u64,
}

#[derive(Deserialize)]
struct Set {
    #[serde(default)]
    elem: Vec<Element>,
}

#[derive(Deserialize)]
struct Element {
    elem: Entry,
}

#[derive(Deserialize)]
struct Entry {
    val: Concatenation,
    counter: Counted,
}

/// Pod, peer, protocol and port.
#[derive(Deserialize)]
struct Concatenation {
    concat: (Ipv4Addr, Ipv4Addr, String, u64),
}

fn counter(listed: &Listed, name: &str) -> u64 {
    let counters = listed.nftables.iter().filter_map(|object| object.counter.as_ref());
    counters.filter(|counter| counter.name == name).map(|counter| counter.packets).sum()
}

/// The elements of a set, with how many packets each counted.
fn attempts(listed: Listed, direction: &'static str) -> HashMap<Attempt, u64> {
    let elements = listed.nftables.into_iter().filter_map(|object| object.set).flat_map(|set| set.elem);
    let attempt = |Element { elem }: Element| {
        let (pod, peer, protocol, port) = elem.val.concat;
        let attempt = Attempt { direction, pod, peer, protocol: protocol.to_uppercase(), port };
        (attempt, elem.counter.packets)
    };
    elements.map(attempt).collect()
}

/// What to tell the pods of this node: what was denied since the look before.
fn notes(
    before: &HashMap<Attempt, u64>,
    seen: &HashMap<Attempt, u64>,
    pods: &BTreeMap<Key, Arc<PodFacts>>,
) -> Vec<Note> {
    let mut new: Vec<(&Attempt, &u64)> =
        seen.iter().filter(|(attempt, count)| before.get(*attempt) != Some(*count)).collect();
    new.sort_by_key(|(attempt, _)| (attempt.pod, attempt.direction, attempt.peer, attempt.port));
    let note = |(attempt, _): (&Attempt, &u64)| {
        let pod = pods.values().find(|pod| pod.addresses.contains(&attempt.pod))?;
        let Attempt { direction, peer, protocol, port, .. } = attempt;
        let message = match *direction {
            "ingress" => format!("No NetworkPolicy allows the connection from {peer} to port {port}/{protocol}"),
            _ => format!("No NetworkPolicy allows the connection to {peer}, port {port}/{protocol}"),
        };
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        };
        Some(Note::new(regarding, Severity::Warning, REASON, message))
    };
    new.into_iter().filter_map(note).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_told_what_is_new() {
        let listed = json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"set": {"name": "denied_egress", "elem": [
                {"elem": {"val": {"concat": ["10.128.0.2", "192.0.2.1", "tcp", 443]}, "counter": {"packets": 3, "bytes": 180}}},
                {"elem": {"val": {"concat": ["10.128.0.9", "192.0.2.1", "tcp", 443]}, "counter": {"packets": 1, "bytes": 60}}},
            ]}},
            {"counter": {"name": "denied_egress_packets", "packets": 4}},
        ]});
        let listed: Listed = serde_json::from_value(listed).unwrap();
        assert_eq!(counter(&listed, "denied_egress_packets"), 4);
        let seen = attempts(listed, "egress");
        let pod = PodFacts {
            namespace: "shop".into(),
            name: "web".into(),
            addresses: vec!["10.128.0.2".parse().unwrap()],
            ..PodFacts::default()
        };
        let pods = BTreeMap::from([(("shop".to_owned(), "web".to_owned()), Arc::new(pod))]);
        let told = notes(&HashMap::new(), &seen, &pods);
        let messages: Vec<&str> = told.iter().map(|note| note.message.as_str()).collect();
        assert_eq!(messages, ["No NetworkPolicy allows the connection to 192.0.2.1, port 443/TCP"]);
        assert!(notes(&seen, &seen, &pods).is_empty());
    }
}
