use std::borrow::Cow;

use crate::Column;

const NAME_TEXT: &str = "Name must be unique within a namespace.";
const AGE_TEXT: &str = "The time since the object was created.";

const NAME: Column = column("Name", "string", "name", 0, NAME_TEXT);
const AGE: Column = text("Age");

const fn column(
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    priority: i32,
    description: &'static str,
) -> Column {
    Column { name: Cow::Borrowed(name), kind, format, description: Cow::Borrowed(description), priority }
}

const fn text(name: &'static str) -> Column {
    column(name, "string", "", 0, if matches!(name.as_bytes(), b"Age") { AGE_TEXT } else { "" })
}

const fn number(name: &'static str) -> Column {
    column(name, "integer", "", 0, "")
}

const fn flag(name: &'static str) -> Column {
    column(name, "boolean", "", 0, "")
}

/// A column that shows with `-o wide` only.
const fn wide(name: &'static str) -> Column {
    column(name, "string", "", 1, "")
}

/// The columns of a kind.
pub(crate) fn columns(group: &str, kind: &str) -> &'static [Column] {
    match group {
        "" => core(kind),
        "apps" | "batch" => workloads(kind),
        "networking.k8s.io" | "discovery.k8s.io" => network(kind),
        "storage.k8s.io" => storage(kind),
        "admissionregistration.k8s.io" | "apiregistration.k8s.io" => admission(kind),
        _ => others(kind),
    }
}

const DEFAULT: &[Column] = &[NAME, column("Created At", "date", "", 0, "When the object was created.")];

fn core(kind: &str) -> &'static [Column] {
    match kind {
        "ComponentStatus" => const { &[NAME, text("Status"), text("Message"), text("Error")] },
        "ConfigMap" => const { &[NAME, number("Data"), AGE] },
        "Endpoints" => const { &[NAME, text("Endpoints"), AGE] },
        "Event" => EVENT,
        "Namespace" => const { &[NAME, text("Status"), AGE] },
        "Node" => NODE_COLUMNS,
        "PersistentVolume" => PERSISTENT_VOLUME_COLUMNS,
        "PersistentVolumeClaim" => PERSISTENT_VOLUME_CLAIM_COLUMNS,
        "Pod" => POD_COLUMNS,
        "PodTemplate" => const { &[NAME, text("Containers"), text("Images"), text("Pod Labels")] },
        "ReplicationController" => REPLICAS,
        "ResourceQuota" => const { &[NAME, text("Request"), text("Limit"), AGE] },
        "Secret" => const { &[NAME, text("Type"), number("Data"), AGE] },
        "Service" => {
            const { &[NAME, text("Type"), text("Cluster-IP"), text("External-IP"), text("Port(s)"), AGE, wide("Selector")] }
        }
        "ServiceAccount" => const { &[NAME, text("Secrets"), AGE] },
        _ => DEFAULT,
    }
}

const EVENT: &[Column] = &[
    text("Last Seen"),
    text("Type"),
    text("Reason"),
    text("Object"),
    wide("Subobject"),
    wide("Source"),
    text("Message"),
    wide("First Seen"),
    wide("Count"),
    column("Name", "string", "name", 1, NAME_TEXT),
];

const NODE_COLUMNS: &[Column] = &[
    NAME,
    text("Status"),
    text("Roles"),
    AGE,
    text("Version"),
    wide("Internal-IP"),
    wide("External-IP"),
    wide("OS-Image"),
    wide("Kernel-Version"),
    wide("Container-Runtime"),
];

const PERSISTENT_VOLUME_COLUMNS: &[Column] = &[
    NAME,
    text("Capacity"),
    text("Access Modes"),
    text("Reclaim Policy"),
    text("Status"),
    text("Claim"),
    text("StorageClass"),
    text("VolumeAttributesClass"),
    text("Reason"),
    AGE,
    wide("VolumeMode"),
];

const PERSISTENT_VOLUME_CLAIM_COLUMNS: &[Column] = &[
    NAME,
    text("Status"),
    text("Volume"),
    text("Capacity"),
    text("Access Modes"),
    text("StorageClass"),
    text("VolumeAttributesClass"),
    AGE,
    wide("VolumeMode"),
];

const POD_COLUMNS: &[Column] = &[
    NAME,
    text("Ready"),
    text("Status"),
    text("Restarts"),
    AGE,
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];

