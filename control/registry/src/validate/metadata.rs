//! The metadata that all kinds share.

use tandem_api::{Cause, Object};

use super::{IMMUTABLE, Problems, labels};
use crate::{
    NameRule, ResourceDef,
    json::{Fields, FieldsExt},
};

/// All annotations of an object together.
const MAX_ANNOTATIONS: usize = 256 * 1024;
/// Finalizers that need no domain in front.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];
/// Names are the job of admission and of the store's keys as well: what could leave its place in the tree never passes.
const UNSAFE_NAMES: [&str; 3] = ["", ".", ".."];

/// The metadata of a new object. Its namespace and generated name are set by then.
pub fn on_create(def: &ResourceDef, object: &Object) -> Vec<Cause> {
    let mut problems = Problems::default();
    let metadata = object.0.child("metadata").cloned().unwrap_or_default();
    let prefix = object.generate_name();
    if !prefix.is_empty() {
        let found = def.hooks.name.problems(prefix, true);
        found.into_iter().for_each(|why| problems.invalid("metadata.generateName", prefix, why));
    }
    match object.name() {
        "" => problems.required("metadata.name", "name or generateName is required"),
        name => name_problems(def, name).into_iter().for_each(|why| problems.invalid("metadata.name", name, why)),
    }
    match (def.is_namespaced(), object.namespace()) {
        (true, None) => problems.required("metadata.namespace", ""),
        (true, Some(namespace)) => problems.check_label(namespace, "metadata.namespace"),
        (false, Some(_)) => problems.forbidden("metadata.namespace", "not allowed on this type"),
        (false, None) => {}
    }
    common(&metadata, &mut problems);
    problems.into_causes()
}

fn name_problems(def: &ResourceDef, name: &str) -> Vec<String> {
    let problems = def.hooks.name.problems(name, false);
    if problems.is_empty() && (UNSAFE_NAMES.contains(&name) || name.contains('/')) {
        return NameRule::PathSegment.problems(name, false);
    }
    problems
}

fn common(metadata: &Fields, problems: &mut Problems) {
    problems.check_labels(metadata, "labels", "metadata.labels");
    let mut size = 0;
    for (key, value) in metadata.pairs("annotations") {
        size += key.len() + value.len();
        let found = labels::qualified_name(&key.to_lowercase());
        found.into_iter().for_each(|why| problems.invalid("metadata.annotations", key, why));
    }
    if size > MAX_ANNOTATIONS {
        problems.too_long("metadata.annotations", MAX_ANNOTATIONS);
    }
    for (at, finalizer) in metadata.list("finalizers").iter().filter_map(|one| one.as_str()).enumerate() {
        let path = format!("metadata.finalizers[{at}]");
        labels::qualified_name(finalizer).into_iter().for_each(|why| problems.invalid(path.clone(), finalizer, why));
        if !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(&finalizer) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            problems.invalid(path, finalizer, why);
        }
    }
    owners(metadata, problems);
}

fn owners(metadata: &Fields, problems: &mut Problems) {
    let mut controller: Option<&Fields> = None;
    for (at, owner) in metadata.each("ownerReferences").enumerate() {
        let path = format!("metadata.ownerReferences[{at}]");
        let version = owner.text("apiVersion");
        if version.rsplit('/').next().unwrap_or_default().is_empty() {
            problems.invalid(format!("{path}.apiVersion"), version, "version must not be empty");
        }
        for key in ["kind", "name", "uid"] {
            if owner.text(key).is_empty() {
                problems.invalid(format!("{path}.{key}"), "", "must not be empty");
            }
        }
        if owner.text("kind") == "Event" && version == "v1" {
            problems.invalid(path, owner.clone(), "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner.flag("controller") {
            if let Some(first) = controller {
                let why = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {} and {}",
                    first.text("name"),
                    owner.text("name")
                );
                problems.invalid("metadata.ownerReferences", metadata.list("ownerReferences").to_vec(), why);
            }
            controller = Some(owner);
        }
    }
}

/// The metadata of a changed object: what identifies it never changes.
pub fn on_update(object: &Object, old: &Object) -> Vec<Cause> {
    let mut problems = Problems::default();
    let (metadata, before) =
        (object.0.child("metadata").cloned().unwrap_or_default(), old.0.child("metadata").cloned().unwrap_or_default());
    for key in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let path = format!("metadata.{key}");
        problems.check_immutable(metadata.get(key), before.get(key), &path, IMMUTABLE);
    }
    let (generation, earlier) = (object.generation(), old.generation());
    if generation < earlier {
        problems.invalid("metadata.generation", generation, "must not be decremented");
    }
    if old.deletion_timestamp().is_some() {
        let known = old.finalizers();
        let new: Vec<&str> = object.finalizers().into_iter().filter(|one| !known.contains(one)).collect();
        if !new.is_empty() {
            let list: Vec<String> = new.iter().map(|one| format!("{one:?}")).collect();
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                list.join(", ")
            );
            problems.forbidden("metadata.finalizers", &why);
        }
    }
    common(&metadata, &mut problems);
    problems.into_causes()
}
