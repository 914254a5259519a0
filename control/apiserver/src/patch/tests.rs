use expect_test::{Expect, expect};
use serde_json::{Value, json};
use tandem_api::Object;
use tandem_registry::Registry;

use super::*;

fn strategic(live: &Value, patch: &Value, expected: Expect) {
    let registry = Registry::builtin();
    let live = Object::from_value(json!({ "spec": live })).unwrap();
    let patch = json!({ "spec": patch });
    let merged = strategic_merge(registry.schema(), "core.v1.Pod", &live, patch.as_object().unwrap());
    expected.assert_eq(&merged.map_or_else(|error| error.message, |pod| pod.at(&["spec"]).unwrap().to_string()));
}

#[test]
fn lists_merge_by_their_keys() {
    let live = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]});
    strategic(
        &live,
        &json!({"containers": [{"name": "b", "image": "2"}]}),
        expect![[r#"{"containers":[{"name":"a","image":"1"},{"name":"b","image":"2"}]}"#]],
    );
    strategic(
        &live,
        &json!({"containers": [{"name": "c"}]}),
        expect![[r#"{"containers":[{"name":"c"},{"name":"a","image":"1"},{"name":"b","image":"1"}]}"#]],
    );
    strategic(
        &live,
        &json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        expect![[r#"{"containers":[{"name":"b","image":"1"}]}"#]],
    );
    strategic(
        &live,
        &json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}),
        expect![[r#"{"containers":[{"name":"z"}]}"#]],
    );
    strategic(
        &live,
        &json!({"containers": [{"image": "2"}]}),
        expect!["map: map[image:2] does not contain declared merge key: name"],
    );
    strategic(
        &live,
        &json!({"containers": [{"name": "a", "args": ["x"]}]}),
        expect![[r#"{"containers":[{"name":"a","image":"1","args":["x"]},{"name":"b","image":"1"}]}"#]],
    );
}

#[test]
fn directives_order_and_delete() {
    let live = json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]});
    strategic(
        &live,
        &json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}], "containers": [{"name": "a", "image": "2"}]}),
        expect![[r#"{"containers":[{"name":"b"},{"name":"c"},{"name":"a","image":"2"}]}"#]],
    );
    strategic(
        &live,
        &json!({"$setElementOrder/containers": [{"name": "a"}, {"name": "c"}], "containers": [{"name": "b", "$patch": "delete"}]}),
        expect![[r#"{"containers":[{"name":"a"},{"name":"c"}]}"#]],
    );
    strategic(
        &json!({"tolerations": [{"key": "x"}], "nodeName": "n"}),
        &json!({"tolerations": [{"key": "y"}], "nodeName": null}),
        expect![[r#"{"tolerations":[{"key":"y"}]}"#]],
    );
    strategic(
        &json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
        &json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
        expect![[r#"{"volumes":[{"name":"v","hostPath":{"path":"/x"}}]}"#]],
    );
    strategic(
        &json!({"nodeSelector": {"a": "1", "b": "2"}}),
        &json!({"nodeSelector": {"$patch": "replace", "c": "3"}}),
        expect![[r#"{"nodeSelector":{"c":"3"}}"#]],
    );
}

#[test]
fn primitive_lists_are_united_and_emptied() {
    let registry = Registry::builtin();
    let live = Object::from_value(json!({"metadata": {"finalizers": ["a", "b"]}})).unwrap();
    let apply = |patch: Value| {
        let merged = strategic_merge(registry.schema(), "core.v1.Pod", &live, patch.as_object().unwrap()).unwrap();
        merged.at(&["metadata", "finalizers"]).unwrap().to_string()
    };
    assert_eq!(apply(json!({"metadata": {"finalizers": ["c"]}})), r#"["c","a","b"]"#);
    assert_eq!(apply(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}})), r#"["b"]"#);
}

#[test]
fn json_and_merge_patches() {
    let live = Object::from_value(json!({"spec": {"replicas": 1, "paused": true}})).unwrap();
    let patched = json_patch(&live, br#"[{"op": "replace", "path": "/spec/replicas", "value": 2}]"#).unwrap();
    assert_eq!(patched.i64_at(&["spec", "replicas"]), Some(2));
    let refused = json_patch(&live, br#"[{"op": "test", "path": "/spec/replicas", "value": 5}]"#).unwrap_err();
    assert_eq!(refused.code(), 422);
    assert_eq!(json_patch(&live, b"{}").unwrap_err().code(), 400);
    let patched = merge_patch(&live, &json!({"spec": {"paused": null}, "metadata": {"labels": {"a": "b"}}})).unwrap();
    expect![[r#"{"spec":{"replicas":1},"metadata":{"labels":{"a":"b"}}}"#]]
        .assert_eq(&Value::Object(patched.0).to_string());
}

#[test]
fn json_patches_that_grow_without_end_are_refused() {
    let live = Object::from_value(json!({"spec": {"list": ["x".repeat(1024)], "deep": {}}})).unwrap();
    let refused = |operations: Vec<Value>| {
        let error = json_patch(&live, Value::from(operations).to_string().as_bytes()).unwrap_err();
        format!("{} {}", error.code(), error.message)
    };
    let doubled = json!({"op": "copy", "from": "/spec/list", "path": "/spec/list/0"});
    expect!["413 Request entity too large: Unable to complete the copy, the accumulated size increase of copy is 4217850, exceeding the limit 3145728"].assert_eq(&refused(vec![doubled; 13]));
    let nested = |step: u32| {
        let inside = format!("/spec/deep{}", "/k".repeat(1 << step));
        let copied = json!({"op": "copy", "from": "/spec/deep", "path": "/spec/copy"});
        [copied, json!({"op": "move", "from": "/spec/copy", "path": inside})]
    };
    expect!["413 Request entity too large: the patched object would be nested more than 100 levels deep"]
        .assert_eq(&refused((0..10).flat_map(nested).collect()));
    // A move is walked through only where it leads deeper, and counts as a copy there.
    let large = json!({"op": "add", "path": "/spec/large", "value": "x".repeat(1 << 20)});
    let there = json!({"op": "move", "from": "/spec/large", "path": "/spec/deep/large"});
    let back = json!({"op": "move", "from": "/spec/deep/large", "path": "/spec/large"});
    let to_and_fro =
        |times: usize| [large.clone()].into_iter().chain((0..times).flat_map(|_| [there.clone(), back.clone()]));
    expect!["413 Request entity too large: Unable to complete the copy, the accumulated size increase of copy is 3145737, exceeding the limit 3145728"].assert_eq(&refused(to_and_fro(3).collect()));
    let moved = json_patch(&live, Value::from_iter(to_and_fro(2)).to_string().as_bytes()).unwrap();
    assert_eq!(moved.str_at(&["spec", "large"]).map(str::len), Some(1 << 20));
}

#[test]
fn a_json_patch_that_fails_names_the_operation() {
    let live = Object::from_value(json!({"spec": {}})).unwrap();
    let patch = br#"[{"op": "add", "path": "/spec/a", "value": 1}, {"op": "copy", "from": "/b", "path": "/spec/b"}]"#;
    expect![[r#"the server rejected our request due to an error in our request: operation '/1' failed at path '/spec/b': "from" path is invalid"#]]
        .assert_eq(&json_patch(&live, patch).unwrap_err().message);
}
