//! APIServices: one for each group and version that the API server has itself, and whether those of other servers can
//! be reached.
//!
//! <https://kubernetes.io/docs/concepts/extend-kubernetes/api-extension/apiserver-aggregation/>

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    kube_aggregator::pkg::apis::apiregistration::v1::{
        APIService, APIServiceCondition, APIServiceSpec, APIServiceStatus, ServiceReference,
    },
};
use kube::api::ObjectMeta;

use crate::{
    Cache, Change, Controller, Error, Input, Key, Store,
    action::{Action, Deletion, Plan},
    customresourcedefinition::{CustomResourceDefinition, is_established},
    endpointslice::SERVICE_NAME,
    object,
};

/// Says that an APIService is kept by the system: `onstart` for what is built in, `true` for what comes and goes.
const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
const AVAILABLE: &str = "Available";
/// Kinds that are defined at run time come after those that are built in.
const CUSTOM_PRIORITY: (i32, i32) = (1000, 100);
/// How often is looked at a server that answers, and at one that does not.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(5);

/// Asks another API server for its discovery document.
pub trait Prober: Send + Sync + 'static {
    /// By the name of its APIService. `Err` says why there is no sound answer; it comes in bounded time.
    fn probe<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), String>>;
}

/// A group and version that the API server has built in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalApi {
    pub group: String,
    pub version: String,
    pub group_priority: i32,
    pub version_priority: i32,
}

impl LocalApi {
    fn name(&self) -> String {
        format!("{}.{}", self.version, self.group)
    }

    fn spec(&self) -> APIServiceSpec {
        APIServiceSpec {
            group: Some(self.group.clone()).filter(|group| !group.is_empty()),
            version: Some(self.version.clone()),
            group_priority_minimum: self.group_priority,
            version_priority: self.version_priority,
            ..APIServiceSpec::default()
        }
    }

    fn object(&self, managed: &str) -> APIService {
        let metadata = ObjectMeta {
            name: Some(self.name()),
            labels: Some([(AUTOMANAGED.to_owned(), managed.to_owned())].into()),
            ..ObjectMeta::default()
        };
        APIService { metadata, spec: Some(self.spec()), status: None }
    }
}

pub(crate) struct ApiServices {
    pub(crate) local: Vec<LocalApi>,
    pub(crate) prober: Arc<dyn Prober>,
}

#[derive(Debug)]
pub(crate) struct View {
    api: Arc<APIService>,
    /// What the API server itself has by this name.
    local: Option<LocalApi>,
    /// Why no request can be sent to the Service: reason and message.
    unreachable: Option<(&'static str, String)>,
    /// What the other server said, if one was asked.
    probe: Option<Result<(), String>>,
}

impl ApiServices {
    fn local(&self, cache: &Cache, name: &str) -> Option<(LocalApi, &'static str)> {
        if let Some(own) = self.local.iter().find(|own| own.name() == name) {
            return Some((own.clone(), "onstart"));
        }
        let definitions = cache.definitions.all();
        let found = definitions.iter().flat_map(|one| apis_of(one)).find(|api| api.name() == name);
        found.map(|api| (api, "true"))
    }
}

/// The versions of a kind that is served.
fn apis_of(definition: &CustomResourceDefinition) -> Vec<LocalApi> {
    if !is_established(definition) {
        return Vec::new();
    }
    let (group_priority, version_priority) = CUSTOM_PRIORITY;
    let served = definition.spec.versions.iter().filter(|version| version.served);
    let api = |version: &str| LocalApi {
        group: definition.spec.group.clone(),
        version: version.to_owned(),
        group_priority,
        version_priority,
    };
    served.map(|version| api(&version.name)).collect()
}

impl Controller for ApiServices {
    type Parent = APIService;
    type View = View;

    const NAME: &'static str = "apiservice";
    const READS: &'static [&'static str] = &["APIService", "CustomResourceDefinition", "Service", "EndpointSlice"];

    fn store(cache: &Cache) -> &Store<APIService> {
        &cache.api_services
    }

    fn keys(&self, cache: &Cache) -> Vec<Key> {
        let custom = cache.definitions.all().into_iter().flat_map(|one| apis_of(&one)).collect::<Vec<_>>();
        let names = self.local.iter().chain(&custom).map(|api| Key::new("", api.name()));
        cache.api_services.keys().into_iter().chain(names).collect()
    }

