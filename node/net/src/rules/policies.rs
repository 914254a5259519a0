//! What the kernel is told about NetworkPolicies.
//!
//! ```text
//!  forward ── answers, a pod to itself: accept
//!         ├─ egress  (pod) ──> chain of the policies that select it ── allowed: return │ else refused
//!         └─ ingress (pod) ──>         "
//!  input  ── to cluster DNS, to the API server: egress, as above
//! ```
//!
//! Pods with the same policies share a chain. Whom a policy's rule selects is a set of addresses, so that a pod that
//! comes or goes is one element. What never changes with pods (address blocks, ports) is in sets named after their
//! content. The node's own traffic with its pods passes neither hook, or nothing there matches it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use ipnet::Ipv4Net;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::core::{Selector, SelectorExt as _};

use super::{
    Ruleset, hashed,
    ranges::{self, Range},
};

/// The table of NetworkPolicies; empty while there are none.
pub const POLICY_TABLE: &str = "ip tandem_policy";
/// Denied connections that are remembered at a time, and for how long.
const DENIED_MAX: u32 = 4096;
const DENIED_SECONDS: u32 = 120;
const DNS_PORT: u16 = 53;

pub type Labels = BTreeMap<String, String>;

/// What policies ask of a pod that has an address of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub node: String,
    pub labels: Labels,
    pub addresses: Vec<Ipv4Addr>,
    /// Those with a name.
    pub ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub protocol: &'static str,
    pub number: u16,
}

/// Everything the rules of policies depend on.
#[derive(Clone, Debug, Default)]
pub struct PolicySnapshot {
    pub node: String,
    /// The addresses of all pods of the cluster.
    pub pod_cidr: Ipv4Net,
    /// Cluster DNS, which this node serves itself: to policies it is the pod that it is elsewhere.
    pub dns: Option<Ipv4Addr>,
    /// Where this node's forwarder listens for the API server, and the members that it stands for.
    pub api: Option<(Ipv4Addr, u16)>,
    pub members: Vec<SocketAddr>,
    /// Where this node takes connections for workloads at zero: who may not go anywhere wakes nobody.
    pub activator: Option<(Ipv4Addr, u16)>,
    /// The labels of each.
    pub namespaces: BTreeMap<String, Labels>,
    pub pods: Vec<Arc<PodFacts>>,
    pub policies: Vec<Arc<NetworkPolicy>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    const ALL: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    const fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }

    /// Where the other side of a connection stands in its first packet.
    const fn peer(self) -> &'static str {
        match self {
            Direction::Ingress => "ip saddr",
            Direction::Egress => "ip daddr",
        }
    }

    /// Whether the policy isolates in this direction (`spec.policyTypes`, or what stands in for it).
    fn is_of(self, spec: &NetworkPolicySpec) -> bool {
        match (spec.policy_types.as_deref(), self) {
            (Some(types @ [_, ..]), _) => types.iter().any(|one| one.eq_ignore_ascii_case(self.name())),
            (_, Direction::Ingress) => true,
            (_, Direction::Egress) => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        }
    }
}

/// The rules of every policy that selects a pod of the snapshot's node.
pub fn policy_rules(snapshot: &PolicySnapshot) -> Ruleset {
    let mut ruleset = Ruleset::new(POLICY_TABLE);
    if snapshot.policies.is_empty() {
        return ruleset;
    }
    ruleset.base = base_chains(snapshot);
    for direction in Direction::ALL {
        ruleset.declare("map", direction.name(), "type ipv4_addr : verdict;");
        denial(&mut ruleset, direction);
    }
    ruleset.declare("set", "itself", "type ipv4_addr . ipv4_addr;");
    let mut rules = Rules { world: World::new(snapshot), ruleset, made: BTreeMap::new() };
    let policies: Vec<(&NetworkPolicySpec, &str, Option<Selector>)> = snapshot
        .policies
        .iter()
        .filter_map(|policy| {
            let (spec, namespace) = (policy.spec.as_ref()?, policy.metadata.namespace.as_deref()?);
            Some((spec, namespace, selector(spec.pod_selector.as_ref().unwrap_or(&LabelSelector::default()))))
        })
        .collect();
    for pod in snapshot.pods.iter().filter(|pod| pod.node == snapshot.node) {
        for direction in Direction::ALL {
            let selects = |(spec, namespace, selector): &&(&NetworkPolicySpec, &str, Option<Selector>)| {
                *namespace == pod.namespace && direction.is_of(spec) && matches(selector.as_ref(), &pod.labels)
            };
            let selecting: Vec<(&NetworkPolicySpec, &str)> =
                policies.iter().filter(selects).map(|(spec, namespace, _)| (*spec, *namespace)).collect();
            if !selecting.is_empty() {
                rules.isolate(pod, direction, &selecting);
            }
        }
    }
    rules.ruleset
}

