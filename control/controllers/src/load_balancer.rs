//! Load balancers: every node forwards the ports of a Service of this type, so its addresses are those of the ready
//! nodes. A port of a node belongs to one Service, the one that had it first.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Service, ServiceStatus};
use tandem_api::{INGRESS_CONTROLLER, Settings};
use tandem_client::events::{Note, Severity, reference};
use tokio::sync::watch;

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Plan},
    backends, ingress, object,
};

/// Addresses that one Service shows. Every node forwards; with more nodes these are enough to reach it.
const ADDRESSES_MAX: usize = 32;
const SSH: u16 = 22;
/// Where nodes serve Ingresses, unless they are told otherwise.
const INGRESS_PORTS: [u16; 2] = [80, 443];
const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub(crate) struct LoadBalancers {
    pub(crate) settings: Settings,
    pub(crate) members: watch::Receiver<Vec<SocketAddr>>,
}

/// A port, with its protocol.
type Port = (String, u16);

#[derive(Debug)]
pub(crate) struct View {
    service: Arc<Service>,
    /// The other Services of this sort.
    others: Vec<Arc<Service>>,
    /// TCP ports on which nodes listen.
    reserved: BTreeSet<u16>,
    /// Of Services of the type NodePort.
    node_ports: (u16, u16),
    /// Since when nodes have an Ingress to serve.
    ingress_since: Option<Timestamp>,
    addresses: BTreeSet<IpAddr>,
}

impl Controller for LoadBalancers {
    type Parent = Service;
    type View = View;

    const NAME: &'static str = "service";
    const READS: &'static [&'static str] = &["Service", "EndpointSlice", "Node", "Ingress", "IngressClass"];
    // Who has a port is decided over all Services.
    const WORKERS: usize = 1;

    fn store(cache: &Cache) -> &Store<Service> {
        &cache.services
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        let all = || cache.services.all().iter().filter(|one| is_ours(one)).map(|one| Key::of(&one.metadata)).collect();
        match change {
            Change::Service(delta) => {
                let ports = |service: &Option<Arc<Service>>| {
                    service.as_ref().filter(|one| is_ours(one)).map(|one| (ports(one), has_addresses(one)))
                };
                let mut keys = if ports(&delta.old) == ports(&delta.new) { Vec::new() } else { all() };
                keys.push(delta.key());
                keys
            }
            Change::EndpointSlice(delta) => {
                let name = |slice: &k8s_openapi::api::discovery::v1::EndpointSlice| {
                    Some(Key::new(
                        object::namespace(&slice.metadata),
                        slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?,
                    ))
                };
                let keys = delta.versions().filter_map(|slice| name(slice));
                let mut keys: Vec<Key> =
                    keys.filter(|key| cache.services.get(key).is_some_and(|one| is_local(&one))).collect();
                keys.dedup();
                keys
            }
            Change::Ingress(_) | Change::IngressClass(_) => all(),
            Change::Node(delta) if ingress::moved(delta) => all(),
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, service: Arc<Service>) -> Result<View, Error> {
        let cache = input.cache;
        let mut others = cache.services.all();
        others.retain(|other| is_ours(other) && other.metadata.uid != service.metadata.uid);
        let nodes = cache.nodes.all();
        let agent = |node: &k8s_openapi::api::core::v1::Node| {
            let endpoints = node.status.as_ref()?.daemon_endpoints.as_ref()?;
            u16::try_from(endpoints.kubelet_endpoint.as_ref()?.port).ok()
        };
        let mut reserved: BTreeSet<u16> = nodes.iter().filter_map(|node| agent(node)).collect();
        reserved.extend(self.members.borrow().iter().map(SocketAddr::port));
        reserved.insert(SSH);
        let served = cache.ingresses.all().into_iter().filter(|ingress| {
            let class = ingress::class_of(ingress).and_then(|class| cache.ingress_classes.get(&Key::new("", class)));
            class.is_some_and(|class| {
                class.spec.as_ref().and_then(|spec| spec.controller.as_deref()) == Some(INGRESS_CONTROLLER)
            })
        });
        let ingress_since = served.map(|ingress| object::created(&ingress.metadata)).min();
        let serving = is_local(&service).then(|| serving_nodes(cache, &service)).filter(|nodes| !nodes.is_empty());
        let serves = |node: &str| serving.as_ref().is_none_or(|serving| serving.contains(node));
        let addresses =
            nodes.iter().filter(|node| serves(object::name(&node.metadata))).filter_map(|node| ingress::address(node));
        let (addresses, node_ports) = (addresses.collect(), self.settings.node_ports);
        Ok(View { service, others, reserved, node_ports, ingress_since, addresses })
    }

    fn plan(view: &View, _now: Timestamp) -> Plan {
        plan(view)
    }
}

