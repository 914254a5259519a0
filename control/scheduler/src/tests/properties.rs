//! No placement breaks a required rule, and no preemption takes an equal or a higher priority: small clusters, each
//! decision compared with the rules as they are written down.

use proptest::prelude::*;

use super::topology::read;
use super::*;
use crate::preemption::{Verdict, preempt};

const ZONES: [&str; 3] = ["a", "b", "c"];
const APPS: [&str; 3] = ["web", "db", "job"];

/// A node, as it was drawn.
#[derive(Clone, Debug)]
struct Machine {
    zone: usize,
    cpu: i64,
    tainted: bool,
}

/// A pod, as it was drawn.
#[derive(Clone, Debug)]
struct Wish {
    app: usize,
    cpu: i64,
    priority: i32,
    port: bool,
    tolerates: bool,
    zone: Option<usize>,
    near: Option<usize>,
    apart: Option<usize>,
    skew: Option<i64>,
}

fn machine() -> impl Strategy<Value = Machine> {
    (0..ZONES.len(), 1..5_i64, prop::bool::weighted(0.2)).prop_map(|(zone, cpu, tainted)| Machine {
        zone,
        cpu,
        tainted,
    })
}

fn wish() -> impl Strategy<Value = Wish> {
    let some = |share| prop::option::weighted(share, 0..APPS.len());
    let rules = (some(0.2), some(0.2), some(0.3), prop::option::weighted(0.3, 1..3_i64));
    let simple = (0..APPS.len(), 1..3_i64, 0..4_i32, prop::bool::weighted(0.1), prop::bool::weighted(0.3));
    (simple, rules).prop_map(|((app, cpu, priority, port, tolerates), (zone, near, apart, skew))| Wish {
        app,
        cpu,
        priority,
        port,
        tolerates,
        zone,
        near,
        apart,
        skew,
    })
}

fn node_of(index: usize, machine: &Machine) -> Node {
    let taints = machine.tainted.then(|| serde_json::json!([{"key": "t", "effect": "NoSchedule"}]));
    read(serde_json::json!({
        "metadata": {"name": format!("n{index}"), "labels": {"zone": ZONES[machine.zone], "host": format!("n{index}")}},
        "spec": {"taints": taints},
        "status": {"allocatable": {"cpu": machine.cpu.to_string(), "memory": "64Gi", "pods": "20"}},
    }))
}

fn pod_of(index: usize, wish: &Wish) -> PodInfo {
    let by = |app: usize, key: &str| {
        serde_json::json!({"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": key, "labelSelector": {"matchLabels": {"app": APPS[app]}}}]})
    };
    let spread = wish.skew.map(|skew| {
        serde_json::json!([{"topologyKey": "zone", "maxSkew": skew, "whenUnsatisfiable": "DoNotSchedule",
            "nodeAffinityPolicy": "Ignore", "labelSelector": {"matchLabels": {"app": APPS[wish.app]}}}])
    });
    let port = wish.port.then(|| serde_json::json!([{"containerPort": 80, "hostPort": 80}]));
    let name = format!("p{index}");
    PodInfo::of(&read(serde_json::json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": APPS[wish.app]}},
        "spec": {
            "priority": wish.priority,
            "containers": [{"name": "c", "ports": port, "resources": {"requests": {"cpu": wish.cpu.to_string()}}}],
            "nodeSelector": wish.zone.map(|zone| serde_json::json!({"zone": ZONES[zone]})),
            "tolerations": wish.tolerates.then(|| serde_json::json!([{"operator": "Exists"}])),
            "affinity": {"podAffinity": wish.near.map(|app| by(app, "zone")),
                "podAntiAffinity": wish.apart.map(|app| by(app, "host"))},
            "topologySpreadConstraints": spread,
        },
    })))
}

/// What is where: the machine of each wish.
type There<'a> = Vec<(&'a Wish, usize)>;

/// Whether the rules let the pod go to the machine, beside those that are there.
fn allowed(wish: &Wish, to: usize, machines: &[Machine], there: &There<'_>) -> bool {
    let on = |index: usize| there.iter().filter(move |(_, at)| *at == index).map(|(other, _)| *other);
    let in_zone = |zone: usize| there.iter().filter(move |(_, at)| machines[*at].zone == zone).map(|(other, _)| *other);
    let machine = &machines[to];
    let fits = on(to).map(|other| other.cpu).sum::<i64>() + wish.cpu <= machine.cpu;
    let port = !wish.port || !on(to).any(|other| other.port);
    let taint = !machine.tainted || wish.tolerates;
    let zone = wish.zone.is_none_or(|zone| zone == machine.zone);
    let near = wish.near.is_none_or(|app| {
        let is_first = app == wish.app && !there.iter().any(|(other, _)| other.app == app);
        is_first || in_zone(machine.zone).any(|other| other.app == app)
    });
    let apart = wish.apart.is_none_or(|app| !on(to).any(|other| other.app == app))
        && !on(to).any(|other| other.apart == Some(wish.app));
    let skew = wish.skew.is_none_or(|skew| {
        let count = |zone: usize| in_zone(zone).filter(|other| other.app == wish.app).count();
        let zones = machines.iter().map(|machine| count(machine.zone));
        let (least, here) = (zones.min().unwrap_or(0), count(machine.zone));
        i64::try_from(here + 1 - least).is_ok_and(|ahead| ahead <= skew)
    });
    fits && port && taint && zone && near && apart && skew
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_placement_breaks_a_rule(
        machines in prop::collection::vec(machine(), 1..6),
        wishes in prop::collection::vec(wish(), 1..14),
    ) {
        let nodes: Vec<Node> = machines.iter().enumerate().map(|(index, machine)| node_of(index, machine)).collect();
        let mut snapshot = cluster(&nodes);
        let index_of = |name: &str| name[1..].parse::<usize>().unwrap();
        let (profile, mut there) = (Profile::default(), There::new());
        for (turn, wish) in wishes.iter().enumerate() {
            let pod = pod_of(turn, wish);
            let possible = |there: &There<'_>| (0..machines.len()).any(|to| allowed(wish, to, &machines, there));
            match schedule(&pod, &snapshot, &profile, turn) {
                Ok(node) => {
                    prop_assert!(allowed(wish, index_of(&node), &machines, &there), "{wish:?} on {node}, {there:?}");
                    snapshot.assume(&pod, &node);
                    there.push((wish, index_of(&node)));
                }
                Err(refused) => {
                    prop_assert!(!possible(&there), "{wish:?} fits: {refused}, {there:?}");
                    if let Verdict::Evict(preemption) = preempt(&pod, &snapshot, &profile, turn, &refused) {
                        let at = index_of(&preemption.node);
                        for victim in &preemption.victims {
                            prop_assert!(victim.priority < wish.priority);
                        }
                        let goes = |(index, to): (usize, usize)| {
                            to == at && preemption.victims.iter().any(|victim| victim.name == format!("p{index}"))
                        };
                        let of = |wish: &Wish| wishes.iter().position(|other| std::ptr::eq(other, wish)).unwrap();
                        let left: There<'_> = there.iter().filter(|(other, to)| !goes((of(other), *to))).copied().collect();
                        prop_assert_eq!(left.len() + preemption.victims.len(), there.len());
                        prop_assert!(allowed(wish, at, &machines, &left), "{:?} after {:?}", wish, preemption);
                        for victim in &preemption.victims {
                            snapshot.remove_pod(&victim.uid);
                        }
                        there = left;
                        prop_assert!(schedule(&pod, &snapshot, &profile, turn).is_ok());
                    }
                }
            }
        }
    }
}