fn base_chains(snapshot: &PolicySnapshot) -> BTreeMap<String, Vec<String>> {
    let answers = "ct state established,related accept".to_owned();
    let chain = |hook: &str, rules: Vec<String>| {
        let hook = format!("type filter hook {hook}; policy accept;");
        std::iter::once(hook).chain(rules).collect::<Vec<_>>()
    };
    let forward = vec![
        answers.clone(),
        "ip saddr . ip daddr @itself accept".to_owned(),
        "ip saddr vmap @egress".to_owned(),
        "ip daddr vmap @ingress".to_owned(),
    ];
    let own = snapshot.dns.map(|dns| (dns, DNS_PORT)).into_iter().chain(snapshot.api).chain(snapshot.activator);
    let own: Vec<String> = own.map(|(address, port)| format!("{address} . {port}")).collect();
    let mut input = vec![answers];
    if !own.is_empty() {
        input.push(format!("ip daddr . th dport {{ {} }} ip saddr vmap @egress", own.join(", ")));
    }
    // An address says who sends only where nobody can write another's.
    let spoofed = format!("ip saddr {} fib saddr . iif oif 0 drop", snapshot.pod_cidr);
    BTreeMap::from([
        ("policy_forward".to_owned(), chain("forward priority 10", forward)),
        ("policy_input".to_owned(), chain("input priority 10", input)),
        ("policy_sources".to_owned(), chain("prerouting priority -300", vec![spoofed])),
    ])
}

/// What becomes of a connection that no policy allows: it is counted, remembered for a while, and refused at once,
/// so that its client need not wait until it gives up.
fn denial(ruleset: &mut Ruleset, direction: Direction) {
    let name = format!("denied_{}", direction.name());
    let spec = format!(
        "type ipv4_addr . ipv4_addr . inet_proto . inet_service; flags dynamic,timeout; \
         timeout {DENIED_SECONDS}s; size {DENIED_MAX};"
    );
    let (pod, peer) = match direction {
        Direction::Ingress => ("ip daddr", "ip saddr"),
        Direction::Egress => ("ip saddr", "ip daddr"),
    };
    ruleset.declare("counter", format!("{name}_packets"), "");
    ruleset.declare("set", name.clone(), spec);
    let rules = vec![
        format!("counter name {name}_packets"),
        format!("update @{name} {{ {pod} . {peer} . meta l4proto . th dport counter }}"),
        "reject with icmp type admin-prohibited".to_owned(),
    ];
    ruleset.chains.insert(name, rules);
}

struct Rules<'a> {
    world: World<'a>,
    ruleset: Ruleset,
    /// The rules that a policy's part became, by the address of its spec.
    made: BTreeMap<(usize, Direction), Vec<String>>,
}

