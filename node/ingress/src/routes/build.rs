//! The table of a moment.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Service, ServicePort},
    discovery::v1::EndpointSlice,
    networking::v1::{HTTPIngressPath, Ingress, IngressBackend, IngressClass, IngressRule, IngressSpec, IngressTLS},
};
use kube::ResourceExt as _;
use rustls::sign::CertifiedKey;
use tandem_api::{INGRESS_CLASS_ANNOTATION, INGRESS_CONTROLLER, WOKEN_BY_ANNOTATION};

use super::{Backend, Protocol, Reach, Table, normal_host, paths::Paths};
use crate::certificates::Certificate;

const SERVICE_NAME: &str = "kubernetes.io/service-name";

const NO_SERVICE: &str = "the Service of this path is not there";
const NO_PORT: &str = "the Service of this path has no such port";
const RESOURCE: &str = "backends that are not Services are not supported";
const EXTERNAL: &str = "Services of type ExternalName are not supported as backends";
const PROTOCOL: &str = "the appProtocol of this Service's port is not supported";

/// A namespace and a name in it.
pub(crate) type Name = (String, String);

/// What the table is made of.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) ingresses: Vec<Arc<Ingress>>,
    pub(crate) classes: Vec<Arc<IngressClass>>,
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) slices: Vec<Arc<EndpointSlice>>,
    pub(crate) certificates: BTreeMap<Name, Arc<Certificate>>,
    /// Secrets of which nothing was told yet.
    pub(crate) awaited: BTreeSet<Name>,
    /// Certificates that no Ingress names any more, for hosts whose new Secret is awaited.
    pub(crate) former: BTreeMap<Name, Arc<Certificate>>,
}

/// The class that an Ingress is of: its field, else the annotation that was there before it.
fn class_of(ingress: &Ingress) -> Option<&str> {
    let field = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_deref());
    field.or_else(|| ingress.annotations().get(INGRESS_CLASS_ANNOTATION).map(String::as_str))
}

fn is_ours(class: &IngressClass) -> bool {
    class.spec.as_ref().is_some_and(|spec| spec.controller.as_deref() == Some(INGRESS_CONTROLLER))
}

/// Whether an Ingress is of a class that this proxy serves.
fn is_served(ingress: &Ingress, classes: &[Arc<IngressClass>]) -> bool {
    let class = class_of(ingress);
    class.is_some_and(|name| classes.iter().any(|class| is_ours(class) && class.name_any() == name))
}

/// The Ingresses that are ours, the oldest first: who was first keeps what others want too.
pub(crate) fn served(ingresses: &[Arc<Ingress>], classes: &[Arc<IngressClass>]) -> Vec<Arc<Ingress>> {
    let mut served: Vec<Arc<Ingress>> =
        ingresses.iter().filter(|ingress| is_served(ingress, classes)).cloned().collect();
    served.sort_by_cached_key(|ingress| {
        (ingress.metadata.creation_timestamp.as_ref().map(|time| time.0), ingress.namespace(), ingress.name_any())
    });
    served
}

/// Secrets that are watched, and of one namespace among them: none takes the places of all.
const SECRETS_MAX: usize = 512;
const SECRETS_PER_NAMESPACE_MAX: usize = 64;

/// The Secrets that Ingresses name for TLS and that are watched, once each: those of the oldest Ingresses. And whether
/// these are all.
pub(crate) fn watched(served: &[Arc<Ingress>]) -> (BTreeSet<Name>, bool) {
    let mut watched = BTreeSet::new();
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut all = true;
    for name in secrets(served) {
        if watched.contains(&name) {
            continue;
        }
        let count = counts.entry(name.0.clone()).or_default();
        if *count >= SECRETS_PER_NAMESPACE_MAX || watched.len() >= SECRETS_MAX {
            all = false;
            continue;
        }
        *count += 1;
        watched.insert(name);
    }
    (watched, all)
}

