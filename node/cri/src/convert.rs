//! Specs to CRI configurations. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use tandem_runtime::{
    ContainerId, ContainerSpec, Dns, HostPort, Limits, Mount, Network, RegistryAuth, SandboxSpec, Security,
};

use crate::{annotations, v1};

/// The configuration of a sandbox. The same spec gives the same configuration, so it can be made again from the
/// annotation that it carries.
pub fn sandbox_config(spec: &SandboxSpec) -> v1::PodSandboxConfig {
    let privileged = spec.annotations.get(annotations::PRIVILEGED).is_some_and(|value| value == "true");
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: spec.pod.name.clone(),
            uid: spec.pod.uid.clone(),
            namespace: spec.pod.namespace.clone(),
            attempt: spec.pod.attempt,
        }),
        // In the node's UTS namespace the name is the node's; runtimes refuse to set another.
        hostname: match spec.network {
            Network::Host { .. } => String::new(),
            Network::Own | Network::Join { .. } | Network::Light { .. } => spec.hostname.clone(),
        },
        log_directory: spec.log_directory.display().to_string(),
        dns_config: dns_config(&spec.dns),
        port_mappings: spec.host_ports.iter().map(port_mapping).collect(),
        labels: map(&spec.labels),
        annotations: sandbox_annotations(spec),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: spec.cgroup_parent.clone(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespace_options(spec)),
                privileged,
                seccomp: Some(profile(v1::security_profile::ProfileType::RuntimeDefault, None)),
                ..Default::default()
            }),
            sysctls: map(&spec.sysctls),
            ..Default::default()
        }),
        windows: None,
    }
}

fn dns_config(dns: &Dns) -> Option<v1::DnsConfig> {
    // Without a configuration the runtime takes over the node's resolv.conf; an empty one would give an empty file.
    (*dns != Dns::default()).then(|| v1::DnsConfig {
        servers: dns.servers.clone(),
        searches: dns.searches.clone(),
        options: dns.options.clone(),
    })
}

fn port_mapping(port: &HostPort) -> v1::PortMapping {
    v1::PortMapping {
        protocol: if port.udp { v1::Protocol::Udp } else { v1::Protocol::Tcp }.into(),
        container_port: port.container_port.into(),
        host_port: port.host_port.into(),
        host_ip: port.host_ip.map(|address| address.to_string()).unwrap_or_default(),
    }
}

fn sandbox_annotations(spec: &SandboxSpec) -> HashMap<String, String> {
    let mut all = map(&spec.annotations);
    let (network, namespace, address) = match &spec.network {
        Network::Own => ("own", None, None),
        Network::Host { address } => ("host", None, Some(address)),
        Network::Join { namespace, address } => ("join", Some(namespace), Some(address)),
        Network::Light { namespace, address } => ("light", Some(namespace), Some(address)),
    };
    all.insert(annotations::NETWORK.to_owned(), network.to_owned());
    if let Some(namespace) = namespace {
        all.insert(annotations::NETWORK_NAMESPACE.to_owned(), namespace.display().to_string());
    }
    if let Some(address) = address {
        all.insert(annotations::ADDRESS.to_owned(), address.to_string());
    }
    all.insert(annotations::SANDBOX.to_owned(), remembered(spec));
    all
}

fn remembered(spec: &SandboxSpec) -> String {
    let bare = SandboxSpec { labels: BTreeMap::new(), annotations: BTreeMap::new(), ..spec.clone() };
    serde_json::to_string(&bare).unwrap_or_default()
}

/// The spec that `sandbox_config` was given, from the labels and annotations that the runtime kept. `None` for a
/// sandbox that somebody else made.
pub(crate) fn recalled(labels: &HashMap<String, String>, annotations: &HashMap<String, String>) -> Option<SandboxSpec> {
    let mut spec: SandboxSpec = serde_json::from_str(annotations.get(annotations::SANDBOX)?).ok()?;
    spec.labels = sorted(labels, &[]);
    spec.annotations = sorted(annotations, &annotations::OWN_ON_SANDBOX);
    Some(spec)
}

fn namespace_options(spec: &SandboxSpec) -> v1::NamespaceOption {
    use v1::NamespaceMode::{Container, Node, Pod};
    v1::NamespaceOption {
        network: match spec.network {
            Network::Host { .. } => Node,
            Network::Own | Network::Join { .. } | Network::Light { .. } => Pod,
        }
        .into(),
        pid: match (spec.host_pid, spec.share_processes) {
            (true, _) => Node,
            (false, true) => Pod,
            (false, false) => Container,
        }
        .into(),
        ipc: if spec.host_ipc { Node } else { Pod }.into(),
        ..Default::default()
    }
}

/// The configuration of a container in the sandbox that `sandbox` describes.
pub fn container_config(sandbox: &SandboxSpec, spec: &ContainerSpec) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: spec.name.clone(), attempt: spec.attempt }),
        image: Some(v1::ImageSpec {
            image: spec.image.clone(),
            user_specified_image: spec.image_reference.clone(),
            ..Default::default()
        }),
        command: spec.command.clone(),
        args: spec.args.clone(),
        working_dir: spec.working_directory.clone().unwrap_or_default(),
        envs: spec.env.iter().map(|(key, value)| v1::KeyValue { key: key.clone(), value: value.clone() }).collect(),
        mounts: spec.mounts.iter().map(mount).collect(),
        labels: map(&spec.labels),
        annotations: container_annotations(spec),
        log_path: log_path(sandbox, spec),
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        tty: spec.tty,
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources(&spec.limits)),
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces_of(sandbox, spec.target.as_ref())),
                ..security_context(sandbox, &spec.security)
            }),
        }),
        ..Default::default()
    }
}

