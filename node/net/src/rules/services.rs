use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
};

use ipnet::Ipv4Net;
use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointSlice},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use tandem_api::WOKEN_BY_ANNOTATION;

use crate::health::Health;

use super::{MASQUERADE_MARK, Ruleset, Snapshot, hashed};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// How long a client stays with an endpoint where the Service does not say (`service.spec.sessionAffinityConfig`).
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    address: Ipv4Addr,
    port: u16,
}

/// The endpoints of one Service port: all of them, those in this node's zone, and those on this node.
#[derive(Debug, Default)]
struct Targets {
    cluster: BTreeSet<Target>,
    zone: BTreeSet<Target>,
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
    let [cluster_ips, balancers, external_ips] = own_addresses(snapshot, service, spec);
    for port in spec.ports.iter().flatten() {
        let all = targets(snapshot, service, port);
        let internal = if spec.internal_traffic_policy.as_deref() == Some("Local") { &all.local } else { &all.cluster };
        let internal = nearest(snapshot, spec, internal, &all);
        let affinity = affinity_seconds(service);
        if protocol(port) == "udp" {
            let outside = balancers.union(&external_ips).copied().collect();
            datagrams(ruleset, port, (&cluster_ips, internal), (&outside, &all.cluster));
        }
        let chain = chain_name(service, port, "svc");
        let balanced = balance(ruleset, &chain, internal, port, affinity);
        for address in &cluster_ips {
            dispatch(ruleset, Map::Address, address_key(*address, port), &chain, balanced);
        }
        if port.node_port.is_none() && balancers.is_empty() && external_ips.is_empty() {
            continue;
        }
        let outside = chain_name(service, port, "ext");
        let balanced = if spec.external_traffic_policy.as_deref() == Some("Local") {
            local_only(ruleset, snapshot, (&outside, service), &all, port)
        } else {
            let balanced = balance(ruleset, &outside, &all.cluster, port, affinity);
            // The activator is the node itself, which needs no way back.
            if !all.asleep
                && let Some(rules) = ruleset.chains.get_mut(&outside)
            {
                rules.insert(0, masquerade());
            }
            balanced
        };
        for address in &external_ips {
            dispatch(ruleset, Map::Address, address_key(*address, port), &outside, balanced);
        }
        if let Some(node_port) = port.node_port {
            dispatch(ruleset, Map::NodePort, format!("{} . {node_port}", protocol(port)), &outside, balanced);
        }
        let balancer = if balanced { allowed_sources(ruleset, service, port, &outside) } else { outside };
        for address in &balancers {
            dispatch(ruleset, Map::Address, address_key(*address, port), &balancer, balanced);
        }
    }
}

type Way<'a> = (&'a BTreeSet<Ipv4Addr>, &'a BTreeSet<Target>);

fn datagrams(ruleset: &mut Ruleset, port: &ServicePort, inside: Way<'_>, outside: Way<'_>) {
    let ends = |targets: &BTreeSet<Target>| targets.iter().map(|target| (target.address, target.port)).collect();
    let Ok(number) = u16::try_from(port.port) else { return };
    for (addresses, targets) in [inside, outside] {
        let known = addresses.iter().map(|address| ((*address, number), ends(targets)));
        ruleset.datagrams.addresses.extend(known);
    }
    let node_port = port.node_port.and_then(|port| u16::try_from(port).ok());
    ruleset.datagrams.node_ports.extend(node_port.map(|port| (port, ends(outside.1))));
}

/// What the load balancer of a Service that stays local is told, and on which port.
pub(super) fn health(snapshot: &Snapshot, service: &Service) -> Option<(u16, Health)> {
    let spec = service.spec.as_ref().filter(|spec| spec.type_.as_deref() == Some("LoadBalancer"))?;
    let port = spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)?;
    let targets = spec.ports.iter().flatten().flat_map(|port| targets(snapshot, service, port).local);
    let addresses: BTreeSet<Ipv4Addr> = targets.map(|target| target.address).collect();
    let (namespace, name) = (service.metadata.namespace.clone()?, service.metadata.name.clone()?);
    Some((port, Health { namespace, name, local_endpoints: addresses.len() }))
}

fn address_key(address: Ipv4Addr, port: &ServicePort) -> String {
    format!("{address} . {} . {}", protocol(port), port.port)
}

fn masquerade() -> String {
    format!("meta mark set meta mark | {MASQUERADE_MARK}")
}

/// The addresses of its load balancer that lead here rather than to another proxy.
fn balancers(service: &Service, spec: &ServiceSpec) -> BTreeSet<Ipv4Addr> {
    if spec.type_.as_deref() != Some("LoadBalancer") {
        return BTreeSet::new();
    }
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    let here = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    addresses(here.filter_map(|ingress| ingress.ip.as_ref()))
}

