use super::*;
use crate::Registry;
use tandem_api::Object;

fn object(labels: &[(&str, &str)]) -> Object {
    let mut object = Object::default();
    for (key, value) in labels {
        object.set(&["metadata", "labels", key], *value);
    }
    object
}

#[test]
fn label_selectors_select() {
    let web = object(&[("app", "web"), ("tier", "front"), ("size", "5")]);
    let table = [
        ("", true),
        ("app=web", true),
        ("app==web,tier!=back", true),
        ("app", true),
        ("!app", false),
        ("!old , app in (web, api)", true),
        ("app notin (web)", false),
        ("missing notin (web)", true),
        ("missing!=x", true),
        ("missing=", false),
        ("size>4", true),
        ("size<4", false),
        ("app in (,web)", true),
    ];
    for (text, expected) in table {
        assert_eq!(LabelSelector::parse(text).unwrap().matches(&web), expected, "{text}");
    }
}

#[test]
fn label_selector_errors_are_kubernetes_own() {
    let table = [
        ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ("a in b", "unable to parse requirement: found 'b' expected: '('"),
        ("a=b,", "found '', expected: identifier after ','"),
        (",a", "found ',', expected: !, identifier, or 'end of string'"),
        ("a=b c", "found 'c', expected: ',' or 'end of string'"),
        ("a>b", "unable to parse requirement: for 'Gt', 'Lt' operators, the value must be an integer"),
    ];
    for (text, expected) in table {
        assert_eq!(LabelSelector::parse(text).unwrap_err().message, expected, "{text}");
    }
}

#[test]
fn structured_selectors() {
    let value = serde_json::json!({
        "matchLabels": {"app": "web"}, "matchExpressions": [{"key": "old", "operator": "DoesNotExist"}],
    });
    let selector = LabelSelector::from_value(Some(&value)).unwrap().unwrap();
    assert!(selector.matches(&object(&[("app", "web")])));
    assert!(!selector.matches(&object(&[("app", "web"), ("old", "")])));
    assert_eq!(LabelSelector::from_value(None).unwrap(), None);
    assert!(LabelSelector::from_value(Some(&serde_json::json!({}))).unwrap().unwrap().is_empty());
}

#[test]
fn field_selectors_select() {
    let registry = Registry::builtin();
    let pods = registry.by_kind("", "v1", "Pod").unwrap();
    let mut pod = Object::default();
    pod.set(&["metadata", "name"], "web");
    pod.set(&["spec", "nodeName"], "n1");
    pod.set(&["status", "phase"], "Running");
    for (text, expected) in [
        ("", true),
        ("metadata.name=web", true),
        ("spec.nodeName==n1,status.phase!=Succeeded,status.phase!=Failed", true),
        ("spec.nodeName=", false),
        ("status.phase!=Running", false),
    ] {
        let selector = FieldSelector::parse(text).unwrap();
        selector.check(&pods).unwrap();
        assert_eq!(selector.matches(&pods, &pod), expected, "{text}");
    }
    assert_eq!(FieldSelector::parse("metadata.name=a\\,b").unwrap().exact("metadata.name"), Some("a,b"));
    let error = FieldSelector::parse("spec.x=1").unwrap().check(&pods).unwrap_err();
    assert_eq!(error.message, "field label not supported: spec.x");
    let roles = registry.by_path("rbac.authorization.k8s.io", "v1", "roles").unwrap();
    let error = FieldSelector::parse("spec.x=1").unwrap().check(&roles).unwrap_err();
    assert_eq!(
        error.message,
        "\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
    );
    let error = FieldSelector::parse("a").unwrap_err();
    assert_eq!(error.message, "invalid selector: 'a'; can't understand 'a'");
}
