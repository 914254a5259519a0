//! EndpointSlices of Endpoints that somebody writes by hand for a Service without a selector.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
};
use kube::api::ObjectMeta;

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Deletion, Plan},
    backends, object,
};

/// Addresses of one subset that are mirrored.
const ADDRESSES_MAX: usize = 1000;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// An annotation of Endpoints that were used as a lock.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

pub(crate) struct MirroredEndpoints;

#[derive(Debug)]
pub(crate) struct View {
    endpoints: Arc<Endpoints>,
    service: Option<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
}

impl Controller for MirroredEndpoints {
    type Parent = Endpoints;
    type View = View;

    const NAME: &'static str = "endpointslicemirroring";
    const READS: &'static [&'static str] = &["Service", "Endpoints", "EndpointSlice"];

    fn store(cache: &Cache) -> &Store<Endpoints> {
        &cache.endpoints
    }

    fn wakes(&self, _cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::Endpoints(delta) => vec![delta.key()],
            Change::Service(delta) => vec![delta.key()],
            Change::EndpointSlice(delta) => {
                let mut keys: Vec<Key> =
                    delta.versions().filter(|slice| is_mirror(slice)).filter_map(|slice| key(slice)).collect();
                keys.dedup();
                keys
            }
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, endpoints: Arc<Endpoints>) -> Result<View, Error> {
        let key = Key::of(&endpoints.metadata);
        Ok(View { service: input.cache.services.get(&key), slices: mirrors(input.cache, &key), endpoints })
    }

    fn plan(view: &View, _now: Timestamp) -> Plan {
        plan(view)
    }

    fn absent(&self, cache: &Cache, key: &Key) -> Plan {
        Plan::of(mirrors(cache, key).iter().map(|slice| Action::Delete(Deletion::of(&**slice))).collect())
    }
}

fn key(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(Key::new(object::namespace(&slice.metadata), name))
}

fn is_mirror(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|manager| manager == MANAGER)
}

fn mirrors(cache: &Cache, of: &Key) -> Vec<Arc<EndpointSlice>> {
    let mut slices = cache.endpoint_slices.in_namespace(&of.namespace);
    slices.retain(|slice| is_mirror(slice) && key(slice).as_ref() == Some(of));
    slices
}

fn is_mirrored(view: &View) -> bool {
    let (endpoints, Some(service)) = (&view.endpoints.metadata, &view.service) else { return false };
    let spec = backends::spec(service);
    let labels = endpoints.labels.as_ref();
    let skips = labels.and_then(|labels| labels.get(SKIP)).is_some_and(|skip| skip == "true");
    let by_hand = spec.selector.is_none_or(|selector| selector.is_empty()) && !backends::is_api_service(service);
    by_hand
        && !skips
        && object::annotation(endpoints, LEADER).is_none()
        && !object::is_deleting(endpoints)
        && !object::is_deleting(&service.metadata)
}

fn plan(view: &View) -> Plan {
    let mut wanted = if is_mirrored(view) { slices(&view.endpoints) } else { BTreeMap::new() };
    let mut actions = Vec::new();
    for seen in &view.slices {
        let place = (seen.address_type.clone(), format!("{:?}", seen.ports));
        match wanted.remove(&place) {
            None => actions.push(Action::Delete(Deletion::of(&**seen))),
            Some(slice) => {
                let mut metadata = seen.metadata.clone();
                metadata.labels = slice.metadata.labels.clone();
                metadata.annotations = slice.metadata.annotations.clone();
                let slice = EndpointSlice { metadata, ..slice };
                if **seen != slice {
                    actions.push(Action::update(slice));
                }
            }
        }
    }
    actions.extend(wanted.into_values().map(Action::create));
    Plan::of(actions)
}

