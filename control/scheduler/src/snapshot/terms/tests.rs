use serde_json::{Value, from_value, json};

use super::*;

fn labels(text: &str) -> Labels {
    let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn term(mut value: Value) -> AffinityTerm {
    value["topologyKey"] = json!("zone");
    AffinityTerm::of(&from_value(value).unwrap(), "own", &labels("app=web rev=1"))
}

#[test]
fn a_term_means_pods_by_label_and_namespace() {
    let namespaces = Namespaces::from([("blue".into(), labels("team=blue")), ("own".into(), Labels::new())]);
    let web = json!({"matchLabels": {"app": "web"}});
    let not_db = json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["db"]}]});
    let blue = json!({"matchLabels": {"team": "blue"}});
    for (value, namespace, pod, means) in [
        (json!({"labelSelector": web}), "own", "app=web", true),
        (json!({"labelSelector": web}), "own", "app=db", false),
        (json!({"labelSelector": web}), "other", "app=web", false),
        (json!({"labelSelector": not_db}), "own", "", true),
        (json!({"labelSelector": not_db}), "own", "app=db", false),
        (json!({"labelSelector": {}}), "own", "", true),
        (json!({}), "own", "app=web", false),
        (json!({"labelSelector": {"matchExpressions": [{"key": "app", "operator": "Like"}]}}), "own", "app=web", false),
        (json!({"labelSelector": web, "namespaces": ["a", "b"]}), "b", "app=web", true),
        (json!({"labelSelector": web, "namespaces": ["a", "b"]}), "own", "app=web", false),
        (json!({"labelSelector": web, "namespaces": []}), "own", "app=web", true),
        (json!({"labelSelector": web, "namespaceSelector": {}}), "anywhere", "app=web", true),
        (json!({"labelSelector": web, "namespaceSelector": {}}), "own", "app=web", true),
        (json!({"labelSelector": web, "namespaceSelector": blue}), "blue", "app=web", true),
        (json!({"labelSelector": web, "namespaceSelector": blue}), "own", "app=web", false),
        (json!({"labelSelector": web, "namespaceSelector": blue}), "unknown", "app=web", false),
        (json!({"labelSelector": web, "namespaceSelector": blue, "namespaces": ["own"]}), "own", "app=web", true),
        (json!({"labelSelector": web, "matchLabelKeys": ["rev"]}), "own", "app=web rev=1", true),
        (json!({"labelSelector": web, "matchLabelKeys": ["rev"]}), "own", "app=web rev=2", false),
        (json!({"labelSelector": web, "matchLabelKeys": ["none"]}), "own", "app=web", true),
        (json!({"labelSelector": {}, "mismatchLabelKeys": ["rev"]}), "own", "rev=1", false),
        (json!({"labelSelector": {}, "mismatchLabelKeys": ["rev"]}), "own", "rev=2", true),
        (json!({"labelSelector": {}, "mismatchLabelKeys": ["rev"]}), "own", "", true),
    ] {
        let term = term(value.clone());
        assert_eq!(term.matches(namespace, &labels(pod), &namespaces), means, "{value} {namespace} {pod:?}");
    }
}

#[test]
fn a_constraint_has_kubernetes_defaults() {
    let constraint = |mut value: Value| {
        value["topologyKey"] = json!("zone");
        value["maxSkew"] = json!(2);
        if value.get("whenUnsatisfiable").is_none() {
            value["whenUnsatisfiable"] = json!("DoNotSchedule");
        }
        SpreadConstraint::of(&from_value(value).unwrap(), &labels("app=web rev=1"))
    };
    let plain = constraint(json!({"labelSelector": {"matchLabels": {"app": "web"}}}));
    assert_eq!((plain.max_skew, plain.min_domains), (2, 1));
    assert_eq!((plain.is_required, plain.honors_affinity, plain.honors_taints), (true, true, false));
    assert!(plain.selects(&labels("app=web")) && plain.counts(&labels("app=web")));
    let turned = json!({"minDomains": 3, "nodeAffinityPolicy": "Ignore", "nodeTaintsPolicy": "Honor",
        "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}});
    let turned = constraint(turned);
    assert_eq!(turned.min_domains, 3);
    assert_eq!((turned.is_required, turned.honors_affinity, turned.honors_taints), (false, false, true));
    assert!(turned.selects(&labels("")) && !turned.counts(&labels("")));
    let keyed = constraint(json!({"labelSelector": {"matchLabels": {"app": "web"}}, "matchLabelKeys": ["rev"]}));
    assert!(keyed.counts(&labels("app=web rev=1")) && !keyed.counts(&labels("app=web rev=2")));
    assert!(!constraint(json!({})).selects(&labels("app=web")), "no selector selects nothing");
}
