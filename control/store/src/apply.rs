//! The state machine: what a command does to a state. Pure, so that every member comes to the same state.

use std::collections::HashMap;

use tandem_api::{Key, Revision};

use crate::{
    COMMAND_VERSION, Command, Expect, Op, Reply, Stored,
    index::{Horizons, Index},
};

/// What a command does: what its proposer is told, and what happens to the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) reply: Reply,
    /// At most one change a key, all at one revision: the one after the state's present revision.
    pub(crate) changes: Vec<Change>,
    pub(crate) horizons: Option<Horizons>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Put(Stored),
    Delete { key: Key, revision: Revision },
}

/// Applies `command`, which the log holds in an entry of `term`, to `state`.
pub(crate) fn apply(state: &Index, term: u64, command: &Command) -> Outcome {
    let refused = |reply| Outcome { reply, changes: Vec::new(), horizons: None };
    if command.version != COMMAND_VERSION {
        return refused(Reply::Unsupported { version: command.version });
    }
    if command.fence.is_some_and(|fence| fence < term) {
        return refused(Reply::Fenced { term });
    }
    for (op, operation) in command.ops.iter().enumerate() {
        if let Some(current) = mismatch(state, operation) {
            return refused(Reply::Mismatch { op, current });
        }
    }
    effects(state, &command.ops)
}

/// What the key of `operation` holds, when that is not what was expected.
fn mismatch(state: &Index, operation: &Op) -> Option<Option<Stored>> {
    let (Op::Put { key, expect, .. } | Op::Delete { key, expect }) = operation else {
        return None;
    };
    let current = state.present(key);
    let met = match expect {
        Expect::Any => true,
        Expect::Absent => current.is_none(),
        Expect::At(revision) => current.is_some_and(|current| current.revision == *revision),
    };
    (!met).then(|| current.map(|current| current.stored(key)))
}