/// The Secrets that Ingresses name for TLS, in the order of these.
pub(crate) fn secrets(served: &[Arc<Ingress>]) -> Vec<Name> {
    let of = |ingress: &Arc<Ingress>| {
        let namespace = ingress.namespace().unwrap_or_default();
        let tls = ingress.spec.as_ref().and_then(|spec| spec.tls.clone()).unwrap_or_default();
        let names = tls.into_iter().filter_map(|tls| tls.secret_name).filter(|name| !name.is_empty());
        names.map(move |name| (namespace.clone(), name)).collect::<Vec<_>>()
    };
    served.iter().flat_map(of).collect()
}

/// Makes the table of a snapshot.
pub(crate) fn build(snapshot: &Snapshot, default: &Arc<CertifiedKey>) -> Table {
    let mut table = Table::empty(default.clone());
    let backends = Backends::of(snapshot);
    for ingress in served(&snapshot.ingresses, &snapshot.classes) {
        let namespace = ingress.namespace().unwrap_or_default();
        let Some(spec) = &ingress.spec else { continue };
        let name = (namespace.clone(), ingress.name_any());
        let fallback = spec.default_backend.as_ref().map(|backend| backends.backend(&name, backend));
        for rule in spec.rules.iter().flatten() {
            add_rule(&mut table, &backends, &name, rule, fallback.as_ref());
        }
        if let Some(fallback) = fallback {
            table.any.default.get_or_insert(fallback);
        }
        for tls in spec.tls.iter().flatten() {
            let secret = (namespace.clone(), tls.secret_name.clone().unwrap_or_default());
            let Some(certificate) = snapshot.certificates.get(&secret) else {
                if snapshot.awaited.contains(&secret) {
                    add_former(&mut table, snapshot, &namespace, tls, spec);
                }
                continue;
            };
            let hosts = tls.hosts.as_ref().filter(|hosts| !hosts.is_empty()).unwrap_or(&certificate.names);
            hosts.iter().for_each(|host| table.certificates.add(&normal_host(host), &certificate.key));
        }
    }
    table
}

/// Shows what the namespace had for these hosts until their Secret is known.
fn add_former(table: &mut Table, snapshot: &Snapshot, namespace: &str, tls: &IngressTLS, spec: &IngressSpec) {
    let of_rules = || spec.rules.iter().flatten().filter_map(|rule| rule.host.clone()).collect();
    let hosts: Vec<String> = tls.hosts.clone().filter(|hosts| !hosts.is_empty()).unwrap_or_else(of_rules);
    let former = || snapshot.former.iter().filter(|((of, _), _)| of == namespace).map(|(_, certificate)| certificate);
    for host in hosts.iter().map(|host| normal_host(host)) {
        if let Some(certificate) = former().find(|certificate| certificate.is_for(&host)) {
            table.certificates.add(&host, &certificate.key);
        }
    }
}

fn add_rule(
    table: &mut Table,
    backends: &Backends<'_>,
    ingress: &Name,
    rule: &IngressRule,
    fallback: Option<&Arc<Backend>>,
) {
    let host = normal_host(rule.host.as_deref().unwrap_or_default());
    let paths = match host.strip_prefix("*.") {
        _ if host.is_empty() => &mut table.any,
        Some(rest) => table.wildcards.entry(rest.to_owned()).or_default(),
        None => table.hosts.entry(host).or_default(),
    };
    for path in rule.http.iter().flat_map(|http| &http.paths) {
        add_path(paths, path, &backends.backend(ingress, &path.backend));
    }
    if let Some(fallback) = fallback {
        paths.default.get_or_insert_with(|| fallback.clone());
    }
}

/// Bytes of a rule's path; a longer one matches nothing. Each request looks up as many of its own, so often as it has
/// slashes in them.
const PATH_BYTES_MAX: usize = 1024;

fn add_path(paths: &mut Paths, route: &HTTPIngressPath, backend: &Arc<Backend>) {
    let path = route.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    if path.len() > PATH_BYTES_MAX {
        return tracing::debug!(length = path.len(), max = PATH_BYTES_MAX, "the path of an Ingress is too long");
    }
    let path = crate::request::normal_path(path);
    match route.path_type.as_str() {
        "Exact" => paths.add_exact(&path, backend),
        // What is left to the implementation is a prefix here.
        _ => paths.add_prefix(&path, backend),
    }
}

/// The Services and their endpoints by name, of those that Ingresses can mean.
struct Backends<'a> {
    services: HashMap<(&'a str, &'a str), &'a Service>,
    slices: HashMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>,
}

