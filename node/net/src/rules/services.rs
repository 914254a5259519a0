use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{Ipv4Addr, SocketAddr},
};

use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointSlice},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use tandem_api::WOKEN_BY_ANNOTATION;

use super::{MASQUERADE_MARK, Ruleset, Snapshot};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// How long a client stays with an endpoint where the Service does not say (`service.spec.sessionAffinityConfig`).
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    address: Ipv4Addr,
    port: u16,
}

/// The endpoints of one Service port: all of them, and those on this node.
#[derive(Debug, Default)]
struct Targets {
    cluster: BTreeSet<Target>,
    local: BTreeSet<Target>,
    /// They are this node's activator: nobody else is there, and somebody could be.
    asleep: bool,
}

/// Adds the chains and map elements of one Service. Services without addresses of their own add nothing.
pub(super) fn add(ruleset: &mut Ruleset, snapshot: &Snapshot, service: &Service) {
    let Some(spec) = &service.spec else { return };
    if spec.type_.as_deref() == Some("ExternalName") {
        return;
    }
    let (cluster_ips, external_ips) = own_addresses(service, spec);
    for port in spec.ports.iter().flatten() {
        let all = targets(snapshot, service, port);
        let internal = if spec.internal_traffic_policy.as_deref() == Some("Local") { &all.local } else { &all.cluster };
        let local_only = spec.external_traffic_policy.as_deref() == Some("Local");
        let external = if local_only { &all.local } else { &all.cluster };
        let affinity = affinity_seconds(service);
        let chain = chain_name(service, port, "svc");
        let balanced = balance(ruleset, &chain, internal, port, affinity);
        for address in &cluster_ips {
            let key = format!("{address} . {} . {}", protocol(port), port.port);
            dispatch(ruleset, Map::Address, key, &chain, balanced);
        }
        if port.node_port.is_none() && external_ips.is_empty() {
            continue;
        }
        let outside = chain_name(service, port, "ext");
        let balanced = balance(ruleset, &outside, external, port, affinity);
        // The activator is the node itself, which needs no way back.
        if balanced && !local_only && !all.asleep {
            let mark = format!("meta mark set meta mark | {MASQUERADE_MARK}");
            if let Some(rules) = ruleset.chains.get_mut(&outside) {
                rules.insert(0, mark);
            }
        }
        for address in &external_ips {
            let key = format!("{address} . {} . {}", protocol(port), port.port);
            dispatch(ruleset, Map::Address, key, &outside, balanced);
        }
        if let Some(node_port) = port.node_port {
            dispatch(ruleset, Map::NodePort, format!("{} . {node_port}", protocol(port)), &outside, balanced);
        }
    }
}

/// The addresses inside the cluster, and those outside.
pub(super) fn own_addresses(service: &Service, spec: &ServiceSpec) -> (BTreeSet<Ipv4Addr>, BTreeSet<Ipv4Addr>) {
    let load_balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = load_balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    let cluster_ips = addresses(spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip));
    (cluster_ips, addresses(ingress.filter_map(|ingress| ingress.ip.as_ref())))
}

enum Map {
    Address,
    NodePort,
}

fn dispatch(ruleset: &mut Ruleset, map: Map, key: String, chain: &str, balanced: bool) {
    let (served, refused) = match map {
        Map::Address => (&mut ruleset.services, &mut ruleset.no_endpoints),
        Map::NodePort => (&mut ruleset.node_ports, &mut ruleset.no_node_endpoints),
    };
    if balanced {
        served.insert(key, format!("goto {chain}"));
    } else {
        refused.insert(key, String::new());
    }
}

/// Adds the chain that sends a connection to one of `targets`; false where there is none.
fn balance(
    ruleset: &mut Ruleset,
    chain: &str,
    targets: &BTreeSet<Target>,
    port: &ServicePort,
    affinity: Option<u32>,
) -> bool {
    if targets.is_empty() {
        return false;
    }
    for target in targets {
        ruleset.hairpins.insert(format!("{0} . {0}", target.address), String::new());
    }
    let protocol = protocol(port);
    let rules = match affinity {
        None => {
            let choices: Vec<String> = targets
                .iter()
                .enumerate()
                .map(|(index, target)| format!("{index} : {} . {}", target.address, target.port))
                .collect();
            let choose = format!("numgen random mod {} map {{ {} }}", targets.len(), choices.join(", "));
            vec![format!("meta l4proto {protocol} dnat ip addr . port to {choose}")]
        }
        Some(seconds) => sticky(ruleset, chain, targets, protocol, seconds),
    };
    ruleset.chains.insert(chain.to_owned(), rules);
    true
}

/// Rules that send a client to the endpoint that it had before, and remember the one that it gets.
fn sticky(ruleset: &mut Ruleset, chain: &str, targets: &BTreeSet<Target>, protocol: &str, seconds: u32) -> Vec<String> {
    let (mut remembered, mut choices) = (Vec::new(), Vec::new());
    for (index, Target { address, port }) in targets.iter().enumerate() {
        let name = format!("{chain}-{}-{port}", address.to_string().replace('.', "-"));
        ruleset.affinity_sets.insert(name.clone(), seconds);
        let update = format!("update @{name} {{ ip saddr timeout {seconds}s }}");
        ruleset.chains.insert(name.clone(), vec![update, format!("meta l4proto {protocol} dnat to {address}:{port}")]);
        remembered.push(format!("ip saddr @{name} goto {name}"));
        choices.push(format!("{index} : goto {name}"));
    }
    remembered.push(format!("numgen random mod {} vmap {{ {} }}", targets.len(), choices.join(", ")));
    remembered
}

