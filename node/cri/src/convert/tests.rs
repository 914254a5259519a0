use std::{net::Ipv4Addr, path::PathBuf};

use expect_test::{Expect, expect};
use tandem_runtime::{PodRef, Port};

use super::*;

fn sandbox(network: Network) -> SandboxSpec {
    SandboxSpec {
        pod: PodRef { name: "web-1".into(), namespace: "shop".into(), uid: "u1".into(), attempt: 2 },
        network,
        hostname: "web-1".into(),
        dns: Dns::default(),
        labels: BTreeMap::from([("app".into(), "web".into())]),
        annotations: BTreeMap::new(),
        log_directory: "/logs/shop_web-1_u1".into(),
        cgroup_parent: "/tandem/pods/u1".into(),
        host_ports: Vec::new(),
        host_pid: false,
        host_ipc: false,
        share_processes: false,
        sysctls: BTreeMap::new(),
    }
}

fn container() -> ContainerSpec {
    ContainerSpec {
        name: "main".into(),
        image: "sha256:1".into(),
        image_reference: "nginx:1.25".into(),
        attempt: 3,
        spec_hash: 0xabc,
        command: vec!["nginx".into()],
        args: vec!["-g".into()],
        env: vec![("A".into(), "1".into())],
        working_directory: None,
        mounts: vec![Mount { host: "/data".into(), container: "/mnt".into(), read_only: true }],
        limits: Limits::default(),
        security: Security::default(),
        ports: Vec::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        target: None,
        log_path: "main/3.log".into(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

fn show(map: &HashMap<String, String>) -> String {
    let lines: BTreeMap<_, _> = map.iter().filter(|(key, _)| *key != annotations::SANDBOX).collect();
    lines.iter().map(|(key, value)| format!("{key}={value}\n")).collect()
}

fn check_network(network: Network, expected: Expect) {
    let config = sandbox_config(&sandbox(network));
    let linux = config.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
    expected.assert_eq(&format!(
        "hostname={:?} network={:?}\n{}",
        config.hostname,
        linux.network(),
        show(&config.annotations)
    ));
}

#[test]
fn networks_become_namespaces_and_annotations() {
    let address = Ipv4Addr::new(10, 128, 0, 7);
    check_network(
        Network::Own,
        expect![[r#"
        hostname="web-1" network=Pod
        tandem.dev/network=own
    "#]],
    );
    check_network(
        Network::Host { address },
        expect![[r#"
        hostname="" network=Node
        tandem.dev/address=10.128.0.7
        tandem.dev/network=host
    "#]],
    );
    check_network(
        Network::Join { namespace: "/run/netns/a".into(), address },
        expect![[r#"
        hostname="web-1" network=Pod
        tandem.dev/address=10.128.0.7
        tandem.dev/network=join
        tandem.dev/network-namespace=/run/netns/a
    "#]],
    );
    check_network(
        Network::Light { namespace: "/d/netns/light".into(), address },
        expect![[r#"
        hostname="web-1" network=Pod
        tandem.dev/address=10.128.0.7
        tandem.dev/network=light
        tandem.dev/network-namespace=/d/netns/light
    "#]],
    );
}

#[test]
fn a_sandbox_is_recalled_as_it_was() {
    let mut spec = sandbox(Network::Light { namespace: "/ns".into(), address: Ipv4Addr::new(10, 1, 2, 3) });
    spec.annotations.insert("note".into(), "kept".into());
    spec.host_ports.push(HostPort { container_port: 80, host_port: 8080, udp: false, host_ip: None });
    let config = sandbox_config(&spec);
    let recalled = recalled(&config.labels, &config.annotations).unwrap();
    assert_eq!(sandbox_config(&recalled), config);
    assert_eq!((recalled.annotations, recalled.labels), (spec.annotations, spec.labels));
}

#[test]
fn a_sandbox_of_somebody_else_is_not_ours() {
    assert_eq!(recalled(&HashMap::new(), &HashMap::from([("a".into(), "b".into())])), None);
}

#[test]
fn process_and_ipc_namespaces_follow_the_pod() {
    let mut spec = sandbox(Network::Own);
    let options = |spec: &SandboxSpec| {
        let options = namespace_options(spec);
        (options.pid(), options.ipc())
    };
    assert_eq!(options(&spec), (v1::NamespaceMode::Container, v1::NamespaceMode::Pod));
    spec.share_processes = true;
    assert_eq!(options(&spec).0, v1::NamespaceMode::Pod);
    (spec.host_pid, spec.host_ipc) = (true, true);
    assert_eq!(options(&spec), (v1::NamespaceMode::Node, v1::NamespaceMode::Node));
}

#[test]
fn host_ports_and_dns_are_passed_on() {
    let mut spec = sandbox(Network::Own);
    assert_eq!(sandbox_config(&spec).dns_config, None);
    spec.dns = Dns { servers: vec!["10.96.0.10".into()], searches: vec!["svc".into()], options: vec![] };
    spec.host_ports =
        vec![HostPort { container_port: 53, host_port: 5353, udp: true, host_ip: Some(Ipv4Addr::LOCALHOST) }];
    let config = sandbox_config(&spec);
    expect![[r#"(Some(DnsConfig { servers: ["10.96.0.10"], searches: ["svc"], options: [] }), [PortMapping { protocol: Udp, container_port: 53, host_port: 5353, host_ip: "127.0.0.1" }])"#]]
        .assert_eq(&format!("{:?}", (config.dns_config, config.port_mappings)));
}

fn check_container(spec: &ContainerSpec, expected: Expect) {
    let config = container_config(&sandbox(Network::Own), spec);
    expected.assert_eq(&format!("log {}\n{}", config.log_path, show(&config.annotations)));
}

#[test]
fn containers_carry_their_identity() {
    let mut spec = container();
    spec.ports.push(Port { name: "http".into(), port: 8080, udp: false });
    spec.log_path = PathBuf::from("/logs/shop_web-1_u1/main/3.log");
    check_container(
        &spec,
        expect![[r#"
        log main/3.log
        io.kubernetes.container.hash=abc
        io.kubernetes.container.restartCount=3
        tandem.dev/image=nginx:1.25
        tandem.dev/log-path=/logs/shop_web-1_u1/main/3.log
        tandem.dev/ports=[{"name":"http","port":8080,"udp":false}]
    "#]],
    );
}

fn check_security(security: Security, expected: Expect) {
    let context = security_context(&sandbox(Network::Own), &security);
    let seccomp = context.seccomp.unwrap();
    let capabilities = context.capabilities.unwrap();
    expected.assert_eq(&format!(
        "seccomp {:?} {:?} add {:?} drop {:?} user {:?} group {:?} extra {:?} ro {} nnp {} privileged {}",
        seccomp.profile_type(),
        seccomp.localhost_ref,
        capabilities.add_capabilities,
        capabilities.drop_capabilities,
        context.run_as_user.map(|id| id.value),
        context.run_as_group.map(|id| id.value),
        context.supplemental_groups,
        context.readonly_rootfs,
        context.no_new_privs,
        context.privileged,
    ));
}

#[test]
fn security_settings_are_passed_on() {
    check_security(
        Security::default(),
        expect![[
            r#"seccomp Unconfined "" add [] drop [] user None group None extra [] ro false nnp false privileged false"#
        ]],
    );
    check_security(
        Security { seccomp_default: true, drop_capabilities: vec!["ALL".into()], ..Default::default() },
        expect![[
            r#"seccomp RuntimeDefault "" add [] drop ["ALL"] user None group None extra [] ro false nnp false privileged false"#
        ]],
    );
    check_security(
        Security {
            privileged: true,
            read_only_root: true,
            no_new_privileges: true,
            user_id: Some(0),
            group_id: Some(7),
            supplemental_groups: vec![8, 9],
            add_capabilities: vec!["CAP_NET_ADMIN".into(), "sys_time".into()],
            drop_capabilities: vec![],
            seccomp_profile: Some("/profiles/a.json".into()),
            seccomp_default: true,
        },
        expect![[
            r#"seccomp Localhost "/profiles/a.json" add ["NET_ADMIN", "SYS_TIME"] drop [] user Some(0) group Some(7) extra [8, 9] ro true nnp true privileged true"#
        ]],
    );
}

#[test]
fn only_the_privileged_see_all_of_proc() {
    let paths = |security: Security| {
        let made = security_context(&sandbox(Network::Own), &security);
        (made.masked_paths, made.readonly_paths)
    };
    let (masked, read_only) = paths(Security { user_id: Some(0), ..Security::default() });
    assert!(masked.iter().any(|path| path == "/proc/kcore") && masked.iter().any(|path| path == "/sys/firmware"));
    assert_eq!(read_only, ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
    assert_eq!(paths(Security { privileged: true, ..Security::default() }), (vec![], vec![]));
}

#[test]
fn limits_become_cgroup_values() {
    let limits = Limits {
        memory_bytes: Some(64 << 20),
        cpu_quota_us: Some(50_000),
        cpu_period_us: Some(100_000),
        cpu_shares: Some(512),
        oom_score_adj: 900,
    };
    let resources = resources(&limits);
    assert_eq!(
        (resources.memory_limit_in_bytes, resources.cpu_quota, resources.cpu_period, resources.cpu_shares),
        (64 << 20, 50_000, 100_000, 512)
    );
    assert_eq!(resources.oom_score_adj, 900);
}

#[test]
fn mounts_are_private_and_devices_are_none() {
    let config = container_config(&sandbox(Network::Own), &container());
    assert!(config.devices.is_empty());
    expect![[r#"[Mount { container_path: "/mnt", host_path: "/data", readonly: true, selinux_relabel: false, propagation: PropagationPrivate, uid_mappings: [], gid_mappings: [], recursive_read_only: false, image: None }]"#]]
        .assert_eq(&format!("{:?}", config.mounts));
}

#[test]
fn a_target_counts_where_processes_are_not_shared() {
    let target = ContainerId("c1".to_owned());
    let options = |share_processes| {
        let sandbox = SandboxSpec { share_processes, ..sandbox(Network::Own) };
        let options = namespaces_of(&sandbox, Some(&target));
        (options.pid(), options.target_id)
    };
    assert_eq!(options(false), (v1::NamespaceMode::Target, "c1".to_owned()));
    assert_eq!(options(true), (v1::NamespaceMode::Pod, String::new()));
}
