//! EndpointSlices: a Service's addresses in pieces, so that a change of one pod changes one piece.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
};
use kube::api::ObjectMeta;
use tandem_api::WOKEN_BY_ANNOTATION;
use tokio::sync::watch;

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Deletion, Plan},
    backends::{self, Port},
    object, pod, wakeable,
};

/// Endpoints that one slice holds.
const ENDPOINTS: usize = 100;
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";

pub(crate) struct SlicesOfServices {
    pub(crate) members: watch::Receiver<Vec<SocketAddr>>,
}

#[derive(Debug)]
pub(crate) struct View {
    service: Arc<Service>,
    pods: Vec<Arc<Pod>>,
    slices: Vec<Arc<EndpointSlice>>,
    /// The zones of the nodes that are in one.
    zones: BTreeMap<String, String>,
    api: Option<Vec<SocketAddr>>,
    /// The autoscaler that wakes the workload when it has no pods.
    woken_by: Option<String>,
}

impl Controller for SlicesOfServices {
    type Parent = Service;
    type View = View;

    const NAME: &'static str = "endpointslice";
    const READS: &'static [&'static str] =
        &["Service", "Pod", "Node", "EndpointSlice", "HorizontalPodAutoscaler", "Deployment"];

    fn store(cache: &Cache) -> &Store<Service> {
        &cache.services
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::EndpointSlice(delta) => {
                let mut keys: Vec<Key> = delta.versions().filter_map(|slice| service_key(slice)).collect();
                keys.dedup();
                keys
            }
            Change::Service(_) | Change::Pod(_) => backends::wakes(cache, change),
            change => wakeable::wakes(cache, change),
        }
    }

    async fn view(&self, input: &Input<'_>, service: Arc<Service>) -> Result<View, Error> {
        let cache = input.cache;
        let key = Key::of(&service.metadata);
        let api = backends::is_api_service(&service).then(|| self.members.borrow().clone());
        let mut slices = cache.endpoint_slices.in_namespace(&key.namespace);
        slices.retain(|slice| service_key(slice).as_ref() == Some(&key) && (api.is_some() || is_ours(slice)));
        let pods = backends::pods(cache, &service);
        let nodes: BTreeSet<&str> = pods.iter().filter_map(|pod| pod::node(pod)).collect();
        let zone = |name: &str| {
            let node = cache.nodes.get(&Key::new("", name))?;
            Some((name.to_owned(), node.metadata.labels.as_ref()?.get(ZONE)?.clone()))
        };
        let zones = nodes.into_iter().filter_map(zone).collect();
        let woken_by = wakeable::woken_by(cache, &service);
        Ok(View { service, slices, zones, api, pods, woken_by })
    }

    fn plan(view: &View, _now: Timestamp) -> Plan {
        plan(view)
    }
}

fn service_key(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(Key::new(object::namespace(&slice.metadata), name))
}

fn is_ours(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|manager| manager == MANAGER)
}

fn plan(view: &View) -> Plan {
    if object::is_deleting(&view.service.metadata) {
        return Plan::default();
    }
    let spec = backends::spec(&view.service);
    if let Some(api) = &view.api {
        // Nobody knows the members yet, or nobody else can reach them: what is there stays.
        return if api.is_empty() { Plan::default() } else { api_slices(view, api) };
    }
    if !backends::is_selecting(&spec) {
        return Plan::default();
    }
    let families = spec.ip_families.clone().filter(|families| !families.is_empty());
    let families = families.unwrap_or_else(|| vec!["IPv4".to_owned()]);
    let (wanted, foreign): (Vec<_>, Vec<_>) =
        view.slices.iter().partition(|slice| families.contains(&slice.address_type));
    let mut actions: Vec<Action> = foreign.into_iter().map(|slice| Action::Delete(Deletion::of(&**slice))).collect();
    for family in &families {
        let slices = wanted.iter().filter(|slice| slice.address_type == *family).map(|slice| &***slice);
        actions.extend(family_actions(view, family, slices.collect()));
    }
    Plan::of(actions)
}

/// A slice as it becomes. `seen` is `None` for a new one.
struct Draft<'a> {
    seen: Option<&'a EndpointSlice>,
    slice: EndpointSlice,
}

impl Draft<'_> {
    fn endpoints(&self) -> usize {
        self.slice.endpoints.as_ref().map_or(0, Vec::len)
    }
}

