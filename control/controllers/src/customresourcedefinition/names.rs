//! Which of the names that a definition asks for it gets: those that no other definition of its group has.

use std::{collections::BTreeSet, sync::Arc};

use super::types::{Condition, CustomResourceDefinition, NAMES_ACCEPTED, Names};

/// The names of resources and of kinds that are taken.
#[derive(Default)]
struct Taken<'a> {
    resources: BTreeSet<&'a str>,
    kinds: BTreeSet<&'a str>,
}

impl<'a> Taken<'a> {
    fn by(others: &'a [Arc<CustomResourceDefinition>]) -> Taken<'a> {
        let mut taken = Taken::default();
        for names in others.iter().filter_map(|other| Some(&other.status.as_ref()?.accepted_names)) {
            let resources = [&names.plural, &names.singular].into_iter().chain(&names.short_names);
            taken.resources.extend(resources.map(String::as_str).filter(|name| !name.is_empty()));
            let kinds = [names.kind.as_str(), names.list_kind.as_str()];
            taken.kinds.extend(kinds.into_iter().filter(|name| !name.is_empty()));
        }
        taken
    }
}

/// The names that are accepted, and the condition that says whether they are all that was asked for.
pub(super) fn decide(
    definition: &CustomResourceDefinition,
    others: &[Arc<CustomResourceDefinition>],
) -> (Names, Condition) {
    let taken = Taken::by(others);
    let asked = &definition.spec.names;
    let mut accepted = definition.status.as_ref().map(|status| status.accepted_names.clone()).unwrap_or_default();
    let mut problem: Option<Condition> = None;
    let mut refuse = |reason: &str, messages: Vec<String>| {
        problem = Some(Condition::new(NAMES_ACCEPTED, "False", reason, messages.join(", ")));
    };
    let in_use = |name: &str| format!("{name:?} is already in use");
    let mut one = |taken: &BTreeSet<&str>, asked: &String, accepted: &mut String, reason: &str| {
        if asked == accepted || !taken.contains(asked.as_str()) {
            accepted.clone_from(asked);
        } else {
            refuse(reason, vec![in_use(asked)]);
        }
    };
    one(&taken.resources, &asked.plural, &mut accepted.plural, "PluralConflict");
    one(&taken.resources, &asked.singular, &mut accepted.singular, "SingularConflict");
    let conflicts: Vec<String> = asked
        .short_names
        .iter()
        .filter(|name| taken.resources.contains(name.as_str()) && !accepted.short_names.contains(name))
        .map(|name| in_use(name))
        .collect();
    one(&taken.kinds, &asked.kind, &mut accepted.kind, "KindConflict");
    one(&taken.kinds, &asked.list_kind, &mut accepted.list_kind, "ListKindConflict");
    if conflicts.is_empty() {
        accepted.short_names.clone_from(&asked.short_names);
    } else {
        refuse("ShortNamesConflict", conflicts);
    }
    accepted.categories.clone_from(&asked.categories);
    let fine = || Condition::new(NAMES_ACCEPTED, "True", "NoConflicts", "no conflicts found");
    (accepted, problem.unwrap_or_else(fine))
}
