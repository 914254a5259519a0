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
    // Of several, the last is told, as Kubernetes does.
    let mut refuse = |reason: &str, names: &[&str]| {
        let in_use: Vec<String> = names.iter().map(|name| format!("{name:?} is already in use")).collect();
        problem = Some(Condition::new(NAMES_ACCEPTED, "False", reason, in_use.join(", ")));
    };
    let is_free = |taken: &BTreeSet<&str>, asked: &str, accepted: &str| asked == accepted || !taken.contains(asked);
    let resources = [
        (&asked.plural, &mut accepted.plural, "PluralConflict"),
        (&asked.singular, &mut accepted.singular, "SingularConflict"),
    ];
    for (asked, accepted, reason) in resources {
        if is_free(&taken.resources, asked, accepted) {
            accepted.clone_from(asked);
        } else {
            refuse(reason, &[asked]);
        }
    }
    let is_used = |name: &&str| taken.resources.contains(name) && !accepted.short_names.iter().any(|own| own == name);
    let used: Vec<&str> = asked.short_names.iter().map(String::as_str).filter(is_used).collect();
    if used.is_empty() {
        accepted.short_names.clone_from(&asked.short_names);
    } else {
        refuse("ShortNamesConflict", &used);
    }
    let kinds = [
        (&asked.kind, &mut accepted.kind, "KindConflict"),
        (&asked.list_kind, &mut accepted.list_kind, "ListKindConflict"),
    ];
    for (asked, accepted, reason) in kinds {
        if is_free(&taken.kinds, asked, accepted) {
            accepted.clone_from(asked);
        } else {
            refuse(reason, &[asked]);
        }
    }
    accepted.categories.clone_from(&asked.categories);
    let fine = || Condition::new(NAMES_ACCEPTED, "True", "NoConflicts", "no conflicts found");
    (accepted, problem.unwrap_or_else(fine))
}
