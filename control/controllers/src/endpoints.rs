//! Endpoints: the older list of a Service's addresses, all in one object.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use kube::api::ObjectMeta;
use tokio::sync::watch;

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Deletion, Plan},
    backends::{self, Port},
    object, pod,
};

/// An object with more addresses is cut, and says so.
const ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

pub(crate) struct EndpointsOfServices {
    pub(crate) members: watch::Receiver<Vec<SocketAddr>>,
}

#[derive(Debug)]
pub(crate) struct View {
    service: Arc<Service>,
    pods: Vec<Arc<Pod>>,
    endpoints: Option<Arc<Endpoints>>,
    /// Where the API is, for the Service that leads to it.
    api: Option<Vec<SocketAddr>>,
}

impl Controller for EndpointsOfServices {
    type Parent = Service;
    type View = View;

    const NAME: &'static str = "endpoint";
    const READS: &'static [&'static str] = &["Service", "Pod", "Endpoints"];

    fn store(cache: &Cache) -> &Store<Service> {
        &cache.services
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::Endpoints(delta) => vec![delta.key()],
            change => backends::wakes(cache, change),
        }
    }

    async fn view(&self, input: &Input<'_>, service: Arc<Service>) -> Result<View, Error> {
        let endpoints = input.cache.endpoints.get(&Key::of(&service.metadata));
        let api = backends::is_api_service(&service).then(|| self.members.borrow().clone());
        Ok(View { pods: backends::pods(input.cache, &service), endpoints, api, service })
    }

    fn plan(view: &View, _now: Timestamp) -> Plan {
        plan(view)
    }

    fn absent(&self, cache: &Cache, key: &Key) -> Plan {
        let left = cache.endpoints.get(key).filter(|endpoints| {
            let labels = endpoints.metadata.labels.as_ref();
            labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|manager| manager == MANAGER)
        });
        Plan::of(left.iter().map(|endpoints| Action::Delete(Deletion::of(&**endpoints))).collect())
    }
}

fn plan(view: &View) -> Plan {
    let spec = backends::spec(&view.service);
    let subsets = match &view.api {
        // Nobody knows the members yet, or nobody else can reach them: what is there stays.
        Some(api) if api.is_empty() => return Plan::default(),
        Some(api) => api_subsets(api),
        None if backends::is_selecting(&spec) => subsets(view),
        None => return Plan::default(),
    };
    if object::is_deleting(&view.service.metadata) {
        return Plan::default();
    }
    let (subsets, cut) = cut(subsets);
    let mut wanted = match &view.endpoints {
        Some(endpoints) => (**endpoints).clone(),
        None => Endpoints {
            metadata: ObjectMeta {
                name: view.service.metadata.name.clone(),
                namespace: view.service.metadata.namespace.clone(),
                ..ObjectMeta::default()
            },
            subsets: None,
        },
    };
    wanted.subsets = (!subsets.is_empty()).then_some(subsets);
    wanted.metadata.labels = Some(backends::labels(&view.service, &[(MANAGED_BY, MANAGER)]));
    let annotations = wanted.metadata.annotations.get_or_insert_default();
    if cut {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    if annotations.is_empty() {
        wanted.metadata.annotations = None;
    }
    Plan::of(backends::made_so(view.endpoints.as_deref(), wanted).into_iter().collect())
}

fn api_subsets(api: &[SocketAddr]) -> Vec<EndpointSubset> {
    let mut by_port: BTreeMap<u16, Vec<EndpointAddress>> = BTreeMap::new();
    for member in api {
        let address = EndpointAddress { ip: member.ip().to_string(), ..EndpointAddress::default() };
        by_port.entry(member.port()).or_default().push(address);
    }
    let subset = |(port, addresses): (u16, Vec<EndpointAddress>)| {
        let port = endpoint_port(backends::api_port(port));
        EndpointSubset { addresses: Some(addresses), ports: Some(vec![port]), not_ready_addresses: None }
    };
    by_port.into_iter().map(subset).collect()
}

#[derive(Default)]
struct Group {
    ready: Vec<EndpointAddress>,
    not_ready: Vec<EndpointAddress>,
}

fn subsets(view: &View) -> Vec<EndpointSubset> {
    let spec = backends::spec(&view.service);
    let publish_all = spec.publish_not_ready_addresses.unwrap_or(false);
    let mut groups: BTreeMap<Vec<Port>, Group> = BTreeMap::new();
    for pod in view.pods.iter().filter(|pod| publish_all || !object::is_deleting(&pod.metadata)) {
        let ports = backends::ports(&spec, pod);
        if ports.is_empty() && !backends::is_headless(&spec) {
            continue;
        }
        let group = groups.entry(ports).or_default();
        let Some(address) = address(view, pod) else { continue };
        if publish_all || pod::is_ready(pod) { group.ready.push(address) } else { group.not_ready.push(address) }
    }
    let some = |mut addresses: Vec<EndpointAddress>| {
        addresses.sort_by(|one, other| one.ip.cmp(&other.ip));
        (!addresses.is_empty()).then_some(addresses)
    };
    let subset = |(ports, group): (Vec<Port>, Group)| EndpointSubset {
        addresses: some(group.ready),
        not_ready_addresses: some(group.not_ready),
        ports: (!ports.is_empty()).then(|| ports.into_iter().map(endpoint_port).collect()),
    };
    groups.into_iter().map(subset).collect()
}

fn endpoint_port(port: Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name).filter(|name| !name.is_empty()),
        port: port.port,
        protocol: Some(port.protocol),
        app_protocol: port.app_protocol,
    }
}

