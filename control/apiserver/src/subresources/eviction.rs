use axum::response::Response;
use serde_json::Value;
use tandem_api::{ApiError, Cause, Object, Reason};
use tandem_registry::{Subresource, selectors::LabelSelector};
use tandem_store::Consistency;

use super::{body, created, live};
use crate::{
    call::Call,
    core::Core,
    deletion,
    options::WriteOptions,
    verbs,
    write::{self, Author, Change, Deletion, Ownership, Preconditions, Scope, Target},
};

/// Deletes a pod if the disruption budget that covers it, if any, allows it.
pub(super) async fn create(
    core: &Core,
    call: &Call,
    target: &Target<'_>,
    sub: &Subresource,
) -> Result<Response, ApiError> {
    let (eviction, mut options) = body(core, call, sub, "CreateOptions").await?;
    let asked = |key: &str| eviction.at(&["deleteOptions", key]);
    options.dry_run |= asked("dryRun").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    let text = |key: &str| eviction.str_at(&["deleteOptions", "preconditions", key]).map(str::to_owned);
    let deletion = Deletion {
        grace_seconds: asked("gracePeriodSeconds").and_then(Value::as_i64),
        propagation: None,
        preconditions: Preconditions { uid: text("uid"), resource_version: text("resourceVersion") },
    };
    let author = verbs::author(call, &options);
    let pod = live(core, target).await?;
    if !is_free(&pod) {
        spend(core, &author, target, &pod, &options).await?;
    }
    write::delete(core, &author, target, &deletion).await?;
    created(call)
}

/// Pods that serve nobody are no disruption.
fn is_free(pod: &Object) -> bool {
    let phase = pod.str_at(&["status", "phase"]).unwrap_or_default();
    pod.deletion_timestamp().is_some() || matches!(phase, "Succeeded" | "Failed" | "Pending")
}

async fn spend(
    core: &Core,
    author: &Author<'_>,
    target: &Target<'_>,
    pod: &Object,
    options: &WriteOptions,
) -> Result<(), ApiError> {
    let budgets = core.row("policy", "v1", "poddisruptionbudgets")?;
    let mut covering = Vec::new();
    for budget in core.objects.all(&budgets, target.namespace, Consistency::Linearizable).await? {
        let selector = LabelSelector::from_value(budget.at(&["spec", "selector"]))?;
        if selector.is_some_and(|selector| selector.matches(pod)) {
            covering.push(budget);
        }
    }
    let budget = match covering.as_slice() {
        [] => return Ok(()),
        [budget] => budget.clone(),
        _ => {
            return Err(ApiError::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    if options.dry_run {
        return allowed(&budget).map(drop);
    }
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
    let place = Target { def: &budgets, namespace: target.namespace, name: budget.name(), subresource: "status" };
    write::update(core, author, &place, &change).await.map(drop)
}

/// How many disruptions the budget still allows; none is the error that clients wait on.
fn allowed(budget: &Object) -> Result<i64, ApiError> {
    let count = |key: &str| budget.i64_at(&["status", key]).unwrap_or_default();
    if count("observedGeneration") < budget.generation() {
        // The budget has changed and its status does not show it yet.
        let message = "Cannot evict pod as it would violate the pod's disruption budget.";
        return Err(refused(message, budget.name(), "is still being processed by the server").retry_after(10));
    }
    if count("disruptionsAllowed") > 0 {
        return Ok(count("disruptionsAllowed"));
    }
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    let why = format!("needs {} healthy pods and has {} currently", count("desiredHealthy"), count("currentHealthy"));
    Err(refused(message, budget.name(), &why))
}

fn refused(message: &str, budget: &str, why: &str) -> ApiError {
    let mut error = ApiError::new(Reason::TooManyRequests, message);
    error.details.causes = vec![Cause {
        reason: "DisruptionBudget".to_owned(),
        message: format!("The disruption budget {budget} {why}"),
        field: String::new(),
    }];
    error
}
