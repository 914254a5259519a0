use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// What is decided when a cluster first starts and is kept in its store from then on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// All pod addresses of the cluster; each node gets a part of it.
    pub pod_cidr: Ipv4Net,
    /// The prefix length of one node's part.
    pub node_mask: u8,
    pub service_cidr: Ipv4Net,
    /// The domain under which Services are named.
    pub dns_domain: String,
    /// The address of cluster DNS, in the service CIDR.
    pub dns_address: Ipv4Addr,
    /// The `iss` of ServiceAccount tokens.
    pub token_issuer: String,
    /// The first and last port that NodePort Services may have.
    pub node_ports: (u16, u16),
    /// The Kubernetes minor release that is served.
    pub kubernetes_minor: u32,
    pub feature_gates: BTreeMap<String, bool>,
    /// Whether Services may have `externalIPs`: who may write a Service could take over any address with them.
    #[serde(rename = "externalIPs", skip_serializing_if = "std::ops::Not::not")]
    pub external_ips: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            pod_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 128, 0, 0), 10),
            node_mask: 18,
            service_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16),
            dns_domain: "cluster.local".to_owned(),
            dns_address: Ipv4Addr::new(10, 96, 0, 10),
            token_issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            node_ports: (30000, 32767),
            kubernetes_minor: crate::KUBERNETES_MINOR,
            feature_gates: BTreeMap::new(),
            external_ips: false,
        }
    }
}

/// Settings that cannot work.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("pod CIDR {pods} and service CIDR {services} overlap: choose ranges that don't")]
    Overlap { pods: Ipv4Net, services: Ipv4Net },
    #[error("node mask /{mask} does not divide pod CIDR {pods}: it must be between /{} and /28", pods.prefix_len())]
    NodeMask { mask: u8, pods: Ipv4Net },
    #[error("DNS address {address} is outside the service CIDR {services}")]
    DnsAddress { address: Ipv4Addr, services: Ipv4Net },
    #[error("node port range {0}-{1} is empty or starts below 1")]
    NodePorts(u16, u16),
    #[error("Kubernetes 1.{0} is not served by this version, which serves 1.{expected}", expected = crate::KUBERNETES_MINOR)]
    Minor(u32),
    #[error("feature gate {0:?} is not known")]
    FeatureGate(String),
}

impl Settings {
    pub fn check(&self) -> Result<(), SettingsError> {
        let (pods, services) = (self.pod_cidr, self.service_cidr);
        if pods.contains(&services) || services.contains(&pods) {
            return Err(SettingsError::Overlap { pods, services });
        }
        if self.node_mask < pods.prefix_len() || self.node_mask > 28 {
            return Err(SettingsError::NodeMask { mask: self.node_mask, pods });
        }
        if !services.contains(&self.dns_address) {
            return Err(SettingsError::DnsAddress { address: self.dns_address, services });
        }
        if self.node_ports.0 == 0 || self.node_ports.0 > self.node_ports.1 {
            return Err(SettingsError::NodePorts(self.node_ports.0, self.node_ports.1));
        }
        if self.kubernetes_minor != crate::KUBERNETES_MINOR {
            return Err(SettingsError::Minor(self.kubernetes_minor));
        }
        match self.feature_gates.keys().next() {
            Some(gate) => Err(SettingsError::FeatureGate(gate.clone())),
            None => Ok(()),
        }
    }

    /// The address of the `kubernetes` Service: the first of the service CIDR.
    pub fn kubernetes_service(&self) -> Ipv4Addr {
        self.service_cidr.hosts().next().unwrap_or(self.service_cidr.addr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_work() {
        assert_eq!(Settings::default().check(), Ok(()));
        assert_eq!(Settings::default().kubernetes_service(), Ipv4Addr::new(10, 96, 0, 1));
    }

    #[test]
    fn what_cannot_work_is_named() {
        let overlap = Settings { service_cidr: "10.129.0.0/16".parse().unwrap(), ..Settings::default() };
        assert!(matches!(overlap.check(), Err(SettingsError::Overlap { .. })));
        let mask = Settings { node_mask: 9, ..Settings::default() };
        assert!(matches!(mask.check(), Err(SettingsError::NodeMask { .. })));
        let minor = Settings { kubernetes_minor: 20, ..Settings::default() };
        assert_eq!(minor.check(), Err(SettingsError::Minor(20)));
    }
}
