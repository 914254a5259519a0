use std::fmt::Write as _;

use expect_test::{Expect, expect};
use k8s_openapi::{
    api::{
        autoscaling::{
            v1::{Scale, ScaleSpec, ScaleStatus},
            v2::{
                CrossVersionObjectReference, HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior,
                HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus, MetricSpec,
            },
        },
        core::v1::{Container, PodCondition, PodSpec, PodStatus, ResourceRequirements},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, Time},
    },
};
use serde_json::json;

use super::{
    custom::Measured,
    limits::{Bounds, Limited, Moment, Rescale, limit},
    replicas::{Goal, Question, Tolerance, Whole, propose},
    usage::{ContainerMetrics, readings},
    *,
};
use crate::{
    action::{self, Action, testing::describe},
    testing::{Answer, Server},
};

const NOW: i64 = 1_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn now() -> Timestamp {
    at(NOW)
}

/// `name:word…`; words: `use=` and `request=` in thousandths (1000 is requested where nothing is said, nothing with
/// `free`), `age=` and `since=` of its readiness in seconds; unready, pending, failed, deleting.
fn pod(text: &str) -> (Pod, Option<PodMetrics>) {
    let (name, words) = text.split_once(':').unwrap_or((text, ""));
    let has = |word: &str| words.split(':').any(|other| other == word);
    let value = |key: &str| words.split(':').find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok());
    let request = value("request").unwrap_or(1000_i64);
    let requests = [("cpu".to_owned(), Quantity(format!("{request}m")))];
    let resources = ResourceRequirements { requests: Some(requests.into()), ..ResourceRequirements::default() };
    let main =
        Container { name: "main".to_owned(), resources: (!has("free")).then_some(resources), ..Container::default() };
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("default".to_owned()),
        uid: Some(name.to_owned()),
        deletion_timestamp: has("deleting").then(|| Time(now())),
        ..ObjectMeta::default()
    };
    let phase = if has("pending") {
        "Pending"
    } else if has("failed") {
        "Failed"
    } else {
        "Running"
    };
    let ready = PodCondition {
        type_: "Ready".to_owned(),
        status: if has("unready") { "False" } else { "True" }.to_owned(),
        last_transition_time: Some(Time(at(NOW - value("since").unwrap_or(900)))),
        ..PodCondition::default()
    };
    let status = PodStatus {
        phase: Some(phase.to_owned()),
        start_time: Some(Time(at(NOW - value("age").unwrap_or(1000)))),
        conditions: Some(vec![ready]),
        ..PodStatus::default()
    };
    let used = value("use").map(|used| {
        let usage = [("cpu".to_owned(), Quantity(format!("{used}m")))].into();
        PodMetrics {
            metadata: metadata.clone(),
            timestamp: Time(now()),
            window: "10.5s".to_owned(),
            containers: vec![ContainerMetrics { name: "main".to_owned(), usage }],
        }
    });
    let spec = PodSpec { containers: vec![main], ..PodSpec::default() };
    (Pod { metadata, spec: Some(spec), status: Some(status) }, used)
}

fn pods(text: &str) -> (Vec<Pod>, Vec<PodMetrics>) {
    let (pods, used): (Vec<_>, Vec<_>) = text.split_whitespace().map(pod).unzip();
    (pods, used.into_iter().flatten().collect())
}

/// What is proposed to so many pods for a goal of `50%` or `500m`.
fn check(goal: &str, text: &str, expected: &str) {
    let (pods, used) = pods(text);
    let goal = match goal.strip_suffix('%') {
        Some(percent) => Goal::Utilization(percent.parse().unwrap()),
        None => Goal::Average(goal.trim_end_matches('m').parse().unwrap()),
    };
    let proposed = readings(&used, "cpu", None).and_then(|readings| {
        propose(&Question {
            current: i32::try_from(pods.len()).unwrap(),
            goal,
            tolerance: Tolerance { up: 0.1, down: 0.1 },
            resource: "cpu",
            container: None,
            pods: &pods,
            readings,
            now: now(),
        })
    });
    let found = match proposed {
        Ok(proposal) => match proposal.utilization {
            Some(percent) => format!("{} at {percent}% {}m", proposal.replicas, proposal.average),
            None => format!("{} at {}m", proposal.replicas, proposal.average),
        },
        Err(error) => error,
    };
    assert_eq!(found, expected, "{text}");
}

#[test]
fn replicas_follow_the_ratio_of_use_to_target() {
    check("50%", "a:use=1000 b:use=1000", "4 at 100% 1000m");
    check("50%", "a:use=200 b:use=200", "1 at 20% 200m");
    check("50%", "a:use=510 b:use=520", "2 at 51% 515m");
    check("50%", "a:use=550 b:use=550", "2 at 55% 550m");
    check("50%", "a:use=560 b:use=560", "3 at 56% 560m");
    check("50%", "a:use=450 b:use=450", "2 at 45% 450m");
    check("50%", "a:use=440 b:use=440", "2 at 44% 440m");
    check("50%", "a:use=0", "0 at 0% 0m");
    check("50%", "a:use=300:request=100", "6 at 300% 300m");
    check("500m", "a:use=1000 b:use=1000", "4 at 1000m");
    check("500m", "a:use=200 b:use=200", "1 at 200m");
    check("500m", "a:use=540 b:use=540", "2 at 540m");
    check("500m", "a:use=1000:free", "2 at 1000m");
}