/// What the Endpoints are as slices: one for each set of ports and each family of addresses.
fn slices(endpoints: &Endpoints) -> BTreeMap<(String, String), EndpointSlice> {
    let mut slices: BTreeMap<(String, String), EndpointSlice> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = ports(subset);
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let all = ready.chain(subset.not_ready_addresses.iter().flatten().map(|address| (address, false)));
        for (address, is_ready) in all.take(ADDRESSES_MAX) {
            let family = match address.ip.parse() {
                Ok(IpAddr::V4(_)) => "IPv4",
                Ok(IpAddr::V6(_)) => "IPv6",
                Err(_) => continue,
            };
            let place = (family.to_owned(), format!("{:?}", Some(&ports)));
            let slice = slices.entry(place).or_insert_with(|| EndpointSlice {
                metadata: metadata(endpoints),
                address_type: family.to_owned(),
                endpoints: Some(Vec::new()),
                ports: Some(ports.clone()),
            });
            let all = slice.endpoints.get_or_insert_default();
            if all.len() < ADDRESSES_MAX {
                all.push(endpoint(address, is_ready));
            }
        }
    }
    slices
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let port = |port: &k8s_openapi::api::core::v1::EndpointPort| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    };
    subset.ports.iter().flatten().map(port).collect()
}

fn endpoint(address: &EndpointAddress, is_ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(is_ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|hostname| !hostname.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn metadata(endpoints: &Endpoints) -> ObjectMeta {
    let name = object::name(&endpoints.metadata);
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.extend([(SERVICE_NAME.to_owned(), name.to_owned()), (MANAGED_BY.to_owned(), MANAGER.to_owned())]);
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| key != LAST_CHANGE && key != "kubectl.kubernetes.io/last-applied-configuration");
    ObjectMeta {
        generate_name: Some(format!("{name}-")),
        namespace: endpoints.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: (!annotations.is_empty()).then_some(annotations),
        owner_references: Some(vec![object::controller_reference(endpoints)]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::*;
    use crate::{action::testing::describe, testing};

    fn view(service: Option<&str>, endpoints: Value) -> View {
        let service = service.map(|text| Arc::new(testing::service(text)));
        View { service, endpoints: Arc::new(serde_json::from_value(endpoints).unwrap()), slices: Vec::new() }
    }

    fn endpoints(subsets: &Value, labels: &Value) -> Value {
        json!({"metadata": {"name": "web", "namespace": "default", "uid": "e", "labels": labels}, "subsets": subsets})
    }

    fn show(view: &View) -> String {
        describe(&plan(view), |action| {
            let Some(slice) = action.object::<EndpointSlice>() else { return String::new() };
            let endpoints = slice.endpoints.iter().flatten();
            let shown: Vec<String> = endpoints
                .map(|one| format!("{} {}", one.addresses.join(","), one.conditions.as_ref().unwrap().ready.unwrap()))
                .collect();
            let ports: Vec<String> = slice.ports.iter().flatten().map(|port| port.port.unwrap().to_string()).collect();
            format!("{} [{}] on [{}]", slice.address_type, shown.join(", "), ports.join(","))
        })
    }

    fn check(view: &View, expected: Expect) {
        expected.assert_eq(&show(view));
    }

    #[test]
    fn endpoints_made_by_hand_are_mirrored() {
        let subsets = json!([{
            "addresses": [{"ip": "10.1.2.3"}, {"ip": "2001:db8::1"}], "notReadyAddresses": [{"ip": "10.1.2.4"}],
            "ports": [{"name": "http", "port": 80}],
        }]);
        let mut mirrored = view(Some("80:80 manual"), endpoints(&subsets, &json!({})));
        check(
            &mirrored,
            expect![[r#"
            create EndpointSlice default/ IPv4 [10.1.2.3 true, 10.1.2.4 false] on [80]
            create EndpointSlice default/ IPv6 [2001:db8::1 true] on [80]
        "#]],
        );
        mirrored.slices = slices(&mirrored.endpoints).into_values().map(Arc::new).collect();
        check(&mirrored, expect![[""]]);
        // Its Service got a selector: others make the slices.
        mirrored.service = Some(Arc::new(testing::service("80:80")));
        assert_eq!(show(&mirrored).lines().filter(|line| line.starts_with("delete")).count(), 2);
    }

    #[test]
    fn what_is_not_to_be_mirrored_is_not() {
        let subsets = json!([{"addresses": [{"ip": "10.1.2.3"}], "ports": [{"port": 80}]}]);
        for (service, labels) in [
            (None, json!({})),
            (Some("80:80"), json!({})),
            (Some("80:80 manual"), json!({"endpointslice.kubernetes.io/skip-mirror": "true"})),
        ] {
            assert_eq!(show(&view(service, endpoints(&subsets, &labels))), "", "{service:?} {labels}");
        }
    }
}