fn log_path(sandbox: &SandboxSpec, spec: &ContainerSpec) -> String {
    let below: &Path = spec.log_path.strip_prefix(&sandbox.log_directory).unwrap_or(&spec.log_path);
    below.display().to_string()
}

fn mount(mount: &Mount) -> v1::Mount {
    v1::Mount {
        container_path: mount.container.clone(),
        host_path: mount.host.display().to_string(),
        readonly: mount.read_only,
        propagation: v1::MountPropagation::PropagationPrivate.into(),
        ..Default::default()
    }
}

fn container_annotations(spec: &ContainerSpec) -> HashMap<String, String> {
    let mut all = map(&spec.annotations);
    all.insert(annotations::HASH.to_owned(), format!("{:x}", spec.spec_hash));
    all.insert(annotations::RESTART_COUNT.to_owned(), spec.attempt.to_string());
    all.insert(annotations::IMAGE.to_owned(), spec.image_reference.clone());
    all.insert(annotations::LOG_PATH.to_owned(), spec.log_path.display().to_string());
    if !spec.ports.is_empty()
        && let Ok(ports) = serde_json::to_string(&spec.ports)
    {
        all.insert(annotations::PORTS.to_owned(), ports);
    }
    all
}

fn resources(limits: &Limits) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: limits.cpu_period_us.unwrap_or_default(),
        cpu_quota: limits.cpu_quota_us.unwrap_or_default(),
        cpu_shares: limits.cpu_shares.unwrap_or_default(),
        memory_limit_in_bytes: limits.memory_bytes.map_or(0, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        oom_score_adj: limits.oom_score_adj,
        ..Default::default()
    }
}

/// The same for a container that is there already: what is zero would stay as it was, and -1 means no limit.
pub(crate) fn changed_resources(limits: &Limits) -> v1::LinuxContainerResources {
    let new = resources(limits);
    let or_none = |value: i64| if value == 0 { -1 } else { value };
    v1::LinuxContainerResources {
        cpu_quota: or_none(new.cpu_quota),
        memory_limit_in_bytes: or_none(new.memory_limit_in_bytes),
        ..new
    }
}

/// What of `/proc` and `/sys` a container without privileges must not see, and what it must not write: runtimes hide
/// nothing by themselves (Kubernetes' default `procMount`).
const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Where the sandbox shares its processes, or the node's, those of the target are there already.
fn namespaces_of(sandbox: &SandboxSpec, target: Option<&ContainerId>) -> v1::NamespaceOption {
    let mut options = namespace_options(sandbox);
    if let Some(target) = target.filter(|_| options.pid() == v1::NamespaceMode::Container) {
        options.pid = v1::NamespaceMode::Target.into();
        options.target_id = target.0.clone();
    }
    options
}

fn security_context(sandbox: &SandboxSpec, security: &Security) -> v1::LinuxContainerSecurityContext {
    let unless_privileged = |paths: &[&str]| -> Vec<String> {
        let hidden = (!security.privileged).then_some(paths);
        hidden.unwrap_or_default().iter().map(ToString::to_string).collect()
    };
    v1::LinuxContainerSecurityContext {
        capabilities: Some(v1::Capability {
            add_capabilities: capabilities(&security.add_capabilities),
            drop_capabilities: capabilities(&security.drop_capabilities),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged: security.privileged,
        namespace_options: Some(namespace_options(sandbox)),
        run_as_user: security.user_id.map(number),
        run_as_group: security.group_id.map(number),
        supplemental_groups: security.supplemental_groups.clone(),
        readonly_rootfs: security.read_only_root,
        no_new_privs: security.no_new_privileges,
        seccomp: Some(seccomp(security)),
        masked_paths: unless_privileged(&MASKED_PATHS),
        readonly_paths: unless_privileged(&READ_ONLY_PATHS),
        ..Default::default()
    }
}

fn number(value: i64) -> v1::Int64Value {
    v1::Int64Value { value }
}

/// CRI names capabilities without their prefix, and pods may use either form.
fn capabilities(names: &[String]) -> Vec<String> {
    names
        .iter()
        .map(|name| name.to_uppercase())
        .map(|name| name.strip_prefix("CAP_").map(str::to_owned).unwrap_or(name))
        .collect()
}

fn seccomp(security: &Security) -> v1::SecurityProfile {
    use v1::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    match (&security.seccomp_profile, security.seccomp_default) {
        (Some(path), _) => profile(Localhost, Some(path)),
        (None, true) => profile(RuntimeDefault, None),
        (None, false) => profile(Unconfined, None),
    }
}

fn profile(kind: v1::security_profile::ProfileType, path: Option<&Path>) -> v1::SecurityProfile {
    v1::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: path.map(|path| path.display().to_string()).unwrap_or_default(),
    }
}

pub(crate) fn auth_config(auth: &RegistryAuth) -> v1::AuthConfig {
    match auth {
        RegistryAuth::Basic { username, password } => {
            v1::AuthConfig { username: username.clone(), password: password.clone(), ..Default::default() }
        }
        RegistryAuth::Token(token) => v1::AuthConfig { registry_token: token.clone(), ..Default::default() },
    }
}

fn map(source: &BTreeMap<String, String>) -> HashMap<String, String> {
    source.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

pub(crate) fn sorted(source: &HashMap<String, String>, without: &[&str]) -> BTreeMap<String, String> {
    source
        .iter()
        .filter(|(key, _)| !without.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests;