#[test]
fn pods_that_are_not_measured_dampen_the_change() {
    // Down: as if they used all that they request.
    check("50%", "a:use=100 b:use=100 c", "3 at 10% 100m");
    check("50%", "a:use=0 b:use=0 c:request=500", "2 at 0% 0m");
    // Up: as if they used nothing.
    check("50%", "a:use=1000 b:use=1000 c", "4 at 100% 1000m");
    check("50%", "a:use=700 b", "2 at 70% 700m");
    check("150%", "a:use=100 b:use=100 c", "2 at 10% 100m");
    check("500m", "a:use=100 b:use=100 c", "2 at 100m");
    check("500m", "a:use=1500 b:use=1500 c", "6 at 1500m");
    // Pods that are on their way out do not count at all.
    check("50%", "a:use=1000 b:use=1000:deleting", "2 at 100% 1000m");
    check("50%", "a:use=1000 b:failed", "2 at 100% 1000m");
}

#[test]
fn pods_that_start_do_not_count_yet() {
    check("50%", "a:use=1000 b:pending", "2 at 100% 1000m");
    check("50%", "a:use=1000 b:use=2000:unready:age=60:since=60", "2 at 100% 1000m");
    // Ready, but part of the measurement is older than that.
    check("50%", "a:use=1000 b:use=2000:age=60:since=5", "2 at 100% 1000m");
    check("50%", "a:use=1000 b:use=1000:age=60:since=11", "4 at 100% 1000m");
    // Old enough, and it has been ready before: its work counts.
    check("50%", "a:use=1000 b:use=1000:unready:age=600:since=100", "4 at 100% 1000m");
    // It has never been ready.
    check("50%", "a:use=1000 b:use=1000:unready:age=600:since=590", "2 at 100% 1000m");
    check("50%", "a:use=1000:unready:age=10:since=10", UNREADY);
}

const UNREADY: &str = "did not receive metrics for targeted pods (pods might be unready)";

#[test]
fn what_is_missing_is_said() {
    check("50%", "", "no metrics returned from resource metrics API");
    check("50%", "a b", "no metrics returned from resource metrics API");
    check("50%", "a:use=1:free", "missing request for cpu in container main of Pod a");
    check("50%", "a:use=1:request=0", "no metrics returned matched known pods");
    let (_, used) = pods("a:use=1");
    let error = readings(&used, "cpu", Some("other")).unwrap_err();
    assert_eq!(error, "failed to get container metrics: container other not present in metrics for pod default/a");
    assert!(readings(&used, "memory", None).unwrap().is_empty());
    assert_eq!(readings(&used, "cpu", Some("main")).unwrap()["a"].window, Duration::from_millis(10_500));
}

/// `Type:value:seconds` for each policy; words: window=, select=.
fn rules(text: &str) -> HPAScalingRules {
    let value = |key: &str| text.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    let policies = text.split_whitespace().filter_map(|word| {
        let mut parts = word.split(':');
        let (type_, value, seconds) = (parts.next()?, parts.next()?, parts.next()?);
        Some(HPAScalingPolicy {
            type_: type_.to_owned(),
            value: value.parse().unwrap(),
            period_seconds: seconds.parse().unwrap(),
        })
    });
    HPAScalingRules {
        policies: Some(policies.collect()),
        select_policy: value("select").map(str::to_owned),
        stabilization_window_seconds: value("window").map(|seconds| seconds.parse().unwrap()),
        tolerance: None,
    }
}

/// `replicas@seconds ago`.
fn moments(text: &str) -> Vec<Moment> {
    let moment = |word: &str| {
        let (replicas, ago) = word.split_once('@').unwrap();
        Moment { replicas: replicas.parse().unwrap(), at: at(NOW - ago.parse::<i64>().unwrap()) }
    };
    text.split_whitespace().map(moment).collect()
}

/// From `current` to `desired` replicas of 2 to 100, with what was recommended, added and taken before.
fn limited(change: (i32, i32), behavior: Option<(&str, &str)>, past: [&str; 3], expected: &str) {
    let behavior = behavior
        .map(|(up, down)| HorizontalPodAutoscalerBehavior { scale_up: Some(rules(up)), scale_down: Some(rules(down)) });
    let [recommendations, added, taken] = past.map(moments);
    let mut past = Past { recommendations, added, taken, ..Past::default() };
    let bounds = Bounds { least: 2, most: 100, current: change.0 };
    let Limited { replicas, able, limited } = limit(&mut past, behavior.as_ref(), bounds, change.1, now());
    let mark = if limited.0 { "!" } else { "" };
    assert_eq!(format!("{replicas} {} {mark}{}", able.0, limited.1.0), expected, "{change:?}");
    assert_eq!(past.recommendations.last(), Some(&Moment { replicas: change.1, at: now() }));
}

