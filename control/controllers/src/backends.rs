//! Which pods, and which of their ports, a Service leads to.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Container, ContainerPort, ObjectReference, Pod, Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{Cache, Change, Delta, Key, Manifest, action::Action, object, pod};

/// The Service that leads to the API server itself.
pub(crate) const API_SERVICE: (&str, &str) = ("default", "kubernetes");

pub(crate) fn api_service() -> Key {
    Key::new(API_SERVICE.0, API_SERVICE.1)
}

const HEADLESS: &str = "service.kubernetes.io/headless";

/// A port of a Service, resolved for a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) port: i32,
    pub(crate) protocol: String,
    pub(crate) app_protocol: Option<String>,
}

pub(crate) fn spec(service: &Service) -> ServiceSpec {
    service.spec.clone().unwrap_or_default()
}

/// Whether the endpoints of a Service are ours to write: those without a selector are made by hand.
pub(crate) fn is_selecting(spec: &ServiceSpec) -> bool {
    let selects = spec.selector.as_ref().is_some_and(|selector| !selector.is_empty());
    selects && spec.type_.as_deref() != Some("ExternalName")
}

pub(crate) fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

pub(crate) fn is_api_service(service: &Service) -> bool {
    let meta = &service.metadata;
    (object::namespace(meta), object::name(meta)) == API_SERVICE
}

fn selects(spec: &ServiceSpec, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let has = |label: (&String, &String)| labels.and_then(|labels| labels.get(label.0)) == Some(label.1);
    is_selecting(spec) && spec.selector.iter().flatten().all(has)
}

/// The selected pods that have an address and still run, by name.
pub(crate) fn pods(cache: &Cache, service: &Service) -> Vec<Arc<Pod>> {
    let spec = spec(service);
    let all = cache.pods.in_namespace(object::namespace(&service.metadata));
    all.into_iter().filter(|pod| selects(&spec, pod) && !pod::is_terminal(pod) && !addresses(pod).is_empty()).collect()
}

pub(crate) fn addresses(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else { return Vec::new() };
    match &status.pod_ips {
        Some(addresses) if !addresses.is_empty() => addresses.iter().map(|address| address.ip.as_str()).collect(),
        _ => status.pod_ip.as_deref().filter(|address| !address.is_empty()).into_iter().collect(),
    }
}

/// The ports of the Service on this pod. A named port that the pod does not have is left out.
pub(crate) fn ports(spec: &ServiceSpec, pod: &Pod) -> Vec<Port> {
    let mut ports: Vec<Port> = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                port: target(port, pod)?,
                protocol: protocol(port.protocol.as_deref()).to_owned(),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort();
    ports
}

fn protocol(protocol: Option<&str>) -> &str {
    protocol.filter(|protocol| !protocol.is_empty()).unwrap_or("TCP")
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => return Some(port.port),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let is_sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(is_sidecar));
    let has_name = |own: &&ContainerPort| {
        own.name.as_ref() == Some(name) && protocol(own.protocol.as_deref()) == protocol(port.protocol.as_deref())
    };
    containers.flat_map(|container| container.ports.iter().flatten()).find(has_name).map(|own| own.container_port)
}

/// The labels of what shows a Service's endpoints: the Service's, these, and whether it is headless.
pub(crate) fn labels(service: &Service, own: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.extend(own.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    if is_headless(&spec(service)) {
        labels.insert(HEADLESS.to_owned(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    labels
}

/// The port of the Service that leads to the API.
pub(crate) fn api_port(port: u16) -> Port {
    Port { name: "https".to_owned(), port: port.into(), protocol: protocol(None).to_owned(), app_protocol: None }
}

/// The name under which DNS knows the pod, when it has asked for one below this Service.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let is_below = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    spec.hostname.clone().filter(|hostname| is_below && !hostname.is_empty())
}

pub(crate) fn target_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// What makes the objects of a Service as they are wanted: nothing where they are so already.
pub(crate) fn made_so<K: Manifest + PartialEq + 'static>(seen: Option<&K>, wanted: K) -> Option<Action> {
    match seen {
        None => Some(Action::create(wanted)),
        Some(seen) if *seen != wanted => Some(Action::update(wanted)),
        Some(_) => None,
    }
}

/// The Services that a change of a pod may matter to.
pub(crate) fn services_of(cache: &Cache, delta: &Delta<Pod>) -> Vec<Key> {
    if let (Some(old), Some(new)) = (&delta.old, &delta.new)
        && facts(old) == facts(new)
    {
        return Vec::new();
    }
    let namespace = delta.key().namespace;
    let services = cache.services.in_namespace(&namespace);
    let concerned = |service: &&Arc<Service>| {
        let spec = spec(service);
        delta.versions().any(|pod| selects(&spec, pod))
    };
    services.iter().filter(concerned).map(|service| Key::of(&service.metadata)).collect()
}

/// Everything about a pod that endpoints show.
fn facts(pod: &Pod) -> impl PartialEq + '_ {
    let meta = &pod.metadata;
    (
        (addresses(pod), pod::is_ready(pod), pod::is_terminal(pod), object::is_deleting(meta)),
        (&meta.labels, &meta.uid, pod::node(pod)),
    )
}

/// The Service that a change of a Service, a pod, or the endpoints of this name, wakes.
pub(crate) fn wakes(cache: &Cache, change: &Change) -> Vec<Key> {
    match change {
        Change::Service(delta) => vec![delta.key()],
        Change::Pod(delta) => services_of(cache, delta),
        _ => Vec::new(),
    }
}
