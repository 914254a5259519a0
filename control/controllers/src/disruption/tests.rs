use expect_test::{Expect, expect};
use k8s_openapi::{
    api::core::v1::{PodCondition, PodStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::*;
use crate::action::testing::describe;

const NOW: i64 = 1_000_000;

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

/// `name:word…`: ready, deleting.
fn pod(text: &str) -> Arc<Pod> {
    let (name, words) = text.split_once(':').unwrap_or((text, ""));
    let ready = PodCondition {
        type_: "Ready".into(),
        status: if words.contains("ready") { "True" } else { "False" }.into(),
        ..PodCondition::default()
    };
    let metadata = ObjectMeta {
        name: Some(name.into()),
        deletion_timestamp: words.contains("deleting").then(|| at(NOW)),
        ..ObjectMeta::default()
    };
    let status = PodStatus { conditions: Some(vec![ready]), ..PodStatus::default() };
    Arc::new(Pod { metadata, spec: None, status: Some(status) })
}

/// `min=2`, `min=50%`, `max=1`; words: evicted=NAME:SECONDS.
fn budget(text: &str) -> PodDisruptionBudget {
    let value = |key: &str| text.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    let bound = |text: &str| text.parse().map_or_else(|_| IntOrString::String(text.into()), IntOrString::Int);
    let evicted = value("evicted").and_then(|text| text.split_once(':')).map(|(name, ago)| {
        let ago: i64 = ago.parse().unwrap();
        [(name.to_owned(), at(NOW - ago))].into()
    });
    PodDisruptionBudget {
        metadata: ObjectMeta { name: Some("web".into()), ..ObjectMeta::default() },
        spec: Some(PodDisruptionBudgetSpec {
            min_available: value("min").map(bound),
            max_unavailable: value("max").map(bound),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: Some(PodDisruptionBudgetStatus { disrupted_pods: evicted, ..PodDisruptionBudgetStatus::default() }),
    }
}

fn detail(action: &Action) -> String {
    let budget = action.object::<PodDisruptionBudget>();
    let Some(status) = budget.and_then(|budget| budget.status.as_ref()) else { return String::new() };
    format!(
        "allowed={} healthy={} desired={} expected={} disrupted={:?} {}",
        status.disruptions_allowed.unwrap(),
        status.current_healthy.unwrap(),
        status.desired_healthy.unwrap(),
        status.expected_pods.unwrap(),
        status.disrupted_pods.iter().flatten().map(|(name, _)| name).collect::<Vec<_>>(),
        status.conditions.as_ref().unwrap()[0].reason,
    )
}

fn check(text: &str, scale: i32, pods: &str, expect: Expect) {
    let view = View { budget: Arc::new(budget(text)), pods: pods.split_whitespace().map(pod).collect(), scale };
    expect.assert_eq(&describe(&plan(&view, at(NOW).0), detail));
}

#[test]
fn what_is_healthy_beyond_what_is_wanted_may_go() {
    check(
        "min=2",
        3,
        "a:ready b:ready c:ready",
        expect![[r#"
        status PodDisruptionBudget web allowed=1 healthy=3 desired=2 expected=3 disrupted=[] SufficientPods
    "#]],
    );
    check(
        "min=2",
        3,
        "a:ready b:ready c",
        expect![[r#"
        status PodDisruptionBudget web allowed=0 healthy=2 desired=2 expected=3 disrupted=[] InsufficientPods
    "#]],
    );
    check(
        "min=50%",
        5,
        "a:ready b:ready c:ready d:ready",
        expect![[r#"
        status PodDisruptionBudget web allowed=1 healthy=4 desired=3 expected=5 disrupted=[] SufficientPods
    "#]],
    );
    check(
        "max=1",
        3,
        "a:ready b:ready c:ready:deleting",
        expect![[r#"
        status PodDisruptionBudget web allowed=0 healthy=2 desired=2 expected=3 disrupted=[] InsufficientPods
    "#]],
    );
    check(
        "max=1",
        0,
        "",
        expect![[r#"
        event Normal NoPods: No matching pods found
        status PodDisruptionBudget web allowed=0 healthy=0 desired=0 expected=0 disrupted=[] InsufficientPods
    "#]],
    );
}

#[test]
fn an_evicted_pod_counts_as_gone_for_a_while() {
    check(
        "min=1 evicted=a:20",
        3,
        "a:ready b:ready c:ready",
        expect![[r#"
        status PodDisruptionBudget web allowed=1 healthy=2 desired=1 expected=3 disrupted=["a"] SufficientPods
        again in 100s
    "#]],
    );
    check(
        "min=1 evicted=a:200",
        3,
        "a:ready b:ready c:ready",
        expect![[r#"
        status PodDisruptionBudget web allowed=2 healthy=3 desired=1 expected=3 disrupted=[] SufficientPods
    "#]],
    );
    check(
        "min=1 evicted=a:20",
        3,
        "a:ready:deleting b:ready c:ready",
        expect![[r#"
        status PodDisruptionBudget web allowed=1 healthy=2 desired=1 expected=3 disrupted=[] SufficientPods
    "#]],
    );
}