#[test]
fn without_behavior_it_shrinks_late_and_at_most_doubles() {
    let none = ["", "", ""];
    limited((5, 8), None, none, "8 ReadyForNewScale DesiredWithinRange");
    limited((5, 30), None, none, "10 ReadyForNewScale !ScaleUpLimit");
    limited((1, 30), None, none, "4 ReadyForNewScale !ScaleUpLimit");
    limited((60, 130), None, none, "100 ReadyForNewScale !TooManyReplicas");
    limited((5, 1), None, none, "2 ReadyForNewScale !TooFewReplicas");
    limited((5, 3), None, ["5@10 4@290 9@301", "", ""], "5 ScaleDownStabilized DesiredWithinRange");
    limited((5, 3), None, ["9@301", "", ""], "3 ReadyForNewScale DesiredWithinRange");
}

const DEFAULT_UP: &str = "window=0 Pods:4:15 Percent:100:15";
const DEFAULT_DOWN: &str = "Percent:100:15";

#[test]
fn behavior_bounds_windows_and_rates() {
    let none = ["", "", ""];
    let default = Some((DEFAULT_UP, DEFAULT_DOWN));
    limited((10, 30), default, none, "20 ReadyForNewScale !ScaleUpLimit");
    limited((1, 30), default, none, "5 ReadyForNewScale !ScaleUpLimit");
    // Four were added in this period: it began with six.
    limited((10, 30), default, ["", "4@10", ""], "12 ReadyForNewScale !ScaleUpLimit");
    limited((10, 30), default, ["", "8@14", ""], "10 ReadyForNewScale !ScaleUpLimit");
    limited((10, 30), default, ["", "4@16", ""], "20 ReadyForNewScale !ScaleUpLimit");
    limited((10, 30), default, ["", "", "10@5"], "30 ReadyForNewScale DesiredWithinRange");
    limited((90, 200), default, none, "100 ReadyForNewScale !TooManyReplicas");
    limited((10, 3), default, ["8@100", "", ""], "8 ScaleDownStabilized DesiredWithinRange");
    limited((10, 3), default, ["8@301", "", ""], "3 ReadyForNewScale DesiredWithinRange");
    limited((10, 1), Some((DEFAULT_UP, "window=0 Percent:100:15")), none, "2 ReadyForNewScale !TooFewReplicas");
    let down = Some((DEFAULT_UP, "window=0 Pods:2:60 Percent:10:60"));
    limited((50, 3), down, none, "45 ReadyForNewScale !ScaleDownLimit");
    limited((10, 3), down, none, "8 ReadyForNewScale !ScaleDownLimit");
    limited((8, 3), down, ["", "", "2@30"], "8 ReadyForNewScale !ScaleDownLimit");
    limited((8, 3), down, ["", "", "2@61"], "6 ReadyForNewScale !ScaleDownLimit");
    let least = Some((DEFAULT_UP, "window=0 select=Min Pods:2:60 Percent:10:60"));
    limited((50, 3), least, none, "48 ReadyForNewScale !ScaleDownLimit");
    limited(
        (10, 30),
        Some(("window=0 select=Min Pods:4:15 Percent:100:15", DEFAULT_DOWN)),
        none,
        "14 ReadyForNewScale !ScaleUpLimit",
    );
    limited(
        (10, 3),
        Some((DEFAULT_UP, "window=0 select=Disabled Percent:100:15")),
        none,
        "10 ReadyForNewScale !ScaleDownLimit",
    );
    let slow = Some(("window=60 Percent:100:15", DEFAULT_DOWN));
    limited((4, 8), slow, ["6@30 9@20", "", ""], "6 ScaleUpStabilized DesiredWithinRange");
    limited((4, 8), slow, ["4@61", "", ""], "8 ReadyForNewScale DesiredWithinRange");
}

/// One step of a cluster: what there is and what was done before.
struct Case {
    metrics: serde_json::Value,
    behavior: Option<HorizontalPodAutoscalerBehavior>,
    bounds: (i32, i32),
    replicas: i32,
    pods: &'static str,
    measured: Vec<Option<Taken>>,
    in_flight: Option<i64>,
    past: Past,
    conditions: Vec<HorizontalPodAutoscalerCondition>,
    is_marked: bool,
}

