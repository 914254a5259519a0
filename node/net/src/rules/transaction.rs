use std::{collections::BTreeMap, fmt::Write as _};

use super::{Ruleset, Set};

/// The `nft` script that turns `old` into `new` in one transaction; without `old`, that builds the table anew.
///
/// Its length is proportional to the change. Empty where nothing changed.
pub fn transaction(old: Option<&Ruleset>, new: &Ruleset) -> String {
    let mut script = String::new();
    if let Some(old) = old.filter(|old| is_change(old, new)) {
        change(&mut script, old, new);
        return script;
    }
    script.push_str(&removal(new.table));
    let table = new.table;
    let mut line = |line: String| {
        script.push_str(&line);
        script.push('\n');
    };
    line(format!("add table {table}"));
    let mut body = String::new();
    change(&mut body, &Ruleset::new(table), new);
    line(body.trim_end().to_owned());
    for (name, rules) in &new.base {
        let Some((hook, rules)) = rules.split_first() else { continue };
        line(format!("add chain {table} {name} {{ {hook} }}"));
        rules.iter().for_each(|rule| line(format!("add rule {table} {name} {rule}")));
    }
    script
}

/// The script that removes a table: `add` before `delete` makes the deletion work whether or not it is there.
pub fn removal(table: &str) -> String {
    format!("add table {table}\ndelete table {table}\n")
}

/// Whether the table can stay: what hangs on its hooks is the same, and no set became another one of the same name.
fn is_change(old: &Ruleset, new: &Ruleset) -> bool {
    let same = |(name, set): (&String, &Set)| {
        new.sets.get(name).is_none_or(|new| (new.sort, &new.spec) == (set.sort, &set.spec))
    };
    old.table == new.table && old.base == new.base && old.sets.iter().all(same)
}

fn change(script: &mut String, old: &Ruleset, new: &Ruleset) {
    let table = new.table;
    for (name, Set { sort, spec, .. }) in new.sets.iter().filter(|(name, _)| !old.sets.contains_key(*name)) {
        let body = if spec.is_empty() { String::new() } else { format!(" {{ {spec} }}") };
        let _infallible = writeln!(script, "add {sort} {table} {name}{body}");
    }
    // All chains exist before any rule or element refers to one.
    for name in new.chains.keys().filter(|name| !old.chains.contains_key(*name)) {
        let _infallible = writeln!(script, "add chain {table} {name}");
    }
    for (name, rules) in new.chains.iter().filter(|(name, rules)| old.chains.get(*name) != Some(rules)) {
        if old.chains.contains_key(name) {
            let _infallible = writeln!(script, "flush chain {table} {name}");
        }
        for rule in rules {
            let _infallible = writeln!(script, "add rule {table} {name} {rule}");
        }
    }
    let none = BTreeMap::new();
    for (name, set) in &new.sets {
        elements(script, table, name, old.sets.get(name).map_or(&none, |old| &old.elements), &set.elements);
    }
    let gone: Vec<&String> = old.chains.keys().filter(|name| !new.chains.contains_key(*name)).collect();
    // Chains of one Service refer to each other: empty all of them before any is deleted.
    for name in &gone {
        let _infallible = writeln!(script, "flush chain {table} {name}");
    }
    for name in &gone {
        let _infallible = writeln!(script, "delete chain {table} {name}");
    }
    for (name, set) in old.sets.iter().filter(|(name, _)| !new.sets.contains_key(*name)) {
        let _infallible = writeln!(script, "delete {} {table} {name}", set.sort);
    }
}

fn elements(
    script: &mut String,
    table: &str,
    set: &str,
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) {
    let stale = before.iter().filter(|(key, value)| after.get(*key) != Some(value)).map(|(key, _)| key.clone());
    let stale: Vec<String> = stale.collect();
    if !stale.is_empty() {
        let _infallible = writeln!(script, "delete element {table} {set} {{ {} }}", stale.join(", "));
    }
    let fresh: Vec<String> = after
        .iter()
        .filter(|(key, value)| before.get(*key) != Some(value))
        .map(|(key, value)| if value.is_empty() { key.clone() } else { format!("{key} : {value}") })
        .collect();
    if !fresh.is_empty() {
        let _infallible = writeln!(script, "add element {table} {set} {{ {} }}", fresh.join(", "));
    }
}
