use axum::response::Response;
use serde_json::Value;
use tandem_api::{ApiError, Cause, Object, Reason};
use tandem_registry::{ResourceDef, Subresource, selectors::LabelSelector};
use tandem_store::Consistency;

use super::{admit, body, created, live};
use crate::{
    call::Call,
    core::Core,
    deletion,
    options::WriteOptions,
    verbs,
    write::{self, Author, Change, Deletion, Ownership, Preconditions, Scope, Target},
};

/// How often a pod that changes meanwhile is looked at anew.
const TRIES_MAX: usize = 16;
const WOULD_VIOLATE: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
/// When to try again where the budget's or the pod's state is just changing.
const RETRY_SECONDS: u32 = 10;

/// What an eviction's permission holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Always,
    /// No budget counts a pod that is not ready, which it may be a moment later.
    AsItIs,
}

/// Deletes a pod if the disruption budget that covers it, if any, allows it.
pub(super) async fn create(
    core: &Core,
    call: &Call,
    target: &Target<'_>,
    sub: &Subresource,
) -> Result<Response, ApiError> {
    let (mut eviction, mut options) = body(core, call, sub, "CreateOptions").await?;
    options.dry_run |= !eviction.array_at(&["deleteOptions", "dryRun"]).is_empty();
    admit(core, call, target, &options, &mut eviction).await?;
    let text = |key: &str| eviction.str_at(&["deleteOptions", "preconditions", key]).map(str::to_owned);
    let deletion = Deletion {
        grace_seconds: eviction.i64_at(&["deleteOptions", "gracePeriodSeconds"]),
        propagation: None,
        preconditions: Preconditions { uid: text("uid"), resource_version: text("resourceVersion") },
    };
    let author = verbs::author(call, &options);
    for _ in 0..TRIES_MAX {
        let pod = live(core, target).await?;
        // No budget is spent on a pod that will not be deleted.
        deletion.preconditions.check(target, &pod)?;
        let leave = permit(core, &author, target, &pod, &options).await?;
        let pinned = leave == Leave::AsItIs && deletion.preconditions.resource_version.is_none();
        let mut deletion = deletion.clone();
        if pinned {
            deletion.preconditions.resource_version = pod.str_at(&["metadata", "resourceVersion"]).map(str::to_owned);
        }
        match write::delete(core, &author, target, &deletion).await {
            Err(error) if pinned && error.reason == Reason::Conflict => {}
            done => {
                done?;
                return created(core, call);
            }
        }
    }
    Err(ApiError::new(Reason::TooManyRequests, WOULD_VIOLATE).retry_after(RETRY_SECONDS))
}

/// Whether the pod may go, its budget spent where that takes one.
///
/// <https://kubernetes.io/docs/tasks/run-application/configure-pdb/#unhealthy-pod-eviction-policy>
async fn permit(
    core: &Core,
    author: &Author<'_>,
    target: &Target<'_>,
    pod: &Object,
    options: &WriteOptions,
) -> Result<Leave, ApiError> {
    let phase = pod.str_at(&["status", "phase"]).unwrap_or_default();
    if pod.deletion_timestamp().is_some() || matches!(phase, "Succeeded" | "Failed") {
        return Ok(Leave::Always);
    }
    if phase == "Pending" {
        return Ok(Leave::AsItIs);
    }
    let budgets = core.row("policy", "v1", "poddisruptionbudgets")?;
    let Some(budget) = covering(core, &budgets, target, pod).await? else { return Ok(Leave::Always) };
    if !is_ready(pod) && spares_unready(&budget) {
        return Ok(Leave::AsItIs);
    }
    if options.dry_run {
        allowed(&budget)?;
    } else {
        spend(core, author, target, pod, &budgets, &budget).await?;
    }
    Ok(Leave::Always)
}

async fn covering(
    core: &Core,
    budgets: &ResourceDef,
    target: &Target<'_>,
    pod: &Object,
) -> Result<Option<Object>, ApiError> {
    let mut covering = None;
    for budget in core.objects.all(budgets, target.namespace, Consistency::Linearizable).await? {
        let selector = LabelSelector::from_value(budget.at(&["spec", "selector"]))?;
        if selector.is_some_and(|selector| selector.matches(pod)) && covering.replace(budget).is_some() {
            return Err(ApiError::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    }
    Ok(covering)
}

fn is_ready(pod: &Object) -> bool {
    let text = |condition: &Value, key: &str, wanted: &str| condition.get(key).and_then(Value::as_str) == Some(wanted);
    let conditions = pod.array_at(&["status", "conditions"]);
    conditions.iter().any(|condition| text(condition, "type", "Ready") && text(condition, "status", "True"))
}

/// Whether pods that are not ready may go without the budget: always, or as long as enough others are.
fn spares_unready(budget: &Object) -> bool {
    let count = |key: &str| budget.i64_at(&["status", key]).unwrap_or_default();
    budget.str_at(&["spec", "unhealthyPodEvictionPolicy"]) == Some("AlwaysAllow")
        || (count("desiredHealthy") > 0 && count("currentHealthy") >= count("desiredHealthy"))
}

async fn spend(
    core: &Core,
    author: &Author<'_>,
    target: &Target<'_>,
    pod: &Object,
    budgets: &ResourceDef,
    budget: &Object,
) -> Result<(), ApiError> {
    let now = deletion::seconds(core.clock.now());
    let name = pod.name().to_owned();
    let make = |live: &Object| {
        let left = allowed(live)? - 1;
        let mut spent = live.clone();
        spent.set(&["status", "disruptionsAllowed"], left);
        spent.set(&["status", "disruptedPods", &name], now.as_str());
        Ok(spent)
    };
    let change = Change { scope: Scope::Free, ownership: Ownership::Update, change: &make };
    let place = Target { def: budgets, namespace: target.namespace, name: budget.name(), subresource: "status" };
    write::update(core, author, &place, &change).await.map(drop)
}

/// How many disruptions the budget still allows; none is the error that clients wait on.
fn allowed(budget: &Object) -> Result<i64, ApiError> {
    let count = |key: &str| budget.i64_at(&["status", key]).unwrap_or_default();
    if count("observedGeneration") < budget.generation() {
        // The budget has changed and its status does not show it yet.
        return Err(refused(budget.name(), "is still being processed by the server").retry_after(RETRY_SECONDS));
    }
    if count("disruptionsAllowed") > 0 {
        return Ok(count("disruptionsAllowed"));
    }
    let why = format!("needs {} healthy pods and has {} currently", count("desiredHealthy"), count("currentHealthy"));
    Err(refused(budget.name(), &why))
}

fn refused(budget: &str, why: &str) -> ApiError {
    let mut error = ApiError::new(Reason::TooManyRequests, WOULD_VIOLATE);
    error.details.causes = vec![Cause {
        reason: "DisruptionBudget".to_owned(),
        message: format!("The disruption budget {budget} {why}"),
        field: String::new(),
    }];
    error
}
