//! What the kernel is told about Services: a pure function from the cluster's Services to an nftables ruleset, and the
//! difference of two rulesets as one transaction.
//!
//! ```text
//!  prerouting, output ── services  (address . protocol . port) ──> chain of the Service port ── dnat to an endpoint
//!                     └─ nodeports (protocol . port)           ──>         "        (marked for masquerade)
//!                          no endpoints, but an autoscaler that wakes the workload ── dnat to this node's activator
//!  forward, output    ── no_endpoints ── reject
//!  postrouting        ── masquerade: marked, hairpin, pods that leave the cluster
//! ```

mod policies;
mod ranges;
mod services;
mod sleepers;
mod transaction;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

use crate::health::Ports;
pub use policies::{Labels, POLICY_TABLE, PodFacts, PolicySnapshot, Port, policy_rules};
pub use sleepers::{Sleeper, Sleepers, sleepers};
pub use transaction::{removal, transaction};

/// The table of Services, in the node's network namespace.
pub const TABLE: &str = "ip tandem";
/// The packet mark of traffic whose answer must come back through this node. Kubernetes uses the same bit.
const MASQUERADE_MARK: &str = "0x4000";

/// Everything the rules depend on.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub node: String,
    /// The addresses of all pods of the cluster.
    pub pod_cidr: Ipv4Net,
    /// Where this node's forwarder listens for the API server.
    pub api: Option<(Ipv4Addr, u16)>,
    /// The node's zone, if it is in one.
    pub zone: Option<String>,
    /// Whether Services may have any address they name (`spec.externalIPs`).
    pub external_ips: bool,
    /// Where this node takes connections for workloads that were scaled to zero.
    pub activator: Option<(Ipv4Addr, u16)>,
    pub services: Vec<Service>,
    pub slices: Vec<EndpointSlice>,
}

/// The content of a table: chains by name, and its sets and maps with their elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    table: &'static str,
    /// The chains that hang on hooks. With others, the table is built anew.
    base: BTreeMap<String, Vec<String>>,
    chains: BTreeMap<String, Vec<String>>,
    sets: BTreeMap<String, Set>,
    /// Where UDP goes: none of the kernel's rules, but what is to be forgotten follows from it.
    pub(crate) datagrams: Datagrams,
}

/// Where datagrams to Services may end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Datagrams {
    pub(crate) addresses: BTreeMap<(Ipv4Addr, u16), BTreeSet<(Ipv4Addr, u16)>>,
    pub(crate) node_ports: BTreeMap<u16, BTreeSet<(Ipv4Addr, u16)>>,
}

/// A set, a map or a counter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Set {
    sort: &'static str,
    spec: String,
    /// What we put in: the kernel adds more to those that remember clients.
    elements: BTreeMap<String, String>,
}

impl Ruleset {
    fn new(table: &'static str) -> Ruleset {
        Ruleset {
            table,
            base: BTreeMap::new(),
            chains: BTreeMap::new(),
            sets: BTreeMap::new(),
            datagrams: Datagrams::default(),
        }
    }

    fn declare(&mut self, sort: &'static str, name: impl Into<String>, spec: impl Into<String>) {
        self.sets.insert(name.into(), Set { sort, spec: spec.into(), elements: BTreeMap::new() });
    }

    /// Puts an element into a set (`value` empty) or a map that was declared.
    fn insert(&mut self, set: &str, key: String, value: impl Into<String>) {
        debug_assert!(self.sets.contains_key(set), "{set} is declared");
        if let Some(set) = self.sets.get_mut(set) {
            set.elements.insert(key, value.into());
        }
    }

    fn set_of(&mut self, sort: &'static str, name: &str, spec: &str, elements: impl IntoIterator<Item = String>) {
        let elements = elements.into_iter().map(|element| (element, String::new())).collect();
        self.sets.insert(name.to_owned(), Set { sort, spec: spec.to_owned(), elements });
    }

    #[cfg(test)]
    fn keys(&self, set: &str) -> Vec<&str> {
        self.sets[set].elements.keys().map(String::as_str).collect()
    }
}

