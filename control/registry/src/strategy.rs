//! The steps of a write that are the same for every kind; each ends in the hook of the row.

use tandem_api::{Cause, Object};

use crate::{ResourceDef, validate};

/// What a status update may not touch, though it stands in the metadata.
const KEPT_BY_STATUS: [&str; 5] =
    ["ownerReferences", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "finalizers"];

pub(crate) fn default(def: &ResourceDef, object: &mut Object) {
    if object.api_version().is_empty() {
        object.set(&["apiVersion"], def.api_version());
    }
    if object.kind().is_empty() {
        object.set(&["kind"], def.kind.as_str());
    }
    if let Some(custom) = &def.custom {
        custom.default(object);
    }
    (def.hooks.default)(object);
}

pub(crate) fn prepare_create(def: &ResourceDef, object: &mut Object) {
    if def.has_status() && def.custom.is_some() {
        // A status that nobody has written yet is not there, or its schema may miss something.
        object.remove(&["status"]);
    } else if def.has_status() && !def.hooks.keeps_status {
        object.set(&["status"], serde_json::Map::new());
    }
    if counts_generations(def) {
        object.set(&["metadata", "generation"], 1);
    } else {
        object.remove(&["metadata", "generation"]);
    }
    (def.hooks.prepare)(object, None);
}

/// Metadata that the system sets. A writer who leaves it out means what is stored; one who gives it must give the same,
/// which validation sees to.
const SYSTEM: [&str; 4] = ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"];

fn keep_system_metadata(object: &mut Object, old: &Object) {
    for key in SYSTEM {
        if object.str_at(&["metadata", key]).is_none_or(str::is_empty) && object.i64_at(&["metadata", key]).is_none() {
            restore(object, old, &["metadata", key]);
        }
    }
}

pub(crate) fn prepare_update(def: &ResourceDef, object: &mut Object, old: &Object) {
    keep_system_metadata(object, old);
    if def.has_status() {
        restore(object, old, &["status"]);
    }
    (def.hooks.prepare)(object, Some(old));
    keep_generation(object, old);
    if counts_generations(def) {
        let changed = !same_but_metadata(object, old, def.custom.is_none() || def.has_status());
        // Kubernetes counts the start of a deletion as a change of intent.
        let dying = object.deletion_timestamp().is_some() && old.deletion_timestamp().is_none();
        if changed || dying {
            object.set(&["metadata", "generation"], old.generation() + 1);
        }
    }
}

pub(crate) fn prepare_status(object: &mut Object, old: &Object) {
    keep_system_metadata(object, old);
    let keys: Vec<String> = object.0.keys().chain(old.0.keys()).cloned().collect();
    for key in keys {
        if !["apiVersion", "kind", "metadata", "status"].contains(&key.as_str()) {
            restore(object, old, &[&key]);
        }
    }
    for key in KEPT_BY_STATUS {
        restore(object, old, &["metadata", key]);
    }
}

fn restore(object: &mut Object, old: &Object, path: &[&str]) {
    match old.at(path) {
        Some(value) => object.set(path, value.clone()),
        None => {
            object.remove(path);
        }
    }
}

fn keep_generation(object: &mut Object, old: &Object) {
    restore(object, old, &["metadata", "generation"]);
}

/// Kinds with a spec that somebody acts on count their changes; ConfigMaps, Services, roles and the like have no
/// generation in Kubernetes.
fn counts_generations(def: &ResourceDef) -> bool {
    if def.custom.is_some() {
        return true;
    }
    const COUNTING: [&str; 27] = [
        "APIService",
        "CronJob",
        "CustomResourceDefinition",
        "DaemonSet",
        "Deployment",
        "DeviceClass",
        "EndpointSlice",
        "FlowSchema",
        "Ingress",
        "IngressClass",
        "Job",
        "MutatingAdmissionPolicy",
        "MutatingAdmissionPolicyBinding",
        "MutatingWebhookConfiguration",
        "NetworkPolicy",
        "Pod",
        "PodDisruptionBudget",
        "PodTemplate",
        "PriorityClass",
        "PriorityLevelConfiguration",
        "ReplicaSet",
        "ReplicationController",
        "ResourceSlice",
        "StatefulSet",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "ValidatingWebhookConfiguration",
    ];
    COUNTING.contains(&def.kind.as_str())
}

