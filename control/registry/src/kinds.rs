//! What is particular to single kinds: one file a family, joined to the rows here.

mod admission;
mod batch;
mod conversion;
mod core;
mod event;
mod network;
pub(crate) mod pod;
mod policy;
mod rbac;
mod service;
mod storage;
mod template;
#[cfg(test)]
mod tests;
mod usage;
mod workloads;

pub(crate) use conversion::{AUTOSCALER_V1_AS_V2, EVENTS_AS_CORE};

use crate::Hooks;

/// The hooks of a kind.
pub(crate) fn hooks(group: &str, kind: &str) -> Hooks {
    match (group, kind) {
        ("", "ComponentStatus") => core::COMPONENT_STATUS,
        ("", "ConfigMap") => core::CONFIG_MAP,
        ("", "Endpoints") => service::ENDPOINTS,
        ("", "Event") => event::CORE,
        ("", "LimitRange") => core::LIMIT_RANGE,
        ("", "Namespace") => core::NAMESPACE,
        ("", "Node") => core::NODE,
        ("", "PersistentVolume") => storage::VOLUME,
        ("", "PersistentVolumeClaim") => storage::CLAIM,
        ("", "Pod") => pod::HOOKS,
        ("", "PodTemplate") => workloads::POD_TEMPLATE,
        ("", "ReplicationController") => workloads::REPLICATION_CONTROLLER,
        ("", "ResourceQuota") => core::RESOURCE_QUOTA,
        ("", "Secret") => core::SECRET,
        ("", "Service") => service::SERVICE,
        ("", "ServiceAccount") => core::SERVICE_ACCOUNT,
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy") => admission::MUTATING_POLICY,
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding") => admission::MUTATING_POLICY_BINDING,
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration") => admission::MUTATING_WEBHOOKS,
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => admission::VALIDATING_POLICY,
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => admission::VALIDATING_POLICY_BINDING,
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration") => admission::VALIDATING_WEBHOOKS,
        ("apiextensions.k8s.io", "CustomResourceDefinition") => admission::CUSTOM_RESOURCE,
        ("apiregistration.k8s.io", "APIService") => admission::API_SERVICE,
        ("apps", "ControllerRevision") => workloads::CONTROLLER_REVISION,
        ("apps", "DaemonSet") => workloads::DAEMON_SET,
        ("apps", "Deployment") => workloads::DEPLOYMENT,
        ("apps", "ReplicaSet") => workloads::REPLICA_SET,
        ("apps", "StatefulSet") => workloads::STATEFUL_SET,
        ("autoscaling", "HorizontalPodAutoscaler") => policy::AUTOSCALER,
        ("batch", "CronJob") => batch::CRON_JOB,
        ("batch", "Job") => batch::JOB,
        ("certificates.k8s.io", "CertificateSigningRequest") => policy::SIGNING_REQUEST,
        ("coordination.k8s.io", "Lease") => policy::LEASE,
        ("discovery.k8s.io", "EndpointSlice") => service::ENDPOINT_SLICE,
        ("events.k8s.io", "Event") => event::EVENTS,
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => policy::FLOW_SCHEMA,
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => policy::PRIORITY_LEVEL,
        ("metrics.k8s.io", "NodeMetrics") => usage::NODE,
        ("metrics.k8s.io", "PodMetrics") => usage::POD,
        ("networking.k8s.io", "IPAddress") => network::IP_ADDRESS,
        ("networking.k8s.io", "Ingress") => network::INGRESS,
        ("networking.k8s.io", "IngressClass") => network::INGRESS_CLASS,
        ("networking.k8s.io", "NetworkPolicy") => network::NETWORK_POLICY,
        ("networking.k8s.io", "ServiceCIDR") => network::SERVICE_CIDR,
        ("node.k8s.io", "RuntimeClass") => policy::RUNTIME_CLASS,
        ("policy", "PodDisruptionBudget") => policy::DISRUPTION_BUDGET,
        ("rbac.authorization.k8s.io", "ClusterRole") => rbac::CLUSTER_ROLE,
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => rbac::CLUSTER_BINDING,
        ("rbac.authorization.k8s.io", "Role") => rbac::ROLE,
        ("rbac.authorization.k8s.io", "RoleBinding") => rbac::BINDING,
        ("resource.k8s.io", "DeviceClass") => policy::DEVICE_CLASS,
        ("resource.k8s.io", "ResourceClaim") => policy::RESOURCE_CLAIM,
        ("resource.k8s.io", "ResourceClaimTemplate") => policy::RESOURCE_CLAIM_TEMPLATE,
        ("resource.k8s.io", "ResourceSlice") => policy::RESOURCE_SLICE,
        ("scheduling.k8s.io", "PriorityClass") => policy::PRIORITY_CLASS,
        ("storage.k8s.io", "CSIDriver") => storage::CSI_DRIVER,
        ("storage.k8s.io", "CSINode") => storage::CSI_NODE,
        ("storage.k8s.io", "CSIStorageCapacity") => storage::CSI_CAPACITY,
        ("storage.k8s.io", "StorageClass") => storage::STORAGE_CLASS,
        ("storage.k8s.io", "VolumeAttachment") => storage::ATTACHMENT,
        ("storage.k8s.io", "VolumeAttributesClass") => storage::ATTRIBUTES_CLASS,
        _ => Hooks::NONE,
    }
}
