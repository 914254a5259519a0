//! What a pod's sandbox is to be.

use std::{collections::BTreeMap, path::PathBuf};

use k8s_openapi::api::core::v1::{Pod, Sysctl};
use tandem_api::{COMPONENT_OPTIONS_PREFIX, Settings, TRACE_ANNOTATION};
use tandem_runtime::{Dns, HostPort, Network, SandboxSpec};

use crate::{plan::JOINED_ANNOTATION, pod};

const HOSTNAME_MAX: usize = 63;
/// As many as a resolver takes.
const SERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;

/// Sandbox annotation: the node whose agent made it. What others made in the same runtime is left alone.
pub(crate) const NODE_ANNOTATION: &str = "tandem.dev/node";

/// Sandbox annotation: the pod has a privileged container. Runtimes refuse one in a sandbox that was made without
/// knowing of it.
const PRIVILEGED_ANNOTATION: &str = "tandem.dev/privileged";

/// Kernel parameters that concern nobody but the pod (the kubelet's safe ones).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

pub(crate) struct SandboxInput<'a> {
    pub(crate) node_name: &'a str,
    pub(crate) attempt: u32,
    pub(crate) network: Network,
    pub(crate) joined: Option<String>,
    pub(crate) settings: &'a Settings,
    /// The text of the node's own resolver configuration.
    pub(crate) resolver: &'a str,
    pub(crate) log_directory: PathBuf,
    pub(crate) cgroup_parent: String,
}

pub(crate) fn labels(pod: &Pod, container: Option<&str>) -> BTreeMap<String, String> {
    let label = |key: &str, value: &str| (format!("io.kubernetes.{key}"), value.to_owned());
    let mut labels = BTreeMap::from([
        label("pod.name", pod::name(pod)),
        label("pod.namespace", pod::namespace(pod)),
        label("pod.uid", pod::uid(pod)),
    ]);
    labels.extend(container.map(|name| label("container.name", name)));
    labels
}

pub(crate) fn hostname(pod: &Pod) -> String {
    let given = pod::spec(pod).and_then(|spec| spec.hostname.as_deref()).filter(|name| !name.is_empty());
    let name: String = given.unwrap_or_else(|| pod::name(pod)).chars().take(HOSTNAME_MAX).collect();
    name.trim_end_matches(['-', '.']).to_owned()
}

/// Fields of a pod that say how it is kept apart, and that this node does not implement.
pub(crate) fn check(pod: &Pod) -> Result<(), String> {
    let Some(spec) = pod::spec(pod) else { return Ok(()) };
    if spec.host_users == Some(false) {
        return Err("hostUsers: false: user namespaces are not supported by this node".to_owned());
    }
    if let Some(unsafe_one) = sysctls(pod).find(|sysctl| !SAFE_SYSCTLS.contains(&sysctl.name.as_str())) {
        return Err(format!("forbidden sysctl: {:?} not allowlisted", unsafe_one.name));
    }
    if pod::host_network(pod)
        && let Some(of_node) = sysctls(pod).find(|sysctl| sysctl.name.starts_with("net."))
    {
        return Err(format!("forbidden sysctl: {:?} not allowed with host net enabled", of_node.name));
    }
    Ok(())
}

pub(crate) fn has_sysctls(pod: &Pod) -> bool {
    sysctls(pod).next().is_some()
}

fn sysctls(pod: &Pod) -> impl Iterator<Item = &Sysctl> {
    let context = pod::spec(pod).and_then(|spec| spec.security_context.as_ref());
    context.into_iter().flat_map(|context| context.sysctls.iter().flatten())
}

pub(crate) fn sandbox_spec(pod: &Pod, input: SandboxInput<'_>) -> SandboxSpec {
    let spec = pod::spec(pod);
    let host_network = pod::host_network(pod);
    // Of what users write, only this prefix goes to the runtimes: every other annotation of ours is the node's word.
    let options =
        pod.metadata.annotations.iter().flatten().filter(|(key, _)| key.starts_with(COMPONENT_OPTIONS_PREFIX));
    let mut annotations: BTreeMap<String, String> = options.map(|(key, value)| (key.clone(), value.clone())).collect();
    annotations.insert(NODE_ANNOTATION.to_owned(), input.node_name.to_owned());
    annotations.extend(pod::trace(pod).map(|trace| (TRACE_ANNOTATION.to_owned(), trace.to_owned())));
    annotations.extend(has_privileged(pod).then(|| (PRIVILEGED_ANNOTATION.to_owned(), "true".to_owned())));
    annotations.extend(input.joined.map(|joined| (JOINED_ANNOTATION.to_owned(), joined)));
    SandboxSpec {
        pod: pod::reference(pod, input.attempt),
        network: input.network,
        // A runtime cannot set a host name in the node's own namespace.
        hostname: if host_network { String::new() } else { hostname(pod) },
        dns: dns(pod, input.settings, input.resolver),
        labels: labels(pod, None),
        annotations,
        log_directory: input.log_directory,
        cgroup_parent: input.cgroup_parent,
        host_ports: if host_network { Vec::new() } else { host_ports(pod) },
        host_pid: spec.and_then(|spec| spec.host_pid).unwrap_or(false),
        host_ipc: spec.and_then(|spec| spec.host_ipc).unwrap_or(false),
        share_processes: spec.and_then(|spec| spec.share_process_namespace).unwrap_or(false),
        sysctls: sysctls(pod).map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
    }
}

