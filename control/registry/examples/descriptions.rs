//! Writes `data/descriptions.tsv.gz` from the schemas of the k8s-openapi crate: type, field (empty for the type itself),
//! description. Run it when the served Kubernetes release changes:
//! `cargo run -p tandem-registry --example descriptions -- control/registry/data/descriptions.tsv.gz`

use std::{collections::BTreeMap, io::Write};

use flate2::{Compression, GzBuilder};
use k8s_openapi::{
    api::{
        admissionregistration::v1 as admission, apps::v1 as apps, authentication::v1 as authentication,
        authorization::v1 as authorization, autoscaling::v1 as autoscaling_v1, autoscaling::v2 as autoscaling,
        batch::v1 as batch, certificates::v1 as certificates, coordination::v1 as coordination, core::v1 as core,
        discovery::v1 as discovery, events::v1 as events, flowcontrol::v1 as flowcontrol, networking::v1 as networking,
        node::v1 as node, policy::v1 as policy, rbac::v1 as rbac, resource::v1 as resource,
        scheduling::v1 as scheduling, storage::v1 as storage,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions,
    apimachinery::pkg::apis::meta::v1 as meta,
    kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration,
    schemars::{JsonSchema, SchemaGenerator},
};
use serde_json::Value;

macro_rules! roots {
    ($generator:expr, $($module:ident: $($kind:ident)*;)*) => { $($(add::<$module::$kind>($generator);)*)* };
}

fn add<K: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<K>();
}

fn collect(generator: &mut SchemaGenerator) {
    roots! { generator,
        admission: MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration
            ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration;
        apiextensions: CustomResourceDefinition;
        apiregistration: APIService;
        apps: ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet;
        authentication: SelfSubjectReview TokenRequest TokenReview;
        authorization: LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview;
        autoscaling_v1: HorizontalPodAutoscaler Scale;
        autoscaling: HorizontalPodAutoscaler;
        batch: CronJob Job;
        certificates: CertificateSigningRequest;
        coordination: Lease;
        core: Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume
            PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount;
        discovery: EndpointSlice;
        events: Event;
        flowcontrol: FlowSchema PriorityLevelConfiguration;
        meta: APIGroup APIResourceList DeleteOptions Status ListMeta;
        networking: IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR;
        node: RuntimeClass;
        policy: Eviction PodDisruptionBudget;
        rbac: ClusterRole ClusterRoleBinding Role RoleBinding;
        resource: DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice;
        scheduling: PriorityClass;
        storage: CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass;
    }
}

/// `io.k8s.api.apps.v1.Deployment` to `apps.v1.Deployment`.
fn short(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    parts[parts.len().saturating_sub(3)..].join(".")
}

fn line(lines: &mut BTreeMap<(String, String), String>, ty: &str, field: &str, schema: &Value) {
    if let Some(text) = schema.get("description").and_then(Value::as_str) {
        let text = text.replace('\\', "\\\\").replace('\t', " ").replace('\n', "\\n");
        lines.insert((ty.to_owned(), field.to_owned()), text);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: descriptions FILE")?;
    let mut generator = SchemaGenerator::default();
    collect(&mut generator);
    let mut lines = BTreeMap::new();
    for (name, schema) in generator.definitions() {
        let ty = short(name);
        line(&mut lines, &ty, "", schema);
        for (field, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            line(&mut lines, &ty, field, schema);
        }
    }
    // No name and no time in the header: the same input gives the same file.
    let mut file = GzBuilder::new().write(std::fs::File::create(path)?, Compression::best());
    for ((ty, field), text) in lines {
        writeln!(file, "{ty}\t{field}\t{text}")?;
    }
    file.finish()?;
    Ok(())
}