fn address(view: &View, pod: &Pod) -> Option<EndpointAddress> {
    let ip = (*backends::addresses(pod).first()?).to_owned();
    Some(EndpointAddress {
        ip,
        hostname: backends::hostname(&view.service, pod),
        node_name: pod::node(pod).map(str::to_owned),
        target_ref: Some(backends::target_reference(pod)),
    })
}

/// Drops the addresses that one object cannot hold: those that are not ready first.
fn cut(mut subsets: Vec<EndpointSubset>) -> (Vec<EndpointSubset>, bool) {
    let mut left = ADDRESSES;
    let mut cut = false;
    let mut keep = |addresses: &mut Option<Vec<EndpointAddress>>| {
        if let Some(addresses) = addresses {
            cut |= addresses.len() > left;
            addresses.truncate(left);
            left -= addresses.len();
        }
        *addresses = addresses.take().filter(|addresses| !addresses.is_empty());
    };
    subsets.iter_mut().for_each(|subset| keep(&mut subset.addresses));
    subsets.iter_mut().for_each(|subset| keep(&mut subset.not_ready_addresses));
    subsets.retain(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
    (subsets, cut)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::{
        action::testing::describe,
        testing::{pod, service},
    };

    fn show(plan: &Plan) -> String {
        describe(plan, |action| {
            let Some(endpoints) = action.object::<Endpoints>() else { return String::new() };
            let list = |addresses: &Option<Vec<EndpointAddress>>| {
                let show = |address: &EndpointAddress| {
                    let host = address.hostname.iter().map(|name| format!("({name})")).collect::<String>();
                    format!("{}@{}{host}", address.ip, address.node_name.as_deref().unwrap_or("-"))
                };
                addresses.iter().flatten().map(show).collect::<Vec<_>>().join(",")
            };
            let subset = |subset: &EndpointSubset| {
                let ports: Vec<String> = subset.ports.iter().flatten().map(|port| port.port.to_string()).collect();
                format!(
                    "[{}] not [{}] on {}",
                    list(&subset.addresses),
                    list(&subset.not_ready_addresses),
                    ports.join(",")
                )
            };
            endpoints.subsets.iter().flatten().map(subset).collect::<Vec<_>>().join("; ")
        })
    }

    fn check(service_text: &str, pods: &str, expect: Expect) {
        let pods = pods.split_whitespace().map(|text| Arc::new(pod(text))).collect();
        let view = View { service: Arc::new(service(service_text)), pods, endpoints: None, api: None };
        let plan = plan(&view);
        expect.assert_eq(&show(&plan));
        if let Some(Action::Create { object, .. }) = plan.actions.first() {
            let endpoints = object.as_any().downcast_ref::<Endpoints>().unwrap().clone();
            let done = View { endpoints: Some(Arc::new(endpoints)), ..view };
            assert!(super::plan(&done).actions.is_empty(), "nothing is left to do");
        }
    }

    #[test]
    fn ready_pods_are_addresses() {
        check(
            "80:8080",
            "a:ip=10.0.0.2:ready:node=n1 b:ip=10.0.0.1:ready c:ip=10.0.0.3 d:ip=10.0.0.4:ready:deleting",
            expect![[r#"
            create Endpoints default/web [10.0.0.1@-,10.0.0.2@n1] not [10.0.0.3@-] on 8080
        "#]],
        );
    }

    #[test]
    fn pods_with_other_numbers_for_a_named_port_are_apart() {
        check(
            "80:http",
            "a:ip=10.0.0.1:ready:http=8080 b:ip=10.0.0.2:ready:http=9090 c:ip=10.0.0.3:ready",
            expect![[r#"
            create Endpoints default/web [10.0.0.1@-] not [] on 8080; [10.0.0.2@-] not [] on 9090
        "#]],
        );
    }

    #[test]
    fn headless_services_may_have_no_ports_and_names_for_pods() {
        check(
            "headless",
            "a:ip=10.0.0.1:ready:host=a",
            expect![[r#"
            create Endpoints default/web [10.0.0.1@-(a)] not [] on 
        "#]],
        );
    }

    #[test]
    fn a_service_may_publish_what_is_not_ready() {
        check(
            "80:8080 publish",
            "a:ip=10.0.0.1 b:ip=10.0.0.2:deleting",
            expect![[r#"
            create Endpoints default/web [10.0.0.1@-,10.0.0.2@-] not [] on 8080
        "#]],
        );
    }

    #[test]
    fn services_without_a_selector_are_left_alone() {
        check("80:8080 manual", "a:ip=10.0.0.1:ready", expect![""]);
    }

    #[test]
    fn the_api_service_leads_to_the_api() {
        let shown = |members: &[&str]| {
            let api = Some(members.iter().map(|member| member.parse().unwrap()).collect());
            let view = View { service: Arc::new(service("443:6443 manual")), pods: Vec::new(), endpoints: None, api };
            show(&plan(&view))
        };
        expect![[r#"
            create Endpoints default/web [192.0.2.1@-] not [] on 6443
        "#]]
        .assert_eq(&shown(&["192.0.2.1:6443"]));
        expect![[r#"
            create Endpoints default/web [192.0.2.1@-,192.0.2.2@-] not [] on 6443
        "#]]
        .assert_eq(&shown(&["192.0.2.1:6443", "192.0.2.2:6443"]));
    }

    #[test]
    fn too_many_addresses_are_cut() {
        let address = |count: usize| Some(vec![EndpointAddress::default(); count]);
        let subset = |ready, not_ready| EndpointSubset {
            addresses: address(ready),
            not_ready_addresses: address(not_ready),
            ports: None,
        };
        let (subsets, cut) = cut(vec![subset(400, 300), subset(500, 300)]);
        let lengths: Vec<_> = subsets.iter().map(|subset| subset.not_ready_addresses.as_ref().map(Vec::len)).collect();
        assert_eq!((lengths, cut), (vec![Some(100), None], true));
    }
}
