//! What a container is to be: the pure half of starting one.

use std::{collections::BTreeMap, path::PathBuf};

use k8s_openapi::api::core::v1::{Container as Spec, Pod, SeccompProfile};
use tandem_runtime::{ContainerId, ContainerSpec, Image, Limits, Mount, Port, Security};

use crate::{
    backoff::BACKOFF_ANNOTATION,
    config::log_file,
    env::{Environment, expand_all},
    pod,
    resize::RESOURCES_ANNOTATION,
    sandbox,
};

pub(crate) struct ContainerInput {
    pub(crate) image: Image,
    /// The container whose process namespace it joins.
    pub(crate) target: Option<ContainerId>,
    pub(crate) attempt: u32,
    pub(crate) backoff_seconds: i64,
    pub(crate) environment: Environment,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) limits: Limits,
    /// Whether the runtime runs it as a user at all.
    pub(crate) has_user: bool,
    /// Where profiles of the node lie, for `Localhost` seccomp.
    pub(crate) seccomp_directory: PathBuf,
}

pub(crate) fn container_spec(pod: &Pod, spec: &Spec, input: ContainerInput) -> Result<ContainerSpec, String> {
    if let Some(signal) = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_deref()) {
        return Err(format!("lifecycle.stopSignal {signal} is not supported by this node: images name their signal"));
    }
    let security = security(pod, spec, &input)?;
    let hash = pod::spec_hash(spec);
    let annotation = |key: &str, value: String| (key.to_owned(), value);
    let mut annotations = BTreeMap::from([
        annotation("io.kubernetes.container.hash", format!("{hash:x}")),
        annotation("io.kubernetes.container.restartCount", input.attempt.to_string()),
        annotation("io.kubernetes.container.terminationMessagePath", termination_path(spec).to_owned()),
    ]);
    if let Some(resources) = &spec.resources {
        annotations.extend(serde_json::to_string(resources).map(|text| annotation(RESOURCES_ANNOTATION, text)).ok());
    }
    if input.backoff_seconds > 0 {
        annotations.insert(BACKOFF_ANNOTATION.to_owned(), input.backoff_seconds.to_string());
    }
    Ok(ContainerSpec {
        name: spec.name.clone(),
        image: input.image.id,
        image_reference: spec.image.clone().unwrap_or_default(),
        attempt: input.attempt,
        spec_hash: hash,
        command: expand_all(spec.command.as_ref(), &input.environment),
        args: expand_all(spec.args.as_ref(), &input.environment),
        env: input.environment,
        working_directory: spec.working_dir.clone().filter(|directory| !directory.is_empty()),
        mounts: input.mounts,
        limits: input.limits,
        security,
        ports: ports(spec),
        stdin: spec.stdin.unwrap_or(false),
        stdin_once: spec.stdin_once.unwrap_or(false),
        tty: spec.tty.unwrap_or(false),
        target: input.target,
        log_path: log_file(&spec.name, input.attempt),
        labels: sandbox::labels(pod, Some(&spec.name)),
        annotations,
    })
}

/// Where the container leaves its last words.
pub(crate) fn termination_path(spec: &Spec) -> &str {
    let given = spec.termination_message_path.as_deref().filter(|path| !path.is_empty());
    given.unwrap_or("/dev/termination-log")
}

fn ports(spec: &Spec) -> Vec<Port> {
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        Some(Port {
            name: port.name.clone().unwrap_or_default(),
            port: u16::try_from(port.container_port).ok()?,
            udp: port.protocol.as_deref() == Some("UDP"),
        })
    });
    ports.collect()
}

