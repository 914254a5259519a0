use serde_json::{Value, json};
use tandem_api::{ApiError, Object};

use super::Request;
use crate::core::Core;

const DEFAULT: &str = "default";
/// Where programs look for their credentials.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
const SUFFIX_LENGTH: usize = 5;
/// One hour and a little: tools take exactly one hour for a token that was asked for by hand.
const TOKEN_SECONDS: i64 = 3607;

/// Gives a pod its ServiceAccount, with the account's pull secrets and a volume with a token for the API.
pub(super) async fn assign(core: &Core, request: &Request<'_>, pod: &mut Object) -> Result<(), ApiError> {
    let is_mirror = pod.annotations().any(|(key, _)| key == "kubernetes.io/config.mirror");
    if is_mirror {
        return Ok(());
    }
    let old_name = pod.str_at(&["spec", "serviceAccount"]).map(str::to_owned);
    let name = pod.str_at(&["spec", "serviceAccountName"]).map(str::to_owned).or(old_name);
    let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| DEFAULT.to_owned());
    pod.set(&["spec", "serviceAccountName"], name.as_str());
    pod.set(&["spec", "serviceAccount"], name.as_str());
    let accounts = core.row("", "v1", "serviceaccounts")?;
    let account = core.objects.find(&accounts, request.namespace, &name).await?;
    let Some(account) = account else {
        let namespace = request.namespace.unwrap_or_default();
        let own = if pod.name().is_empty() { pod.generate_name() } else { pod.name() };
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        return Err(request.forbidden(own, why));
    };
    if pod.array_at(&["spec", "imagePullSecrets"]).is_empty() && !account.array_at(&["imagePullSecrets"]).is_empty() {
        pod.set(&["spec", "imagePullSecrets"], account.array_at(&["imagePullSecrets"]).to_vec());
    }
    let flag = |object: &Object, path: &[&str]| object.at(path).and_then(Value::as_bool);
    let wanted = flag(pod, &["spec", "automountServiceAccountToken"])
        .or_else(|| flag(&account, &["automountServiceAccountToken"]))
        .unwrap_or(true);
    if wanted {
        mount(pod, &format!("{VOLUME_PREFIX}{}", core.entropy.suffix(SUFFIX_LENGTH)));
    }
    Ok(())
}

/// Mounts the credentials into every container that has nothing at their path, as Kubernetes does.
fn mount(pod: &mut Object, fresh: &str) {
    let existing = pod.array_at(&["spec", "volumes"]).iter().find_map(|volume| {
        let name = volume.get("name")?.as_str()?;
        let ours = name.starts_with(VOLUME_PREFIX) && volume.get("projected").is_some();
        ours.then(|| name.to_owned())
    });
    let name = existing.clone().unwrap_or_else(|| fresh.to_owned());
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        let Some(Value::Array(containers)) = pod.at_mut(&["spec", list]) else { continue };
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Value::Array(mounts) = mounts else { continue };
            let taken = mounts.iter().any(|mount| mount.get("mountPath").and_then(Value::as_str) == Some(MOUNT_PATH));
            if !taken {
                needed = true;
                mounts.push(json!({ "name": name, "readOnly": true, "mountPath": MOUNT_PATH }));
            }
        }
    }
    if needed && existing.is_none() {
        let mut volumes = pod.array_at(&["spec", "volumes"]).to_vec();
        volumes.push(volume(&name));
        pod.set(&["spec", "volumes"], volumes);
    }
}

fn volume(name: &str) -> Value {
    json!({ "name": name, "projected": { "defaultMode": 0o644, "sources": [
        { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
        { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        { "downwardAPI": { "items": [{
            "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" },
        }] } },
    ] } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_mounted_once() {
        let mut pod = Object::from_value(json!({"spec": {"containers": [
            {"name": "a"},
            {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]},
        ]}}))
        .unwrap();
        mount(&mut pod, "kube-api-access-x");
        let once = pod.clone();
        mount(&mut pod, "kube-api-access-y");
        assert_eq!(pod, once);
        assert_eq!(pod.array_at(&["spec", "volumes"])[0]["name"], "kube-api-access-x");
        assert_eq!(pod.array_at(&["spec", "containers"])[0]["volumeMounts"][0]["name"], "kube-api-access-x");
        assert_eq!(pod.array_at(&["spec", "containers"])[1]["volumeMounts"].as_array().unwrap().len(), 1);
    }
}
