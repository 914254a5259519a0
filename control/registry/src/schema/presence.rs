//! Which optional scalars tell "zero" from "not set".
//!
//! Kubernetes' own types are Go structs: an optional field is either a pointer, whose zero is a statement
//! (`replicas: 0`), or a plain value, whose zero is the same as none (`hostPort: 0`). Protobuf clients send plain zeros
//! always and JSON clients may, so the two must be told apart.

/// Fields that are pointers wherever they appear.
const ANYWHERE: &[&str] = &[
    "activeDeadlineSeconds", "adminAccess", "allocateLoadBalancerNodePorts", "allowMultipleAllocations",
    "allowPrivilegeEscalation", "allowVolumeExpansion", "attachRequired", "automountServiceAccountToken",
    "averageUtilization", "backoffLimit", "backoffLimitPerIndex", "bindsToNode", "blockOwnerDeletion", "bool",
    "borrowingLimitPercent", "collisionCount", "completions", "controller", "currentCPUUtilizationPercentage",
    "defaultMode", "deletionGracePeriodSeconds", "dryRun", "enableServiceLinks", "endPort", "expirationSeconds",
    "failedJobsHistoryLimit", "fsGroup", "gracePeriodSeconds", "hostProcess", "hostUsers", "immutable", "int",
    "leaseDurationSeconds", "leaseTransitions", "lendablePercent", "limitBytes", "manualSelector",
    "maxExpirationSeconds", "maxFailedIndexes", "minDomains", "minReplicas", "mode", "nominalConcurrencyShares",
    "optional", "orphanDependents", "parallelism", "podInfoOnMount", "privileged", "progressDeadlineSeconds",
    "readOnlyRootFilesystem", "remainingItemCount", "requiresRepublish", "revisionHistoryLimit", "runAsGroup",
    "runAsNonRoot", "runAsUser", "seLinuxMount", "serving", "setHostnameAsFQDN", "shareProcessNamespace",
    "sinceSeconds", "stabilizationWindowSeconds", "started", "startingDeadlineSeconds", "storageCapacity",
    "succeededCount", "successfulJobsHistoryLimit", "suspend", "tailLines", "targetCPUUtilizationPercentage",
    "terminating", "terminatingReplicas", "terminationGracePeriodSeconds", "tolerationSeconds",
    "ttlSecondsAfterFinished", "x-kubernetes-preserve-unknown-fields",
    // Text whose empty value means something of its own.
    "appProtocol", "ingressClassName", "loadBalancerClass", "runtimeClassName", "storageClassName", "timeZone",
    "volumeAttributesClassName",
];

/// Fields that are pointers in these types and plain values elsewhere.
const IN_TYPE: &[(&str, &str)] = &[
    ("apps.v1.DeploymentSpec", "replicas"),
    ("apps.v1.ReplicaSetSpec", "replicas"),
    ("apps.v1.StatefulSetSpec", "replicas"),
    ("core.v1.ReplicationControllerSpec", "replicas"),
    ("apps.v1.RollingUpdateStatefulSetStrategy", "partition"),
    ("core.v1.PodSpec", "priority"),
    ("core.v1.ClientIPConfig", "timeoutSeconds"),
    ("admissionregistration.v1.MutatingWebhook", "timeoutSeconds"),
    ("admissionregistration.v1.ValidatingWebhook", "timeoutSeconds"),
    ("admissionregistration.v1.ServiceReference", "port"),
    ("apiextensions.v1.ServiceReference", "port"),
    ("apiregistration.v1.ServiceReference", "port"),
    ("discovery.v1.EndpointPort", "port"),
    ("discovery.v1.EndpointPort", "name"),
    ("discovery.v1.EndpointConditions", "ready"),
    ("batch.v1.JobStatus", "ready"),
    ("core.v1.FCVolumeSource", "lun"),
    ("core.v1.CSIVolumeSource", "readOnly"),
    ("core.v1.AzureDiskVolumeSource", "readOnly"),
    ("storage.v1.VolumeNodeResources", "count"),
    ("autoscaling.v1.HorizontalPodAutoscalerStatus", "observedGeneration"),
    ("autoscaling.v2.HorizontalPodAutoscalerStatus", "observedGeneration"),
    ("core.v1.HostPathVolumeSource", "type"),
];

const SCHEMA_LIMITS: &[&str] = &[
    "maximum", "minimum", "maxLength", "minLength", "maxItems", "minItems", "multipleOf", "maxProperties", "minProperties",
];

pub(super) fn distinguishes_zero(owner: &str, field: &str) -> bool {
    ANYWHERE.contains(&field)
        || IN_TYPE.contains(&(owner, field))
        || (owner == "apiextensions.v1.JSONSchemaProps" && SCHEMA_LIMITS.contains(&field))
}
