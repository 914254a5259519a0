//! What policies need of objects, and no more: a cluster has many pods, and every node remembers them.

use std::{net::Ipv4Addr, sync::Arc};

use k8s_openapi::api::{
    core::v1::{ContainerPort, Namespace, Pod},
    networking::v1::NetworkPolicy,
};

use crate::rules::{Labels, PodFacts, Port};

pub(super) fn policy(mut policy: NetworkPolicy) -> Option<Arc<NetworkPolicy>> {
    // What changes without a meaning here would make the rules anew.
    policy.metadata.managed_fields = None;
    policy.metadata.resource_version = None;
    Some(Arc::new(policy))
}

pub(super) fn namespace(namespace: Namespace) -> Option<Labels> {
    Some(namespace.metadata.labels.unwrap_or_default())
}

/// Pods on their node's network are not subject to policies, and those that have ended have no address any more.
pub(super) fn pod(pod: Pod) -> Option<Arc<PodFacts>> {
    let (metadata, spec, status) = (pod.metadata, pod.spec?, pod.status?);
    let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if spec.host_network == Some(true) || has_ended {
        return None;
    }
    let addresses = status.pod_ips.into_iter().flatten().map(|address| address.ip).chain(status.pod_ip);
    let mut addresses: Vec<Ipv4Addr> = addresses.filter_map(|address| address.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return None;
    }
    let sidecars = spec.init_containers.into_iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.into_iter().chain(sidecars).flat_map(|container| container.ports.unwrap_or_default());
    Some(Arc::new(PodFacts {
        namespace: metadata.namespace.unwrap_or_default(),
        name: metadata.name.unwrap_or_default(),
        uid: metadata.uid.unwrap_or_default(),
        node: spec.node_name.unwrap_or_default(),
        labels: metadata.labels.unwrap_or_default(),
        addresses,
        ports: ports.filter_map(port).collect(),
    }))
}

fn port(port: ContainerPort) -> Option<Port> {
    let protocol = match port.protocol.as_deref() {
        Some("UDP") => "udp",
        Some("SCTP") => "sctp",
        _ => "tcp",
    };
    Some(Port { name: port.name?, protocol, number: u16::try_from(port.container_port).ok()? })
}