impl Default for Case {
    fn default() -> Case {
        let cpu = json!([{"type": "Resource", "resource": {
            "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]);
        Case {
            metrics: cpu,
            behavior: None,
            bounds: (1, 10),
            replicas: 1,
            pods: "a:use=100",
            measured: Vec::new(),
            in_flight: None,
            past: Past::default(),
            conditions: Vec::new(),
            is_marked: false,
        }
    }
}

impl Case {
    fn snapshot(self) -> Snapshot {
        let (pods, used) = pods(self.pods);
        let metrics: Vec<MetricSpec> = serde_json::from_value(self.metrics).unwrap();
        let scale_target_ref = CrossVersionObjectReference {
            api_version: Some("apps/v1".to_owned()),
            kind: "Deployment".to_owned(),
            name: "web".to_owned(),
        };
        let metadata = ObjectMeta {
            name: Some("web".to_owned()),
            namespace: Some("default".to_owned()),
            generation: Some(1),
            annotations: self.is_marked.then(|| [(WAKE_ANNOTATION.to_owned(), now().to_string())].into()),
            ..ObjectMeta::default()
        };
        let spec = HorizontalPodAutoscalerSpec {
            behavior: self.behavior,
            max_replicas: self.bounds.1,
            metrics: Some(metrics),
            min_replicas: Some(self.bounds.0),
            scale_target_ref,
        };
        let status = (!self.conditions.is_empty()).then(|| HorizontalPodAutoscalerStatus {
            conditions: Some(self.conditions),
            ..HorizontalPodAutoscalerStatus::default()
        });
        let scale_status = ScaleStatus { replicas: self.replicas, selector: Some("app=web".to_owned()) };
        let scale = Scale {
            metadata: metadata.clone(),
            spec: Some(ScaleSpec { replicas: Some(self.replicas) }),
            status: Some(scale_status),
        };
        let place = action::Target {
            kind: "Deployment".to_owned(),
            path: "/apis/apps/v1/namespaces/default/deployments".to_owned(),
            key: Key::new("default", "web"),
        };
        Snapshot {
            autoscaler: Arc::new(HorizontalPodAutoscaler { metadata, spec, status }),
            target: Ok(Target::new(scale, place)),
            pods: Ok(pods),
            usage: Ok(used),
            measured: self.measured,
            in_flight: self.in_flight,
            rivals: Vec::new(),
            past: self.past,
            failure: None,
            period: PERIOD,
        }
    }
}

fn detail(action: &Action) -> String {
    if let Some(target) = action.object::<Target>() {
        return format!("to {}", target.wanted());
    }
    let Some(status) = action.object::<HorizontalPodAutoscaler>().and_then(|one| one.status.as_ref()) else {
        return String::new();
    };
    let mut text = format!("{}->{}", status.current_replicas.unwrap_or(-1), status.desired_replicas);
    for condition in status.conditions.iter().flatten() {
        let reason = condition.reason.as_deref().unwrap_or_default();
        write!(text, " {}={}:{reason}", condition.type_, condition.status).unwrap();
    }
    let readings = status.current_metrics.iter().flatten().map(|metric| {
        let current = metric.resource.as_ref().map(|resource| &resource.current);
        let current = current.or(metric.container_resource.as_ref().map(|resource| &resource.current));
        let current = current.or(metric.pods.as_ref().map(|pods| &pods.current));
        let current = current.or(metric.object.as_ref().map(|object| &object.current));
        let current = current.or(metric.external.as_ref().map(|external| &external.current));
        current.map_or("-".to_owned(), |current| {
            if let Some(value) = &current.value {
                return value.0.clone();
            }
            let average = current.average_value.as_ref().map(|value| value.0.as_str()).unwrap_or_default();
            format!("{:?}/{average}", current.average_utilization)
        })
    });
    let readings: Vec<String> = readings.collect();
    format!("{text} [{}]", readings.join(" "))
}

fn planned(snapshot: &Snapshot, expected: Expect) -> Past {
    let (plan, past) = plan::plan(snapshot, now());
    expected.assert_eq(&describe(&plan, detail));
    past
}

#[test]
fn it_scales_up_and_says_so() {
    let past = planned(
        &Case { replicas: 2, pods: "a:use=1000 b:use=1000", ..Case::default() }.snapshot(),
        expect![[r#"
            scale Deployment default/web to 4
            event Normal SuccessfulRescale: New size: 4; reason: cpu resource utilization (percentage of request) above target
            status HorizontalPodAutoscaler default/web 2->4 AbleToScale=True:SucceededRescale ScalingActive=True:ValidMetricFound ScalingLimited=False:DesiredWithinRange [Some(100)/1]
            again in 15s
        "#]],
    );
    assert_eq!(past.asked.as_ref().map(|asked| (asked.from, asked.to)), Some((2, 4)));
    // It was done: a part of the past from now on.
    let settled = Case { replicas: 4, pods: "a:use=500 b:use=500 c:use=500 d:use=500", past, ..Case::default() };
    let past = planned(
        &settled.snapshot(),
        expect![[r#"
            status HorizontalPodAutoscaler default/web 4->4 AbleToScale=True:ReadyForNewScale ScalingActive=True:ValidMetricFound ScalingLimited=False:DesiredWithinRange [Some(50)/500m]
            again in 15s
        "#]],
    );
    assert_eq!((past.added, past.asked), (moments("2@0"), None));
}

#[test]
fn it_scales_down_when_nothing_higher_was_recommended_lately() {
    planned(
        &Case { replicas: 3, pods: "a:use=10 b:use=10 c:use=10", ..Case::default() }.snapshot(),
        expect![[r#"
            status HorizontalPodAutoscaler default/web 3->3 AbleToScale=True:ScaleDownStabilized ScalingActive=True:ValidMetricFound ScalingLimited=False:DesiredWithinRange [Some(1)/10m]
            again in 15s
        "#]],
    );
    let past = Past { recommendations: moments("3@310 1@15"), ..Past::default() };
    planned(
        &Case { replicas: 3, pods: "a:use=10 b:use=10 c:use=10", past, ..Case::default() }.snapshot(),
        expect![[r#"
            scale Deployment default/web to 1
            event Normal SuccessfulRescale: New size: 1; reason: All metrics below target
            status HorizontalPodAutoscaler default/web 3->1 AbleToScale=True:SucceededRescale ScalingActive=True:ValidMetricFound ScalingLimited=False:DesiredWithinRange [Some(1)/10m]
            again in 15s
        "#]],
    );
    let behavior = HorizontalPodAutoscalerBehavior {
        scale_up: Some(rules(DEFAULT_UP)),
        scale_down: Some(rules("window=0 Percent:100:15")),
    };
    let case = Case { replicas: 3, pods: "a:use=10 b:use=10 c:use=10", behavior: Some(behavior), ..Case::default() };
    let (plan, _) = plan::plan(&case.snapshot(), now());
    assert!(describe(&plan, detail).starts_with("scale Deployment default/web to 1\n"));
}

#[test]
fn bounds_hold_whatever_is_measured() {
    planned(
        &Case { replicas: 12, ..Case::default() }.snapshot(),
        expect![[r#"
            scale Deployment default/web to 10
            event Normal SuccessfulRescale: New size: 10; reason: Current number of replicas above Spec.MaxReplicas
            status HorizontalPodAutoscaler default/web 12->10 AbleToScale=True:SucceededRescale []
            again in 15s
        "#]],
    );
    planned(
        &Case { replicas: 1, bounds: (3, 5), ..Case::default() }.snapshot(),
        expect![[r#"
            scale Deployment default/web to 3
            event Normal SuccessfulRescale: New size: 3; reason: Current number of replicas below Spec.MinReplicas
            status HorizontalPodAutoscaler default/web 1->3 AbleToScale=True:SucceededRescale []
            again in 15s
        "#]],
    );
    planned(
        &Case { replicas: 0, ..Case::default() }.snapshot(),
        expect![[r#"
            status HorizontalPodAutoscaler default/web 0->0 AbleToScale=True:SucceededGetScale ScalingActive=False:ScalingDisabled []
            again in 15s
        "#]],
    );
}

#[test]
fn the_metric_that_asks_for_most_counts() {
    let metrics = json!([
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "500m"}}},
        {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "main", "target": {"type": "Utilization", "averageUtilization": 20}}},
    ]);
    planned(
        &Case { metrics, ..Case::default() }.snapshot(),
        expect![[r#"
            status HorizontalPodAutoscaler default/web 1->1 AbleToScale=True:ReadyForNewScale ScalingActive=True:ValidMetricFound ScalingLimited=False:DesiredWithinRange [None/100m Some(10)/100m]
            again in 15s
        "#]],
    );
}

/// What is known of so many metrics where nobody measures any.
fn nobody(count: usize) -> Vec<Option<Taken>> {
    (0..count).map(|_| Some(Err("nobody measures this".to_owned()))).collect()
}

#[test]
fn metrics_that_cannot_be_had_are_named() {
    let other = json!([
        {"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "1"}}},
        {"type": "Object", "object": {"metric": {"name": "rps"}, "describedObject": {"kind": "Ingress", "name": "main"}, "target": {"type": "Value", "value": "1"}}},
        {"type": "External", "external": {"metric": {"name": "queue"}, "target": {"type": "Value", "value": "1"}}},
    ]);
    planned(
        &Case { metrics: other.clone(), measured: nobody(3), ..Case::default() }.snapshot(),
        expect![[r#"
            event Warning FailedGetPodsMetric: unable to get metric rps: nobody measures this
            event Warning FailedGetObjectMetric: unable to get metric rps: Ingress on default main/nobody measures this
            event Warning FailedGetExternalMetric: unable to get external metric default/queue/nil: nobody measures this
            event Warning FailedComputeMetricsReplicas: invalid metrics (3 invalid out of 3), first error is: failed to get pods metric value: unable to get metric rps: nobody measures this
            status HorizontalPodAutoscaler default/web 1->0 AbleToScale=True:SucceededGetScale ScalingActive=False:FailedGetPodsMetric [- - -]
            again in 15s
        "#]],
    );
    // One metric that works is enough to go up, and not to go down.
    let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}});
    let mut both = vec![other[0].clone(), cpu];
    both.reverse();
    let measured = vec![None, nobody(1).remove(0)];
    let busy = Case { metrics: json!(both), measured: measured.clone(), pods: "a:use=900", ..Case::default() };
    let (plan, _) = plan::plan(&busy.snapshot(), now());
    let text = describe(&plan, detail);
    assert!(text.starts_with("scale Deployment default/web to 2\n") && text.contains("ValidMetricFound"), "{text}");
    let idle = Case { metrics: json!(both), measured, replicas: 2, pods: "a:use=9 b:use=9", ..Case::default() };
    let (plan, _) = plan::plan(&idle.snapshot(), now());
    assert!(describe(&plan, detail).contains("ScalingActive=False:FailedGetPodsMetric [Some(0)/9m -]"));
}

#[test]
fn replicas_follow_the_value_of_one_thing() {
    let whole = |value, goal| Whole { value, goal, tolerance: Tolerance { up: 0.1, down: 0.2 } };
    // Of all pods together: value, goal, replicas, ready among them.
    for (value, goal, current, ready, expected) in [
        (20_000, 10_000, 2, 2, 4),
        (20_000, 10_000, 3, 1, 2),
        (10_900, 10_000, 3, 3, 3),
        (11_100, 10_000, 3, 3, 4),
        (8_100, 10_000, 5, 5, 5),
        (7_900, 10_000, 5, 5, 4),
        (0, 10_000, 5, 5, 0),
        (0, 10_000, 0, 0, 0),
        (1, 10_000, 0, 0, 1),
        (25_000, 10_000, 0, 0, 3),
    ] {
        assert_eq!(whole(value, goal).replicas(current, ready), expected, "{value}/{goal} {current} {ready}");
    }
    // Of each pod: value, goal, pods that run, and what each of them has.
    for (value, goal, running, expected) in [
        (40_000, 10_000, 2, (4, 20_000)),
        (21_000, 10_000, 2, (2, 10_500)),
        (17_000, 10_000, 2, (2, 8_500)),
        (15_000, 10_000, 2, (2, 7_500)),
        (9_000, 10_000, 2, (1, 4_500)),
        (0, 10_000, 2, (0, 0)),
        (0, 10_000, 0, (0, 0)),
        (15_000, 10_000, 0, (2, 15_000)),
    ] {
        assert_eq!(whole(value, goal).per_pod(running), expected, "{value}/{goal} {running}");
    }
}

fn requests(milli: &[(&str, i64)]) -> Option<Taken> {
    let reading = |(name, milli): &(&str, i64)| {
        ((*name).to_owned(), usage::Reading { milli: *milli, at: now(), window: Duration::from_secs(10) })
    };
    Some(Ok(Measured::Pods(milli.iter().map(reading).collect())))
}

fn by_requests() -> serde_json::Value {
    json!([{"type": "Pods", "pods": {"metric": {"name": "http_requests_per_second"},
        "target": {"type": "AverageValue", "averageValue": "10"}}}])
}

#[test]
fn requests_of_pods_objects_and_others_count() {
    let metrics = json!([
        {"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "10"}}},
        {"type": "Object", "object": {"metric": {"name": "rps"}, "describedObject": {"kind": "Ingress", "name": "main"}, "target": {"type": "Value", "value": "30"}}},
        {"type": "External", "external": {"metric": {"name": "queue"}, "target": {"type": "AverageValue", "averageValue": "5"}}},
    ]);
    let measured = vec![
        requests(&[("a", 15_000), ("b", 15_000)]),
        Some(Ok(Measured::Value(30_000))),
        Some(Ok(Measured::Value(29_000))),
    ];
    planned(
        &Case { metrics, measured, replicas: 2, pods: "a b", ..Case::default() }.snapshot(),
        expect![[r#"
            scale Deployment default/web to 4
            event Normal SuccessfulRescale: New size: 4; reason: external metric queue(nil) above target
            status HorizontalPodAutoscaler default/web 2->4 AbleToScale=True:SucceededRescale ScalingActive=True:ValidMetricFound ScalingLimited=True:ScaleUpLimit [None/15 30 None/14500m]
            again in 15s
        "#]],
    );
}

fn scaled_to_zero() -> Vec<HorizontalPodAutoscalerCondition> {
    let condition = HorizontalPodAutoscalerCondition {
        type_: zero::CONDITION.to_owned(),
        status: "True".to_owned(),
        ..HorizontalPodAutoscalerCondition::default()
    };
    vec![condition]
}

/// Replicas after a step of a workload that may go to zero, and how often it was asked for.
fn check_zero(case: Case, expected: &str) {
    let bounds = (0, case.bounds.1);
    let (plan, past) = plan::plan(&Case { bounds, ..case }.snapshot(), now());
    let text = describe(&plan, detail);
    let scaled = text.lines().find(|line| line.starts_with("scale ")).map_or("stays", |line| &line[line.len() - 4..]);
    let able = text.split("AbleToScale=").nth(1).and_then(|rest| rest.split([' ', '\n']).next()).unwrap_or("-");
    let zero = text.split("ScaledToZero=").nth(1).and_then(|rest| rest.split([' ', '\n']).next()).unwrap_or("-");
    let patched = if text.contains("patch ") { " patched" } else { "" };
    assert_eq!(format!("{scaled} {able} {zero}{patched}"), expected, "{text}");
    assert_eq!(past.asked.is_some(), scaled != "stays");
}

#[test]
fn a_workload_goes_to_zero_when_nobody_needs_it() {
    let quiet = |past: &str| Case {
        metrics: by_requests(),
        measured: vec![requests(&[("a", 0)])],
        pods: "a",
        past: Past { recommendations: moments(past), ..Past::default() },
        ..Case::default()
    };
    check_zero(quiet("1@301 0@10"), "to 0 True:SucceededRescale True:ScaledToZero");
    check_zero(quiet("1@299"), "stays True:ScaleDownStabilized -");
    check_zero(Case { measured: vec![requests(&[("a", 100)])], ..quiet("1@301") }, "stays True:ReadyForNewScale -");
    // Its pod was not measured yet: it counts as busy.
    check_zero(Case { measured: vec![requests(&[])], ..quiet("1@301") }, "stays True:SucceededGetScale -");
    check_zero(Case { in_flight: Some(1), ..quiet("1@301") }, "stays True:RequestsInFlight -");
    check_zero(Case { in_flight: Some(0), ..quiet("1@301") }, "to 0 True:SucceededRescale True:ScaledToZero");
    let woken = |seconds: i64, pods| {
        let mut case = Case { pods, measured: vec![requests(&[("a", 0)])], ..quiet("1@301") };
        case.past.woken = Some(at(NOW - seconds));
        case
    };
    check_zero(woken(59, "a:unready"), "stays True:RequestsWaiting -");
    check_zero(woken(61, "a:unready"), "to 0 True:SucceededRescale True:ScaledToZero");
    check_zero(woken(59, "a"), "to 0 True:SucceededRescale True:ScaledToZero");
    // Kubernetes' own way: a window of the user's.
    let rules = |text| {
        Some(HorizontalPodAutoscalerBehavior { scale_up: Some(rules(DEFAULT_UP)), scale_down: Some(rules(text)) })
    };
    check_zero(
        Case { behavior: rules("window=5 Percent:100:15"), ..quiet("1@6") },
        "to 0 True:SucceededRescale True:ScaledToZero",
    );
    check_zero(Case { behavior: rules("window=5 Percent:100:15"), ..quiet("1@4") }, "stays True:ScaleDownStabilized -");
}

#[test]
fn a_workload_at_zero_is_woken_by_requests_and_by_metrics_and_not_against_its_user() {
    let zero =
        || Case { metrics: by_requests(), replicas: 0, pods: "", conditions: scaled_to_zero(), ..Case::default() };
    check_zero(zero(), "stays True:ReadyForNewScale True:");
    check_zero(Case { is_marked: true, ..zero() }, "to 1 True:SucceededRescale False:NotScaledToZero");
    // Its status was not written, but it is known who did it.
    let asked = Rescale { from: 1, to: 0, reason: String::new(), at: now() };
    let past = || Past { asked: Some(asked.clone()), ..Past::default() };
    check_zero(
        Case { is_marked: true, conditions: Vec::new(), past: past(), ..zero() },
        "to 1 True:SucceededRescale False:NotScaledToZero",
    );
    // A user's zero stays, and the mark goes.
    check_zero(Case { is_marked: true, conditions: Vec::new(), ..zero() }, "stays - - patched");
    check_zero(Case { conditions: Vec::new(), ..zero() }, "stays True:SucceededGetScale -");
    // Who has pods already needs none.
    check_zero(Case { is_marked: true, replicas: 1, pods: "a", ..zero() }, "stays - - patched");
    let object = json!([{"type": "Object", "object": {"metric": {"name": "rps"},
        "describedObject": {"kind": "Ingress", "name": "main"}, "target": {"type": "Value", "value": "10"}}}]);
    let by_object =
        |value| Case { metrics: object.clone(), measured: vec![Some(Ok(Measured::Value(value)))], ..zero() };
    check_zero(by_object(0), "stays True:ReadyForNewScale True:");
    check_zero(by_object(25_000), "to 3 True:SucceededRescale False:NotScaledToZero");
}

#[test]
fn what_was_woken_stays_for_its_window() {
    let case = Case {
        metrics: by_requests(),
        replicas: 0,
        pods: "",
        bounds: (0, 3),
        conditions: scaled_to_zero(),
        is_marked: true,
        ..Case::default()
    };
    let (_, past) = plan::plan(&case.snapshot(), now());
    assert_eq!((past.woken, past.recommendations.last().map(|one| one.replicas)), (Some(now()), Some(1)));
}

#[test]
fn what_cannot_be_scaled_is_said() {
    let gone = Snapshot { target: Err("deployments.apps \"web\" not found".to_owned()), ..Case::default().snapshot() };
    planned(
        &gone,
        expect![[r#"
            event Warning FailedGetScale: deployments.apps "web" not found
            status HorizontalPodAutoscaler default/web -1->0 AbleToScale=False:FailedGetScale []
            again in 15s
        "#]],
    );
    let rivals = vec![Key::new("default", "other"), Key::new("default", "web")];
    planned(
        &Snapshot { rivals, ..Case::default().snapshot() },
        expect![[r#"
            event Warning AmbiguousSelector: pods by selector app=web are controlled by multiple HPAs: [default/other default/web]
            event Warning FailedComputeMetricsReplicas: pods by selector app=web are controlled by multiple HPAs: [default/other default/web]
            status HorizontalPodAutoscaler default/web 1->0 AbleToScale=True:SucceededGetScale ScalingActive=False:AmbiguousSelector []
            again in 15s
        "#]],
    );
    let free = Case { pods: "a:use=100:free", ..Case::default() };
    planned(
        &free.snapshot(),
        expect![[r#"
            event Warning FailedGetResourceMetric: failed to get cpu utilization: missing request for cpu in container main of Pod a
            event Warning FailedComputeMetricsReplicas: invalid metrics (1 invalid out of 1), first error is: failed to get cpu resource metric value: failed to get cpu utilization: missing request for cpu in container main of Pod a
            status HorizontalPodAutoscaler default/web 1->0 AbleToScale=True:SucceededGetScale ScalingActive=False:FailedGetResourceMetric [-]
            again in 15s
        "#]],
    );
}

#[test]
fn a_rescale_that_was_refused_is_told_and_no_part_of_the_past() {
    let asked = Rescale { from: 1, to: 2, reason: "cpu above target".to_owned(), at: at(NOW - 1) };
    let past = Past { asked: Some(asked), ..Past::default() };
    let failure = Some("quota is used up".to_owned());
    let past = planned(
        &Snapshot { failure, ..Case { past, pods: "a:use=900", ..Case::default() }.snapshot() },
        expect![[r#"
            event Warning FailedRescale: New size: 2; reason: cpu above target; error: quota is used up
            status HorizontalPodAutoscaler default/web 1->0 AbleToScale=False:FailedUpdateScale []
            again in 15s
        "#]],
    );
    assert_eq!(past, Past::default());
}

#[test]
fn nothing_is_written_where_nothing_changed() {
    let mut snapshot = Case { pods: "a:use=500", ..Case::default() }.snapshot();
    let (plan, past) = plan::plan(&snapshot, now());
    let status = plan.actions.iter().find_map(Action::object::<HorizontalPodAutoscaler>).unwrap().clone();
    snapshot.autoscaler = Arc::new(status);
    snapshot.past = past;
    planned(
        &snapshot,
        expect![[r#"
        again in 15s
    "#]],
    );
}

#[test]
fn changes_of_the_spec_wake_it_and_those_of_the_status_do_not() {
    let of = |bounds, status| {
        let mut one = (*Case { bounds, ..Case::default() }.snapshot().autoscaler).clone();
        one.status = status;
        Some(Arc::new(one))
    };
    let wakes = |old, new| {
        let change = Change::HorizontalPodAutoscaler(Delta { old, new });
        Autoscalers::new(PERIOD).wakes(&Cache::default(), &change).len()
    };
    assert_eq!(wakes(None, of((1, 2), None)), 1);
    assert_eq!(wakes(of((1, 2), None), of((1, 2), Some(HorizontalPodAutoscalerStatus::default()))), 0);
    assert_eq!(wakes(of((1, 2), None), of((1, 3), None)), 1);
    assert_eq!(wakes(of((1, 2), None), None), 1);
}

/// An API whose Deployment `web` has one replica and one pod, which uses twice what it requests.
fn api(is_there: bool) -> Server {
    Server::new(move |asked| match asked {
        "GET /apis/apps/v1" => Answer::Body(
            r#"{"groupVersion":"apps/v1","resources":[{"name":"deployments","kind":"Deployment","namespaced":true,
            "singularName":"","verbs":[]}]}"#,
        ),
        "GET /apis/apps/v1/namespaces/default/deployments/web/scale" if is_there => Answer::Body(
            r#"{"metadata":{"name":"web","namespace":"default"},"spec":{"replicas":1},"status":{"replicas":1,
            "selector":"app=web"}}"#,
        ),
        "GET /api/v1/namespaces/default/pods" => Answer::Body(
            r#"{"metadata":{},"items":[{"metadata":{"name":"a","uid":"a"},"spec":{"containers":[{"name":"main",
            "resources":{"requests":{"cpu":"100m"}}}]},"status":{"phase":"Running","startTime":"1970-01-01T00:00:00Z",
            "conditions":[{"type":"Ready","status":"True","lastTransitionTime":"1970-01-01T00:00:00Z"}]}}]}"#,
        ),
        "GET /apis/metrics.k8s.io/v1beta1/namespaces/default/pods" => Answer::Body(
            r#"{"items":[{"metadata":{"name":"a","namespace":"default"},"timestamp":"1970-01-12T13:46:40Z",
            "window":"10s","containers":[{"name":"main","usage":{"cpu":"200000000n"}}]}]}"#,
        ),
        _ => Answer::NotFound,
    })
}

async fn planned_at(server: &Server, autoscalers: &Autoscalers, second: i64) -> String {
    let cache = Cache::default();
    cache.autoscalers.apply((*Case::default().snapshot().autoscaler).clone());
    let client = server.client();
    let input = Input { cache: &cache, client: &client, failure: None, now: at(second) };
    let plan = Reconcile::plan(autoscalers, &input, &Key::new("default", "web")).await.unwrap();
    describe(&plan, detail)
}

#[tokio::test]
async fn it_asks_the_api_once_a_period() {
    let (server, autoscalers) = (api(true), Autoscalers::new(PERIOD));
    let plan = planned_at(&server, &autoscalers, NOW).await;
    assert!(plan.starts_with("scale Deployment default/web to 4\n"), "{plan}");
    let asked = server.asked().len();
    assert_eq!(planned_at(&server, &autoscalers, NOW + 5).await, "again in 10s\n");
    assert_eq!(server.asked().len(), asked);
    let plan = planned_at(&server, &autoscalers, NOW + 15).await;
    assert!(plan.starts_with("scale Deployment default/web to 4\n"), "{plan}");
}

#[tokio::test]
async fn a_target_that_is_not_there_is_a_condition() {
    let plan = planned_at(&api(false), &Autoscalers::new(PERIOD), NOW).await;
    assert!(plan.contains("AbleToScale=False:FailedGetScale"), "{plan}");
}
