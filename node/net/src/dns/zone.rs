use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use k8s_openapi::api::{
    core::v1::Service,
    discovery::v1::{Endpoint, EndpointSlice},
};

/// The version of the specification that the names follow, under `dns-version`.
const SPECIFICATION: &str = "1.1.0";
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A resource record's data; its owner is the name that it is filed under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Record {
    Address(Ipv4Addr),
    Service { port: u16, target: String },
    Alias(String),
    Pointer(String),
    Text(String),
}

/// What the cluster knows of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The name exists; it may have no record of the type that was asked for.
    Records(&'a BTreeSet<Record>),
    /// An address record that follows from the name itself (`1-2-3-4.NAMESPACE.pod.DOMAIN`).
    Pod(Ipv4Addr),
    /// The name is the cluster's to answer, and there is none.
    NoSuchName,
    /// The name is none of the cluster's.
    Elsewhere,
}

/// All records of the cluster, by lower-case name without the final dot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    domain: String,
    namespaces: BTreeSet<String>,
    records: BTreeMap<String, BTreeSet<Record>>,
}

impl Zone {
    pub fn new(domain: &str, services: &[Service], slices: &[EndpointSlice]) -> Zone {
        let mut zone = Zone { domain: domain.to_ascii_lowercase(), ..Zone::default() };
        let version = format!("dns-version.{}", zone.domain);
        zone.insert(&version, Record::Text(SPECIFICATION.to_owned()));
        for service in services {
            zone.add(service, slices);
        }
        zone
    }

    /// The domain under which all names of the cluster are.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    pub fn answer(&self, name: &str) -> Answer<'_> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if let Some(records) = self.records.get(&name) {
            return Answer::Records(records);
        }
        let Some(inside) = name.strip_suffix(&self.domain).and_then(|rest| rest.strip_suffix('.')) else {
            // A pointer that we don't hold may belong to somebody else.
            return Answer::Elsewhere;
        };
        match inside.strip_suffix(".pod").and_then(|rest| rest.split_once('.')) {
            Some((address, namespace)) if self.namespaces.contains(namespace) => {
                address.replace('-', ".").parse().map_or(Answer::NoSuchName, Answer::Pod)
            }
            _ => Answer::NoSuchName,
        }
    }

    fn add(&mut self, service: &Service, slices: &[EndpointSlice]) {
        let (Some(name), Some(namespace), Some(spec)) =
            (&service.metadata.name, &service.metadata.namespace, &service.spec)
        else {
            return;
        };
        self.namespaces.insert(namespace.clone());
        let owner = format!("{name}.{namespace}.svc.{}", self.domain);
        if let Some(target) = spec.external_name.as_ref().filter(|_| spec.type_.as_deref() == Some("ExternalName")) {
            self.insert(&owner, Record::Alias(target.trim_end_matches('.').to_ascii_lowercase()));
            return;
        }
        let Some(address) = spec.cluster_ip.as_deref().and_then(|text| text.parse::<Ipv4Addr>().ok()) else {
            return self.add_headless(service, &owner, slices);
        };
        self.insert(&owner, Record::Address(address));
        self.insert(&reverse(address), Record::Pointer(owner.clone()));
        for port in spec.ports.iter().flatten() {
            let Ok(number) = u16::try_from(port.port) else { continue };
            if let Some(port_name) = &port.name {
                let record = Record::Service { port: number, target: owner.clone() };
                self.insert(&service_name(port_name, port.protocol.as_deref(), &owner), record);
            }
        }
    }

    /// A Service without an address of its own stands for its endpoints.
    fn add_headless(&mut self, service: &Service, owner: &str, slices: &[EndpointSlice]) {
        // The name exists even while nothing is ready behind it.
        self.exists(owner);
        let all = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
        for slice in slices.iter().filter(|slice| belongs(slice, service)) {
            for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| all || is_ready(endpoint)) {
                for address in endpoint.addresses.iter().filter_map(|text| text.parse::<Ipv4Addr>().ok()) {
                    let host = endpoint.hostname.clone().unwrap_or_else(|| address.to_string().replace('.', "-"));
                    let target = format!("{host}.{owner}");
                    self.insert(owner, Record::Address(address));
                    self.insert(&target, Record::Address(address));
                    if endpoint.hostname.is_some() {
                        self.insert(&reverse(address), Record::Pointer(target.clone()));
                    }
                    for port in slice.ports.iter().flatten() {
                        let number = port.port.and_then(|number| u16::try_from(number).ok());
                        if let (Some(name), Some(port_number)) =
                            (port.name.as_ref().filter(|name| !name.is_empty()), number)
                        {
                            let record = Record::Service { port: port_number, target: target.clone() };
                            self.insert(&service_name(name, port.protocol.as_deref(), owner), record);
                        }
                    }
                }
            }
        }
    }

    fn insert(&mut self, name: &str, record: Record) {
        let name = name.to_ascii_lowercase();
        self.exists(&name);
        self.records.entry(name).or_default().insert(record);
    }

    /// A name exists also where it has no records, and so do those that it is below (RFC 8020).
    fn exists(&mut self, name: &str) {
        let mut rest = Some(name);
        while let Some(name) = rest.filter(|name| !self.records.contains_key(*name)) {
            self.records.insert(name.to_owned(), BTreeSet::new());
            rest = name.split_once('.').map(|(_, parent)| parent).filter(|parent| parent.ends_with(&self.domain));
        }
    }
}