impl<'a> Backends<'a> {
    fn of(snapshot: &'a Snapshot) -> Backends<'a> {
        let namespace = |meta: &'a k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            meta.namespace.as_deref().unwrap_or_default()
        };
        let services = snapshot.services.iter().map(|service| {
            let name = service.metadata.name.as_deref().unwrap_or_default();
            ((namespace(&service.metadata), name), &**service)
        });
        let mut slices: HashMap<_, Vec<&EndpointSlice>> = HashMap::new();
        for slice in &snapshot.slices {
            let name = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
            if let Some(name) = name {
                slices.entry((namespace(&slice.metadata), name.as_str())).or_default().push(slice);
            }
        }
        Backends { services: services.collect(), slices }
    }

    fn backend(&self, ingress: &Name, backend: &IngressBackend) -> Arc<Backend> {
        let namespace = ingress.0.as_str();
        let service = backend.service.as_ref().map(|service| service.name.as_str()).unwrap_or_default();
        let name = format!("{namespace}/{service}");
        let reach = self.reach(namespace, backend).unwrap_or_else(Reach::Nowhere);
        let woken_by = self.woken_by(namespace, service);
        Arc::new(Backend { name, ingress: ingress.clone(), reach, woken_by })
    }

    fn woken_by(&self, namespace: &str, service: &str) -> Option<Name> {
        let slices = self.slices.get(&(namespace, service))?;
        let autoscaler = slices.iter().find_map(|slice| slice.annotations().get(WOKEN_BY_ANNOTATION))?;
        Some((namespace.to_owned(), autoscaler.clone()))
    }

    fn reach(&self, namespace: &str, backend: &IngressBackend) -> Result<Reach, &'static str> {
        let asked = backend.service.as_ref().ok_or(RESOURCE)?;
        let service = self.services.get(&(namespace, asked.name.as_str())).ok_or(NO_SERVICE)?;
        let spec = service.spec.as_ref().ok_or(NO_SERVICE)?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return Err(EXTERNAL);
        }
        let is_meant = |port: &&ServicePort| match &asked.port {
            None => false,
            Some(wanted) => match wanted.name.as_deref().filter(|name| !name.is_empty()) {
                Some(name) => port.name.as_deref() == Some(name),
                None => Some(port.port) == wanted.number,
            },
        };
        let port = spec.ports.iter().flatten().find(is_meant).ok_or(NO_PORT)?;
        let protocol = protocol(port.app_protocol.as_deref())?;
        let slices = self.slices.get(&(namespace, asked.name.as_str()));
        Ok(Reach::Endpoints(endpoints(slices.into_iter().flatten().copied(), port), protocol))
    }
}

fn protocol(named: Option<&str>) -> Result<Protocol, &'static str> {
    match named {
        Some("kubernetes.io/h2c") => Ok(Protocol::Http2),
        Some("https" | "HTTPS" | "kubernetes.io/wss") => Err(PROTOCOL),
        _ => Ok(Protocol::Http1),
    }
}

/// The addresses of the endpoints that take new requests, once each.
fn endpoints<'a>(slices: impl Iterator<Item = &'a EndpointSlice>, port: &ServicePort) -> Vec<SocketAddr> {
    let wanted = port.name.as_deref().unwrap_or_default();
    let mut seen = HashSet::new();
    let mut addresses = Vec::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let number = ports
            .filter(|port| port.name.as_deref().unwrap_or_default() == wanted)
            .find_map(|port| u16::try_from(port.port?).ok());
        let Some(number) = number else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            if conditions.ready == Some(false) || conditions.terminating == Some(true) {
                continue;
            }
            let first = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok());
            addresses.extend(first.filter(is_elsewhere).map(|address| SocketAddr::new(address, number)));
        }
    }
    addresses.retain(|address| seen.insert(*address));
    addresses.sort();
    addresses
}

/// EndpointSlices come from users: none may lead to the node's own loopback or to the metadata service of its cloud.
fn is_elsewhere(address: &IpAddr) -> bool {
    let local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.to_ipv4_mapped().is_some(),
    };
    !(local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}
