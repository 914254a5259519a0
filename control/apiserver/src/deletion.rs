//! How objects end: grace, finalizers, and when nothing holds them any longer. The three kinds that end in their own way
//! are known here and nowhere in the verbs.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tandem_api::Object;
use tandem_registry::{ResourceDef, custom};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// A longer grace period counts as this, 68 years: whoever adds it to a time must not overflow.
const GRACE_MAX_SECONDS: i64 = i32::MAX as i64;

/// What happens to the objects that the deleted one owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// What a deletion does to an object now.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// It goes.
    Remove,
    /// It stays, marked.
    Mark(Object),
    /// It is marked already, and this deletion adds nothing.
    Wait,
}

fn is(def: &ResourceDef, kind: &str) -> bool {
    def.storage.group.is_empty() && def.storage.kind == kind
}

/// What deleting the object does, from the object, the request and the time alone.
pub(crate) fn step(
    def: &ResourceDef,
    object: &Object,
    grace_seconds: Option<i64>,
    propagation: Option<Propagation>,
    now: Timestamp,
) -> Step {
    let mut marked = object.clone();
    if let Some(propagation) = propagation {
        set_finalizers(&mut marked, propagation);
    }
    if defines_kind(def) && object.deletion_timestamp().is_none() {
        hold_for_instances(&mut marked);
    }
    let grace = grace(def, object, grace_seconds);
    let pending = object.i64_at(&["metadata", "deletionGracePeriodSeconds"]);
    if object.deletion_timestamp().is_some() {
        // A grace period may be shortened, never prolonged.
        let shorter = pending.is_some_and(|pending| grace < pending);
        let is_over = pending.is_none_or(|pending| pending == 0) || (shorter && grace == 0);
        if is_over && is_free(def, &marked) {
            return Step::Remove;
        }
        if shorter {
            mark(def, &mut marked, grace, now);
        }
        return if marked == *object { Step::Wait } else { Step::Mark(marked) };
    }
    if grace == 0 && is_free(def, &marked) {
        return Step::Remove;
    }
    mark(def, &mut marked, grace, now);
    Step::Mark(marked)
}

fn defines_kind(def: &ResourceDef) -> bool {
    def.storage.group == "apiextensions.k8s.io" && def.storage.kind == "CustomResourceDefinition"
}

/// A definition goes after the objects of its kind.
fn hold_for_instances(object: &mut Object) {
    let mut finalizers: Vec<Value> = object.finalizers().into_iter().map(Value::from).collect();
    if !finalizers.iter().any(|mine| mine == custom::FINALIZER) {
        finalizers.push(custom::FINALIZER.into());
        object.set(&["metadata", "finalizers"], finalizers);
    }
}

/// Whether a change leaves an object behind that is marked and held by nothing.
pub(crate) fn is_over(def: &ResourceDef, object: &Object) -> bool {
    let grace = object.i64_at(&["metadata", "deletionGracePeriodSeconds"]).unwrap_or_default();
    object.deletion_timestamp().is_some() && grace == 0 && is_free(def, object)
}

fn is_free(def: &ResourceDef, object: &Object) -> bool {
    let held = is(def, "Namespace") && !object.array_at(&["spec", "finalizers"]).is_empty();
    object.finalizers().is_empty() && !held
}

fn mark(def: &ResourceDef, object: &mut Object, grace: i64, now: Timestamp) {
    let at = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(Timestamp::MAX);
    // The start of a deletion is a change of intent.
    if object.deletion_timestamp().is_none() && object.generation() > 0 {
        object.set(&["metadata", "generation"], object.generation().saturating_add(1));
    }
    // The time of a shorter period counts from now, and is never later than before.
    let later = object.deletion_timestamp().and_then(|old| old.parse::<Timestamp>().ok()).is_some_and(|old| old < at);
    if !later {
        object.set(&["metadata", "deletionTimestamp"], seconds(at));
    }
    object.set(&["metadata", "deletionGracePeriodSeconds"], grace);
    if is(def, "Namespace") {
        object.set(&["status", "phase"], "Terminating");
    }
}

/// A time as `metav1.Time` is written.
pub(crate) fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Only pods end gracefully: a node has to stop them.
fn grace(def: &ResourceDef, object: &Object, asked: Option<i64>) -> i64 {
    if !is(def, "Pod") {
        return 0;
    }
    let unscheduled = object.str_at(&["spec", "nodeName"]).unwrap_or_default().is_empty();
    let ended = matches!(object.str_at(&["status", "phase"]), Some("Succeeded" | "Failed"));
    if unscheduled || ended {
        return 0;
    }
    let own = object.i64_at(&["spec", "terminationGracePeriodSeconds"]).unwrap_or(30);
    match asked.unwrap_or(own) {
        // Kubernetes reads a negative period as "at once, but not by force".
        negative if negative < 0 => 1,
        period => period.min(GRACE_MAX_SECONDS),
    }
}