    fn wakes(&self, cache: &Cache, change: &Change) -> Vec<Key> {
        let of_service = |namespace: &str, name: &str| -> Vec<Key> {
            let all = cache.api_services.all().into_iter();
            let of = all.filter(|api| reference(api).is_some_and(|to| is_to(to, namespace, name)));
            of.map(|api| Key::of(&api.metadata)).collect()
        };
        match change {
            Change::APIService(delta) => vec![delta.key()],
            Change::CustomResourceDefinition(delta) => {
                let apis = delta.versions().flat_map(|one| apis_of(one));
                apis.map(|api| Key::new("", api.name())).collect()
            }
            Change::Service(delta) => of_service(&delta.key().namespace, &delta.key().name),
            Change::EndpointSlice(delta) => {
                let slice = delta.versions().next();
                let service = slice.and_then(|slice| slice.metadata.labels.as_ref()?.get(SERVICE_NAME).cloned());
                service.map(|service| of_service(&delta.key().namespace, &service)).unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }

    async fn view(&self, input: &Input<'_>, api: Arc<APIService>) -> Result<View, Error> {
        let name = object::name(&api.metadata);
        let local = self.local(input.cache, name).map(|(api, _)| api);
        let (mut unreachable, mut probe) = (None, None);
        if let Some(reference) = reference(&api) {
            let (namespace, name_of) = names(reference);
            let service = input.cache.services.get(&Key::new(namespace, name_of));
            let slices = input.cache.endpoint_slices.in_namespace(namespace);
            unreachable = problem(reference, service.as_deref(), &slices);
            if unreachable.is_none() {
                probe = Some(self.prober.probe(name).await);
            }
        }
        Ok(View { api, local, unreachable, probe })
    }

    fn plan(view: &View, now: Timestamp) -> Plan {
        plan(view, now)
    }

    fn absent(&self, cache: &Cache, key: &Key) -> Plan {
        let wanted = self.local(cache, &key.name);
        wanted.map_or_else(Plan::default, |(api, managed)| Plan::of(vec![Action::create(api.object(managed))]))
    }
}

fn reference(api: &APIService) -> Option<&ServiceReference> {
    api.spec.as_ref()?.service.as_ref()
}

fn names(reference: &ServiceReference) -> (&str, &str) {
    (reference.namespace.as_deref().unwrap_or_default(), reference.name.as_deref().unwrap_or_default())
}

fn is_to(reference: &ServiceReference, namespace: &str, name: &str) -> bool {
    names(reference) == (namespace, name)
}

/// Why nothing can be sent there, in Kubernetes' words.
fn problem(
    reference: &ServiceReference,
    service: Option<&Service>,
    slices: &[Arc<EndpointSlice>],
) -> Option<(&'static str, String)> {
    let (namespace, name) = names(reference);
    let Some(spec) = service.and_then(|service| service.spec.as_ref()) else {
        return Some(("ServiceNotFound", format!("service/{name} in {namespace:?} is not present")));
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        let why = "it names a host outside of the cluster, which requests are not sent to";
        return Some((
            "ServiceAccessError",
            format!("service/{name} in {namespace:?} cannot be accessed due to: {why}"),
        ));
    }
    let asked = reference.port.unwrap_or(443);
    let Some(port) = spec.ports.iter().flatten().find(|port| port.port == asked) else {
        let message = format!("service/{name} in {namespace:?} is not listening on port {asked}");
        return Some(("ServicePortError", message));
    };
    let of = |slice: &&Arc<EndpointSlice>| {
        slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)).is_some_and(|own| own == name)
    };
    let slices: Vec<_> = slices.iter().filter(of).collect();
    if slices.is_empty() {
        let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Some(("EndpointsNotFound", message));
    }
    let port_name = port.name.as_deref().unwrap_or_default();
    let has_port = |slice: &&&Arc<EndpointSlice>| {
        slice.ports.iter().flatten().any(|port| port.name.as_deref().unwrap_or_default() == port_name)
    };
    let mut endpoints = slices.iter().filter(has_port).flat_map(|slice| slice.endpoints.iter().flatten());
    let is_ready = |ready: Option<bool>| ready.unwrap_or(true);
    if endpoints.any(|endpoint| is_ready(endpoint.conditions.as_ref().and_then(|conditions| conditions.ready))) {
        return None;
    }
    let message =
        format!("endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}");
    Some(("MissingEndpoints", message))
}

fn plan(view: &View, now: Timestamp) -> Plan {
    let api = &view.api;
    if object::is_deleting(&api.metadata) {
        return Plan::default();
    }
    let managed = api.metadata.labels.as_ref().and_then(|labels| labels.get(AUTOMANAGED));
    match (&view.local, managed.map(String::as_str)) {
        (None, Some("true")) => return Plan::of(vec![Action::Delete(Deletion::of(&**api))]),
        // Whoever wants it otherwise takes the label away.
        (Some(local), Some(_)) if api.spec.as_ref() != Some(&local.spec()) => {
            return Plan::of(vec![Action::update(APIService { spec: Some(local.spec()), ..(**api).clone() })]);
        }
        _ => {}
    }
    let (status, reason, message) = availability(view);
    let mut plan = Plan::default();
    let before = api.status.clone().unwrap_or_default();
    let after = set(&before, (status, reason, message), now);
    if after != before {
        plan.actions.push(Action::set_status(APIService { status: Some(after), ..(**api).clone() }));
    }
    if reference(api).is_some() {
        plan.requeue_after(if status == "True" { LOOK_AGAIN } else { RETRY });
    }
    plan
}

fn availability(view: &View) -> (&'static str, &'static str, String) {
    match (&view.unreachable, &view.probe) {
        (Some((reason, message)), _) => ("False", reason, message.clone()),
        (None, None) => ("True", "Local", "Local APIServices are always available".to_owned()),
        (None, Some(Ok(()))) => ("True", "Passed", "all checks passed".to_owned()),
        (None, Some(Err(why))) => ("False", "FailedDiscoveryCheck", why.clone()),
    }
}

/// The status with the condition; others, whoever wrote them, stay.
fn set(before: &APIServiceStatus, (status, reason, message): (&str, &str, String), now: Timestamp) -> APIServiceStatus {
    let mut conditions = before.conditions.clone().unwrap_or_default();
    let old = conditions.iter().find(|one| one.type_ == AVAILABLE && one.status == status);
    let condition = APIServiceCondition {
        last_transition_time: old.and_then(|old| old.last_transition_time.clone()).or_else(|| Some(object::time(now))),
        message: Some(message),
        reason: Some(reason.to_owned()),
        status: status.to_owned(),
        type_: AVAILABLE.to_owned(),
    };
    match conditions.iter_mut().find(|one| one.type_ == AVAILABLE) {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
    APIServiceStatus { conditions: Some(conditions) }
}