fn family_actions(view: &View, family: &str, slices: Vec<&EndpointSlice>) -> Vec<Action> {
    let mut wanted = endpoints(view, family);
    let is_empty = wanted.is_empty();
    let mut actions = Vec::new();
    let mut by_ports: BTreeMap<Vec<Port>, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        by_ports.entry(ports_of(slice)).or_default().push(slice);
    }
    if is_empty {
        // One slice stays, empty: it says that the Service was looked at and has nobody.
        let keep = by_ports.values().flatten().next().copied();
        wanted.insert(keep.map(ports_of).unwrap_or_default(), Vec::new());
    }
    for (ports, slices) in &by_ports {
        if !wanted.contains_key(ports) {
            actions.extend(slices.iter().map(|slice| Action::Delete(Deletion::of(*slice))));
        }
    }
    for (ports, endpoints) in wanted {
        let slices = by_ports.remove(&ports).unwrap_or_default();
        actions.extend(group_actions(view, family, &ports, endpoints, slices));
    }
    actions
}

/// Puts the endpoints of one set of ports into slices, with as few changed slices as possible.
fn group_actions(
    view: &View,
    family: &str,
    ports: &[Port],
    endpoints: Vec<Endpoint>,
    slices: Vec<&EndpointSlice>,
) -> Vec<Action> {
    let mut missing: BTreeMap<String, Endpoint> = endpoints.into_iter().map(|one| (identity(&one), one)).collect();
    let is_empty = missing.is_empty();
    let mut drafts = Vec::new();
    for seen in slices {
        let mut slice = seen.clone();
        let kept: Vec<Endpoint> =
            seen.endpoints.iter().flatten().filter_map(|one| missing.remove(&identity(one))).collect();
        slice.endpoints = Some(kept);
        slice.metadata.labels = Some(labels(view));
        mark(&mut slice.metadata, view);
        drafts.push(Draft { seen: Some(seen), slice });
    }
    // Slices that change anyway are filled up first, then the others.
    drafts.sort_by_key(|draft| draft.seen.is_some_and(|seen| seen.endpoints == draft.slice.endpoints));
    let mut missing = missing.into_values();
    for draft in &mut drafts {
        let room = ENDPOINTS.saturating_sub(draft.endpoints());
        draft.slice.endpoints.get_or_insert_default().extend(missing.by_ref().take(room));
    }
    loop {
        let chunk: Vec<Endpoint> = missing.by_ref().take(ENDPOINTS).collect();
        if chunk.is_empty() && !(is_empty && drafts.is_empty()) {
            break;
        }
        drafts.push(Draft { seen: None, slice: new_slice(view, family, ports, chunk) });
    }
    let placeholder = if is_empty { 1 } else { 0 };
    let mut actions = Vec::new();
    for (index, draft) in drafts.into_iter().enumerate() {
        match draft.seen {
            None => actions.push(Action::create(draft.slice)),
            Some(seen) if draft.endpoints() == 0 && index >= placeholder => {
                actions.push(Action::Delete(Deletion::of(seen)));
            }
            Some(seen) if *seen != draft.slice => actions.push(Action::update(draft.slice)),
            Some(_) => {}
        }
    }
    actions
}

/// The same pod stays the same endpoint when its conditions change.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default();
    format!("{uid} {}", endpoint.addresses.join(","))
}

fn labels(view: &View) -> BTreeMap<String, String> {
    let name = object::name(&view.service.metadata);
    backends::labels(&view.service, &[(SERVICE_NAME, name), (MANAGED_BY, MANAGER)])
}

/// Tells the nodes whom to ask for a pod where there is none.
fn mark(slice: &mut ObjectMeta, view: &View) {
    match &view.woken_by {
        Some(autoscaler) => {
            slice.annotations.get_or_insert_default().insert(WOKEN_BY_ANNOTATION.to_owned(), autoscaler.clone());
        }
        None => {
            slice.annotations.as_mut().and_then(|annotations| annotations.remove(WOKEN_BY_ANNOTATION));
        }
    }
}

fn new_slice(view: &View, family: &str, ports: &[Port], endpoints: Vec<Endpoint>) -> EndpointSlice {
    let meta = &view.service.metadata;
    let mut metadata = ObjectMeta {
        generate_name: Some(format!("{}-", object::name(meta))),
        namespace: meta.namespace.clone(),
        labels: Some(labels(view)),
        owner_references: Some(vec![object::controller_reference(&*view.service)]),
        ..ObjectMeta::default()
    };
    mark(&mut metadata, view);
    EndpointSlice {
        metadata,
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.iter().map(endpoint_port).collect()),
    }
}