/// Whether nodes balance for the Service: those of a class belong to somebody else.
fn is_ours(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none())
        && !object::is_deleting(&service.metadata)
}

fn is_local(service: &Service) -> bool {
    is_ours(service) && backends::spec(service).external_traffic_policy.as_deref() == Some("Local")
}

fn has_addresses(service: &Service) -> bool {
    !shown(service).is_empty()
}

fn shown(service: &Service) -> &[LoadBalancerIngress] {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default()
}

fn ports(service: &Service) -> BTreeSet<Port> {
    let port = |port: &k8s_openapi::api::core::v1::ServicePort| {
        Some((port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), u16::try_from(port.port).ok()?))
    };
    service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).filter_map(port).collect()
}

/// The nodes that have endpoints of the Service.
fn serving_nodes(cache: &Cache, service: &Service) -> BTreeSet<String> {
    let slices = cache.endpoint_slices.in_namespace(object::namespace(&service.metadata));
    let of_service = slices.iter().filter(|slice| {
        slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)) == service.metadata.name.as_ref()
    });
    let endpoints = of_service.flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|one| one.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true));
    ready.filter_map(|endpoint| endpoint.node_name.clone()).collect()
}

fn plan(view: &View) -> Plan {
    let service = &*view.service;
    let spec = backends::spec(service);
    let is_balanced = spec.type_.as_deref() == Some("LoadBalancer");
    if object::is_deleting(&service.metadata) || (is_balanced && spec.load_balancer_class.is_some()) {
        return Plan::default();
    }
    let mut actions = Vec::new();
    let mut points = Vec::new();
    match taken(view).filter(|_| is_balanced) {
        Some(why) => {
            let why = format!("{why}; the Service has no address until it is free or the Service has another port");
            actions.push(Action::Event(Note::new(reference(service), Severity::Warning, "PortNotAvailable", why)));
        }
        None if is_balanced => points = view.addresses.iter().take(ADDRESSES_MAX).map(point).collect(),
        None => {}
    }
    if shown(service) != points {
        let balancer = LoadBalancerStatus { ingress: (!points.is_empty()).then_some(points) };
        let status = ServiceStatus { load_balancer: Some(balancer), ..service.status.clone().unwrap_or_default() };
        actions.push(Action::set_status(Service { status: Some(status), ..service.clone() }));
    }
    Plan::of(actions)
}

fn point(address: &IpAddr) -> LoadBalancerIngress {
    LoadBalancerIngress {
        ip: Some(address.to_string()),
        ip_mode: Some("VIP".to_owned()),
        ..LoadBalancerIngress::default()
    }
}

