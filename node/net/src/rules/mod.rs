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

mod services;
mod sleepers;
mod transaction;

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

pub use sleepers::{Sleeper, Sleepers, sleepers};
pub use transaction::transaction;

/// The table that holds everything of ours, in the node's network namespace.
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
    /// Where this node takes connections for workloads that were scaled to zero.
    pub activator: Option<(Ipv4Addr, u16)>,
    pub services: Vec<Service>,
    pub slices: Vec<EndpointSlice>,
}

/// The content of the table: chains by name, and the elements of its maps and sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub(crate) base: BTreeMap<String, Vec<String>>,
    pub(crate) chains: BTreeMap<String, Vec<String>>,
    /// The time after which a client that was silent is no longer bound to an endpoint, by set.
    pub(crate) affinity_sets: BTreeMap<String, u32>,
    pub(crate) services: BTreeMap<String, String>,
    pub(crate) node_ports: BTreeMap<String, String>,
    pub(crate) no_endpoints: BTreeMap<String, String>,
    pub(crate) no_node_endpoints: BTreeMap<String, String>,
    pub(crate) hairpins: BTreeMap<String, String>,
}

/// The rules that make every Service of the snapshot reachable from this node and its pods.
pub fn rules(snapshot: &Snapshot) -> Ruleset {
    let mut ruleset = Ruleset { base: base_chains(snapshot), ..Ruleset::default() };
    for service in &snapshot.services {
        services::add(&mut ruleset, snapshot, service);
    }
    ruleset
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
