//! LimitRange: what containers ask for that do not say it, and how much containers, pods and claims may ask for.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tandem_api::{
    ApiError, Object, Quantity,
    quota::{self, Amounts},
};
use tandem_store::Consistency;

use super::{Operation, Request};
use crate::core::Core;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";
const CLAIM: &str = "PersistentVolumeClaim";

/// Fills in and checks a new pod, and checks a pod that is resized and a claim whenever it is written.
pub(super) async fn apply(core: &Core, request: &Request<'_>, object: &mut Object) -> Result<(), ApiError> {
    let creates = request.creates("", "pods");
    let pod = creates || request.resizes();
    let writes = request.operation != Operation::Delete && request.subresource.is_empty();
    let claim = writes && request.is("", "persistentvolumeclaims") && object.deletion_timestamp().is_none();
    if !pod && !claim {
        return Ok(());
    }
    let ranges = core.row("", "v1", "limitranges")?;
    let ranges = core.objects.all(&ranges, request.namespace, Consistency::Any).await?;
    if creates {
        ranges.iter().for_each(|range| fill_in(range, object));
    }
    for range in &ranges {
        let problems = if pod { of_pod(range, object) } else { of_claim(range, object) };
        if !problems.is_empty() {
            let name = if object.name().is_empty() { object.generate_name() } else { object.name() };
            return Err(request.forbidden(name, together(problems)));
        }
    }
    Ok(())
}

/// Several errors as Kubernetes writes them.
fn together(mut problems: Vec<String>) -> String {
    let mut seen = Vec::new();
    problems.retain(|problem| {
        let new = !seen.contains(problem);
        seen.push(problem.clone());
        new
    });
    match problems.as_slice() {
        [one] => one.clone(),
        all => format!("[{}]", all.join(", ")),
    }
}

/// The items of a type.
fn items<'a>(range: &'a Object, kind: &str) -> impl Iterator<Item = &'a Value> {
    let is = move |item: &&Value| item.get("type").and_then(Value::as_str) == Some(kind);
    range.array_at(&["spec", "limits"]).iter().filter(is)
}