const CRON_JOB_COLUMNS: &[Column] = &[
    NAME,
    text("Schedule"),
    text("Timezone"),
    flag("Suspend"),
    number("Active"),
    text("Last Schedule"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

const DAEMON_SET_COLUMNS: &[Column] = &[
    NAME,
    number("Desired"),
    number("Current"),
    number("Ready"),
    number("Up-to-date"),
    number("Available"),
    text("Node Selector"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

const DEPLOYMENT_COLUMNS: &[Column] = &[
    NAME,
    text("Ready"),
    text("Up-to-date"),
    text("Available"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

const JOB_COLUMNS: &[Column] = &[
    NAME,
    text("Status"),
    text("Completions"),
    text("Duration"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

const CSIDRIVER_COLUMNS: &[Column] = &[
    NAME,
    flag("AttachRequired"),
    flag("PodInfoOnMount"),
    flag("StorageCapacity"),
    text("TokenRequests"),
    flag("RequiresRepublish"),
    text("Modes"),
    AGE,
];

const STORAGE_CLASS_COLUMNS: &[Column] =
    &[NAME, text("Provisioner"), text("ReclaimPolicy"), text("VolumeBindingMode"), flag("AllowVolumeExpansion"), AGE];

const FLOW_SCHEMA_COLUMNS: &[Column] =
    &[NAME, text("PriorityLevel"), number("MatchingPrecedence"), text("DistinguisherMethod"), AGE, text("MissingPL")];

const PRIORITY_LEVEL_CONFIGURATION_COLUMNS: &[Column] = &[
    NAME,
    text("Type"),
    text("NominalConcurrencyShares"),
    text("Queues"),
    text("HandSize"),
    text("QueueLengthLimit"),
    AGE,
];

const REPLICAS: &[Column] = &[
    NAME,
    number("Desired"),
    number("Current"),
    number("Ready"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

fn workloads(kind: &str) -> &'static [Column] {
    match kind {
        "ControllerRevision" => const { &[NAME, text("Controller"), text("Revision"), AGE] },
        "CronJob" => CRON_JOB_COLUMNS,
        "DaemonSet" => DAEMON_SET_COLUMNS,
        "Deployment" => DEPLOYMENT_COLUMNS,
        "Job" => JOB_COLUMNS,
        "ReplicaSet" => REPLICAS,
        "StatefulSet" => const { &[NAME, text("Ready"), AGE, wide("Containers"), wide("Images")] },
        _ => DEFAULT,
    }
}

fn network(kind: &str) -> &'static [Column] {
    match kind {
        "EndpointSlice" => const { &[NAME, text("AddressType"), text("Ports"), text("Endpoints"), AGE] },
        "Ingress" => const { &[NAME, text("Class"), text("Hosts"), text("Address"), text("Ports"), AGE] },
        "IngressClass" => const { &[NAME, text("Controller"), text("Parameters"), AGE] },
        "IPAddress" => const { &[NAME, text("ParentRef"), AGE] },
        "NetworkPolicy" => const { &[NAME, text("Pod-Selector"), AGE] },
        "ServiceCIDR" => const { &[NAME, text("CIDRs"), AGE] },
        _ => DEFAULT,
    }
}

fn storage(kind: &str) -> &'static [Column] {
    match kind {
        "CSIDriver" => CSIDRIVER_COLUMNS,
        "CSINode" => const { &[NAME, number("Drivers"), AGE] },
        "CSIStorageCapacity" => const { &[NAME, text("StorageClassName"), text("Capacity")] },
        "StorageClass" => STORAGE_CLASS_COLUMNS,
        "VolumeAttachment" => const { &[NAME, text("Attacher"), text("PV"), text("Node"), flag("Attached"), AGE] },
        "VolumeAttributesClass" => const { &[NAME, text("DriverName"), AGE] },
        _ => DEFAULT,
    }
}

fn admission(kind: &str) -> &'static [Column] {
    match kind {
        "APIService" => const { &[NAME, text("Service"), text("Available"), AGE] },
        "MutatingAdmissionPolicy" => const { &[NAME, number("Mutations"), text("ParamKind"), AGE] },
        "ValidatingAdmissionPolicy" => const { &[NAME, number("Validations"), text("ParamKind"), AGE] },
        "MutatingAdmissionPolicyBinding" | "ValidatingAdmissionPolicyBinding" => {
            const { &[NAME, text("PolicyName"), text("ParamRef"), AGE] }
        }
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => const { &[NAME, number("Webhooks"), AGE] },
        _ => DEFAULT,
    }
}

fn others(kind: &str) -> &'static [Column] {
    match kind {
        "CertificateSigningRequest" => {
            const { &[NAME, AGE, text("SignerName"), text("Requestor"), text("RequestedDuration"), text("Condition")] }
        }
        "ClusterRoleBinding" | "RoleBinding" => {
            const { &[NAME, text("Role"), AGE, wide("Users"), wide("Groups"), wide("ServiceAccounts")] }
        }
        "DeviceClass" | "ResourceClaimTemplate" => const { &[NAME, AGE] },
        "Event" => EVENT,
        "FlowSchema" => FLOW_SCHEMA_COLUMNS,
        "HorizontalPodAutoscaler" => {
            const { &[NAME, text("Reference"), text("Targets"), text("MinPods"), text("MaxPods"), text("Replicas"), AGE] }
        }
        "NodeMetrics" | "PodMetrics" => const { &[NAME, text("CPU"), text("Memory"), text("Window")] },
        "Lease" => const { &[NAME, text("Holder"), AGE] },
        "PodDisruptionBudget" => {
            const { &[NAME, text("Min Available"), text("Max Unavailable"), number("Allowed Disruptions"), AGE] }
        }
        "PriorityClass" => const { &[NAME, number("Value"), flag("Global-Default"), AGE, text("PreemptionPolicy")] },
        "PriorityLevelConfiguration" => PRIORITY_LEVEL_CONFIGURATION_COLUMNS,
        "ResourceClaim" => const { &[NAME, text("State"), AGE] },
        "ResourceSlice" => const { &[NAME, text("Node"), text("Driver"), text("Pool"), AGE] },
        "RuntimeClass" => const { &[NAME, text("Handler"), AGE] },
        _ => DEFAULT,
    }
}
