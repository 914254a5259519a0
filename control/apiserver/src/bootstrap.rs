//! What a cluster has before anybody asks for it.

use serde_json::{Value, json};
use tandem_api::{
    ApiError, DEFAULT_INGRESS_CLASS_ANNOTATION, INGRESS_CLASS, INGRESS_CONTROLLER, Identity, Object, Reason,
    WASM_RUNTIME_CLASS, volumes,
};

use crate::{
    aggregation,
    authz::{defaults, rbac},
    core::Core,
    options::WriteOptions,
    write::{self, Author, Ownership, Target},
};

/// The PriorityClasses that Kubernetes reserves for what a cluster, or a node, cannot be without.
const PRIORITIES: [(&str, i64, &str); 2] = [
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// The port behind the `kubernetes` Service.
const API_PORT: u16 = 6443;

/// Creates what is missing, through the same path as everything else. Safe to repeat, and to run on several members.
///
/// Default classes are for new clusters only: an administrator may have removed them, or have others.
pub(crate) async fn ensure(core: &Core) -> Result<(), ApiError> {
    let namespaces = core.row("", "v1", "namespaces")?;
    let at = tandem_store::Consistency::Linearizable;
    let is_new = core.objects.get(&namespaces, None, NAMESPACES[0], at).await?.is_none();
    // The namespaces come last of these: whoever was interrupted before them begins again.
    let classes = if is_new { default_classes() } else { Vec::new() };
    for (group, resource, object) in classes.into_iter().chain(objects(core)) {
        let def = core.row(group, "v1", resource)?;
        let object =
            Object::from_value(object).ok_or_else(|| ApiError::internal("a built-in object is not an object"))?;
        let (name, namespace) = (object.name().to_owned(), object.namespace().map(str::to_owned));
        let target = Target { def: &def, namespace: namespace.as_deref(), name: &name, subresource: "" };
        let options = WriteOptions { manager: "tandem-apiserver".to_owned(), ..WriteOptions::default() };
        let identity = Identity::administrator();
        let author = Author { identity: &identity, trace: "", options: &options, fence: None, warnings: None };
        match write::create(core, &author, &target, object.clone(), Ownership::Update).await {
            Err(error) if error.reason != Reason::AlreadyExists && !is_taken(core, &target, &error).await? => {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

/// A Service whose address is taken by itself is there.
async fn is_taken(core: &Core, target: &Target<'_>, error: &ApiError) -> Result<bool, ApiError> {
    let at = tandem_store::Consistency::Linearizable;
    Ok(error.reason == Reason::Invalid
        && core.objects.get(target.def, target.namespace, target.name, at).await?.is_some())
}

fn default_classes() -> Vec<(&'static str, &'static str, Value)> {
    let ingress = json!({
        "kind": "IngressClass", "apiVersion": "networking.k8s.io/v1",
        "metadata": { "name": INGRESS_CLASS, "annotations": { DEFAULT_INGRESS_CLASS_ANNOTATION: "true" } },
        "spec": { "controller": INGRESS_CONTROLLER },
    });
    let storage = json!({
        "kind": "StorageClass", "apiVersion": "storage.k8s.io/v1",
        "metadata": { "name": "standard", "annotations": { volumes::DEFAULT_CLASS: "true" } },
        "provisioner": volumes::PROVISIONER, "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    vec![("networking.k8s.io", "ingressclasses", ingress), ("storage.k8s.io", "storageclasses", storage)]
}

/// What API servers beside this one need to know, to be asked by it and to ask it who their own clients are.
fn for_other_servers(core: &Core) -> Vec<(&'static str, &'static str, Value)> {
    const NAME: &str = "extension-apiserver-authentication";
    let Some(pki) = &core.pki else { return Vec::new() };
    let list = |text: &str| json!([text]).to_string();
    let config = json!({
        "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": NAME, "namespace": "kube-system" },
        "data": {
            "client-ca-file": pki.cluster.certificate(),
            "requestheader-client-ca-file": pki.front_proxy.certificate(),
            "requestheader-allowed-names": list(aggregation::CLIENT_NAME),
            "requestheader-username-headers": list("X-Remote-User"),
            "requestheader-uid-headers": list("X-Remote-Uid"),
            "requestheader-group-headers": list("X-Remote-Group"),
            "requestheader-extra-headers-prefix": list("X-Remote-Extra-"),
        },
    });
    let role = json!({
        "kind": "Role", "apiVersion": format!("{}/v1", rbac::GROUP),
        "metadata": {
            "name": format!("{NAME}-reader"), "namespace": "kube-system",
            "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" },
        },
        "rules": [{ "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NAME], "verbs": ["get", "list", "watch"] }],
    });
    vec![("", "configmaps", config), (rbac::GROUP, "roles", role)]
}

fn objects(core: &Core) -> Vec<(&'static str, &'static str, Value)> {
    let mut objects: Vec<(&str, &str, Value)> = NAMESPACES
        .iter()
        .map(|name| {
            let namespace = json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": { "name": name } });
            ("", "namespaces", namespace)
        })
        .collect();
    objects.push((
        "node.k8s.io",
        "runtimeclasses",
        json!({
            "kind": "RuntimeClass", "apiVersion": "node.k8s.io/v1", "metadata": { "name": WASM_RUNTIME_CLASS },
            "handler": WASM_RUNTIME_CLASS,
        }),
    ));
    objects.extend(PRIORITIES.iter().map(|(name, value, description)| {
        let class = json!({
            "kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "metadata": { "name": name },
            "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority",
        });
        ("scheduling.k8s.io", "priorityclasses", class)
    }));
    objects.push((
        "networking.k8s.io",
        "servicecidrs",
        json!({
            "kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1", "metadata": { "name": "kubernetes" },
            "spec": { "cidrs": [core.settings.service_cidr.to_string()] },
        }),
    ));
    let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
    objects.push((
        "",
        "services",
        json!({
            "kind": "Service", "apiVersion": "v1",
            "metadata": { "name": "kubernetes", "namespace": "default", "labels": labels },
            "spec": {
                "type": "ClusterIP", "clusterIP": core.settings.kubernetes_service().to_string(), "sessionAffinity": "None",
                "ports": [{ "name": "https", "protocol": "TCP", "port": 443, "targetPort": API_PORT }],
            },
        }),
    ));
    objects.extend(for_other_servers(core));
    objects.extend(defaults::roles().into_iter().map(|role| (rbac::GROUP, "clusterroles", role)));
    objects.extend(defaults::bindings().into_iter().map(|binding| (rbac::GROUP, "clusterrolebindings", binding)));
    objects
}
