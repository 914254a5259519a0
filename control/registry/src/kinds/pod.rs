use serde_json::{Value, json};
use tandem_api::Object;

use super::template;
use crate::{
    Hooks, columns,
    json::{Fields, FieldsExt},
    quantity::Quantity,
    validate,
};

pub(super) const HOOKS: Hooks = Hooks {
    default: template::default_pod,
    prepare,
    validate: validate::pod::pod,
    fields,
    cells: columns::pod::cells,
    ..Hooks::NONE
};

fn prepare(object: &mut Object, old: Option<&Object>) {
    let Some(spec) = object.0.child_or_new("spec") else { return };
    // Admission may have set one of the two names.
    template::mirror_service_account(spec);
    if old.is_some() {
        return;
    }
    let mut status = Fields::new();
    status.insert("phase".to_owned(), "Pending".into());
    if !spec.list("schedulingGates").is_empty() {
        let gated = json!({
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        });
        status.insert("conditions".to_owned(), json!([gated]));
    }
    status.insert("qosClass".to_owned(), quality(spec).into());
    object.set(&["status"], status);
}

/// The quality of service class: Guaranteed if every container has limits for CPU and memory and requests as much,
/// BestEffort if none asks for anything.
pub(crate) fn quality(spec: &Fields) -> &'static str {
    let amount = |container: &Fields, kind: &str, resource: &str| {
        let amounts = container.child("resources").and_then(|resources| resources.child(kind));
        let amount = amounts.map(|amounts| amounts.text(resource)).and_then(|text| Quantity::parse(text).ok());
        amount.filter(|amount| !amount.is_zero())
    };
    let whole_pod: Vec<&Fields> = spec.get("resources").and_then(Value::as_object).map(|_| spec).into_iter().collect();
    let containers: Vec<&Fields> = if whole_pod.is_empty() {
        ["initContainers", "containers"].into_iter().flat_map(|list| spec.each(list)).collect()
    } else {
        whole_pod
    };
    let (mut guaranteed, mut asks) = (true, false);
    for container in containers {
        for resource in ["cpu", "memory"] {
            let (request, limit) = (amount(container, "requests", resource), amount(container, "limits", resource));
            asks |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (asks, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn fields(pod: &Object) -> Vec<(&'static str, String)> {
    let text = |path: &[&str]| pod.str_at(path).unwrap_or_default().to_owned();
    let host_network = pod.at(&["spec", "hostNetwork"]).and_then(Value::as_bool).unwrap_or_default();
    vec![
        ("spec.nodeName", text(&["spec", "nodeName"])),
        ("spec.restartPolicy", text(&["spec", "restartPolicy"])),
        ("spec.schedulerName", text(&["spec", "schedulerName"])),
        ("spec.serviceAccountName", text(&["spec", "serviceAccountName"])),
        ("spec.hostNetwork", host_network.to_string()),
        ("status.phase", text(&["status", "phase"])),
        ("status.podIP", text(&["status", "podIP"])),
        ("status.podIPs", text(&["status", "podIP"])),
        ("status.nominatedNodeName", text(&["status", "nominatedNodeName"])),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_of_service() {
        let container = |resources: Value| json!({"containers": [{"resources": resources}]});
        for (spec, class) in [
            (container(json!({})), "BestEffort"),
            (container(json!({"requests": {"cpu": "1"}})), "Burstable"),
            (container(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed"),
            (
                container(
                    json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}),
                ),
                "Guaranteed",
            ),
            (container(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})), "Burstable"),
            (container(json!({"limits": {"cpu": "1"}})), "Burstable"),
        ] {
            assert_eq!(quality(spec.as_object().unwrap()), class, "{spec}");
        }
    }
}