impl Rules<'_> {
    fn isolate(&mut self, pod: &PodFacts, direction: Direction, policies: &[(&NetworkPolicySpec, &str)]) {
        let mut allowed = Vec::new();
        for (spec, namespace) in policies {
            let key = (std::ptr::from_ref(*spec).addr(), direction);
            if !self.made.contains_key(&key) {
                let lines = self.allowed(spec, namespace, direction);
                self.made.insert(key, lines);
            }
            allowed.extend(self.made[&key].iter().cloned());
        }
        allowed.push(format!("goto denied_{}", direction.name()));
        let chain = format!("{}-{}", direction.name(), hashed(&allowed));
        for address in &pod.addresses {
            self.ruleset.insert(direction.name(), address.to_string(), format!("jump {chain}"));
            self.ruleset.insert("itself", format!("{address} . {address}"), "");
        }
        self.ruleset.chains.insert(chain, allowed);
    }

    /// The rules that let through what one policy allows.
    fn allowed(&mut self, spec: &NetworkPolicySpec, namespace: &str, direction: Direction) -> Vec<String> {
        let mut lines = Vec::new();
        let mut add =
            |rules: &mut Self, peers: Option<&Vec<NetworkPolicyPeer>>, ports: Option<&Vec<NetworkPolicyPort>>| {
                let peers = rules.peers(peers.map(Vec::as_slice).unwrap_or_default(), namespace, direction);
                let ports = rules.ports(ports.map(Vec::as_slice).unwrap_or_default());
                for peer in &peers {
                    lines.extend(ports.iter().map(|port| format!("{peer}{port}return")));
                }
            };
        match direction {
            Direction::Ingress => {
                for rule in spec.ingress.iter().flatten() {
                    add(self, rule.from.as_ref(), rule.ports.as_ref());
                }
            }
            Direction::Egress => {
                for rule in spec.egress.iter().flatten() {
                    add(self, rule.to.as_ref(), rule.ports.as_ref());
                }
            }
        }
        lines
    }

    /// What matches any of the peers; without peers, everybody.
    fn peers(&mut self, peers: &[NetworkPolicyPeer], namespace: &str, direction: Direction) -> Vec<String> {
        if peers.is_empty() {
            return vec![String::new()];
        }
        let blocks = peers.iter().filter_map(|peer| peer.ip_block.as_ref());
        let blocks = self.world.blocks(blocks, direction);
        let mut matches = Vec::new();
        if !blocks.is_empty() {
            let name = format!("blocks-{}", hashed(&blocks));
            let elements = blocks.iter().map(|(first, last)| {
                let (first, last) = (Ipv4Addr::from(*first), Ipv4Addr::from(*last));
                if first == last { first.to_string() } else { format!("{first}-{last}") }
            });
            self.ruleset.set_of("set", &name, "type ipv4_addr; flags interval;", elements);
            matches.push(format!("{} @{name} ", direction.peer()));
        }
        let selectors: Vec<&NetworkPolicyPeer> = peers.iter().filter(|peer| peer.ip_block.is_none()).collect();
        if !selectors.is_empty() {
            let name = format!("pods-{}", hashed((namespace, format!("{selectors:?}"))));
            if !self.ruleset.sets.contains_key(&name) {
                let addresses = self.world.selected(&selectors, namespace);
                self.ruleset.set_of("set", &name, "type ipv4_addr;", addresses.iter().map(ToString::to_string));
            }
            matches.push(format!("{} @{name} ", direction.peer()));
        }
        matches
    }

    /// What matches any of the ports; without ports, all of every protocol.
    fn ports(&mut self, ports: &[NetworkPolicyPort]) -> Vec<String> {
        if ports.is_empty() {
            return vec![String::new()];
        }
        let mut numbers: BTreeMap<&str, Vec<Range>> = BTreeMap::new();
        let mut matches = BTreeSet::new();
        for port in ports {
            let protocol = protocol(port.protocol.as_deref());
            let number = |number: i32| u16::try_from(number).ok().map(u32::from);
            let range = match &port.port {
                None => Some((0, u16::MAX.into())),
                Some(IntOrString::Int(first)) => number(*first).zip(number(port.end_port.unwrap_or(*first))),
                Some(IntOrString::String(name)) => {
                    matches.insert(self.named(protocol, name));
                    None
                }
            };
            numbers.entry(protocol).or_default().extend(range);
        }
        let mut elements = Vec::new();
        for (protocol, given) in numbers {
            elements.extend(ranges::joined(given).into_iter().map(|(first, last)| {
                if first == last { format!("{protocol} . {first}") } else { format!("{protocol} . {first}-{last}") }
            }));
        }
        if !elements.is_empty() {
            let name = format!("ports-{}", hashed(&elements));
            self.ruleset.set_of("set", &name, "type inet_proto . inet_service; flags interval;", elements);
            matches.insert(format!("meta l4proto . th dport @{name} "));
        }
        matches.into_iter().collect()
    }

    /// What matches the port that each pod calls by this name.
    fn named(&mut self, protocol: &str, port: &str) -> String {
        let name = format!("named-{}", hashed((protocol, port)));
        if !self.ruleset.sets.contains_key(&name) {
            let elements = self.world.pods.iter().flat_map(|pod| {
                let has_name = |one: &&Port| one.name == port && one.protocol == protocol;
                let numbers = pod.ports.iter().filter(has_name).map(|one| one.number);
                numbers.flat_map(|number| {
                    pod.addresses.iter().map(move |address| format!("{address} . {protocol} . {number}"))
                })
            });
            let elements: BTreeSet<String> = elements.collect();
            self.ruleset.set_of("set", &name, "type ipv4_addr . inet_proto . inet_service;", elements);
        }
        format!("ip daddr . meta l4proto . th dport @{name} ")
    }
}

