use jiff::Timestamp;
use serde_json::Value;
use tandem_api::Object;

use super::{age, age::since, part, text::NONE};
use crate::json::{Fields, FieldsExt};

/// What the node controller writes as the reason of pods whose node is gone.
const NODE_LOST: &str = "NodeLost";

pub(crate) fn cells(pod: &Object, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (part(pod, "spec"), part(pod, "status"));
    let summary = Summary::of(pod, &spec, &status);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts != 0 => format!("{} ({} ago)", summary.restarts, since(Some(at), now)),
        _ => summary.restarts.to_string(),
    };
    let first_ip = status.each("podIPs").next().map(|ip| ip.text("ip")).unwrap_or_else(|| status.text("podIP"));
    let or_none = |text: &str| super::text::or(text, NONE);
    vec![
        pod.name().into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(pod, now).into(),
        or_none(first_ip).into(),
        or_none(spec.text("nodeName")).into(),
        or_none(status.text("nominatedNodeName")).into(),
        readiness_gates(&spec, &status).into(),
    ]
}

fn readiness_gates(spec: &Fields, status: &Fields) -> String {
    let gates: Vec<&str> = spec.each("readinessGates").map(|gate| gate.text("conditionType")).collect();
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let open = gates.iter().filter(|gate| condition(status, gate).is_some_and(|found| found.text("status") == "True"));
    format!("{}/{}", open.count(), gates.len())
}

fn condition<'a>(status: &'a Fields, kind: &str) -> Option<&'a Fields> {
    status.each("conditions").find(|condition| condition.text("type") == kind)
}

fn is_true(status: &Fields, kind: &str) -> bool {
    condition(status, kind).is_some_and(|condition| condition.text("status") == "True")
}

/// What a pod looks like in one line.
struct Summary<'a> {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<&'a str>,
}

impl<'a> Summary<'a> {
    fn of(pod: &Object, spec: &Fields, status: &'a Fields) -> Summary<'a> {
        let gated = condition(status, "PodScheduled").is_some_and(|found| found.text("reason") == "SchedulingGated");
        let reason = match status.text("reason") {
            _ if gated => "SchedulingGated",
            "" => status.text("phase"),
            reason => reason,
        };
        let sidecars = spec.each("initContainers").filter(|init| init.text("restartPolicy") == "Always").count();
        let mut summary = Summary {
            reason: reason.to_owned(),
            ready: 0,
            total: spec.list("containers").len() + sidecars,
            restarts: 0,
            last_restart: None,
        };
        let initializing = summary.initialize(spec, status);
        if !initializing || is_true(status, "Initialized") {
            summary.run(status);
        }
        if pod.deletion_timestamp().is_some() {
            if status.text("reason") == NODE_LOST {
                "Unknown".clone_into(&mut summary.reason);
            } else if !matches!(status.text("phase"), "Succeeded" | "Failed") {
                "Terminating".clone_into(&mut summary.reason);
            }
        }
        summary
    }

    fn count_restarts(&mut self, container: &'a Fields) {
        self.restarts += container.int("restartCount").unwrap_or_default();
        let last = container.child("lastState").and_then(|last| last.child("terminated"));
        let finished = last.map(|last| last.text("finishedAt")).filter(|finished| !finished.is_empty());
        self.last_restart = self.last_restart.max(finished);
    }

    /// Goes through the init containers; true if one of them is still to be waited for. Restarts of those that are
    /// done count only while initializing, those of sidecars always.
    fn initialize(&mut self, spec: &Fields, status: &'a Fields) -> bool {
        let inits = spec.list("initContainers").len();
        let is_sidecar = |name: &str| {
            spec.each("initContainers").any(|init| init.text("name") == name && init.text("restartPolicy") == "Always")
        };
        let mut sidecars = Summary { reason: String::new(), ready: 0, total: 0, restarts: 0, last_restart: None };
        for (at, container) in status.each("initContainerStatuses").enumerate() {
            self.count_restarts(container);
            let sidecar = is_sidecar(container.text("name"));
            if sidecar {
                sidecars.count_restarts(container);
            }
            let terminated = container.child("state").and_then(|state| state.child("terminated"));
            if terminated.is_some_and(|ended| ended.int("exitCode").unwrap_or_default() == 0) {
                continue;
            }
            if sidecar && container.flag("started") {
                self.ready += usize::from(container.flag("ready"));
                continue;
            }
            self.reason = match (ended(container), waiting(container)) {
                (Some(reason), _) => format!("Init:{reason}"),
                (None, Some(reason)) if reason != "PodInitializing" => format!("Init:{reason}"),
                _ => format!("Init:{at}/{inits}"),
            };
            if is_true(status, "Initialized") {
                (self.restarts, self.last_restart) = (sidecars.restarts, sidecars.last_restart);
            }
            return true;
        }
        (self.restarts, self.last_restart) = (sidecars.restarts, sidecars.last_restart);
        false
    }

    fn run(&mut self, status: &'a Fields) {
        let mut running = false;
        let containers: Vec<&Fields> = status.each("containerStatuses").collect();
        // The first container's reason wins, so it is looked at last.
        for container in containers.into_iter().rev() {
            self.count_restarts(container);
            if let Some(reason) = waiting(container) {
                reason.clone_into(&mut self.reason);
            } else if let Some(reason) = ended(container) {
                self.reason = reason;
            } else if container.flag("ready") && container.child("state").is_some_and(|it| it.contains_key("running")) {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            let reason = if is_true(status, "Ready") { "Running" } else { "NotReady" };
            reason.clone_into(&mut self.reason);
        }
    }
}

fn waiting(container: &Fields) -> Option<&str> {
    let waiting = container.child("state")?.child("waiting")?;
    Some(waiting.text("reason")).filter(|reason| !reason.is_empty())
}

fn ended(container: &Fields) -> Option<String> {
    let ended = container.child("state")?.child("terminated")?;
    let signal = ended.int("signal").unwrap_or_default();
    Some(match ended.text("reason") {
        "" if signal != 0 => format!("Signal:{signal}"),
        "" => format!("ExitCode:{}", ended.int("exitCode").unwrap_or_default()),
        reason => reason.to_owned(),
    })
}
