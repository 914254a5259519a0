//! Between CRI's messages and this host's records.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use tandem_cri::{annotations, v1};

use crate::{
    host::ContainerRequest,
    network::{Attachment, Dns},
    state::{ContainerRecord, ContainerState, MountRecord, PodRecord, RECORD_VERSION, ResourceRecord, SandboxRecord},
};

pub(super) fn sorted(map: HashMap<String, String>) -> BTreeMap<String, String> {
    map.into_iter().collect()
}

fn hashed(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// A sandbox from its configuration, or why there can be none.
pub(super) fn sandbox(id: String, now: i64, config: v1::PodSandboxConfig) -> Result<SandboxRecord, String> {
    let metadata = config.metadata.clone().ok_or("a sandbox needs its pod's metadata")?;
    Ok(SandboxRecord {
        version: RECORD_VERSION,
        id,
        pod: PodRecord {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            attempt: metadata.attempt,
        },
        attachment: attachment(&config)?,
        dns: dns(config.dns_config.as_ref()),
        log_directory: PathBuf::from(&config.log_directory),
        labels: sorted(config.labels),
        annotations: sorted(config.annotations),
        created_at: now,
        ready: true,
    })
}

fn attachment(config: &v1::PodSandboxConfig) -> Result<Attachment, String> {
    let get = |key: &str| config.annotations.get(key).map(String::as_str);
    let address = match get(annotations::ADDRESS) {
        Some(text) => Some(text.parse::<IpAddr>().map_err(|_| format!("{}: {text:?}", annotations::ADDRESS))?),
        None => None,
    };
    let namespace = get(annotations::NETWORK_NAMESPACE).map(PathBuf::from);
    match (get(annotations::NETWORK), namespace, address) {
        (Some("host"), _, address) => Ok(Attachment::Host { address: address.unwrap_or(Ipv4Addr::LOCALHOST.into()) }),
        (Some("join"), Some(namespace), Some(address)) => Ok(Attachment::Own { namespace, address }),
        (Some("light"), Some(namespace), Some(address)) => Ok(Attachment::Shared { namespace, address }),
        (Some(kind @ ("join" | "light")), _, _) => Err(format!(
            "a sandbox of network {kind:?} needs the annotations {} and {}",
            annotations::NETWORK_NAMESPACE,
            annotations::ADDRESS
        )),
        (other, _, _) => Err(format!(
            "the wasm host makes no networks: annotation {} must be host, join or light, not {other:?}",
            annotations::NETWORK
        )),
    }
}

fn dns(config: Option<&v1::DnsConfig>) -> Dns {
    let Some(config) = config else { return Dns::default() };
    let ndots = config.options.iter().find_map(|option| option.strip_prefix("ndots:")?.parse().ok());
    Dns {
        servers: config.servers.iter().filter_map(|server| server.parse().ok()).collect(),
        searches: config.searches.clone(),
        ndots: ndots.unwrap_or(1),
    }
}

pub(super) fn container(sandbox: String, config: v1::ContainerConfig) -> Result<ContainerRequest, String> {
    let metadata = config.metadata.ok_or("a container needs its metadata")?;
    let image = config.image.ok_or("a container needs an image")?;
    let options = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref()?.namespace_options.as_ref());
    if options.is_some_and(|options| options.pid() == v1::NamespaceMode::Target) {
        return Err("a component has no process namespace and can join that of no target".to_owned());
    }
    let mounts = config.mounts.into_iter().map(|mount| MountRecord {
        host: PathBuf::from(mount.host_path),
        guest: mount.container_path,
        read_only: mount.readonly,
    });
    Ok(ContainerRequest {
        sandbox,
        name: metadata.name,
        attempt: metadata.attempt,
        image: image.image,
        image_reference: image.user_specified_image,
        command: config.command,
        args: config.args,
        working_directory: Some(config.working_dir).filter(|directory| !directory.is_empty()),
        env: config.envs.into_iter().map(|variable| (variable.key, variable.value)).collect(),
        mounts: mounts.collect(),
        resources: resources(config.linux.and_then(|linux| linux.resources).as_ref()),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        log_path: config.log_path,
        labels: sorted(config.labels),
        annotations: sorted(config.annotations),
    })
}

/// Guests have no kernel to ask for the host's name: they find it where container runtimes put it as well.
pub(super) fn name_host(container: &mut ContainerRequest, sandbox: Option<&v1::PodSandboxConfig>) {
    let Some(sandbox) = sandbox else { return };
    let pod = sandbox.metadata.as_ref().map(|metadata| metadata.name.as_str());
    let name = if sandbox.hostname.is_empty() { pod.unwrap_or_default() } else { &sandbox.hostname };
    if !name.is_empty() && container.env.iter().all(|(variable, _)| variable != "HOSTNAME") {
        container.env.push(("HOSTNAME".to_owned(), name.to_owned()));
    }
}

pub(super) fn resources(linux: Option<&v1::LinuxContainerResources>) -> ResourceRecord {
    // Negative means no limit, as zero does.
    linux.map_or_else(ResourceRecord::default, |linux| ResourceRecord {
        memory_bytes: linux.memory_limit_in_bytes.max(0),
        cpu_quota_us: linux.cpu_quota.max(0),
        cpu_period_us: linux.cpu_period,
        cpu_shares: linux.cpu_shares,
    })
}

