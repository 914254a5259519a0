//! Pods and pod templates: what the writer of a pod leaves out.

use serde_json::json;
use tandem_api::Object;

use crate::json::{Fields, FieldsExt};

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// The defaults of a `PodTemplateSpec` at a key of `owner`.
pub(super) fn default_template(owner: &mut Fields, key: &str) {
    if let Some(spec) = owner.child_mut(key).and_then(|template| template.child_or_new("spec")) {
        default_spec(spec);
    }
}

pub(super) fn default_pod(object: &mut Object) {
    let Some(spec) = object.0.child_or_new("spec") else { return };
    default_spec(spec);
    spec.or_set("enableServiceLinks", true);
    let host_network = spec.flag("hostNetwork");
    for list in ["initContainers", "containers"] {
        for container in spec.each_mut(list) {
            request_limits(container);
            if host_network {
                container.each_mut("ports").for_each(|port| {
                    port.or_nonzero("hostPort", port.int("containerPort").unwrap_or_default());
                });
            }
        }
    }
    if let Some(resources) = spec.child_mut("resources") {
        let limits = resources.child("limits").cloned().unwrap_or_default();
        copy_missing(resources, "requests", limits);
    }
}

/// What is limited but not requested is requested up to its limit.
fn request_limits(container: &mut Fields) {
    let Some(resources) = container.child_mut("resources") else { return };
    let limits = resources.child("limits").cloned().unwrap_or_default();
    copy_missing(resources, "requests", limits);
}

fn copy_missing(owner: &mut Fields, key: &str, from: Fields) {
    if from.is_empty() {
        return;
    }
    let Some(into) = owner.child_or_new(key) else { return };
    for (name, amount) in from {
        into.or_set(&name, amount);
    }
}

fn default_spec(spec: &mut Fields) {
    for list in CONTAINER_LISTS {
        spec.each_mut(list).for_each(default_container);
    }
    spec.each_mut("volumes").for_each(default_volume);
    spec.or_text("restartPolicy", "Always");
    spec.or_set("terminationGracePeriodSeconds", 30);
    spec.or_text("dnsPolicy", "ClusterFirst");
    mirror_service_account(spec);
    spec.or_set("securityContext", Fields::new());
    spec.or_text("schedulerName", "default-scheduler");
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are always written.
pub(super) fn mirror_service_account(spec: &mut Fields) {
    let name = Some(spec.text("serviceAccountName")).filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| spec.text("serviceAccount")).to_owned();
    if !name.is_empty() {
        spec.insert("serviceAccountName".to_owned(), name.as_str().into());
        spec.insert("serviceAccount".to_owned(), name.into());
    }
}

fn default_container(container: &mut Fields) {
    let policy = pull_policy(container.text("image"));
    container.or_text("imagePullPolicy", policy);
    container.or_text("terminationMessagePath", "/dev/termination-log");
    container.or_text("terminationMessagePolicy", "File");
    container.or_set("resources", Fields::new());
    container.each_mut("ports").for_each(|port| port.or_text("protocol", "TCP"));
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.child_mut(probe) {
            probe.or_nonzero("timeoutSeconds", 1);
            probe.or_nonzero("periodSeconds", 10);
            probe.or_nonzero("successThreshold", 1);
            probe.or_nonzero("failureThreshold", 3);
            default_http_get(probe);
        }
    }
    if let Some(lifecycle) = container.child_mut("lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = lifecycle.child_mut(hook) {
                default_http_get(hook);
            }
        }
    }
    for variable in container.each_mut("env") {
        if let Some(source) = variable.child_mut("valueFrom") {
            default_field_ref(source);
        }
    }
}

fn default_http_get(handler: &mut Fields) {
    if let Some(get) = handler.child_mut("httpGet") {
        get.or_text("path", "/");
        get.or_text("scheme", "HTTP");
    }
}

fn default_field_ref(owner: &mut Fields) {
    if let Some(field) = owner.child_mut("fieldRef") {
        field.or_text("apiVersion", "v1");
    }
}

/// Images without a tag, or tagged `latest`, may change under their name.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or_default();
    match (last.split_once(':').map(|(_, tag)| tag), digest) {
        (Some("latest"), _) | (None, None) => "Always",
        _ => "IfNotPresent",
    }
}

fn default_volume(volume: &mut Fields) {
    if volume.keys().all(|key| key == "name") {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.child_mut(source) {
            source.or_set("defaultMode", 0o644);
            source.each_mut("items").for_each(default_field_ref);
            source.each_mut("sources").for_each(default_projection);
        }
    }
    if let Some(path) = volume.child_mut("hostPath") {
        path.or_set("type", "");
    }
    if let Some(iscsi) = volume.child_mut("iscsi") {
        iscsi.or_text("iscsiInterface", "default");
    }
    if let Some(image) = volume.child_mut("image") {
        let policy = pull_policy(image.text("reference"));
        image.or_text("pullPolicy", policy);
    }
    let template = volume.child_mut("ephemeral").and_then(|ephemeral| ephemeral.child_mut("volumeClaimTemplate"));
    if let Some(spec) = template.and_then(|template| template.child_mut("spec")) {
        spec.or_text("volumeMode", "Filesystem");
    }
}

fn default_projection(source: &mut Fields) {
    if let Some(token) = source.child_mut("serviceAccountToken") {
        token.or_set("expirationSeconds", 3600);
    }
    if let Some(downward) = source.child_mut("downwardAPI") {
        downward.each_mut("items").for_each(default_field_ref);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.25", "IfNotPresent"),
            ("registry:5000/nginx", "Always"),
            ("registry:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
            ("nginx:latest@sha256:00", "Always"),
            ("", "Always"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
