//! Where other pods decide: affinity, anti-affinity, spreading.

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use serde::de::DeserializeOwned;
use serde_json::{Value, from_value, json};

use super::super::*;

/// `NODE LABELS [TAINT]`, one a line; every node has room, and its name as the label `host`.
const NODES: &str = "\
    a1 zone=a
    a2 zone=a
    b1 zone=b
    c1 zone=c tainted
    x1 disk=ssd";

pub(super) fn read<T: DeserializeOwned>(value: Value) -> T {
    from_value(value).unwrap()
}

fn labels(text: &str) -> Value {
    let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), json!(value))).collect::<serde_json::Map<_, _>>().into()
}

fn node(line: &str) -> Node {
    let (name, rest) = line.trim().split_once(' ').unwrap();
    let taints = rest.contains("tainted").then(|| json!([{"key": "tainted", "effect": "NoSchedule"}]));
    from_value(json!({
        "metadata": {"name": name, "labels": labels(&format!("{rest} host={name}"))},
        "spec": {"taints": taints},
        "status": {"allocatable": {"cpu": "8", "memory": "32Gi", "pods": "110"}},
    }))
    .unwrap()
}

/// `NAMESPACE/NAME LABELS`; a name that begins with `-` is of a pod that is being deleted.
fn pod(text: &str, spec: &Value) -> PodInfo {
    let (path, rest) = text.split_once(' ').unwrap_or((text, ""));
    let (namespace, name) = path.split_once('/').unwrap_or(("own", path));
    let mut spec = spec.clone();
    spec["containers"] = json!([{"name": "c"}]);
    let deleted = name.starts_with('-').then_some("2030-01-01T00:00:00Z");
    let metadata = json!({"name": name, "namespace": namespace, "uid": path, "labels": labels(rest),
        "deletionTimestamp": deleted});
    PodInfo::of(&from_value::<Pod>(json!({"metadata": metadata, "spec": spec})).unwrap())
}

/// What is placed: `NODE NAMESPACE/NAME LABELS`, and the pod's spec.
type There<'a> = &'a [(&'a str, Value)];

fn cluster(there: There<'_>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for line in NODES.lines() {
        snapshot.set_node(&node(line));
    }
    for (name, team) in [("own", "red"), ("blue", "blue")] {
        let labels = labels(&format!("team={team}"));
        let namespace: Namespace = from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap();
        snapshot.set_namespace(&namespace);
    }
    for (index, (text, spec)) in there.iter().enumerate() {
        let (node, text) = text.split_once(' ').unwrap();
        let mut pod = pod(text, spec);
        pod.uid = format!("{index}");
        snapshot.assume(&pod, node);
    }
    snapshot
}

/// The nodes that could take the pod.
fn possible(pod: &PodInfo, snapshot: &Snapshot) -> String {
    let cycle = Cycle::new(pod, snapshot);
    let fits = |node: &&NodeInfo| cycle.reasons(filters::ALL, node).is_empty();
    let mut names: Vec<&str> = snapshot.nodes().iter().filter(fits).map(|node| node.name.as_str()).collect();
    names.sort_unstable();
    names.join(" ")
}

fn required(which: &str, terms: Value) -> Value {
    json!({"affinity": {which: {"requiredDuringSchedulingIgnoredDuringExecution": terms}}})
}

fn near(terms: Value) -> Value {
    required("podAffinity", terms)
}

fn apart(terms: Value) -> Value {
    required("podAntiAffinity", terms)
}

fn by(key: &str, app: &str) -> Value {
    json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}})
}

fn with(mut value: Value, more: Value) -> Value {
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    value
}

fn spread(constraints: &[Value]) -> Value {
    let default = json!({"maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule", "topologyKey": "zone",
        "labelSelector": {"matchLabels": {"app": "web"}}});
    let filled: Vec<Value> = constraints.iter().map(|own| with(default.clone(), own.clone())).collect();
    json!({"topologySpreadConstraints": filled})
}