/// With or without the status, which is no intent where it has a door of its own.
fn same_but_metadata(object: &Object, old: &Object, but_status: bool) -> bool {
    let ignored: &[&str] =
        if but_status { &["apiVersion", "kind", "metadata", "status"] } else { &["apiVersion", "kind", "metadata"] };
    let rest = |object: &Object| -> Vec<(String, serde_json::Value)> {
        let mut rest: Vec<_> = object
            .0
            .iter()
            .filter(|(key, _)| !ignored.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        rest.sort_by(|one, other| one.0.cmp(&other.0));
        rest
    };
    rest(object) == rest(old)
}

pub(crate) fn validate_create(def: &ResourceDef, object: &Object) -> Vec<Cause> {
    let mut causes = validate::metadata::on_create(def, object);
    causes.extend(custom(def, object, None));
    causes.extend((def.hooks.validate)(object, None));
    causes
}

pub(crate) fn validate_update(def: &ResourceDef, object: &Object, old: &Object) -> Vec<Cause> {
    let mut causes = validate::metadata::on_update(object, old);
    causes.extend(custom(def, object, Some(old)));
    causes.extend((def.hooks.validate)(object, Some(old)));
    causes
}

pub(crate) fn validate_status(def: &ResourceDef, object: &Object, old: &Object) -> Vec<Cause> {
    let mut causes = validate::metadata::on_update(object, old);
    causes.extend(custom(def, object, Some(old)));
    causes
}

fn custom(def: &ResourceDef, object: &Object, old: Option<&Object>) -> Vec<Cause> {
    def.custom.as_ref().map(|custom| custom.validate(object, old)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tandem_api::Object;

    use crate::Registry;

    fn object(value: serde_json::Value) -> Object {
        Object::from_value(value).unwrap()
    }

    #[test]
    fn generations_count_changes_of_intent() {
        let deployments = Registry::builtin().by_kind("apps", "v1", "Deployment").unwrap();
        let old = object(
            json!({"metadata": {"name": "d", "uid": "u", "generation": 4}, "spec": {"replicas": 1}, "status": {"replicas": 1}}),
        );
        let update = |new: serde_json::Value| {
            let mut new = object(new);
            deployments.prepare_update(&mut new, &old);
            (new.generation(), new.i64_at(&["status", "replicas"]), new.uid().to_owned())
        };
        let kept = Some(1);
        assert_eq!(
            update(json!({"metadata": {"name": "d", "labels": {"a": "b"}}, "spec": {"replicas": 1}})),
            (4, kept, "u".into())
        );
        assert_eq!(
            update(json!({"metadata": {"generation": 9}, "spec": {"replicas": 2}, "status": {"replicas": 7}})),
            (5, kept, "u".into())
        );
        let dying = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"replicas": 1}});
        assert_eq!(update(dying), (5, kept, "u".into()));
    }

    #[test]
    fn status_updates_change_status_and_little_else() {
        let deployments = Registry::builtin().by_kind("apps", "v1", "Deployment").unwrap();
        let old =
            object(json!({"metadata": {"name": "d", "generation": 4, "finalizers": ["a/b"]}, "spec": {"replicas": 1}}));
        let mut new = object(
            json!({"metadata": {"name": "d", "annotations": {"a": "b"}}, "spec": {"replicas": 5}, "status": {"replicas": 1}}),
        );
        deployments.prepare_status(&mut new, &old);
        let expected = json!({"metadata": {"name": "d", "annotations": {"a": "b"}, "generation": 4, "finalizers": ["a/b"]},
            "spec": {"replicas": 1}, "status": {"replicas": 1}});
        assert_eq!(serde_json::Value::Object(new.0), expected);
    }
}