fn security(pod: &Pod, spec: &Spec, input: &ContainerInput) -> Result<Security, String> {
    let own = spec.security_context.clone().unwrap_or_default();
    let of_pod = pod::spec(pod).and_then(|spec| spec.security_context.clone()).unwrap_or_default();
    let user_id = own.run_as_user.or(of_pod.run_as_user);
    if input.has_user
        && own.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or(false)
        && user_id.or(input.image.user_id).unwrap_or(0) == 0
    {
        return Err(format!(
            "container has runAsNonRoot and image will run as root (pod: \"{}\", container: {})",
            pod::full_name(pod),
            spec.name
        ));
    }
    if own.proc_mount.as_deref().is_some_and(|kind| kind != "Default") {
        return Err("procMount: Unmasked is not supported by this node".to_owned());
    }
    let app_armor = own.app_armor_profile.or(of_pod.app_armor_profile);
    if app_armor.is_some_and(|profile| profile.type_ == "Localhost") {
        return Err("AppArmor profiles of type Localhost are not supported by this node".to_owned());
    }
    let privileged = own.privileged.unwrap_or(false);
    let capabilities = own.capabilities.unwrap_or_default();
    let profile = own.seccomp_profile.or(of_pod.seccomp_profile);
    let (seccomp_profile, seccomp_default) = seccomp(profile.as_ref(), input)?;
    let mut supplemental_groups = of_pod.supplemental_groups.unwrap_or_default();
    supplemental_groups.extend(of_pod.fs_group);
    Ok(Security {
        privileged,
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !privileged,
        user_id,
        group_id: own.run_as_group.or(of_pod.run_as_group),
        supplemental_groups,
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        seccomp_profile,
        seccomp_default: seccomp_default && !privileged,
    })
}

fn seccomp(profile: Option<&SeccompProfile>, input: &ContainerInput) -> Result<(Option<PathBuf>, bool), String> {
    match profile.map(|profile| (profile.type_.as_str(), profile.localhost_profile.as_deref())) {
        None | Some(("Unconfined", _)) => Ok((None, false)),
        Some(("RuntimeDefault", _)) => Ok((None, true)),
        Some(("Localhost", Some(path))) if crate::volumes::is_below(path) => {
            Ok((Some(input.seccomp_directory.join(path)), false))
        }
        Some((kind, _)) => Err(format!("seccomp profile of type {kind} cannot be used")),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::SecurityContext;

    use super::*;
    use crate::testing;

    fn input() -> ContainerInput {
        ContainerInput {
            image: Image { id: "sha256:1".into(), digest: "x@sha256:1".into(), size_bytes: 1, user_id: None },
            target: None,
            attempt: 3,
            backoff_seconds: 40,
            environment: vec![("WHO".into(), "you".into())],
            mounts: Vec::new(),
            limits: Limits::default(),
            has_user: true,
            seccomp_directory: "/seccomp".into(),
        }
    }

    #[test]
    fn commands_expand_and_the_back_off_is_carried() {
        let pod = testing::with_spec(testing::pod(&["a"]), |spec| {
            spec.containers[0].command = Some(vec!["/bin/hello".to_owned(), "$(WHO)".to_owned()]);
        });
        let made = container_spec(&pod, &pod.spec.as_ref().unwrap().containers[0], input()).unwrap();
        assert_eq!(made.command, ["/bin/hello", "you"]);
        assert_eq!(made.log_path, PathBuf::from("a/3.log"));
        assert_eq!(made.annotations[BACKOFF_ANNOTATION], "40");
        assert_eq!(made.labels["io.kubernetes.container.name"], "a");
    }

    #[test]
    fn root_is_refused_where_it_is_not_wanted() {
        let pod = testing::with_spec(testing::pod(&["a"]), |spec| {
            let context = SecurityContext { run_as_non_root: Some(true), ..SecurityContext::default() };
            spec.containers[0].security_context = Some(context);
        });
        let spec = &pod.spec.as_ref().unwrap().containers[0];
        assert!(container_spec(&pod, spec, input()).unwrap_err().contains("runAsNonRoot"));
        let image = Image { user_id: Some(1000), ..input().image };
        assert!(container_spec(&pod, spec, ContainerInput { image, ..input() }).is_ok());
        assert!(
            container_spec(&pod, spec, ContainerInput { has_user: false, ..input() }).is_ok(),
            "a component has none"
        );
    }
}