/// The chain for `externalTrafficPolicy: Local`: from outside only to this node's endpoints, whose clients keep their
/// address; pods and the node itself, which are inside, go anywhere.
fn local_only(
    ruleset: &mut Ruleset,
    snapshot: &Snapshot,
    (chain, service): (&str, &Service),
    all: &Targets,
    port: &ServicePort,
) -> bool {
    let anywhere = chain_name(service, port, "any");
    let affinity = affinity_seconds(service);
    if !balance(ruleset, &anywhere, &all.cluster, port, affinity) {
        return false;
    }
    let inside = vec![
        format!("ip saddr {} goto {anywhere}", snapshot.pod_cidr),
        format!("fib saddr type local {} goto {anywhere}", masquerade()),
    ];
    if !balance(ruleset, chain, &all.local, port, affinity) {
        ruleset.chains.insert(chain.to_owned(), vec!["drop".to_owned()]);
    }
    if let Some(rules) = ruleset.chains.get_mut(chain) {
        rules.splice(0..0, inside);
    }
    true
}

/// The chain of a load balancer's addresses: those who may come go on to `next` (`spec.loadBalancerSourceRanges`).
fn allowed_sources(ruleset: &mut Ruleset, service: &Service, port: &ServicePort, next: &str) -> String {
    let ranges = service.spec.as_ref().and_then(|spec| spec.load_balancer_source_ranges.as_ref());
    let Some(ranges) = ranges.filter(|ranges| !ranges.is_empty()) else { return next.to_owned() };
    let parsed: Vec<Ipv4Net> = ranges.iter().filter_map(|range| range.trim().parse().ok()).collect();
    let parsed = Ipv4Net::aggregate(&parsed);
    let mut rules = Vec::new();
    if !parsed.is_empty() {
        let ranges: Vec<String> = parsed.iter().map(|range| range.trunc().to_string()).collect();
        rules.push(format!("ip saddr {{ {} }} goto {next}", ranges.join(", ")));
    }
    rules.extend([format!("fib saddr type local goto {next}"), "drop".to_owned()]);
    let chain = chain_name(service, port, "src");
    ruleset.chains.insert(chain.clone(), rules);
    chain
}

/// Those that are near, where the Service prefers them and there are any (`spec.trafficDistribution`).
fn nearest<'a>(
    snapshot: &Snapshot,
    spec: &ServiceSpec,
    among: &'a BTreeSet<Target>,
    all: &'a Targets,
) -> &'a BTreeSet<Target> {
    let in_zone = if snapshot.zone.is_some() && !all.zone.is_empty() { &all.zone } else { among };
    match spec.traffic_distribution.as_deref() {
        _ if spec.internal_traffic_policy.as_deref() == Some("Local") => among,
        Some("PreferSameNode") if !all.local.is_empty() => &all.local,
        Some("PreferSameNode" | "PreferSameZone" | "PreferClose") => in_zone,
        _ => among,
    }
}

/// The addresses inside the cluster, those of load balancers, and those that the Service names itself.
pub(super) fn own_addresses(snapshot: &Snapshot, service: &Service, spec: &ServiceSpec) -> [BTreeSet<Ipv4Addr>; 3] {
    let inside = addresses(spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip));
    let named = addresses(spec.external_ips.iter().flatten().filter(|_| snapshot.external_ips));
    [inside, balancers(service, spec), named]
}

enum Map {
    Address,
    NodePort,
}

fn dispatch(ruleset: &mut Ruleset, map: Map, key: String, chain: &str, balanced: bool) {
    let (served, refused) = match map {
        Map::Address => ("services", "no_endpoints"),
        Map::NodePort => ("nodeports", "no_node_endpoints"),
    };
    if balanced {
        ruleset.insert(served, key, format!("goto {chain}"));
    } else {
        ruleset.insert(refused, key, "");
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
        ruleset.insert("hairpins", format!("{0} . {0}", target.address), "");
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
        ruleset.declare("set", name.clone(), "type ipv4_addr; flags timeout;");
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
        return Targets { cluster: one.clone(), zone: one.clone(), local: one, asleep: false };
    }
    let (ready, terminating) = endpoints(snapshot, service, port);
    let wakes = snapshot.slices.iter().any(|slice| belongs(slice, service) && woken_by(slice).is_some());
    if let Some((address, port)) = snapshot.activator.filter(|_| wakes && protocol(port) == "tcp")
        && ready.cluster.is_empty()
    {
        // Not those that end: what comes now is for the next ones.
        let one = BTreeSet::from([Target { address, port }]);
        return Targets { cluster: one.clone(), zone: BTreeSet::new(), local: one, asleep: true };
    }
    // KEP-1669: endpoints that end serve on only where no other is left.
    Targets {
        cluster: if ready.cluster.is_empty() { terminating.cluster } else { ready.cluster },
        zone: ready.zone,
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
                if endpoint.zone.is_some() && endpoint.zone == snapshot.zone {
                    into.zone.insert(target);
                }
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
    let hash = hashed((namespace, name, port.port, protocol(port)));
    let readable: String = name.as_deref().unwrap_or_default().chars().take(40).collect();
    format!("{kind}-{hash}-{}", readable.replace('.', "-"))
}
