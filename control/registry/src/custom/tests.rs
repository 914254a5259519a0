use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{Registry, ResourceDef};

fn definition(schema: Value) -> Object {
    Object::from_value(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "tabs.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "tabs", "singular": "tab", "kind": "Tab", "listKind": "TabList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}}}],
        },
        "status": {"conditions": [{"type": "Established", "status": "True"}]},
    }))
    .unwrap()
}

fn row(schema: Value) -> ResourceDef {
    rows(&definition(schema)).remove(0)
}

fn in_spec(properties: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}})
}

fn object(spec: Value) -> Object {
    Object::from_value(json!({"apiVersion": "example.com/v1", "kind": "Tab", "metadata": {"name": "t"}, "spec": spec}))
        .unwrap()
}

fn lines(causes: &[Cause]) -> String {
    causes.iter().map(|cause| format!("{}: {}\n", cause.field, cause.message)).collect()
}

/// The spec after pruning and defaulting, and what is unknown or wrong.
fn check(properties: Value, spec: Value, expected: Expect) {
    let row = row(in_spec(properties));
    let schema = Schema::builtin();
    let custom = row.custom.as_ref().unwrap();
    let mut object = object(spec);
    let unknown = custom.prune(&schema, &mut object);
    custom.default(&mut object);
    let once = object.clone();
    custom.default(&mut object);
    assert_eq!(once, object, "defaulting is not idempotent");
    let unknown: String = unknown.iter().map(|path| format!("unknown {path}\n")).collect();
    let causes = lines(&custom.validate(&object, None));
    expected.assert_eq(&format!("{}\n{unknown}{causes}", object.at(&["spec"]).unwrap()));
}

fn refused(schema: Value, expected: Expect) {
    expected.assert_eq(&lines(&validate(&definition(schema), None)));
}