fn service_name(port: &str, protocol: Option<&str>, owner: &str) -> String {
    format!("_{port}._{}.{owner}", protocol.unwrap_or("TCP").to_ascii_lowercase())
}

fn reverse(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("{d}.{c}.{b}.{a}.in-addr.arpa")
}

fn belongs(slice: &EndpointSlice, service: &Service) -> bool {
    let name = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME_LABEL));
    slice.metadata.namespace == service.metadata.namespace && name.is_some() && name == service.metadata.name.as_ref()
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::{ServicePort, ServiceSpec},
        api::discovery::v1::EndpointPort,
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    };

    use super::*;

    fn service(name: &str, cluster_ip: &str) -> Service {
        let port = ServicePort { name: Some("http".into()), port: 80, ..ServicePort::default() };
        Service {
            metadata: ObjectMeta { name: Some(name.into()), namespace: Some("shop".into()), ..ObjectMeta::default() },
            spec: Some(ServiceSpec {
                cluster_ip: Some(cluster_ip.into()),
                ports: Some(vec![port]),
                ..Default::default()
            }),
            ..Service::default()
        }
    }

    fn zone() -> Zone {
        let slice = EndpointSlice {
            address_type: "IPv4".into(),
            metadata: ObjectMeta {
                namespace: Some("shop".into()),
                labels: Some([(SERVICE_NAME_LABEL.to_owned(), "db".to_owned())].into()),
                ..ObjectMeta::default()
            },
            endpoints: Some(vec![Endpoint {
                addresses: vec!["10.128.0.9".into()],
                hostname: Some("db-0".into()),
                ..Endpoint::default()
            }]),
            ports: Some(vec![EndpointPort { name: Some("http".into()), port: Some(5432), ..EndpointPort::default() }]),
        };
        let mut outside = service("outside", "");
        outside.spec = Some(ServiceSpec {
            type_: Some("ExternalName".into()),
            external_name: Some("example.org.".into()),
            ..ServiceSpec::default()
        });
        Zone::new("cluster.local", &[service("web", "10.96.0.5"), service("db", "None"), outside], &[slice])
    }

    #[test]
    fn answers_follow_the_specification() {
        let zone = zone();
        let records = |name: &str| match zone.answer(name) {
            Answer::Records(records) => records.iter().cloned().collect::<Vec<_>>(),
            other => panic!("{name}: {other:?}"),
        };
        let address = |text: &str| Record::Address(text.parse().unwrap());
        assert_eq!(records("web.shop.svc.cluster.local."), [address("10.96.0.5")]);
        assert_eq!(records("WEB.shop.svc.Cluster.local"), [address("10.96.0.5")]);
        assert_eq!(records("db.shop.svc.cluster.local"), [address("10.128.0.9")]);
        assert_eq!(records("db-0.db.shop.svc.cluster.local"), [address("10.128.0.9")]);
        assert_eq!(records("outside.shop.svc.cluster.local"), [Record::Alias("example.org".into())]);
        let target = "db-0.db.shop.svc.cluster.local".to_owned();
        let name = "_http._tcp.db.shop.svc.cluster.local";
        assert_eq!(records(name), [Record::Service { port: 5432, target: target.clone() }]);
        assert_eq!(records("9.0.128.10.in-addr.arpa"), [Record::Pointer(target)]);
        assert_eq!(records("dns-version.cluster.local"), [Record::Text("1.1.0".into())]);
        for parent in
            ["cluster.local", "svc.cluster.local", "shop.svc.cluster.local", "_tcp.web.shop.svc.cluster.local"]
        {
            assert_eq!(records(parent), [], "{parent} exists and has nothing");
        }
    }

    #[test]
    fn names_that_are_not_there() {
        let zone = zone();
        assert_eq!(zone.answer("nobody.shop.svc.cluster.local"), Answer::NoSuchName);
        assert_eq!(zone.answer("web.other.svc.cluster.local"), Answer::NoSuchName);
        assert_eq!(zone.answer("10-128-0-3.shop.pod.cluster.local"), Answer::Pod("10.128.0.3".parse().unwrap()));
        assert_eq!(zone.answer("10-128-0-3.nowhere.pod.cluster.local"), Answer::NoSuchName);
        assert_eq!(zone.answer("x-y.shop.pod.cluster.local"), Answer::NoSuchName);
        for other in ["example.org", "local", "arpa", "10.in-addr.arpa"] {
            assert_eq!(zone.answer(other), Answer::Elsewhere, "{other}");
        }
    }
}