#[test]
fn required_affinity_draws_pods_together() {
    let none = json!({});
    let db = || ("a1 db app=db", json!({}));
    let web = || ("b1 web app=web", json!({}));
    let rows: [(&str, &str, Value, There<'_>, &str); 13] = [
        ("nobody to follow", "p app=web", near(json!([by("zone", "db")])), &[], ""),
        ("the zone of another", "p app=web", near(json!([by("zone", "db")])), &[db()], "a1 a2"),
        ("the node of another", "p app=web", near(json!([by("host", "db")])), &[db()], "a1"),
        ("another namespace", "blue/p", near(json!([by("zone", "db")])), &[db()], ""),
        (
            "a named namespace",
            "blue/p",
            near(json!([with(by("zone", "db"), json!({"namespaces": ["own"]}))])),
            &[db()],
            "a1 a2",
        ),
        (
            "a selected namespace",
            "blue/p",
            near(json!([with(by("zone", "db"), json!({"namespaceSelector": {"matchLabels": {"team": "red"}}}))])),
            &[db()],
            "a1 a2",
        ),
        ("all terms by one pod", "p", near(json!([by("zone", "db"), by("zone", "web")])), &[db(), web()], ""),
        ("the first of its kind", "p app=web", near(json!([by("zone", "web")])), &[], "a1 a2 b1"),
        ("the second of its kind", "p app=web", near(json!([by("zone", "web")])), &[web()], "b1"),
        ("of its own kind, in part", "p app=web", near(json!([by("zone", "web"), by("zone", "db")])), &[], ""),
        ("no such key", "p app=web", near(json!([by("rack", "web")])), &[], ""),
        ("a pod that ends still draws", "p", near(json!([by("zone", "web")])), &[("b1 -web app=web", json!({}))], "b1"),
        ("a pod without terms", "p app=web", none, &[db(), web()], "a1 a2 b1 x1"),
    ];
    for (what, text, spec, there, nodes) in rows {
        assert_eq!(possible(&pod(text, &spec), &cluster(there)), nodes, "{what}");
    }
}

#[test]
fn required_anti_affinity_keeps_pods_apart_both_ways() {
    let none = json!({});
    let alone = || apart(json!([by("host", "web")]));
    let rows: [(&str, &str, Value, There<'_>, &str); 9] = [
        ("nobody to avoid", "p app=web", alone(), &[], "a1 a2 b1 x1"),
        ("one a node", "p app=web", alone(), &[("a1 web app=web", alone())], "a2 b1 x1"),
        ("one a zone", "p", apart(json!([by("zone", "web")])), &[("a1 web app=web", json!({}))], "b1 x1"),
        ("another namespace", "blue/p", alone(), &[("a1 web app=web", json!({}))], "a1 a2 b1 x1"),
        (
            "either of two",
            "p",
            apart(json!([by("host", "web"), by("zone", "db")])),
            &[("a1 web app=web", json!({})), ("b1 db app=db", json!({}))],
            "a2 x1",
        ),
        (
            "those that are there avoid it",
            "p app=web",
            none.clone(),
            &[("a1 db app=db", apart(json!([by("zone", "web")])))],
            "b1 x1",
        ),
        (
            "they avoid others",
            "p app=cache",
            none.clone(),
            &[("a1 db app=db", apart(json!([by("zone", "web")])))],
            "a1 a2 b1 x1",
        ),
        (
            "they avoid its namespace",
            "blue/p app=web",
            none.clone(),
            &[(
                "a1 db",
                apart(json!([with(
                    by("zone", "web"),
                    json!({"namespaceSelector": {"matchLabels": {"team": "blue"}}})
                )])),
            )],
            "b1 x1",
        ),
        (
            "on a node without the key they avoid nobody",
            "p app=web",
            none,
            &[("x1 db", apart(json!([by("zone", "web")])))],
            "a1 a2 b1 x1",
        ),
    ];
    for (what, text, spec, there, nodes) in rows {
        assert_eq!(possible(&pod(text, &spec), &cluster(there)), nodes, "{what}");
    }
}

#[test]
fn required_spreading_limits_the_skew() {
    let web = |node: &'static str| (node, json!({}));
    let zone = || json!({});
    let rows: [(&str, &str, Value, There<'_>, &str); 16] = [
        ("the first", "p app=web", spread(&[zone()]), &[], "a1 a2 b1"),
        ("no zone ahead", "p app=web", spread(&[zone()]), &[web("a1 1 app=web")], "b1"),
        (
            "the tainted zone stays empty",
            "p app=web",
            spread(&[zone()]),
            &[web("a1 1 app=web"), web("b1 2 app=web")],
            "",
        ),
        (
            "taints honored",
            "p app=web",
            spread(&[json!({"nodeTaintsPolicy": "Honor"})]),
            &[web("a1 1 app=web"), web("b1 2 app=web")],
            "a1 a2 b1",
        ),
        ("a larger skew", "p app=web", spread(&[json!({"maxSkew": 2})]), &[web("a1 1 app=web")], "a1 a2 b1"),
        ("who is not counted adds nothing", "p app=db", spread(&[zone()]), &[web("a1 1 app=web")], "a1 a2 b1"),
        ("other namespaces", "p app=web", spread(&[zone()]), &[web("a1 blue/1 app=web")], "a1 a2 b1"),
        ("pods that end", "p app=web", spread(&[zone()]), &[web("a1 -1 app=web")], "a1 a2 b1"),
        ("a selector of all", "p app=web", spread(&[json!({"labelSelector": {}})]), &[web("a1 1 app=web")], "a1 a2 b1"),
        (
            "only those of its revision",
            "p app=web rev=2",
            spread(&[json!({"matchLabelKeys": ["rev"]})]),
            &[web("a1 1 app=web rev=1")],
            "a1 a2 b1",
        ),
        (
            "affinity honored",
            "p app=web",
            with(spread(&[zone()]), json!({"nodeSelector": {"zone": "a"}})),
            &[web("a1 1 app=web")],
            "a1 a2",
        ),
        (
            "affinity ignored",
            "p app=web",
            with(spread(&[json!({"nodeAffinityPolicy": "Ignore"})]), json!({"nodeSelector": {"zone": "a"}})),
            &[web("a1 1 app=web")],
            "",
        ),
        (
            "too few domains",
            "p app=web",
            spread(&[json!({"minDomains": 4})]),
            &[web("a1 1 app=web"), web("b1 2 app=web"), web("c1 3 app=web")],
            "",
        ),
        (
            "domains enough",
            "p app=web",
            spread(&[json!({"minDomains": 3})]),
            &[web("a1 1 app=web"), web("b1 2 app=web"), web("c1 3 app=web")],
            "a1 a2 b1",
        ),
        (
            "two constraints",
            "p app=web",
            spread(&[zone(), json!({"topologyKey": "host", "maxSkew": 2})]),
            &[web("a1 1 app=web"), web("b1 2 app=web"), web("c1 3 app=web"), web("a1 4 app=web"), web("c1 5 app=web")],
            "b1",
        ),
        (
            "soft ones refuse nothing",
            "p app=web",
            spread(&[json!({"whenUnsatisfiable": "ScheduleAnyway"})]),
            &[web("a1 1 app=web")],
            "a1 a2 b1 x1",
        ),
    ];
    for (what, text, spec, there, nodes) in rows {
        assert_eq!(possible(&pod(text, &spec), &cluster(there)), nodes, "{what}");
    }
}

#[test]
fn refusals_are_said_in_kubernetes_words() {
    let rows: [(&str, Value, There<'_>, &str); 4] = [
        ("p app=web", near(json!([by("zone", "db")])), &[], "4 node(s) didn't match pod affinity rules"),
        (
            "p app=web",
            apart(json!([by("team", "web"), by("host", "web")])),
            &[
                ("a1 1 app=web", json!({})),
                ("a2 2 app=web", json!({})),
                ("b1 3 app=web", json!({})),
                ("x1 4 app=web", json!({})),
            ],
            "4 node(s) didn't match pod anti-affinity rules",
        ),
        (
            "p app=web",
            json!({}),
            &[
                ("a1 1", apart(json!([by("zone", "web")]))),
                ("b1 2", apart(json!([by("zone", "web")]))),
                ("x1 3", apart(json!([by("host", "web")]))),
            ],
            "4 node(s) didn't satisfy existing pods anti-affinity rules",
        ),
        (
            "p app=web",
            spread(&[json!({})]),
            &[("a1 1 app=web", json!({})), ("b1 2 app=web", json!({}))],
            "1 node(s) didn't match pod topology spread constraints (missing required label), 3 node(s) didn't match pod topology spread constraints",
        ),
    ];
    for (text, spec, there, reasons) in rows {
        let refused = schedule(&pod(text, &spec), &cluster(there), &Profile::default(), 0).unwrap_err();
        let mut all: Vec<&str> = reasons.split(", ").collect();
        all.insert(0, "1 node(s) had untolerated taint {tainted: }");
        all.sort_unstable();
        assert_eq!(refused.to_string(), format!("0/5 nodes are available: {}.", all.join(", ")));
    }
}

#[test]
fn preferences_choose_among_possible_nodes() {
    let preferred = |which: &str, term: Value| {
        let weighted = json!([{"weight": 50, "podAffinityTerm": term}]);
        json!({"affinity": {which: {"preferredDuringSchedulingIgnoredDuringExecution": weighted}}})
    };
    let soft = |key: &str| spread(&[json!({"whenUnsatisfiable": "ScheduleAnyway", "topologyKey": key})]);
    let rows: [(&str, &str, Value, There<'_>, &str); 6] = [
        ("near another", "p", preferred("podAffinity", by("host", "web")), &[("b1 1 app=web", json!({}))], "b1"),
        (
            "away from others",
            "p",
            preferred("podAntiAffinity", by("zone", "web")),
            &[("a1 1 app=web", json!({})), ("x1 2", json!({}))],
            "b1",
        ),
        ("others like it", "p app=web", json!({}), &[("b1 1", preferred("podAffinity", by("host", "web")))], "b1"),
        ("others need it", "p app=web", json!({}), &[("b1 1 app=web", near(json!([by("host", "web")])))], "b1"),
        (
            "others dislike it",
            "p app=web",
            json!({}),
            &[
                ("a1 1", preferred("podAntiAffinity", by("zone", "web"))),
                ("x1 2", preferred("podAntiAffinity", by("host", "web"))),
            ],
            "b1",
        ),
        ("spread softly", "p app=web", soft("zone"), &[("a1 1 app=web", json!({})), ("a2 2 app=web", json!({}))], "b1"),
    ];
    for (what, text, spec, there, node) in rows {
        let snapshot = cluster(there);
        for turn in 0..5 {
            let chosen = schedule(&pod(text, &spec), &snapshot, &Profile::default(), turn).unwrap();
            assert_eq!(chosen, node, "{what}, turn {turn}");
        }
    }
}

#[test]
fn a_group_spreads_as_it_is_placed() {
    let mut snapshot = cluster(&[]);
    let spec = spread(&[json!({"topologyKey": "host", "nodeTaintsPolicy": "Honor"})]);
    let mut counts = BTreeMap::new();
    for turn in 0..8 {
        let pod = pod(&format!("p{turn} app=web"), &spec);
        let node = schedule(&pod, &snapshot, &Profile::default(), 0).unwrap();
        snapshot.assume(&pod, &node);
        *counts.entry(node).or_insert(0) += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [2, 2, 2, 2]);
}

#[test]
fn a_change_wakes_those_that_may_follow() {
    let snapshot = cluster(&[]);
    let placed = pod("new app=web", &json!({}));
    for (text, spec, may_follow) in [
        ("p", near(json!([by("zone", "web")])), true),
        ("p", near(json!([by("zone", "db")])), false),
        ("blue/p", near(json!([by("zone", "web")])), false),
        ("p", apart(json!([by("zone", "web")])), false),
        ("p", spread(&[json!({})]), true),
        ("blue/p", spread(&[json!({})]), false),
        ("p", spread(&[json!({"whenUnsatisfiable": "ScheduleAnyway"})]), false),
        ("p", json!({}), false),
    ] {
        assert_eq!(snapshot.may_follow(&pod(text, &spec), &placed), may_follow, "{text} {spec}");
    }
}