/// Who there is.
struct World<'a> {
    snapshot: &'a PolicySnapshot,
    pods: Vec<Arc<PodFacts>>,
    by_namespace: BTreeMap<String, Vec<Arc<PodFacts>>>,
}

impl World<'_> {
    fn new(snapshot: &PolicySnapshot) -> World<'_> {
        let mut pods = snapshot.pods.clone();
        pods.extend(snapshot.dns.map(|address| Arc::new(dns_pod(address))));
        let mut by_namespace: BTreeMap<String, Vec<Arc<PodFacts>>> = BTreeMap::new();
        for pod in &pods {
            by_namespace.entry(pod.namespace.clone()).or_default().push(pod.clone());
        }
        World { snapshot, pods, by_namespace }
    }

    fn selected(&self, peers: &[&NetworkPolicyPeer], namespace: &str) -> BTreeSet<Ipv4Addr> {
        let mut addresses = BTreeSet::new();
        for peer in peers {
            let pods = peer.pod_selector.as_ref().map(selector);
            let is_selected =
                |pod: &&Arc<PodFacts>| pods.as_ref().is_none_or(|selector| matches(selector.as_ref(), &pod.labels));
            let namespaces = peer.namespace_selector.as_ref().map(selector);
            let within = self.by_namespace.iter().filter(|(name, _)| match &namespaces {
                Some(selector) => {
                    self.snapshot.namespaces.get(*name).is_some_and(|labels| matches(selector.as_ref(), labels))
                }
                // A peer that selects nothing at all is refused by the API; it would be nobody.
                None => *name == namespace && pods.is_some(),
            });
            let selected = within.flat_map(|(_, pods)| pods).filter(is_selected);
            addresses.extend(selected.flat_map(|pod| pod.addresses.iter().copied()));
        }
        addresses
    }

    /// The addresses in any of the blocks. For connections that go out, the forwarder of the API server is where the
    /// members are.
    fn blocks<'b>(&self, blocks: impl Iterator<Item = &'b IPBlock>, direction: Direction) -> Vec<Range> {
        let range =
            |text: &String| text.parse::<Ipv4Net>().ok().map(|net| (net.network().into(), net.broadcast().into()));
        let all = blocks.filter_map(|block| {
            let except = block.except.iter().flatten().filter_map(range).collect();
            Some(ranges::without(range(&block.cidr)?, except))
        });
        let mut all = ranges::joined(all.flatten().collect());
        if let (Some((forwarder, _)), Direction::Egress) = (self.snapshot.api, direction) {
            let forwarder = u32::from(forwarder);
            let is_allowed = self.snapshot.members.iter().any(|member| match member.ip() {
                IpAddr::V4(address) => all.iter().any(|(first, last)| (*first..=*last).contains(&u32::from(address))),
                IpAddr::V6(_) => false,
            });
            if is_allowed {
                all.push((forwarder, forwarder));
            } else {
                all = all.into_iter().flat_map(|range| ranges::without(range, vec![(forwarder, forwarder)])).collect();
            }
        }
        ranges::joined(all)
    }
}

/// Cluster DNS as policies know it from elsewhere: by these labels, in this namespace.
fn dns_pod(address: Ipv4Addr) -> PodFacts {
    let port = |name: &str, protocol| Port { name: name.to_owned(), protocol, number: DNS_PORT };
    PodFacts {
        namespace: "kube-system".to_owned(),
        name: "kube-dns".to_owned(),
        labels: Labels::from([("k8s-app".to_owned(), "kube-dns".to_owned())]),
        addresses: vec![address],
        ports: vec![port("dns", "udp"), port("dns-tcp", "tcp")],
        ..PodFacts::default()
    }
}

/// One that cannot be parsed selects nothing, as the API server refuses it anyway.
fn selector(selector: &LabelSelector) -> Option<Selector> {
    Selector::try_from(selector.clone()).ok()
}

fn matches(selector: Option<&Selector>, labels: &Labels) -> bool {
    selector.is_some_and(|selector| selector.matches(labels))
}

fn protocol(protocol: Option<&str>) -> &'static str {
    match protocol {
        Some("UDP") => "udp",
        Some("SCTP") => "sctp",
        _ => "tcp",
    }
}

#[cfg(test)]
#[path = "policies/tests.rs"]
mod tests;
