use expect_test::{Expect, expect};
use serde_json::json;
use tandem_registry::Registry;

use super::*;
use crate::patch::apply;

const TYPE: &str = "apps.v1.Deployment";

fn writer(manager: &'static str) -> Writer<'static> {
    Writer { manager, api_version: "apps/v1", subresource: "", time: "2026-01-01T00:00:00Z" }
}

fn object(value: serde_json::Value) -> Object {
    Object::from_value(value).unwrap()
}

/// The managers of an object, one line each.
fn managers(object: &Object) -> String {
    let lines = object.array_at(&["metadata", "managedFields"]).iter().map(|entry| {
        let paths = FieldSet::from_json(&entry["fieldsV1"]).paths().join(" ");
        format!("{} {}: {paths}\n", entry["manager"].as_str().unwrap(), entry["operation"].as_str().unwrap())
    });
    lines.collect()
}

fn deployment(replicas: i64, image: &str) -> Object {
    object(json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"replicas": replicas, "template": {"spec": {"containers": [{"name": "c", "image": image}]}}},
    }))
}

fn check_managers(object: &Object, expected: Expect) {
    expected.assert_eq(&managers(object));
}

#[test]
fn updates_move_ownership() {
    let registry = Registry::builtin();
    let schema = registry.schema();
    let mut created = deployment(1, "a");
    record_update(schema, TYPE, None, &mut created, &writer("kubectl"));
    check_managers(
        &created,
        expect![[r#"
        kubectl Update: .metadata.labels .metadata.labels.app .spec.replicas .spec.template.spec.containers .spec.template.spec.containers[name="c"] .spec.template.spec.containers[name="c"].image .spec.template.spec.containers[name="c"].name
    "#]],
    );
    let mut scaled = created.clone();
    scaled.set(&["spec", "replicas"], 3);
    scaled.remove(&["metadata", "managedFields"]);
    record_update(schema, TYPE, Some(&created), &mut scaled, &writer("autoscaler"));
    check_managers(
        &scaled,
        expect![[r#"
        autoscaler Update: .spec.replicas
        kubectl Update: .metadata.labels .metadata.labels.app .spec.template.spec.containers .spec.template.spec.containers[name="c"] .spec.template.spec.containers[name="c"].image .spec.template.spec.containers[name="c"].name
    "#]],
    );
    let mut again = scaled.clone();
    record_update(
        schema,
        TYPE,
        Some(&scaled),
        &mut again,
        &Writer { time: "2027-01-01T00:00:00Z", ..writer("autoscaler") },
    );
    assert!(same(&scaled, &again));
}

#[test]
fn applying_merges_prunes_and_conflicts() {
    let registry = Registry::builtin();
    let schema = registry.schema();
    let first = apply::apply(schema, TYPE, None, &deployment(1, "a"), &writer("helm"), false).unwrap();
    check_managers(
        &first,
        expect![[r#"
        helm Apply: .metadata.labels.app .spec.replicas .spec.template.spec.containers[name="c"] .spec.template.spec.containers[name="c"].image .spec.template.spec.containers[name="c"].name
    "#]],
    );
    let other = object(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "side", "image": "s"}]}}},
    }));
    let refused = apply::apply(schema, TYPE, Some(&first), &other, &writer("kubectl"), false).unwrap_err();
    expect![[r#"Apply failed with 1 conflict: conflict with "helm": .spec.replicas"#]].assert_eq(&refused.message);
    assert_eq!(refused.details.causes[0].reason, "FieldManagerConflict");

    let forced = apply::apply(schema, TYPE, Some(&first), &other, &writer("kubectl"), true).unwrap();
    check_managers(
        &forced,
        expect![[r#"
        helm Apply: .metadata.labels.app .spec.template.spec.containers[name="c"] .spec.template.spec.containers[name="c"].image .spec.template.spec.containers[name="c"].name
        kubectl Apply: .spec.replicas .spec.template.spec.containers[name="side"] .spec.template.spec.containers[name="side"].image .spec.template.spec.containers[name="side"].name
    "#]],
    );
    let mut less = other.clone();
    less.remove(&["spec", "template"]);
    let pruned = apply::apply(schema, TYPE, Some(&forced), &less, &writer("kubectl"), false).unwrap();
    expect![[r#"{"replicas":2,"template":{"spec":{"containers":[{"name":"c","image":"a"}]}}}"#]]
        .assert_eq(&pruned.at(&["spec"]).unwrap().to_string());
    let same_again = apply::apply(schema, TYPE, Some(&pruned), &less, &writer("kubectl"), false).unwrap();
    assert!(same(&pruned, &same_again));
}

#[test]
fn an_update_of_an_applied_field_is_a_conflict_for_the_next_apply() {
    let registry = Registry::builtin();
    let schema = registry.schema();
    let first = apply::apply(schema, TYPE, None, &deployment(1, "a"), &writer("helm"), false).unwrap();
    let mut edited = first.clone();
    edited.set(&["spec", "replicas"], 5);
    record_update(schema, TYPE, Some(&first), &mut edited, &writer("kubectl-edit"));
    let refused = apply::apply(schema, TYPE, Some(&edited), &deployment(1, "b"), &writer("helm"), false).unwrap_err();
    expect![[r#"Apply failed with 1 conflict: conflict with "kubectl-edit" using apps/v1 at 2026-01-01T00:00:00Z: .spec.replicas"#]]
        .assert_eq(&refused.message);
    // What nobody changes is shared.
    let shared = apply::apply(schema, TYPE, Some(&edited), &deployment(5, "b"), &writer("helm"), false).unwrap();
    assert_eq!(shared.i64_at(&["spec", "replicas"]), Some(5));
}
