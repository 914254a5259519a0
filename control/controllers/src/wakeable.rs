//! Which Services lead to a workload that may be scaled to zero, and by whom it is woken.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{PodTemplateSpec, Service},
};

use crate::{Cache, Change, Delta, Key, backends, object};

/// Whether an autoscaler may take the last pod away.
fn goes_to_zero(autoscaler: &HorizontalPodAutoscaler) -> bool {
    autoscaler.spec.min_replicas == Some(0) && !object::is_deleting(&autoscaler.metadata)
}

/// The labels of the pods that an autoscaler's target makes, of the kinds that are always there. Of others only they
/// themselves know.
fn labels(cache: &Cache, autoscaler: &HorizontalPodAutoscaler) -> Option<BTreeMap<String, String>> {
    let target = &autoscaler.spec.scale_target_ref;
    let key = Key::new(object::namespace(&autoscaler.metadata), &target.name);
    let of = |template: &PodTemplateSpec| template.metadata.as_ref()?.labels.clone();
    match target.kind.as_str() {
        "Deployment" => of(&cache.deployments.get(&key)?.spec.as_ref()?.template),
        "StatefulSet" => of(&cache.stateful_sets.get(&key)?.spec.as_ref()?.template),
        "ReplicaSet" => of(cache.replica_sets.get(&key)?.spec.as_ref()?.template.as_ref()?),
        "ReplicationController" => of(cache.replication_controllers.get(&key)?.spec.as_ref()?.template.as_ref()?),
        _ => None,
    }
}

/// The autoscaler that wakes the workload of a Service: the first by name.
pub(crate) fn woken_by(cache: &Cache, service: &Service) -> Option<String> {
    let selector = backends::spec(service).selector.filter(|selector| !selector.is_empty())?;
    let wakes = |autoscaler: &&Arc<HorizontalPodAutoscaler>| {
        let labels = labels(cache, autoscaler).unwrap_or_default();
        selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    let all = cache.autoscalers.in_namespace(object::namespace(&service.metadata));
    let found = all.iter().filter(|autoscaler| goes_to_zero(autoscaler)).filter(wakes);
    found.map(|autoscaler| object::name(&autoscaler.metadata).to_owned()).min()
}

/// The Services whose workload's autoscaler may be another one after a change.
pub(crate) fn wakes(cache: &Cache, change: &Change) -> Vec<Key> {
    match change {
        Change::HorizontalPodAutoscaler(delta) => {
            let spec = |one: &Option<Arc<HorizontalPodAutoscaler>>| one.as_ref().map(|one| one.spec.clone());
            let matters = delta.versions().any(|one| goes_to_zero(one)) && spec(&delta.old) != spec(&delta.new);
            if matters { services(cache, &delta.key()) } else { Vec::new() }
        }
        // Labels of templates change seldom, replicas and statuses often.
        Change::Deployment(delta) => {
            scaled(cache, delta, "Deployment", |one| one.spec.as_ref().map(|spec| &spec.template))
        }
        Change::StatefulSet(delta) => {
            scaled(cache, delta, "StatefulSet", |one| one.spec.as_ref().map(|spec| &spec.template))
        }
        Change::ReplicaSet(delta) => {
            scaled(cache, delta, "ReplicaSet", |one| one.spec.as_ref().and_then(|spec| spec.template.as_ref()))
        }
        Change::ReplicationController(delta) => scaled(cache, delta, "ReplicationController", |one| {
            one.spec.as_ref().and_then(|spec| spec.template.as_ref())
        }),
        _ => Vec::new(),
    }
}

fn scaled<K: crate::Cached>(
    cache: &Cache,
    delta: &Delta<K>,
    kind: &str,
    template: impl Fn(&K) -> Option<&PodTemplateSpec>,
) -> Vec<Key> {
    let labels = |one: &Option<Arc<K>>| -> Option<BTreeMap<String, String>> {
        template(one.as_ref()?)?.metadata.as_ref()?.labels.clone()
    };
    if labels(&delta.old) == labels(&delta.new) {
        return Vec::new();
    }
    let key = delta.key();
    let all = cache.autoscalers.in_namespace(&key.namespace);
    let is_target = |one: &Arc<HorizontalPodAutoscaler>| {
        let target = &one.spec.scale_target_ref;
        goes_to_zero(one) && target.kind == kind && target.name == key.name
    };
    if all.iter().any(is_target) { services(cache, &key) } else { Vec::new() }
}

fn services(cache: &Cache, of: &Key) -> Vec<Key> {
    cache.services.in_namespace(&of.namespace).iter().map(|service| Key::of(&service.metadata)).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::{Value, json};

    use super::*;

    fn read<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    fn autoscaler(least: i32) -> HorizontalPodAutoscaler {
        read(json!({"metadata": {"name": "scaler", "namespace": "default"}, "spec": {
            "minReplicas": least, "maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "web"}}}))
    }

    fn deployment() -> Deployment {
        read(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {
            "selector": {}, "template": {"metadata": {"labels": {"app": "web", "tier": "front"}}}}}))
    }

    fn service(selector: Value) -> Service {
        read(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {"selector": selector}}))
    }

    #[test]
    fn a_service_of_a_workload_that_goes_to_zero_has_somebody_who_wakes_it() {
        let check = |least, selector: Value, expected: Option<&str>| {
            let cache = Cache::default();
            cache.autoscalers.apply(autoscaler(least));
            cache.deployments.apply(deployment());
            assert_eq!(woken_by(&cache, &service(selector.clone())).as_deref(), expected, "{least} {selector}");
        };
        check(0, json!({"app": "web"}), Some("scaler"));
        check(0, json!({"app": "web", "tier": "front"}), Some("scaler"));
        check(0, json!({"app": "other"}), None);
        check(0, json!({}), None);
        check(1, json!({"app": "web"}), None);
    }

    #[test]
    fn what_cannot_change_it_wakes_nobody() {
        let cache = Cache::default();
        cache.services.apply(service(json!({"app": "web"})));
        let by_scaler = |old: Option<HorizontalPodAutoscaler>, new| {
            let change = Change::HorizontalPodAutoscaler(Delta { old: old.map(Arc::new), new: Some(Arc::new(new)) });
            wakes(&cache, &change).len()
        };
        assert_eq!(by_scaler(None, autoscaler(0)), 1);
        assert_eq!(by_scaler(Some(autoscaler(1)), autoscaler(0)), 1);
        assert_eq!(by_scaler(Some(autoscaler(0)), autoscaler(0)), 0);
        assert_eq!(by_scaler(None, autoscaler(1)), 0);
        let by_target = |old: Option<Deployment>| {
            let change = Change::Deployment(Delta { old: old.map(Arc::new), new: Some(Arc::new(deployment())) });
            wakes(&cache, &change).len()
        };
        assert_eq!(by_target(None), 0);
        cache.autoscalers.apply(autoscaler(0));
        assert_eq!((by_target(None), by_target(Some(deployment()))), (1, 0));
    }
}
