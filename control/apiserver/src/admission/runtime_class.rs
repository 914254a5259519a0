use serde_json::Value;
use tandem_api::{ApiError, Object, WASM_RUNTIME_CLASS};

use super::{Request, pod};
use crate::core::Core;

/// The RuntimeClass that a pod names must exist; its overhead and its scheduling rules become the pod's.
pub(super) async fn apply(core: &Core, request: &Request<'_>, object: &mut Object) -> Result<(), ApiError> {
    let Some(name) = object.str_at(&["spec", "runtimeClassName"]).filter(|name| !name.is_empty()).map(str::to_owned)
    else {
        return Ok(());
    };
    let classes = core.row("node.k8s.io", "v1", "runtimeclasses")?;
    let own = object.name().to_owned();
    let Some(class) = core.objects.find(&classes, None, &name).await? else {
        return Err(request.forbidden(&own, format!("pod rejected: RuntimeClass {name:?} not found")));
    };
    if let Some(overhead) = class.at(&["overhead", "podFixed"]) {
        match object.at(&["spec", "overhead"]) {
            None => object.set(&["spec", "overhead"], overhead.clone()),
            Some(given) if given == overhead => {}
            Some(_) => {
                let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
                return Err(request.forbidden(&own, why));
            }
        }
    }
    schedule(request, object, &class)?;
    if name == WASM_RUNTIME_CLASS {
        pod::tolerate_no_containers(object);
    }
    Ok(())
}

fn schedule(request: &Request<'_>, object: &mut Object, class: &Object) -> Result<(), ApiError> {
    let selector = class.at(&["scheduling", "nodeSelector"]).and_then(Value::as_object);
    for (key, value) in selector.into_iter().flatten() {
        let given = object.at(&["spec", "nodeSelector"]).and_then(|selector| selector.get(key));
        if given.is_some_and(|given| given != value) {
            let why = "pod rejected: conflict: runtimeClass.scheduling.nodeSelector and pod.spec.nodeSelector";
            return Err(request.forbidden(object.name(), why));
        }
        object.set(&["spec", "nodeSelector", key], value.clone());
    }
    let mut tolerations = object.array_at(&["spec", "tolerations"]).to_vec();
    for toleration in class.array_at(&["scheduling", "tolerations"]) {
        if !tolerations.contains(toleration) {
            tolerations.push(toleration.clone());
        }
    }
    if !tolerations.is_empty() {
        object.set(&["spec", "tolerations"], tolerations);
    }
    Ok(())
}
