use serde_json::Value;
use tandem_api::{ApiError, Object};
use tandem_store::Consistency;

use super::Request;
use crate::core::Core;

const PREEMPTS: &str = "PreemptLowerPriority";

/// The number behind a pod's PriorityClass: that of the named class, of the default class, or 0.
pub(super) async fn resolve(core: &Core, request: &Request<'_>, pod: &mut Object) -> Result<(), ApiError> {
    let classes = core.row("scheduling.k8s.io", "v1", "priorityclasses")?;
    let named = pod.str_at(&["spec", "priorityClassName"]).filter(|name| !name.is_empty()).map(str::to_owned);
    let class = match &named {
        Some(name) => {
            let found = core.objects.find(&classes, None, name).await?;
            let missing = || request.forbidden(pod.name(), format!("no PriorityClass with name {name} was found"));
            Some(found.ok_or_else(missing)?)
        }
        None => {
            let all = core.objects.all(&classes, None, Consistency::Any).await?;
            let defaults = all.into_iter().filter(|class| class.at(&["globalDefault"]) == Some(&Value::Bool(true)));
            // Two may be there for a moment; the lower one counts.
            defaults.min_by_key(|class| class.i64_at(&["value"]).unwrap_or_default())
        }
    };
    let value = class.as_ref().and_then(|class| class.i64_at(&["value"])).unwrap_or_default();
    let given = pod.i64_at(&["spec", "priority"]);
    if let Some(given) = given.filter(|given| *given != value) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(request.forbidden(pod.name(), why));
    }
    if let (None, Some(class)) = (&named, &class) {
        pod.set(&["spec", "priorityClassName"], class.name());
    }
    pod.set(&["spec", "priority"], value);
    let policy = class.as_ref().and_then(|class| class.str_at(&["preemptionPolicy"])).unwrap_or(PREEMPTS);
    if pod.at(&["spec", "preemptionPolicy"]).is_none() {
        pod.set(&["spec", "preemptionPolicy"], policy);
    }
    Ok(())
}
