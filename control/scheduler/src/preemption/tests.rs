use kube::runtime::watcher::Event;
use serde_json::{from_value, json};

use super::*;
use crate::schedule;

/// `NAME NODE PRIORITY CPU [STARTED] [LABEL=VALUE]`: a pod that runs.
fn pod(line: &str) -> PodInfo {
    let words: Vec<&str> = line.split_whitespace().collect();
    let labels = words.iter().filter_map(|word| word.split_once('='));
    let labels: serde_json::Map<_, _> = labels.map(|(key, value)| (key.to_owned(), json!(value))).collect();
    let started = words.get(4).filter(|word| !word.contains('=')).map(|hour| format!("2030-01-01T{hour}:00:00Z"));
    PodInfo::of(
        &from_value(json!({
            "metadata": {"name": words[0], "namespace": "ns", "uid": words[0], "labels": labels},
            "spec": {"priority": words[2].parse::<i32>().unwrap(), "containers": [
                {"name": "c", "resources": {"requests": {"cpu": words[3]}}}
            ]},
            "status": {"startTime": started},
        }))
        .unwrap(),
    )
}

/// Nodes of four CPUs, the pods on them, and budgets: `LABEL=VALUE ALLOWED`.
fn cluster(nodes: &[&str], pods: &[&str], budgets: &[&str]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for name in nodes {
        let node = json!({"metadata": {"name": name, "labels": {"host": name}},
            "status": {"allocatable": {"cpu": "4", "memory": "32Gi", "pods": "110"}}});
        snapshot.set_node(&from_value(node).unwrap());
    }
    for line in pods {
        let node = line.split_whitespace().nth(1).unwrap().to_owned();
        snapshot.set_pod(&PodInfo { node_name: Some(node), ..pod(line) });
    }
    for (index, line) in budgets.iter().enumerate() {
        let (label, allowed) = line.split_once(' ').unwrap();
        let (key, value) = label.split_once('=').unwrap();
        let budget = json!({"metadata": {"name": format!("b{index}"), "namespace": "ns"},
            "spec": {"selector": {"matchLabels": {key: value}}},
            "status": {"currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0,
                "disruptionsAllowed": allowed.parse::<i32>().unwrap()}});
        snapshot.budgets.take(Event::Apply(from_value(budget).unwrap()));
    }
    snapshot
}

fn decide(pod: &PodInfo, snapshot: &Snapshot) -> Verdict {
    let profile = Profile::default();
    let refused = schedule(pod, snapshot, &profile, 0).expect_err("it fits nowhere");
    preempt(pod, snapshot, &profile, 0, &refused)
}

fn told(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Evict(preemption) => {
            let names: Vec<&str> = preemption.victims.iter().map(|victim| victim.name.as_str()).collect();
            format!("{}: {}", preemption.node, names.join(" "))
        }
        Verdict::Ineligible(why) | Verdict::Helpless(why) => why.clone(),
    }
}

#[test]
fn the_least_harm_is_done() {
    let wanted = "p - 10 2";
    let rows: [(&str, &[&str], &[&str], &str); 10] = [
        ("only as many as must go, the less important first", &["a n1 1 1", "b n1 2 1", "c n1 3 2"], &[], "n1: b a"),
        ("of one priority the younger", &["a n1 1 2 01", "b n1 1 2 02"], &[], "n1: b"),
        ("equal and higher priorities stay", &["a n1 10 2", "b n1 1 2"], &[], "n1: b"),
        ("the lower highest priority", &["a n1 5 4", "b n2 4 4"], &[], "n2: b"),
        ("the lower sum", &["a n1 5 1", "b n1 4 1", "x n1 10 2", "c n2 5 1", "d n2 3 1", "y n2 10 2"], &[], "n2: c d"),
        ("fewer pods", &["a n1 5 1", "b n1 5 1", "x n1 10 2", "c n2 5 4"], &[], "n2: c"),
        ("fewer broken budgets, whatever the priority", &["a n1 1 4 app=a", "b n2 9 4"], &["app=a 0"], "n2: b"),
        ("a budget that allows it is no reason", &["a n1 1 4 app=a", "b n2 9 4"], &["app=a 1"], "n1: a"),
        ("who is protected goes last", &["a n1 1 2 app=a", "b n1 5 2"], &["app=a 0"], "n1: b"),
        ("the one that started later", &["a n1 1 4 01", "b n2 1 4 02"], &[], "n2: b"),
    ];
    for (what, pods, budgets, verdict) in rows {
        let nodes: Vec<&str> = if pods.iter().any(|pod| pod.contains("n2")) { vec!["n1", "n2"] } else { vec!["n1"] };
        assert_eq!(told(&decide(&pod(wanted), &cluster(&nodes, pods, budgets))), verdict, "{what}");
    }
}