fn set_finalizers(object: &mut Object, propagation: Propagation) {
    let wanted = match propagation {
        Propagation::Background => None,
        Propagation::Foreground => Some(FOREGROUND),
        Propagation::Orphan => Some(ORPHAN),
    };
    let mut finalizers: Vec<String> = object.finalizers().into_iter().map(str::to_owned).collect();
    let before = finalizers.clone();
    finalizers.retain(|mine| (mine != FOREGROUND && mine != ORPHAN) || Some(mine.as_str()) == wanted);
    if let Some(wanted) = wanted
        && !finalizers.iter().any(|mine| mine == wanted)
    {
        finalizers.push(wanted.to_owned());
    }
    if finalizers.is_empty() {
        object.remove(&["metadata", "finalizers"]);
    } else if finalizers != before {
        object.set(&["metadata", "finalizers"], finalizers.into_iter().map(Value::from).collect::<Vec<_>>());
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;
    use tandem_registry::Registry;

    use super::*;

    fn check(kind: &str, object: Value, grace: Option<i64>, propagation: Option<Propagation>, expected: Expect) {
        let registry = Registry::builtin();
        let def = registry.by_kind("", "v1", kind).unwrap();
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let object = Object::from_value(object).unwrap();
        expected.assert_eq(&match step(&def, &object, grace, propagation, now) {
            Step::Remove => "remove".to_owned(),
            Step::Wait => "wait".to_owned(),
            Step::Mark(marked) => serde_json::to_string(&marked).unwrap(),
        });
    }

    #[test]
    fn a_grace_period_has_an_end() {
        check(
            "Pod",
            json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": i64::MAX}}),
            None,
            None,
            expect![[
                r#"{"spec":{"nodeName":"n","terminationGracePeriodSeconds":9223372036854775807},"metadata":{"deletionTimestamp":"2094-01-19T03:14:07Z","deletionGracePeriodSeconds":2147483647}}"#
            ]],
        );
        check(
            "Pod",
            json!({"metadata": {"generation": i64::MAX}, "spec": {"nodeName": "n"}}),
            Some(i64::MAX),
            None,
            expect![[
                r#"{"metadata":{"generation":9223372036854775807,"deletionTimestamp":"2094-01-19T03:14:07Z","deletionGracePeriodSeconds":2147483647},"spec":{"nodeName":"n"}}"#
            ]],
        );
    }

    #[test]
    fn most_kinds_go_at_once_unless_they_are_held() {
        check("ConfigMap", json!({}), None, None, expect!["remove"]);
        check(
            "ConfigMap",
            json!({"metadata": {"finalizers": ["a/b"]}}),
            None,
            None,
            expect![[
                r#"{"metadata":{"finalizers":["a/b"],"deletionTimestamp":"2026-01-01T00:00:00Z","deletionGracePeriodSeconds":0}}"#
            ]],
        );
        check(
            "ConfigMap",
            json!({"metadata": {"finalizers": ["a/b"], "deletionTimestamp": "2025-12-31T00:00:00Z", "deletionGracePeriodSeconds": 0}}),
            None,
            None,
            expect!["wait"],
        );
        check(
            "ConfigMap",
            json!({}),
            None,
            Some(Propagation::Foreground),
            expect![[
                r#"{"metadata":{"finalizers":["foregroundDeletion"],"deletionTimestamp":"2026-01-01T00:00:00Z","deletionGracePeriodSeconds":0}}"#
            ]],
        );
        check(
            "ConfigMap",
            json!({"metadata": {"finalizers": ["orphan"]}}),
            None,
            Some(Propagation::Background),
            expect!["remove"],
        );
    }

    #[test]
    fn pods_end_gracefully_once_they_are_on_a_node() {
        check("Pod", json!({"spec": {"terminationGracePeriodSeconds": 30}}), None, None, expect!["remove"]);
        let running = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 20}});
        check(
            "Pod",
            running.clone(),
            None,
            None,
            expect![[
                r#"{"spec":{"nodeName":"n","terminationGracePeriodSeconds":20},"metadata":{"deletionTimestamp":"2026-01-01T00:00:20Z","deletionGracePeriodSeconds":20}}"#
            ]],
        );
        check("Pod", running, Some(0), None, expect!["remove"]);
        let ending = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:20Z", "deletionGracePeriodSeconds": 20}, "spec": {"nodeName": "n"}});
        check("Pod", ending.clone(), Some(60), None, expect!["wait"]);
        check(
            "Pod",
            ending.clone(),
            Some(5),
            None,
            expect![[
                r#"{"metadata":{"deletionTimestamp":"2026-01-01T00:00:05Z","deletionGracePeriodSeconds":5},"spec":{"nodeName":"n"}}"#
            ]],
        );
        check("Pod", ending, Some(0), None, expect!["remove"]);
        check(
            "Pod",
            json!({"spec": {"nodeName": "n"}, "status": {"phase": "Succeeded"}}),
            None,
            None,
            expect!["remove"],
        );
    }

    #[test]
    fn namespaces_stay_until_they_are_finalized() {
        check(
            "Namespace",
            json!({"spec": {"finalizers": ["kubernetes"]}}),
            None,
            None,
            expect![[
                r#"{"spec":{"finalizers":["kubernetes"]},"metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z","deletionGracePeriodSeconds":0},"status":{"phase":"Terminating"}}"#
            ]],
        );
        check("Namespace", json!({"spec": {"finalizers": []}}), None, None, expect!["remove"]);
    }
}