/// Names of chains and sets: a hash keeps them short. Sixteen digits, because users choose what is hashed.
fn hashed(content: impl std::hash::Hash) -> String {
    use std::hash::{DefaultHasher, Hasher as _};
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// The rules that make every Service of the snapshot reachable from this node and its pods.
pub fn rules(snapshot: &Snapshot) -> Ruleset {
    let mut ruleset = Ruleset { base: base_chains(snapshot), ..Ruleset::new(TABLE) };
    let address = "type ipv4_addr . inet_proto . inet_service";
    let port = "type inet_proto . inet_service";
    ruleset.declare("map", "services", format!("{address} : verdict;"));
    ruleset.declare("map", "nodeports", format!("{port} : verdict;"));
    ruleset.declare("set", "no_endpoints", format!("{address};"));
    ruleset.declare("set", "no_node_endpoints", format!("{port};"));
    ruleset.declare("set", "hairpins", "type ipv4_addr . ipv4_addr;");
    let dispatch = [
        "ip daddr . meta l4proto . th dport vmap @services",
        "fib daddr type local meta l4proto . th dport vmap @nodeports",
    ];
    ruleset.chains.insert("dispatch".to_owned(), dispatch.map(str::to_owned).to_vec());
    for service in &snapshot.services {
        services::add(&mut ruleset, snapshot, service);
    }
    ruleset
}

/// The ports on which load balancers ask, with what they are told.
pub(crate) fn health(snapshot: &Snapshot) -> Ports {
    snapshot.services.iter().filter_map(|service| services::health(snapshot, service)).collect()
}

fn base_chains(snapshot: &Snapshot) -> BTreeMap<String, Vec<String>> {
    let pods = snapshot.pod_cidr;
    let postrouting = vec![
        format!("meta mark & {MASQUERADE_MARK} == {MASQUERADE_MARK} masquerade"),
        "ct status dnat ip saddr . ip daddr @hairpins masquerade".to_owned(),
        // What the node sends to a NodePort of its own on 127.0.0.1 could not be answered.
        "ip saddr 127.0.0.0/8 ip daddr != 127.0.0.0/8 masquerade".to_owned(),
        format!("ip saddr {pods} ip daddr != {pods} fib daddr type != local masquerade"),
    ];
    let reject = ["tcp", "udp"].map(|protocol| {
        let with = if protocol == "tcp" { "tcp reset" } else { "icmp type port-unreachable" };
        format!(
            "ct state new meta l4proto {protocol} ip daddr . meta l4proto . th dport @no_endpoints reject with {with}"
        )
    });
    let chain = |hook: &str, rules: Vec<String>| {
        let mut all = vec![format!("type {hook}; policy accept;")];
        all.extend(rules);
        all
    };
    let dispatch = vec!["jump dispatch".to_owned()];
    BTreeMap::from([
        // NodePorts answer on 127.0.0.1, which needs route_localnet; nobody from outside may use that (CVE-2020-8558).
        (
            "guard".to_owned(),
            chain(
                "filter hook prerouting priority -310",
                vec!["iifname != \"lo\" ip daddr 127.0.0.0/8 drop".to_owned()],
            ),
        ),
        ("prerouting".to_owned(), chain("nat hook prerouting priority -100", dispatch.clone())),
        ("output".to_owned(), chain("nat hook output priority -100", dispatch)),
        ("postrouting".to_owned(), chain("nat hook postrouting priority 100", postrouting)),
        ("refuse_forward".to_owned(), chain("filter hook forward priority 0", reject.to_vec())),
        ("refuse_output".to_owned(), chain("filter hook output priority 0", reject.to_vec())),
        (
            "refuse_input".to_owned(),
            chain(
                "filter hook input priority 0",
                vec!["ct state new fib daddr type local meta l4proto . th dport @no_node_endpoints reject".to_owned()],
            ),
        ),
    ])
}

#[cfg(test)]
mod tests;