#[test]
fn who_may_not_or_cannot_preempt_is_told_so_in_kubernetes_words() {
    let full = cluster(&["n1", "n2"], &["a n1 10 4", "b n2 1 3"], &[]);
    let helpless = "0/2 nodes are available: 2 No preemption victims found for incoming pod.";
    assert_eq!(decide(&pod("p - 1 2"), &full), Verdict::Helpless(helpless.into()));
    let never = PodInfo { never_preempts: true, ..pod("p - 99 4") };
    assert_eq!(decide(&never, &full), Verdict::Ineligible("not eligible due to preemptionPolicy=Never.".into()));
    let helpless = "0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    assert_eq!(decide(&pod("p - 99 5"), &full), Verdict::Helpless(helpless.into()));
    let selecting = PodInfo { node_selector: [("host".into(), "n1".into())].into(), ..pod("p - 5 2") };
    let helpless = "0/2 nodes are available: 1 No preemption victims found for incoming pod, \
                    1 Preemption is not helpful for scheduling.";
    assert_eq!(decide(&selecting, &full), Verdict::Helpless(helpless.into()));
    let crowded = cluster(&["n1"], &["a n1 10 2", "b n1 1 2"], &[]);
    let helpless = "0/1 nodes are available: 1 Insufficient cpu.";
    assert_eq!(decide(&pod("p - 5 3"), &crowded), Verdict::Helpless(helpless.into()));
    let (profile, never) = (Profile::default(), PodInfo { never_preempts: true, ..pod("p - 5 4") });
    let mut refused = schedule(&never, &crowded, &profile, 0).unwrap_err();
    refused.preemption = Some("not eligible due to preemptionPolicy=Never.".into());
    let said = "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never.";
    assert_eq!(refused.to_string(), said);
}

#[test]
fn who_makes_room_for_itself_waits_for_it() {
    let mut snapshot = cluster(&["n1", "n2"], &["a n1 1 4", "b n2 9 4"], &[]);
    let high = pod("p - 10 4");
    assert_eq!(told(&decide(&high, &snapshot)), "n1: a");
    snapshot.nominations.set(&high, "n1");
    snapshot.condemn("a");
    let waits = "not eligible due to terminating pod on the nominated node.";
    assert_eq!(decide(&high, &snapshot), Verdict::Ineligible(waits.into()));
    // The API does not show yet that it ends.
    snapshot.set_pod(&PodInfo { node_name: Some("n1".into()), ..pod("a n1 1 4") });
    assert_eq!(decide(&high, &snapshot), Verdict::Ineligible(waits.into()));
    snapshot.remove_pod("a");
    let profile = Profile::default();
    assert!(schedule(&pod("low - 5 1"), &snapshot, &profile, 0).is_err(), "the room is kept from lower priorities");
    assert!(schedule(&pod("same - 10 1"), &snapshot, &profile, 0).is_err(), "and from equal ones");
    assert_eq!(schedule(&pod("higher - 11 1"), &snapshot, &profile, 0).unwrap(), "n1");
    assert_eq!(schedule(&high, &snapshot, &profile, 1).unwrap(), "n1");
    snapshot.remove_node("n1");
    assert_eq!(told(&decide(&high, &snapshot)), "n2: b", "its node is gone: it looks for another");
}

#[test]
fn a_victim_that_could_not_be_told_counts_again() {
    let mut snapshot = cluster(&["n1"], &["a n1 1 4"], &[]);
    snapshot.nominations.set(&pod("p - 10 4"), "n1");
    snapshot.condemn("a");
    snapshot.spare("a");
    assert_eq!(told(&decide(&pod("p - 10 4"), &snapshot)), "n1: a");
    assert!(snapshot.remove_pod("p") && !snapshot.remove_pod("p"), "a nomination is room, too");
}

#[test]
fn rules_between_pods_are_kept_by_who_goes() {
    let apart = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "p", "labels": {"app": "web"}},
        "spec": {"priority": 10, "containers": [{"name": "c"}], "affinity": {"podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "host", "labelSelector": {"matchLabels": {"app": "web"}}}]}}}});
    let apart = PodInfo::of(&from_value(apart).unwrap());
    let snapshot = cluster(&["n1"], &["a n1 1 1 app=web", "b n1 0 1 app=db", "c n1 2 1 app=web"], &[]);
    assert_eq!(told(&decide(&apart, &snapshot)), "n1: c a");
    let mut spread = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "p", "labels": {"app": "web"}},
        "spec": {"priority": 10, "containers": [{"name": "c"}], "topologySpreadConstraints": [
            {"topologyKey": "host", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
             "labelSelector": {"matchLabels": {"app": "web"}}}]}});
    spread["spec"]["nodeSelector"] = json!({"host": "n1"});
    spread["spec"]["topologySpreadConstraints"][0]["nodeAffinityPolicy"] = json!("Ignore");
    let spread = PodInfo::of(&from_value(spread).unwrap());
    let snapshot = cluster(&["n1", "n2"], &["a n1 1 1 app=web", "b n1 0 1 app=db", "c n1 2 1 app=db"], &[]);
    assert_eq!(told(&decide(&spread, &snapshot)), "n1: a");
}