fn has_privileged(pod: &Pod) -> bool {
    pod::all_containers(pod).any(|(_, container)| {
        container.security_context.as_ref().and_then(|security| security.privileged).unwrap_or(false)
    })
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let ports = pod::containers(pod).flat_map(|(_, container)| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let host_port = u16::try_from(port.host_port?).ok().filter(|port| *port > 0)?;
            Some(HostPort {
                container_port: u16::try_from(port.container_port).ok()?,
                host_port,
                udp: port.protocol.as_deref() == Some("UDP"),
                host_ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
            })
        })
        .collect()
}

/// The pod's resolver configuration by its `dnsPolicy`, with what its `dnsConfig` adds.
fn dns(pod: &Pod, settings: &Settings, resolver: &str) -> Dns {
    let spec = pod::spec(pod);
    let policy = spec.and_then(|spec| spec.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let node = parse_resolver(resolver);
    let cluster_first = match policy {
        "ClusterFirst" => !pod::host_network(pod),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut dns = match policy {
        "None" => Dns::default(),
        _ if cluster_first => {
            let domain = &settings.dns_domain;
            let own = [format!("{}.svc.{domain}", pod::namespace(pod)), format!("svc.{domain}"), domain.clone()];
            Dns {
                servers: vec![settings.dns_address.to_string()],
                searches: own.into_iter().chain(node.searches).collect(),
                options: vec!["ndots:5".to_owned()],
            }
        }
        _ => node,
    };
    if let Some(config) = spec.and_then(|spec| spec.dns_config.as_ref()) {
        dns.servers.extend(config.nameservers.iter().flatten().cloned());
        dns.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            dns.options.retain(|known| known.split(':').next() != Some(name));
            let value = option.value.as_ref().map(|value| format!(":{value}")).unwrap_or_default();
            dns.options.push(format!("{name}{value}"));
        }
    }
    let mut known = std::collections::BTreeSet::new();
    dns.searches.retain(|search| known.insert(search.clone()));
    dns.searches.truncate(SEARCHES_MAX);
    dns.servers.truncate(SERVERS_MAX);
    dns
}

fn parse_resolver(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.servers.extend(words.next()),
            // The last one counts.
            Some("search" | "domain") => dns.searches = words.collect(),
            Some("options") => dns.options = words.collect(),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use k8s_openapi::api::core::v1::{PodDNSConfig, PodDNSConfigOption, PodSecurityContext, PodSpec};

    use super::*;
    use crate::testing;

    fn check(pod: &Pod, wanted: Expect) {
        let resolver = "# comment\nnameserver 192.0.2.53\nsearch example.org\noptions edns0\n";
        let dns = dns(pod, &Settings::default(), resolver);
        wanted.assert_eq(&format!(
            "{} | {} | {}",
            dns.servers.join(" "),
            dns.searches.join(" "),
            dns.options.join(" ")
        ));
    }

    #[test]
    fn policies_of_name_resolution() {
        let with = |policy: &str, host: bool| {
            testing::with_spec(testing::pod(&["a"]), |spec| {
                spec.dns_policy = Some(policy.to_owned());
                spec.host_network = Some(host);
                spec.dns_config = Some(PodDNSConfig {
                    nameservers: Some(vec!["192.0.2.1".to_owned()]),
                    searches: None,
                    options: Some(vec![PodDNSConfigOption { name: Some("ndots".into()), value: Some("2".into()) }]),
                });
            })
        };
        check(
            &testing::pod(&["a"]),
            expect!["10.96.0.10 | default.svc.cluster.local svc.cluster.local cluster.local example.org | ndots:5"],
        );
        check(
            &with("ClusterFirst", false),
            expect![
                "10.96.0.10 192.0.2.1 | default.svc.cluster.local svc.cluster.local cluster.local example.org | ndots:2"
            ],
        );
        check(&with("ClusterFirst", true), expect!["192.0.2.53 192.0.2.1 | example.org | edns0 ndots:2"]);
        check(&with("Default", false), expect!["192.0.2.53 192.0.2.1 | example.org | edns0 ndots:2"]);
        check(&with("None", false), expect!["192.0.2.1 |  | ndots:2"]);
    }

    #[test]
    fn what_would_be_kept_apart_less_than_asked_for_is_refused() {
        let context = |name: &str| PodSecurityContext {
            sysctls: Some(vec![Sysctl { name: name.to_owned(), value: "1".to_owned() }]),
            ..PodSecurityContext::default()
        };
        let refused = |change: &dyn Fn(&mut PodSpec)| {
            super::check(&testing::with_spec(testing::pod(&["a"]), |spec| change(spec))).err().unwrap_or_default()
        };
        let safe = |spec: &mut PodSpec| spec.security_context = Some(context("net.ipv4.tcp_syncookies"));
        assert_eq!(refused(&safe), "");
        let on_host = |spec: &mut PodSpec| {
            safe(spec);
            spec.host_network = Some(true);
        };
        assert!(refused(&on_host).contains("host net"));
        let of_machine = |spec: &mut PodSpec| spec.security_context = Some(context("kernel.msgmax"));
        assert!(refused(&of_machine).contains("not allowlisted"));
        assert!(refused(&|spec: &mut PodSpec| spec.host_users = Some(false)).contains("user namespaces"));
    }

    #[test]
    fn host_names_are_short() {
        let mut pod = testing::pod(&["a"]);
        assert_eq!(hostname(&pod), "web");
        pod.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b".repeat(10)));
        assert_eq!(hostname(&pod), "a".repeat(62));
    }
}
