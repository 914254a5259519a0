//! Services and pods from short texts, for table tests.

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerPort, Pod, PodCondition, PodIP, PodSpec, PodStatus, Service, ServicePort, ServiceSpec,
    },
    apimachinery::pkg::{apis::meta::v1::Time, util::intstr::IntOrString},
};
use kube::api::ObjectMeta;

/// `PORT:TARGET` for each port; words: headless, publish, manual (no selector).
pub(crate) fn service(text: &str) -> Service {
    let has = |word| text.split_whitespace().any(|other| other == word);
    let ports: Vec<ServicePort> = text
        .split_whitespace()
        .filter_map(|word| word.split_once(':'))
        .map(|(port, target)| ServicePort {
            port: port.parse().unwrap(),
            target_port: Some(target.parse().map_or_else(|_| IntOrString::String(target.into()), IntOrString::Int)),
            ..ServicePort::default()
        })
        .collect();
    let selector = [("app".to_owned(), "web".to_owned())];
    Service {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("default".into()),
            uid: Some("service".into()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            ports: Some(ports).filter(|ports| !ports.is_empty()),
            selector: (!has("manual")).then(|| selector.into()),
            cluster_ip: Some(if has("headless") { "None" } else { "10.96.0.7" }.into()),
            publish_not_ready_addresses: Some(has("publish")),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// `name:word…`; words: ready, deleting, ip=, node=, host= (below the Service), and NAME=NUMBER for a named port.
pub(crate) fn pod(text: &str) -> Pod {
    let mut words = text.split(':');
    let name = words.next().unwrap();
    let words: Vec<&str> = words.collect();
    let value = |key: &str| words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('=').map(str::to_owned));
    let ready = if words.contains(&"ready") { "True" } else { "False" };
    let ports = words.iter().filter_map(|word| word.split_once('=')).filter_map(|(name, number)| {
        let container_port = number.parse().ok()?;
        Some(ContainerPort { name: Some(name.into()), container_port, ..ContainerPort::default() })
    });
    let container = Container { ports: Some(ports.collect()), ..Container::default() };
    Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("default".into()),
            uid: Some(name.into()),
            labels: Some([("app".into(), "web".into())].into()),
            deletion_timestamp: words.contains(&"deleting").then_some(Time(jiff::Timestamp::UNIX_EPOCH)),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: vec![container],
            node_name: value("node"),
            hostname: value("host"),
            subdomain: value("host").map(|_| "web".into()),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some("Running".into()),
            pod_ips: value("ip").map(|ip| vec![PodIP { ip }]),
            conditions: Some(vec![PodCondition { type_: "Ready".into(), status: ready.into(), ..PodCondition::default() }]),
            ..PodStatus::default()
        }),
    }
}