fn endpoint_port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    }
}

fn ports_of(slice: &EndpointSlice) -> Vec<Port> {
    let port = |port: &EndpointPort| Port {
        name: port.name.clone().unwrap_or_default(),
        port: port.port.unwrap_or(0),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        app_protocol: port.app_protocol.clone(),
    };
    let mut ports: Vec<Port> = slice.ports.iter().flatten().map(port).collect();
    ports.sort();
    ports
}

fn endpoints(view: &View, family: &str) -> BTreeMap<Vec<Port>, Vec<Endpoint>> {
    let spec = backends::spec(&view.service);
    let publish_all = spec.publish_not_ready_addresses.unwrap_or(false);
    let mut groups: BTreeMap<Vec<Port>, Vec<Endpoint>> = BTreeMap::new();
    for pod in &view.pods {
        let is_wanted = |address: &&str| match address.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => family == "IPv4",
            Ok(IpAddr::V6(_)) => family == "IPv6",
            Err(_) => false,
        };
        let Some(address) = backends::addresses(pod).into_iter().find(is_wanted) else { continue };
        let (serving, terminating) = (pod::is_ready(pod), object::is_deleting(&pod.metadata));
        let node = pod::node(pod);
        let endpoint = Endpoint {
            addresses: vec![address.to_owned()],
            conditions: Some(EndpointConditions {
                ready: Some(publish_all || (serving && !terminating)),
                serving: Some(serving),
                terminating: Some(terminating),
            }),
            hostname: backends::hostname(&view.service, pod),
            node_name: node.map(str::to_owned),
            zone: node.and_then(|node| view.zones.get(node)).cloned(),
            target_ref: Some(backends::target_reference(pod)),
            ..Endpoint::default()
        };
        groups.entry(backends::ports(&spec, pod)).or_default().push(endpoint);
    }
    groups
}

/// The slices of the Service that leads to the API: one for each port and family that members have. The first has
/// Kubernetes' name; none has a manager but us.
fn api_slices(view: &View, api: &[SocketAddr]) -> Plan {
    let name = object::name(&view.service.metadata);
    let mut groups: Vec<(u16, bool, Vec<Endpoint>)> = Vec::new();
    for member in api {
        let (port, v4) = (member.port(), member.is_ipv4());
        let endpoint = Endpoint {
            addresses: vec![member.ip().to_string()],
            conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
            ..Endpoint::default()
        };
        match groups.iter_mut().find(|group| (group.0, group.1) == (port, v4)) {
            Some(group) => group.2.push(endpoint),
            None => groups.push((port, v4, vec![endpoint])),
        }
    }
    let mut actions = Vec::new();
    let mut names = Vec::new();
    for (index, (port, v4, endpoints)) in groups.into_iter().enumerate() {
        let family = if v4 { "IPv4" } else { "IPv6" };
        let own = if index == 0 { name.to_owned() } else { format!("{name}-{}-{port}", family.to_lowercase()) };
        actions.extend(api_slice(view, &own, family, port, endpoints));
        names.push(own);
    }
    let left = view.slices.iter().filter(|slice| !names.iter().any(|name| *name == object::name(&slice.metadata)));
    actions.extend(left.map(|slice| Action::Delete(Deletion::of(&**slice))));
    Plan::of(actions)
}

fn api_slice(view: &View, name: &str, family: &str, port: u16, endpoints: Vec<Endpoint>) -> Option<Action> {
    let meta = &view.service.metadata;
    let seen = view.slices.iter().find(|slice| slice.metadata.name.as_deref() == Some(name));
    let metadata = match seen {
        Some(seen) => seen.metadata.clone(),
        None => ObjectMeta {
            name: Some(name.to_owned()),
            namespace: meta.namespace.clone(),
            labels: Some([(SERVICE_NAME.to_owned(), object::name(meta).to_owned())].into()),
            ..ObjectMeta::default()
        },
    };
    let wanted = EndpointSlice {
        metadata,
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(vec![endpoint_port(&backends::api_port(port))]),
    };
    backends::made_so(seen.map(|slice| &**slice), wanted)
}

#[cfg(test)]
#[path = "endpointslice/tests.rs"]
mod tests;