fn targets(snapshot: &Snapshot, service: &Service, port: &ServicePort) -> Targets {
    // The API server may listen on a loopback address, which no pod can reach: this node's forwarder stands in.
    let is_api = service.metadata.namespace.as_deref() == Some("default")
        && service.metadata.name.as_deref() == Some("kubernetes");
    if let Some((address, port)) = snapshot.api.filter(|_| is_api) {
        let one = BTreeSet::from([Target { address, port }]);
        return Targets { cluster: one.clone(), local: one, asleep: false };
    }
    let (ready, terminating) = endpoints(snapshot, service, port);
    let wakes = snapshot.slices.iter().any(|slice| belongs(slice, service) && woken_by(slice).is_some());
    if let Some((address, port)) = snapshot.activator.filter(|_| wakes && protocol(port) == "tcp")
        && ready.cluster.is_empty()
    {
        // Not those that end: what comes now is for the next ones.
        let one = BTreeSet::from([Target { address, port }]);
        return Targets { cluster: one.clone(), local: one, asleep: true };
    }
    // KEP-1669: endpoints that end serve on only where no other is left.
    Targets {
        cluster: if ready.cluster.is_empty() { terminating.cluster } else { ready.cluster },
        local: if ready.local.is_empty() { terminating.local } else { ready.local },
        asleep: false,
    }
}

/// The endpoints of a Service port that are ready, and those that end but serve still.
fn endpoints(snapshot: &Snapshot, service: &Service, port: &ServicePort) -> (Targets, Targets) {
    let mut ready = Targets::default();
    let mut terminating = Targets::default();
    for slice in snapshot.slices.iter().filter(|slice| belongs(slice, service)) {
        let Some(number) = port_number(slice, port) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let into = match serves(endpoint) {
                Serves::Ready => &mut ready,
                Serves::WhileTerminating => &mut terminating,
                Serves::Not => continue,
            };
            let found = endpoint.addresses.iter().filter_map(|address| address.parse().ok());
            for target in found.map(|address| Target { address, port: number }) {
                into.cluster.insert(target);
                if endpoint.node_name.as_deref() == Some(snapshot.node.as_str()) {
                    into.local.insert(target);
                }
            }
        }
    }
    (ready, terminating)
}

/// The addresses to which a Service port's connections may go now.
pub(super) fn ready(snapshot: &Snapshot, service: &Service, port: &ServicePort) -> Vec<SocketAddr> {
    let (ready, _) = endpoints(snapshot, service, port);
    ready.cluster.into_iter().map(|target| SocketAddr::from((target.address, target.port))).collect()
}

/// The autoscaler that wakes the workload of the slice's Service.
pub(super) fn woken_by(slice: &EndpointSlice) -> Option<&str> {
    slice.metadata.annotations.as_ref()?.get(WOKEN_BY_ANNOTATION).map(String::as_str)
}

enum Serves {
    Ready,
    WhileTerminating,
    Not,
}

fn serves(endpoint: &Endpoint) -> Serves {
    let Some(conditions) = &endpoint.conditions else { return Serves::Ready };
    if conditions.ready.unwrap_or(true) {
        return Serves::Ready;
    }
    let still = conditions.serving.unwrap_or(false) && conditions.terminating.unwrap_or(false);
    if still { Serves::WhileTerminating } else { Serves::Not }
}

pub(super) fn belongs(slice: &EndpointSlice, service: &Service) -> bool {
    let labels = slice.metadata.labels.as_ref();
    let name = labels.and_then(|labels| labels.get(SERVICE_NAME_LABEL));
    slice.address_type == "IPv4"
        && slice.metadata.namespace == service.metadata.namespace
        && name.is_some()
        && name == service.metadata.name.as_ref()
}

fn port_number(slice: &EndpointSlice, port: &ServicePort) -> Option<u16> {
    let wanted = port.name.as_deref().unwrap_or_default();
    let same = |candidate: &&k8s_openapi::api::discovery::v1::EndpointPort| {
        candidate.name.as_deref().unwrap_or_default() == wanted
            && candidate.protocol.as_deref().unwrap_or("TCP") == port.protocol.as_deref().unwrap_or("TCP")
    };
    let found = slice.ports.iter().flatten().find(same)?;
    let fallback = match &port.target_port {
        Some(IntOrString::Int(number)) => Some(*number),
        _ => Some(port.port),
    };
    found.port.or(fallback).and_then(|number| u16::try_from(number).ok())
}

fn affinity_seconds(service: &Service) -> Option<u32> {
    let spec = service.spec.as_ref()?;
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).and_then(|seconds| u32::try_from(seconds).ok());
    Some(seconds.unwrap_or(DEFAULT_AFFINITY_SECONDS))
}

pub(super) fn protocol(port: &ServicePort) -> &'static str {
    match port.protocol.as_deref() {
        Some("UDP") => "udp",
        Some("SCTP") => "sctp",
        _ => "tcp",
    }
}

fn addresses<'a>(texts: impl Iterator<Item = &'a String>) -> BTreeSet<Ipv4Addr> {
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// nftables names chains with letters, digits and `-_/`; a hash keeps them short, the name keeps them readable.
fn chain_name(service: &Service, port: &ServicePort, kind: &str) -> String {
    let (namespace, name) = (&service.metadata.namespace, &service.metadata.name);
    let mut hasher = DefaultHasher::new();
    (namespace, name, port.port, protocol(port)).hash(&mut hasher);
    let readable: String = name.as_deref().unwrap_or_default().chars().take(40).collect();
    format!("{kind}-{:08x}-{}", hasher.finish() as u32, readable.replace('.', "-"))
}