fn fill_in(range: &Object, pod: &mut Object) {
    let (mut limits, mut requests) = (Map::new(), Map::new());
    for item in items(range, "Container") {
        let of = |key: &str| item.get(key).and_then(Value::as_object).cloned().unwrap_or_default();
        limits.extend(of("default"));
        requests.extend(of("defaultRequest"));
    }
    let mut told = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        let Some(Value::Array(containers)) = pod.at_mut(&["spec", list]) else { continue };
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            for (kind, one, defaults) in [("requests", "request", &requests), ("limits", "limit", &limits)] {
                let set = merge(container, kind, defaults);
                if !set.is_empty() {
                    told.push(format!("{} {one} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !told.is_empty() {
        let text = format!("LimitRanger plugin set: {}", told.join("; "));
        pod.set(&["metadata", "annotations", ANNOTATION], text);
    }
}

/// Sets what the container does not say; answers which resources these are.
fn merge(container: &mut Map<String, Value>, kind: &str, defaults: &Map<String, Value>) -> Vec<String> {
    let given = |name: &str| container.get("resources").and_then(|all| all.get(kind)).and_then(|all| all.get(name));
    let mut missing: Vec<(String, Value)> = defaults
        .iter()
        .filter(|(name, _)| given(name).is_none())
        .map(|(name, amount)| (name.clone(), amount.clone()))
        .collect();
    missing.sort_by(|one, other| one.0.cmp(&other.0));
    if missing.is_empty() {
        return Vec::new();
    }
    let names = missing.iter().map(|(name, _)| name.clone()).collect();
    let resources = container.entry("resources").or_insert_with(|| Map::new().into());
    let amounts = resources.as_object_mut().map(|all| all.entry(kind).or_insert_with(|| Map::new().into()));
    if let Some(Value::Object(amounts)) = amounts {
        amounts.extend(missing);
    }
    names
}

fn of_pod(range: &Object, pod: &Object) -> Vec<String> {
    let mut problems = Vec::new();
    for item in items(range, "Container") {
        for list in ["containers", "initContainers"] {
            for container in pod.array_at(&["spec", list]) {
                let of = |kind| quota::amounts(container.get("resources").and_then(|all| all.get(kind)));
                check("Container", item, &of("requests"), &of("limits"), &mut problems);
            }
        }
    }
    for item in items(range, "Pod") {
        check("Pod", item, &quota::total(pod, "requests"), &quota::total(pod, "limits"), &mut problems);
    }
    problems
}

fn of_claim(range: &Object, claim: &Object) -> Vec<String> {
    let asked = quota::amounts(claim.at(&["spec", "resources", "requests"]));
    let mut problems = Vec::new();
    for item in items(range, CLAIM) {
        for (name, bound) in bounds(item, "min") {
            problems.extend(too_little(CLAIM, &name, bound, asked.get(&name), None));
        }
        for (name, bound) in bounds(item, "max") {
            let head = format!("maximum {name} usage per {CLAIM} is {bound}");
            match asked.get(&name) {
                None => problems.push(format!("{head}.  No request is specified")),
                Some(request) if *request > bound => problems.push(format!("{head}, but request is {request}")),
                Some(_) => {}
            }
        }
    }
    problems
}

fn bounds(item: &Value, key: &str) -> BTreeMap<String, Quantity> {
    quota::amounts(item.get(key))
}

fn check(kind: &str, item: &Value, requests: &Amounts, limits: &Amounts, problems: &mut Vec<String>) {
    for (name, bound) in bounds(item, "min") {
        problems.extend(too_little(kind, &name, bound, requests.get(&name), limits.get(&name)));
    }
    for (name, bound) in bounds(item, "max") {
        problems.extend(too_much(kind, &name, bound, requests.get(&name), limits.get(&name)));
    }
    for (name, bound) in bounds(item, "maxLimitRequestRatio") {
        problems.extend(too_far(kind, &name, bound, requests.get(&name), limits.get(&name)));
    }
}

type Given<'a> = Option<&'a Quantity>;

fn too_little(kind: &str, name: &str, bound: Quantity, request: Given<'_>, limit: Given<'_>) -> Option<String> {
    let head = format!("minimum {name} usage per {kind} is {bound}");
    match (request, limit) {
        (None, _) => Some(format!("{head}.  No request is specified")),
        (Some(request), _) if *request < bound => Some(format!("{head}, but request is {request}")),
        (_, Some(limit)) if *limit < bound => Some(format!("{head}, but limit is {limit}")),
        _ => None,
    }
}

fn too_much(kind: &str, name: &str, bound: Quantity, request: Given<'_>, limit: Given<'_>) -> Option<String> {
    let head = format!("maximum {name} usage per {kind} is {bound}");
    match (request, limit) {
        (_, None) => Some(format!("{head}.  No limit is specified")),
        (_, Some(limit)) if *limit > bound => Some(format!("{head}, but limit is {limit}")),
        (Some(request), _) if *request > bound => Some(format!("{head}, but request is {request}")),
        _ => None,
    }
}

fn too_far(kind: &str, name: &str, bound: Quantity, request: Given<'_>, limit: Given<'_>) -> Option<String> {
    let head = format!("{name} max limit to request ratio per {kind} is {bound}");
    let Some(request) = request.filter(|request| !request.is_zero()) else {
        return Some(format!("{head}, but no request is specified or request is 0"));
    };
    let Some(limit) = limit.filter(|limit| !limit.is_zero()) else {
        return Some(format!("{head}, but no limit is specified or limit is 0"));
    };
    let ratio = limit.ratio(*request).filter(|ratio| *ratio > bound)?;
    Some(format!("{head}, but provided ratio is {}", ratio.to_decimal()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn range(item: Value) -> Object {
        Object::from_value(json!({ "spec": { "limits": [item] } })).unwrap()
    }

    fn pod(containers: Value) -> Object {
        Object::from_value(json!({ "spec": { "containers": containers } })).unwrap()
    }

    #[test]
    fn what_is_not_said_is_filled_in() {
        let item = json!({ "type": "Container", "default": { "memory": "512Mi", "cpu": "1" }, "defaultRequest": { "cpu": "100m" } });
        let mut filled = pod(json!([{ "name": "a" }, { "name": "b", "resources": { "limits": { "cpu": "2" } } }]));
        filled.set(&["spec", "initContainers"], vec![json!({ "name": "i", "resources": {} })]);
        fill_in(&range(item), &mut filled);
        let said = "LimitRanger plugin set: cpu request for container a; cpu, memory limit for container a; \
                    cpu request for container b; memory limit for container b; \
                    cpu request for init container i; cpu, memory limit for init container i";
        assert_eq!(filled.str_at(&["metadata", "annotations", ANNOTATION]), Some(said));
        let second = &filled.array_at(&["spec", "containers"])[1]["resources"];
        assert_eq!(*second, json!({ "limits": { "cpu": "2", "memory": "512Mi" }, "requests": { "cpu": "100m" } }));
        let once = filled.clone();
        fill_in(&range(json!({ "type": "Pod", "default": { "cpu": "9" } })), &mut filled);
        assert_eq!(filled, once);
    }

    fn check(item: &Value, resources: &Value, expected: &[&str]) {
        let pod = pod(json!([{ "name": "a", "resources": resources }]));
        assert_eq!(of_pod(&range(item.clone()), &pod), expected, "{item} {resources}");
    }

    #[test]
    fn bounds_of_containers() {
        let item = json!({ "type": "Container", "min": { "cpu": "100m" }, "max": { "cpu": "500m" } });
        let asks = |request: &str, limit: &str| json!({ "requests": { "cpu": request }, "limits": { "cpu": limit } });
        check(&item, &asks("100m", "500m"), &[]);
        check(&item, &asks("200m", "1"), &["maximum cpu usage per Container is 500m, but limit is 1"]);
        check(&item, &asks("50m", "200m"), &["minimum cpu usage per Container is 100m, but request is 50m"]);
        check(
            &item,
            &json!({}),
            &[
                "minimum cpu usage per Container is 100m.  No request is specified",
                "maximum cpu usage per Container is 500m.  No limit is specified",
            ],
        );
        let item = json!({ "type": "Container", "maxLimitRequestRatio": { "cpu": "2" } });
        check(&item, &asks("250m", "500m"), &[]);
        let far = "cpu max limit to request ratio per Container is 2, but provided ratio is 2.666667";
        check(&item, &asks("750m", "2"), &[far]);
        let none = "cpu max limit to request ratio per Container is 2, but no request is specified or request is 0";
        check(&item, &json!({}), &[none]);
    }

    #[test]
    fn bounds_of_pods_and_claims() {
        let item = range(json!({ "type": "Pod", "max": { "memory": "1Gi" } }));
        let half = json!({ "name": "a", "resources": { "limits": { "memory": "600Mi" } } });
        assert!(of_pod(&item, &pod(json!([half]))).is_empty());
        let both = of_pod(&item, &pod(json!([half, half])));
        assert_eq!(both, ["maximum memory usage per Pod is 1Gi, but limit is 1200Mi"]);
        let item = range(json!({ "type": CLAIM, "min": { "storage": "1Gi" }, "max": { "storage": "2Gi" } }));
        for (asked, expected) in [
            ("1Gi", ""),
            ("3Gi", "maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"),
            ("1Mi", "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"),
        ] {
            let claim = json!({ "spec": { "resources": { "requests": { "storage": asked } } } });
            assert_eq!(of_claim(&item, &Object::from_value(claim).unwrap()).join(""), expected);
        }
    }

    #[test]
    fn several_problems_stand_in_brackets() {
        assert_eq!(together(vec!["a".into()]), "a");
        assert_eq!(together(vec!["a".into(), "b".into(), "a".into()]), "[a, b]");
    }
}