#[test]
fn unknown_fields_go() {
    check(
        json!({"a": {"type": "string"}, "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"known": {"type": "object", "properties": {"x": {"type": "integer"}}}}},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "integer"}}}},
            "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "integer"}}}},
            "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}}}),
        json!({"a": "x", "b": 1, "free": {"any": {"thing": 1}, "known": {"x": 1, "y": 2}}, "map": {"k": {"x": 1, "y": 2}},
            "list": [{"x": 1}, {"y": 2}], "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"z": 1}}}),
        expect![[r#"
            {"a":"x","free":{"any":{"thing":1},"known":{"x":1}},"map":{"k":{"x":1}},"list":[{"x":1},{}],"pod":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{}}}
            unknown spec.b
            unknown spec.free.known.y
            unknown spec.map.k.y
            unknown spec.list[1].y
            unknown spec.pod.spec.z
        "#]],
    );
}

#[test]
fn defaults_fill_in_what_is_missing() {
    check(
        json!({"a": {"type": "integer", "default": 1}, "b": {"type": "object", "default": {}, "properties": {"c": {"type": "string", "default": "d"}}},
            "e": {"type": "object", "properties": {"f": {"type": "string", "default": "g"}}},
            "null": {"type": "string", "nullable": true, "default": "h"}, "none": {"type": "string"}, "some": {"type": "string", "default": "i"},
            "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "integer", "default": 2}}}}}),
        json!({"null": null, "none": null, "some": null, "list": [{}, {"x": 3}]}),
        expect![[r#"
            {"null":null,"some":"i","list":[{"x":2},{"x":3}],"a":1,"b":{"c":"d"}}
        "#]],
    );
}

#[test]
fn values_are_as_the_schema_says() {
    check(
        json!({"number": {"type": "number", "maximum": 2, "exclusiveMaximum": true, "multipleOf": 0.5}, "text": {"type": "string", "minLength": 3, "pattern": "^a"},
            "long": {"type": "string", "maxLength": 2}, "date": {"type": "string", "format": "date-time"}, "port": {"x-kubernetes-int-or-string": true},
            "set": {"type": "array", "x-kubernetes-list-type": "set", "maxItems": 2, "items": {"type": "string"}},
            "few": {"type": "object", "minProperties": 1, "required": ["r"], "properties": {"r": {"type": "string"}}},
            "one": {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
            "any": {"type": "integer", "anyOf": [{"minimum": 5}, {"maximum": 1}]}, "not": {"type": "string", "not": {"enum": ["x"]}}, "whole": {"type": "integer"}}),
        json!({"number": 2.2, "text": "b", "long": "äöü", "date": "yesterday", "port": true, "set": ["a", "b", "a"], "few": {}, "one": {"a": "", "b": ""},
            "any": 3, "not": "x", "whole": 1.0}),
        expect![[r#"
            {"number":2.2,"text":"b","long":"äöü","date":"yesterday","port":true,"set":["a","b","a"],"few":{},"one":{"a":"","b":""},"any":3,"not":"x","whole":1.0}
            spec.number: Invalid value: 2.2: spec.number in body should be less than 2
            spec.number: Invalid value: 2.2: spec.number in body should be a multiple of 0.5
            spec.text: Invalid value: "b": spec.text in body should be at least 3 chars long
            spec.text: Invalid value: "b": spec.text in body should match '^a'
            spec.long: Too long: may not be more than 2 bytes
            spec.date: Invalid value: "yesterday": spec.date in body must be of type date-time: "yesterday"
            spec.port: Invalid value: "boolean": spec.port in body must be of type integer,string: "boolean"
            spec.set: Too many: 3: must have at most 2 items
            spec.few: Invalid value: 0: spec.few in body should have at least 1 properties
            spec.few.r: Required value
            <nil>: Invalid value: "": "spec.one" must validate one and only one schema (oneOf). Found 2 valid alternatives
            spec.any: Invalid value: 3: spec.any in body should be greater than or equal to 5
            <nil>: Invalid value: "": "spec.any" must validate at least one schema (anyOf)
            <nil>: Invalid value: "": "spec.not" must not validate the schema (not)
            spec.set[2]: Duplicate value: "a"
        "#]],
    );
}

#[test]
fn rules_see_what_was_there_before() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
        "x-kubernetes-validations": [
            {"rule": "self.a <= self.b", "messageExpression": "'at most ' + string(self.b)"},
            {"rule": "!has(oldSelf.a) || self.a >= oldSelf.a", "message": "a never falls"},
            {"rule": "oldSelf.hasValue() || self.a == 1", "optionalOldSelf": true, "message": "a begins with 1", "fieldPath": ".a", "reason": "FieldValueForbidden"}],
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}, "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}}}}}}});
    let row = row(schema);
    let custom = row.custom.unwrap();
    let show = |new: Value, old: Option<Value>| lines(&custom.validate(&object(new), old.map(object).as_ref()));
    expect![[r#"
        spec: Invalid value: at most 2
        spec.a: Forbidden: a begins with 1
    "#]]
    .assert_eq(&show(json!({"a": 3, "b": 2}), None));
    expect![[r#"
        spec: Invalid value: a never falls
        spec.list[1].v: Invalid value: "new": failed rule: self == oldSelf
    "#]]
    .assert_eq(&show(
        json!({"a": 1, "b": 2, "list": [{"k": "other", "v": "x"}, {"k": "one", "v": "new"}]}),
        Some(json!({"a": 2, "b": 2, "list": [{"k": "one", "v": "old"}]})),
    ));
}

#[test]
fn what_was_wrong_before_does_not_hold_up_a_change() {
    let custom =
        row(in_spec(json!({"a": {"type": "string", "maxLength": 1}, "b": {"type": "integer"}}))).custom.unwrap();
    let old = object(json!({"a": "long", "b": 1}));
    assert!(custom.validate(&object(json!({"a": "long", "b": 2})), Some(&old)).is_empty());
    assert!(!custom.validate(&object(json!({"a": "longer", "b": 2})), Some(&object(json!({"b": 1})))).is_empty());
}

#[test]
fn only_what_has_not_changed_is_excused() {
    let custom = row(in_spec(json!({"a": {"type": "string", "maxLength": 5}, "b": {"type": "integer"},
        "list": {"type": "array", "items": {"type": "integer", "maximum": 1}},
        "keyed": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "string", "maxLength": 1}}}}})))
    .custom
    .unwrap();
    let show = |new: Value, old: Value| lines(&custom.validate(&object(new), Some(&object(old))));
    expect!["spec.a: Too long: may not be more than 5 bytes\n"]
        .assert_eq(&show(json!({"a": "zzzzzzzzz"}), json!({"a": "abcdefg"})));
    let many = vec![7; 200];
    expect!["spec.a: Too long: may not be more than 5 bytes\n"]
        .assert_eq(&show(json!({"a": "zzzzzzzzz", "list": many}), json!({"list": many})));
    let old = json!({"keyed": [{"k": "one", "v": "long"}]});
    assert_eq!(show(json!({"keyed": [{"k": "two", "v": "x"}, {"k": "one", "v": "long"}]}), old.clone()), "");
    expect!["spec.keyed[0].v: Too long: may not be more than 1 bytes\n"]
        .assert_eq(&show(json!({"keyed": [{"k": "one", "v": "other"}]}), old));
    let costly = json!({"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string", "anyOf": vec![json!({"pattern": "x$"}); 2_000]}}});
    let custom = row(costly).custom.unwrap();
    let whole = |b: i64| {
        let mut object = object(json!({}));
        object.set(&["a"], "y".repeat(1 << 20) + &b.to_string());
        object
    };
    let found = lines(&custom.validate(&whole(2), Some(&whole(1))));
    assert!(found.contains("takes too long"), "{found:.200}");
}

#[test]
fn the_nearest_alternative_is_told() {
    check(
        json!({"a": {"type": "string", "anyOf": [{"enum": ["long enough"], "minLength": 5}, {"pattern": "^c"}]}}),
        json!({"a": "b"}),
        expect![[r#"
            {"a":"b"}
            spec.a: Invalid value: "b": spec.a in body should match '^c'
            <nil>: Invalid value: "": "spec.a" must validate at least one schema (anyOf)
        "#]],
    );
}

#[test]
fn long_texts_are_not_searched_without_end() {
    let custom = row(in_spec(json!({"a": {"type": "string", "anyOf": vec![json!({"pattern": "x$"}); 20_000]}})));
    let begin = std::time::Instant::now();
    let found = lines(&custom.custom.unwrap().validate(&object(json!({"a": "y".repeat(1 << 20)})), None));
    assert!(found.contains("takes too long"), "{found:.200}");
    // All alternatives would take minutes.
    assert!(begin.elapsed() < std::time::Duration::from_secs(30));
}

#[test]
fn patterns_have_a_bound_together() {
    let pattern = |n: usize| json!({"type": "string", "pattern": format!("a{n}[a-z]{{2000}}")});
    let properties: Map<String, Value> = (0..100).map(|n| (format!("p{n}"), pattern(n))).collect();
    let found = lines(&validate(&definition(in_spec(Value::Object(properties))), None));
    assert!(found.contains("the patterns may take at most 10485760 bytes together"), "{found:.300}");
    let terms: Vec<String> = (0..100).map(|n| format!("self.matches('a{n}[a-z]{{2000}}')")).collect();
    let rules = json!([{"rule": terms.join(" || ")}]);
    let ruled = in_spec(json!({"a": {"type": "string", "x-kubernetes-validations": rules}}));
    let found = lines(&validate(&definition(ruled), None));
    assert!(found.contains("the patterns may take at most 10485760 bytes together"), "{found:.300}");
}

#[test]
fn defaults_that_multiply_are_refused() {
    let mut schema = json!({"type": "string", "default": "x"});
    for _ in 0..8 {
        schema = json!({"type": "array", "default": vec![Value::Null; 100], "items": schema});
    }
    let found = lines(&validate(&definition(in_spec(json!({"a": schema}))), None));
    assert!(found.contains(shape::TOO_LARGE), "{found:.300}");
    // Sound by themselves, but not for each element of an object.
    let large = json!({"type": "array", "items": {"type": "object", "properties": {"t": {"type": "string", "default": "x".repeat(10_000)}}}});
    let definition = definition(in_spec(json!({"a": large})));
    assert_eq!(lines(&validate(&definition, None)), "");
    let row = rows(&definition).remove(0);
    let mut object = object(json!({"a": vec![json!({}); 1_000]}));
    row.default(&mut object);
    let found = lines(&row.custom.unwrap().validate(&object, None));
    assert!(found.contains(shape::TOO_LARGE), "{found:.300}");
}

#[test]
fn what_is_built_in_is_not_defined_again() {
    let take = |group: &str, plural: &str, kind: &str, list: &str| {
        let mut definition = definition(in_spec(json!({})));
        definition.set(&["metadata", "name"], format!("{plural}.{group}"));
        definition.set(&["metadata", "annotations"], json!({"api-approved.kubernetes.io": "unapproved"}));
        definition.set(&["spec", "group"], group);
        definition
            .set(&["spec", "names"], json!({"plural": plural, "singular": "tab", "kind": kind, "listKind": list}));
        definition
    };
    let registry = Registry::builtin();
    let plurals = [("tandem.dev", "images"), ("rbac.authorization.k8s.io", "clusterroles")];
    for (group, plural) in plurals {
        let definition = take(group, plural, "Tab", "TabList");
        let found = lines(&validate(&definition, None));
        assert!(found.contains(&format!("spec.names.plural: Invalid value: {plural:?}: {plural:?} is already in use")));
        assert!(rows(&definition).is_empty());
    }
    let group = "coordination.k8s.io";
    let mut accepted = take(group, "leasez", "Tab", "TabList");
    accepted.set(&["status", "acceptedNames"], json!({"plural": "leases", "kind": "Tab"}));
    assert!(rows(&accepted).is_empty());
    for (kind, list, path) in
        [("Lease", "TabList", "kind"), ("Tab", "LeaseList", "listKind"), ("LeaseList", "X", "kind")]
    {
        let found = lines(&validate(&take(group, "leasez", kind, list), None));
        assert!(
            found.contains(&format!("spec.names.{path}: Invalid value")) && found.contains("is already in use"),
            "{found}"
        );
    }
    let mut stray = row(in_spec(json!({})));
    (stray.group, stray.kind) = (group.to_owned(), "Lease".to_owned());
    let mut other = row(in_spec(json!({})));
    (other.group, other.plural, other.version) = (group.to_owned(), "leases".to_owned(), "v2".to_owned());
    let registry = registry.with_custom(vec![stray.into(), other.into()]);
    assert!(registry.by_kind(group, "v1", "Lease").unwrap().custom.is_none());
    assert!(registry.by_path(group, "v1", "tabs").is_none() && registry.by_path(group, "v2", "leases").is_none());
    let protected = lines(&validate(
        &{
            let mut definition = take("tandem.dev", "tabs", "Tab", "TabList");
            definition.remove(&["metadata", "annotations"]);
            definition
        },
        None,
    ));
    assert!(protected.contains("protected groups must have approval annotation"), "{protected}");
}

#[test]
fn schemas_must_be_structural() {
    refused(
        json!({"type": "string", "properties": {"a": {}, "b": {"type": "text"}, "c": {"type": "array"}, "d": {"type": "object", "$ref": "#/x"},
            "e": {"type": "object", "properties": {"x": {"type": "string"}}, "additionalProperties": true}, "f": {"type": "string", "pattern": "a{99999}{99999}"},
            "g": {"type": "object", "anyOf": [{"type": "string"}]}, "h": {"type": "array", "uniqueItems": true, "x-kubernetes-list-type": "map", "items": {"type": "string"}},
            "i": {"type": "string", "x-kubernetes-validations": [{"rule": "self.nope("}]},
            "metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
        expect![[r#"
            spec.validation.openAPIV3Schema.type: Invalid value: "string": must be object at the root
            spec.validation.openAPIV3Schema.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified
            spec.validation.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified object fields
            spec.validation.openAPIV3Schema.properties[b].type: Unsupported value: "text": supported values: "array", "boolean", "integer", "number", "object", "string"
            spec.validation.openAPIV3Schema.properties[c].items: Required value: must be specified
            spec.validation.openAPIV3Schema.properties[d].$ref: Forbidden: $ref is not supported
            spec.validation.openAPIV3Schema.properties[e].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive
            spec.validation.openAPIV3Schema.properties[f].pattern: Invalid value: "a{99999}{99999}": must be a valid regular expression, but isn't: Compiled regex exceeds size limit of 262144 bytes.
            spec.validation.openAPIV3Schema.properties[g].anyOf[0].type: Forbidden: must be empty to be structural
            spec.validation.openAPIV3Schema.properties[h].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic
            spec.validation.openAPIV3Schema.properties[h].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map
            spec.validation.openAPIV3Schema.properties[i].x-kubernetes-validations[0].rule: Invalid value: "self.nope(": compilation failed: Syntax error: mismatched input '<EOF>'
        "#]],
    );
    refused(
        in_spec(
            json!({"a": {"type": "integer", "default": "x"}, "b": {"type": "object", "default": {"y": 1}, "properties": {"x": {"type": "integer"}}}}),
        ),
        expect![[r#"
            spec.validation.openAPIV3Schema.properties[spec].properties[a].default: Invalid value: "string": spec.validation.openAPIV3Schema.properties[spec].properties[a].default in body must be of type integer: "string"
            spec.validation.openAPIV3Schema.properties[spec].properties[b].default: Invalid value: {"y":1}: must not have unknown fields: y
        "#]],
    );
}

#[test]
fn names_and_versions_are_checked() {
    let mut definition = definition(in_spec(json!({})));
    definition.set(&["metadata", "name"], "other");
    definition.set(&["spec", "group"], "things.k8s.io");
    definition.set(&["spec", "versions"], json!([{"name": "v1", "served": true}, {"name": "v1"}]));
    expect![[r#"
        metadata.name: Invalid value: "other": must be spec.names.plural+"."+spec.group
        metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation "api-approved.kubernetes.io", see https://github.com/kubernetes/enhancements/pull/1111
        spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required
        spec.versions: Invalid value: "v1": must contain unique version names
        spec.versions[1].schema.openAPIV3Schema: Required value: schemas are required
        spec.versions: Invalid value: ["v1","v1"]: must have exactly one version marked as storage version
    "#]]
    .assert_eq(&lines(&validate(&definition, None)));
}

#[test]
fn alternatives_within_alternatives_end() {
    let mut schema = json!({"anyOf": [{"minimum": 1}, {"maximum": 0}]});
    for _ in 0..40 {
        schema = json!({"anyOf": [schema, {"not": schema}], "allOf": [schema]});
        if schema.to_string().len() > 100_000 {
            break;
        }
    }
    schema["type"] = "object".into();
    let custom = row(schema).custom.unwrap();
    custom.validate(&object(json!({})), None);
}

#[test]
fn rows_follow_the_definition() {
    let registry = Registry::builtin();
    let mut definition = definition(in_spec(json!({"a": {"type": "string"}})));
    let version = |name: &str, deprecated: bool| {
        json!({"name": name, "served": true, "storage": name == "v2", "deprecated": deprecated,
            "schema": {"openAPIV3Schema": {"type": "object"}}})
    };
    definition
        .set(&["spec", "versions"], json!([version("v1beta1", true), version("v2", false), version("v10", false)]));
    let registry = registry.with_custom(rows(&definition).into_iter().map(std::sync::Arc::new).collect());
    let group = registry.groups().into_iter().find(|group| group.name == "example.com").unwrap();
    assert_eq!(group.versions, ["v10", "v2", "v1beta1"]);
    let old = registry.by_path("example.com", "v1beta1", "tabs").unwrap();
    assert_eq!(old.storage_version, "v2");
    assert_eq!(old.custom.as_ref().unwrap().deprecation.as_deref(), Some("example.com/v1beta1 Tab is deprecated"));
    let text = String::from_utf8(crate::openapi::v3(&registry, "example.com", "v2").unwrap()).unwrap();
    assert!(text.contains("com.example.v2.Tab") && text.contains("com.example.v2.TabList"), "{text}");
    definition.remove(&["status"]);
    assert!(rows(&definition).is_empty());
    assert!(registry.with_custom(Vec::new()).by_path("example.com", "v2", "tabs").is_none());
}

#[test]
fn paths_lead_to_values() {
    let object = json!({"a": {"b.c/d": 1}, "list": [{"t": "x", "v": 7}, {"t": "y", "v": 8}], "n": null});
    let find = |path: &str| JsonPath::parse(path).map(|path| path.first(&object).cloned());
    for (path, value) in [
        (".a.b\\.c/d", Some(json!(1))),
        (".a['b.c/d']", Some(json!(1))),
        (".list[1].v", Some(json!(8))),
        (".list[-1].v", Some(json!(8))),
        (".list[*].v", Some(json!(7))),
        (".list[?(@.t==\"y\")].v", Some(json!(8))),
        ("{.list[?(@.v != 7)].t}", Some(json!("y"))),
        (".nope.x", None),
    ] {
        assert_eq!(find(path), Ok(value), "{path}");
    }
    for bad in ["..a", ".a[", ".list[?(@.t ~ 1)]", ".list[1:2]"] {
        assert!(find(bad).is_err(), "{bad}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![
            Just("object"),
            Just("array"),
            Just("string"),
            Just("integer"),
            Just("self.a"),
            Just("(a"),
            Just("é")
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 5, |inner| {
        let keys = prop_oneof![
            Just("type"),
            Just("properties"),
            Just("items"),
            Just("additionalProperties"),
            Just("default"),
            Just("enum"),
            Just("pattern"),
            Just("required"),
            Just("anyOf"),
            Just("oneOf"),
            Just("not"),
            Just("nullable"),
            Just("minimum"),
            Just("maxLength"),
            Just("multipleOf"),
            Just("format"),
            Just("spec"),
            Just("metadata"),
            Just("a"),
            Just("x-kubernetes-validations"),
            Just("rule"),
            Just("x-kubernetes-list-type"),
            Just("x-kubernetes-list-map-keys"),
            Just("x-kubernetes-preserve-unknown-fields"),
            Just("x-kubernetes-int-or-string"),
        ]
        .prop_map(str::to_owned);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map(keys, inner, 0..5).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_schema_and_no_object_panics(schema in any_json(), spec in any_json(), whole in any_json()) {
        let definition = definition(schema);
        validate(&definition, None);
        for row in rows(&definition) {
            let custom = row.custom.clone().unwrap();
            let whole = if let Value::Object(map) = whole.clone() { Object(map) } else { Object::default() };
            for mut object in [object(spec.clone()), whole] {
                custom.prune(&Schema::builtin(), &mut object);
                row.default(&mut object);
                row.prepare_create(&mut object);
                row.validate_create(&object);
                row.validate_update(&object, &object);
                row.cells(&object, Timestamp::UNIX_EPOCH);
                let place = custom.place();
                place.merging();
                place.member("spec").map(Place::merging);
            }
        }
        validate(&Object::from_value(json!({"spec": whole})).unwrap(), Some(&definition));
    }
}