fn pod_metadata(pod: &PodRecord) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        attempt: pod.attempt,
    }
}

fn sandbox_state(record: &SandboxRecord) -> v1::PodSandboxState {
    if record.ready { v1::PodSandboxState::SandboxReady } else { v1::PodSandboxState::SandboxNotready }
}

pub(super) fn listed_sandbox(record: &SandboxRecord) -> v1::PodSandbox {
    v1::PodSandbox {
        id: record.id.clone(),
        metadata: Some(pod_metadata(&record.pod)),
        state: sandbox_state(record).into(),
        created_at: record.created_at,
        labels: hashed(&record.labels),
        annotations: hashed(&record.annotations),
        runtime_handler: String::new(),
    }
}

pub(super) fn sandbox_status(record: &SandboxRecord) -> v1::PodSandboxStatus {
    v1::PodSandboxStatus {
        id: record.id.clone(),
        metadata: Some(pod_metadata(&record.pod)),
        state: sandbox_state(record).into(),
        created_at: record.created_at,
        network: Some(v1::PodSandboxNetworkStatus {
            ip: record.attachment.address().to_string(),
            additional_ips: Vec::new(),
        }),
        linux: None,
        labels: hashed(&record.labels),
        annotations: hashed(&record.annotations),
        runtime_handler: String::new(),
    }
}

fn metadata(record: &ContainerRecord) -> v1::ContainerMetadata {
    v1::ContainerMetadata { name: record.name.clone(), attempt: record.attempt }
}

fn image(record: &ContainerRecord) -> v1::ImageSpec {
    v1::ImageSpec {
        image: record.image.id.clone(),
        user_specified_image: record.image.reference.clone(),
        ..v1::ImageSpec::default()
    }
}

pub(super) fn state(record: &ContainerRecord) -> v1::ContainerState {
    match record.state {
        ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => v1::ContainerState::ContainerRunning,
        ContainerState::Exited { .. } => v1::ContainerState::ContainerExited,
    }
}

pub(super) fn listed_container(record: &ContainerRecord) -> v1::Container {
    v1::Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox.clone(),
        metadata: Some(metadata(record)),
        image: Some(image(record)),
        image_ref: record.image.digest.clone(),
        state: state(record).into(),
        created_at: record.created_at,
        labels: hashed(&record.labels),
        annotations: hashed(&record.annotations),
        image_id: record.image.id.clone(),
    }
}

pub(super) fn container_status(record: &ContainerRecord, sandbox: Option<&SandboxRecord>) -> v1::ContainerStatus {
    let log_path = sandbox.map(|sandbox| sandbox.log_directory.join(&record.log_path)).unwrap_or_default();
    let mut status = v1::ContainerStatus {
        id: record.id.clone(),
        metadata: Some(metadata(record)),
        state: state(record).into(),
        created_at: record.created_at,
        started_at: record.state.started_at(),
        image: Some(image(record)),
        image_ref: record.image.digest.clone(),
        labels: hashed(&record.labels),
        annotations: hashed(&record.annotations),
        mounts: record.mounts.iter().map(mount).collect(),
        log_path: log_path.display().to_string(),
        image_id: record.image.id.clone(),
        ..v1::ContainerStatus::default()
    };
    if let ContainerState::Exited { finished_at, exit, .. } = &record.state {
        status.finished_at = *finished_at;
        status.exit_code = exit.code;
        status.reason = exit.reason.clone();
        status.message = exit.message.clone();
    }
    status
}

fn mount(record: &MountRecord) -> v1::Mount {
    v1::Mount {
        container_path: record.guest.clone(),
        host_path: record.host.display().to_string(),
        readonly: record.read_only,
        ..v1::Mount::default()
    }
}

/// Whether labels have all that a selector asks for.
pub(super) fn matches(labels: &BTreeMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(entries: &[(&str, &str)]) -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata::default()),
            annotations: entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..v1::PodSandboxConfig::default()
        }
    }

    #[test]
    fn networks() {
        let light = [
            (annotations::NETWORK, "light"),
            (annotations::NETWORK_NAMESPACE, "/n"),
            (annotations::ADDRESS, "10.128.16.1"),
        ];
        let shared = Attachment::Shared { namespace: "/n".into(), address: [10, 128, 16, 1].into() };
        assert_eq!(attachment(&config(&light)), Ok(shared));
        assert!(attachment(&config(&light[..2])).unwrap_err().contains("needs the annotations"));
        assert!(attachment(&config(&[(annotations::NETWORK, "own")])).unwrap_err().contains("makes no networks"));
        assert!(attachment(&config(&[])).is_err());
    }

    #[test]
    fn resolv_conf() {
        let config = v1::DnsConfig {
            servers: vec!["10.96.0.10".into(), "nonsense".into()],
            searches: vec!["a".into()],
            options: vec!["timeout:1".into(), "ndots:5".into()],
        };
        let expected = Dns { servers: vec![[10, 96, 0, 10].into()], searches: vec!["a".into()], ndots: 5 };
        assert_eq!(dns(Some(&config)), expected);
    }
}