fn effects(state: &Index, ops: &[Op]) -> Outcome {
    let last: HashMap<&Key, usize> = ops
        .iter()
        .enumerate()
        .filter_map(|(position, operation)| match operation {
            Op::Put { key, .. } | Op::Delete { key, .. } => Some((key, position)),
            Op::Compact { .. } => None,
        })
        .collect();
    let revision = state.revision().next();
    let mut unchanged = Revision::ZERO;
    let mut changes = Vec::new();
    let mut horizons = state.horizons();
    for (position, operation) in ops.iter().enumerate() {
        match operation {
            Op::Put { key, .. } | Op::Delete { key, .. } if last.get(key) != Some(&position) => {}
            Op::Put { key, value, .. } => match state.present(key) {
                Some(current) if current.value == value => unchanged = unchanged.max(current.revision),
                current => {
                    let created = current.map_or(revision, |current| current.created);
                    changes.push(Change::Put(Stored { key: key.clone(), value: value.clone(), created, revision }));
                }
            },
            Op::Delete { key, .. } => match state.present(key) {
                Some(_) => changes.push(Change::Delete { key: key.clone(), revision }),
                None => unchanged = state.revision(),
            },
            Op::Compact { before, watches } => horizons = horizons.advanced(*before, *watches, state.revision()),
        }
    }
    let done = match (changes.is_empty(), unchanged) {
        (false, _) => revision,
        (true, Revision::ZERO) => state.revision(),
        (true, unchanged) => unchanged,
    };
    let horizons = (horizons != state.horizons()).then_some(horizons);
    Outcome { reply: Reply::Done { revision: done }, changes, horizons }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use expect_test::{Expect as Golden, expect};

    use super::*;

    fn key(name: &str) -> Key {
        Key::from_raw(format!("/core/things/{name}"))
    }

    fn put(name: &str, value: &'static str, expect: Expect) -> Op {
        Op::Put { key: key(name), value: Bytes::from_static(value.as_bytes()), expect }
    }

    /// Applies one command after another, each in term 2, and shows the last reply with its changes.
    fn check(commands: &[Command], golden: &Golden) {
        let mut state = Index::default();
        let mut shown = String::new();
        for command in commands {
            let outcome = apply(&state, 2, command);
            shown = format!("{:?}\n", outcome.reply);
            for change in &outcome.changes {
                shown.push_str(&match change {
                    Change::Put(stored) => format!(
                        "put {} = {:?} created {} at {}\n",
                        stored.key, stored.value, stored.created, stored.revision
                    ),
                    Change::Delete { key, revision } => format!("delete {key} at {revision}\n"),
                });
            }
            if let Some(horizons) = outcome.horizons {
                shown.push_str(&format!("{horizons:?}\n"));
            }
            state.commit(&outcome);
        }
        golden.assert_eq(&shown);
    }

    fn batch(ops: Vec<Op>) -> Command {
        Command { version: COMMAND_VERSION, fence: None, ops }
    }

    #[test]
    fn a_put_makes_one_revision() {
        check(
            &[batch(vec![put("a", "1", Expect::Absent), put("b", "1", Expect::Any)])],
            &expect![[r#"
                Done { revision: Revision(1) }
                put /core/things/a = b"1" created 1 at 1
                put /core/things/b = b"1" created 1 at 1
            "#]],
        );
    }

    #[test]
    fn an_update_keeps_the_revision_of_creation() {
        let (first, second) = (put("a", "1", Expect::Any), put("a", "2", Expect::At(Revision(1))));
        check(
            &[batch(vec![first]), batch(vec![second])],
            &expect![[r#"
                Done { revision: Revision(2) }
                put /core/things/a = b"2" created 1 at 2
            "#]],
        );
    }

    #[test]
    fn the_same_bytes_change_nothing() {
        let ops = [put("a", "1", Expect::Any), put("b", "1", Expect::Any), put("a", "1", Expect::Any)];
        check(
            &ops.map(|operation| batch(vec![operation])),
            &expect![[r#"
                Done { revision: Revision(1) }
            "#]],
        );
    }

    #[test]
    fn one_mismatch_stops_the_whole_batch() {
        check(
            &[
                batch(vec![put("a", "1", Expect::Any)]),
                batch(vec![put("b", "1", Expect::Any), put("a", "2", Expect::Absent)]),
            ],
            &expect![[r#"
                Mismatch { op: 1, current: Some(Stored { key: Key("/core/things/a"), value: b"1", created: Revision(1), revision: Revision(1) }) }
            "#]],
        );
    }

    #[test]
    fn the_last_operation_on_a_key_counts() {
        let ops = vec![put("a", "1", Expect::Absent), put("a", "2", Expect::Absent), put("b", "1", Expect::Any)];
        check(
            &[batch(ops)],
            &expect![[r#"
                Done { revision: Revision(1) }
                put /core/things/a = b"2" created 1 at 1
                put /core/things/b = b"1" created 1 at 1
            "#]],
        );
    }

    #[test]
    fn deletes_end_a_key_and_miss_without_a_trace() {
        let created = batch(vec![put("a", "1", Expect::Any)]);
        let deleted = Command::delete(key("a"), Expect::At(Revision(1)));
        check(
            &[created.clone(), deleted.clone()],
            &expect![[r#"
                Done { revision: Revision(2) }
                delete /core/things/a at 2
            "#]],
        );
        check(
            &[created.clone(), deleted.clone(), Command::delete(key("a"), Expect::Any)],
            &expect![[r#"
                Done { revision: Revision(2) }
            "#]],
        );
        check(
            &[created, deleted.clone(), deleted],
            &expect![[r#"
                Mismatch { op: 0, current: None }
            "#]],
        );
    }

    #[test]
    fn an_old_fence_and_a_new_version_change_nothing() {
        let put = batch(vec![put("a", "1", Expect::Any)]);
        check(
            &[put.clone().fenced(1)],
            &expect![[r#"
                Fenced { term: 2 }
            "#]],
        );
        check(
            &[put.clone().fenced(2)],
            &expect![[r#"
                Done { revision: Revision(1) }
                put /core/things/a = b"1" created 1 at 1
            "#]],
        );
        check(
            &[Command { version: 9, ..put }],
            &expect![[r#"
                Unsupported { version: 9 }
            "#]],
        );
    }

    #[test]
    fn compaction_moves_the_horizons_forward_only() {
        let puts = [put("a", "1", Expect::Any), put("a", "2", Expect::Any), put("a", "3", Expect::Any)];
        let mut commands: Vec<Command> = puts.map(|operation| batch(vec![operation])).into();
        commands.push(Command::horizons(Revision(2), Revision(1)));
        check(
            &commands,
            &expect![[r#"
                Done { revision: Revision(3) }
                Horizons { lists: Revision(2), watches: Revision(1) }
            "#]],
        );
        commands.push(Command::compact(Revision(1)));
        check(
            &commands,
            &expect![[r#"
                Done { revision: Revision(3) }
            "#]],
        );
        commands.push(Command::compact(Revision(99)));
        check(
            &commands,
            &expect![[r#"
                Done { revision: Revision(3) }
                Horizons { lists: Revision(3), watches: Revision(3) }
            "#]],
        );
    }
}
