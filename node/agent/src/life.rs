//! Where each container of a pod is in its life, and whether the pod as a whole has come to its end.
//!
//! Both the plan and the status are made from this, so they never disagree.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Pod};
use tandem_runtime::{Container, State};

use crate::{
    backoff::{CrashLoop, crash_loop},
    observed::{Observed, seconds},
    pod::{self, Part, RestartPolicy},
};

/// What Kubernetes reports for a container of which nothing is left to ask.
pub(crate) const LOST_EXIT_CODE: i32 = 137;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Life<'a> {
    /// There never was one.
    Absent,
    /// Made, but not started.
    Created(&'a Container),
    Running(&'a Container),
    Ended(Ended<'a>),
    /// There was one, and the runtime knows nothing of it any more.
    Lost {
        container: Option<&'a Container>,
        attempt: u32,
        restarts: bool,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) container: &'a Container,
    pub(crate) code: i32,
    /// The restart policy wants another one.
    pub(crate) restarts: bool,
    pub(crate) crash_loop: CrashLoop,
}

pub(crate) fn life<'a>(pod: &Pod, part: Part, spec: &Spec, seen: &'a Observed) -> Life<'a> {
    let policy = pod::restart_policy(pod, part, spec);
    // What the agent itself ended in order to start it anew ended by no exit code of its own.
    let restarts = |code: i32, killed: bool| match policy {
        _ if part != Part::Ephemeral && !killed && pod::restart_rule(spec, code) => true,
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => killed || code != 0,
        RestartPolicy::Never => false,
    };
    let lost = |container, attempt| Life::Lost { container, attempt, restarts: restarts(LOST_EXIT_CODE, false) };
    let Some(container) = seen.latest(&spec.name) else {
        let last = pod::last_status(pod, part, &spec.name).filter(|status| status.container_id.is_some());
        return match last {
            Some(status) => lost(None, u32::try_from(status.restart_count).unwrap_or(0)),
            None => Life::Absent,
        };
    };
    match (&container.state, crash_loop(container, seen)) {
        (State::Created, _) => Life::Created(container),
        (State::Running { .. }, _) => Life::Running(container),
        (State::Exited { code, .. }, Some(crash_loop)) => {
            let restarts = restarts(*code, seen.killed.contains(&container.id));
            Life::Ended(Ended { container, code: *code, restarts, crash_loop })
        }
        (State::Exited { .. } | State::Unknown, _) => lost(Some(container), container.attempt),
    }
}

/// How a pod came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Succeeded,
    Failed,
    DeadlineExceeded,
}

/// When `activeDeadlineSeconds` is over.
pub(crate) fn deadline(pod: &Pod) -> Option<Timestamp> {
    let limit = pod.spec.as_ref()?.active_deadline_seconds?;
    let start = pod.status.as_ref()?.start_time.as_ref()?;
    Some(start.0 + seconds(limit))
}

/// The end of the pod, once it has come: an ended pod never runs anything again.
pub(crate) fn outcome(pod: &Pod, seen: &Observed, now: Timestamp) -> Option<Outcome> {
    match pod::phase(pod) {
        "Succeeded" => return Some(Outcome::Succeeded),
        "Failed" if by_deadline(pod) => return Some(Outcome::DeadlineExceeded),
        "Failed" => return Some(Outcome::Failed),
        _ => {}
    }
    if deadline(pod).is_some_and(|deadline| now >= deadline) {
        return Some(Outcome::DeadlineExceeded);
    }
    let mut all_succeeded = true;
    let mut mains = 0;
    let mut open = 0;
    for (part, spec) in pod::containers(pod).filter(|(part, _)| *part != Part::Sidecar) {
        let ended = match life(pod, part, spec, seen) {
            Life::Ended(ended) if !ended.restarts => Some(ended.code),
            Life::Lost { restarts: false, .. } => Some(LOST_EXIT_CODE),
            Life::Absent | Life::Created(_) | Life::Running(_) | Life::Ended(_) | Life::Lost { .. } => None,
        };
        match (part, ended) {
            (Part::Init, Some(code)) if code != 0 => return Some(Outcome::Failed),
            (Part::Main, Some(code)) => {
                mains += 1;
                all_succeeded &= code == 0;
            }
            (Part::Main, None) => open += 1,
            (Part::Init | Part::Sidecar | Part::Ephemeral, _) => {}
        }
    }
    match (mains, open) {
        (0, _) | (_, 1..) => None,
        _ if all_succeeded => Some(Outcome::Succeeded),
        _ => Some(Outcome::Failed),
    }
}

fn by_deadline(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.reason.as_deref()) == Some("DeadlineExceeded")
}
