use std::{collections::BTreeMap, fmt::Write as _};

use super::{Ruleset, TABLE};

/// The `nft` script that turns `old` into `new` in one transaction; without `old`, that builds the table anew.
///
/// Its length is proportional to the change. Empty where nothing changed.
pub fn transaction(old: Option<&Ruleset>, new: &Ruleset) -> String {
    let mut script = String::new();
    let Some(old) = old.filter(|old| old.base == new.base) else {
        // `add` before `delete` makes the deletion work whether or not the table is there.
        lines(
            &mut script,
            &[format!("add table {TABLE}"), format!("delete table {TABLE}"), format!("add table {TABLE}")],
        );
        skeleton(&mut script, new);
        change(&mut script, &Ruleset::default(), new);
        return script;
    };
    change(&mut script, old, new);
    script
}

fn lines(script: &mut String, lines: &[String]) {
    for line in lines {
        script.push_str(line);
        script.push('\n');
    }
}

fn skeleton(script: &mut String, new: &Ruleset) {
    let address = "type ipv4_addr . inet_proto . inet_service";
    let port = "type inet_proto . inet_service";
    lines(
        script,
        &[
            format!("add map {TABLE} services {{ {address} : verdict; }}"),
            format!("add map {TABLE} nodeports {{ {port} : verdict; }}"),
            format!("add set {TABLE} no_endpoints {{ {address}; }}"),
            format!("add set {TABLE} no_node_endpoints {{ {port}; }}"),
            format!("add set {TABLE} hairpins {{ type ipv4_addr . ipv4_addr; }}"),
            format!("add chain {TABLE} dispatch"),
            format!("add rule {TABLE} dispatch ip daddr . meta l4proto . th dport vmap @services"),
            format!("add rule {TABLE} dispatch fib daddr type local meta l4proto . th dport vmap @nodeports"),
        ],
    );
    for (name, rules) in &new.base {
        let Some((hook, rules)) = rules.split_first() else { continue };
        lines(script, &[format!("add chain {TABLE} {name} {{ {hook} }}")]);
        for rule in rules {
            lines(script, &[format!("add rule {TABLE} {name} {rule}")]);
        }
    }
}

fn change(script: &mut String, old: &Ruleset, new: &Ruleset) {
    for (name, seconds) in &new.affinity_sets {
        if old.affinity_sets.get(name) != Some(seconds) {
            let _infallible = writeln!(script, "add set {TABLE} {name} {{ type ipv4_addr; flags timeout; }}");
        }
    }
    // All chains exist before any rule or element refers to one.
    for name in new.chains.keys().filter(|name| !old.chains.contains_key(*name)) {
        let _infallible = writeln!(script, "add chain {TABLE} {name}");
    }
    for (name, rules) in new.chains.iter().filter(|(name, rules)| old.chains.get(*name) != Some(rules)) {
        if old.chains.contains_key(name) {
            let _infallible = writeln!(script, "flush chain {TABLE} {name}");
        }
        for rule in rules {
            let _infallible = writeln!(script, "add rule {TABLE} {name} {rule}");
        }
    }
    for (set, before, after) in [
        ("services", &old.services, &new.services),
        ("nodeports", &old.node_ports, &new.node_ports),
        ("no_endpoints", &old.no_endpoints, &new.no_endpoints),
        ("no_node_endpoints", &old.no_node_endpoints, &new.no_node_endpoints),
        ("hairpins", &old.hairpins, &new.hairpins),
    ] {
        elements(script, set, before, after);
    }
    let gone: Vec<&String> = old.chains.keys().filter(|name| !new.chains.contains_key(*name)).collect();
    // Chains of one Service refer to each other: empty all of them before any is deleted.
    for name in &gone {
        let _infallible = writeln!(script, "flush chain {TABLE} {name}");
    }
    for name in &gone {
        let _infallible = writeln!(script, "delete chain {TABLE} {name}");
    }
    for name in old.affinity_sets.keys().filter(|name| !new.affinity_sets.contains_key(*name)) {
        let _infallible = writeln!(script, "delete set {TABLE} {name}");
    }
}

fn elements(script: &mut String, set: &str, before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
    let stale = before.iter().filter(|(key, value)| after.get(*key) != Some(value)).map(|(key, _)| key.clone());
    let stale: Vec<String> = stale.collect();
    if !stale.is_empty() {
        let _infallible = writeln!(script, "delete element {TABLE} {set} {{ {} }}", stale.join(", "));
    }
    let fresh: Vec<String> = after
        .iter()
        .filter(|(key, value)| before.get(*key) != Some(value))
        .map(|(key, value)| if value.is_empty() { key.clone() } else { format!("{key} : {value}") })
        .collect();
    if !fresh.is_empty() {
        let _infallible = writeln!(script, "add element {TABLE} {set} {{ {} }}", fresh.join(", "));
    }
}