/// Why the Service cannot have a port of the nodes, if so.
fn taken(view: &View) -> Option<String> {
    let service = &*view.service;
    // Who has addresses keeps them; of the others the oldest comes first.
    let rank = |one: &Service| (!has_addresses(one), object::created(&one.metadata), Key::of(&one.metadata));
    let (own, created) = (rank(service), object::created(&service.metadata));
    for (protocol, port) in ports(service) {
        let shown = format!("port {port}/{protocol} of the nodes");
        if protocol == "TCP" && view.reserved.contains(&port) {
            return Some(format!("{shown} is used by the nodes themselves"));
        }
        if (view.node_ports.0..=view.node_ports.1).contains(&port) {
            return Some(format!("{shown} is one of those for Services of the type NodePort"));
        }
        let ingresses_first = view.ingress_since.is_some_and(|since| since < created) && !has_addresses(service);
        if protocol == "TCP" && INGRESS_PORTS.contains(&port) && ingresses_first {
            return Some(format!("{shown} serves Ingresses"));
        }
        let holds = |other: &&Arc<Service>| ports(other).contains(&(protocol.clone(), port)) && rank(other) < own;
        if let Some(other) = view.others.iter().find(holds) {
            return Some(format!("{shown} belongs to the Service {}", Key::of(&other.metadata)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;
    use crate::action::testing::describe;

    /// `NAME:PORT`, made at this second, that shows these addresses.
    fn service(text: &str, second: i64, shown: &[&str]) -> Arc<Service> {
        let (name, port) = text.split_once(':').unwrap();
        let points: Vec<_> = shown.iter().map(|address| json!({"ip": address, "ipMode": "VIP"})).collect();
        let object = json!({
            "metadata": {"name": name, "namespace": "a", "uid": name, "creationTimestamp": Timestamp::from_second(second).unwrap().to_string()},
            "spec": {"type": "LoadBalancer", "ports": [{"port": port.parse::<i32>().unwrap()}]},
            "status": {"loadBalancer": {"ingress": points}},
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn view(own: Arc<Service>, others: Vec<Arc<Service>>) -> View {
        View {
            service: own,
            others,
            reserved: [22, 6443].into(),
            node_ports: (30000, 32767),
            ingress_since: Some(Timestamp::from_second(100).unwrap()),
            addresses: ["10.0.0.9", "10.0.0.10"].iter().map(|address| address.parse().unwrap()).collect(),
        }
    }

    fn check(view: &View, expected: Expect) {
        expected.assert_eq(&describe(&plan(view), |action| {
            let Some(service) = action.object::<Service>() else { return String::new() };
            shown(service).iter().filter_map(|point| point.ip.clone()).collect::<Vec<_>>().join(" ")
        }));
    }

    #[test]
    fn a_load_balancer_has_the_addresses_of_the_nodes() {
        check(
            &view(service("web:8080", 1, &[]), vec![]),
            expect![[r#"
            status Service a/web 10.0.0.9 10.0.0.10
        "#]],
        );
        check(&view(service("web:8080", 1, &["10.0.0.9", "10.0.0.10"]), vec![]), expect![[""]]);
        let mut other = Service::clone(&service("web:8080", 1, &[]));
        other.spec.as_mut().unwrap().load_balancer_class = Some("example.com/other".into());
        check(&view(Arc::new(other), vec![]), expect![[""]]);
        let mut none = Service::clone(&service("web:8080", 1, &["10.0.0.9"]));
        none.spec.as_mut().unwrap().type_ = Some("ClusterIP".into());
        check(
            &view(Arc::new(none), vec![]),
            expect![[r#"
            status Service a/web
        "#]],
        );
    }

    #[test]
    fn a_port_belongs_to_one_service_the_first() {
        let held = service("held:8080", 9, &["10.0.0.9"]);
        check(
            &view(service("web:8080", 1, &[]), vec![held.clone()]),
            expect![[r#"
            event Warning PortNotAvailable: port 8080/TCP of the nodes belongs to the Service a/held; the Service has no address until it is free or the Service has another port
        "#]],
        );
        check(
            &view(service("web:8080", 1, &[]), vec![service("young:8080", 2, &[])]),
            expect![[r#"
            status Service a/web 10.0.0.9 10.0.0.10
        "#]],
        );
        check(
            &view(service("web:8081", 1, &[]), vec![held]),
            expect![[r#"
            status Service a/web 10.0.0.9 10.0.0.10
        "#]],
        );
    }

    #[test]
    fn what_nodes_need_themselves_is_not_given_away() {
        check(
            &view(service("web:6443", 1, &[]), vec![]),
            expect![[r#"
            event Warning PortNotAvailable: port 6443/TCP of the nodes is used by the nodes themselves; the Service has no address until it is free or the Service has another port
        "#]],
        );
        check(
            &view(service("web:30080", 1, &[]), vec![]),
            expect![[r#"
            event Warning PortNotAvailable: port 30080/TCP of the nodes is one of those for Services of the type NodePort; the Service has no address until it is free or the Service has another port
        "#]],
        );
        check(
            &view(service("late:80", 200, &[]), vec![]),
            expect![[r#"
            event Warning PortNotAvailable: port 80/TCP of the nodes serves Ingresses; the Service has no address until it is free or the Service has another port
        "#]],
        );
        check(
            &view(service("early:80", 1, &[]), vec![]),
            expect![[r#"
            status Service a/early 10.0.0.9 10.0.0.10
        "#]],
        );
    }
}
