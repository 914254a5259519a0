//! The files that containerd and its network plugins read. What they say is pure; writing them is here too.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    Config, Error, Registry,
    programs::{PORT_PLUGIN, Programs, REQUIRED_PLUGINS},
};

/// The image that keeps a sandbox's namespaces. It is imported, never pulled.
pub(crate) const PAUSE_IMAGE: &str = "localhost/tandem-pause:1";

/// The name under which our binary is the address plugin.
const IPAM_PLUGIN: &str = "tandem-ipam";

/// A unix socket's path has room for this many bytes; containerd adds `.ttrpc` to its own.
const SOCKET_LIMIT: usize = 107 - ".ttrpc".len();

/// Where everything of a containerd is.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    pub(crate) fn new(dir: &Path) -> Result<Layout, Error> {
        let layout = Layout { dir: dir.to_owned() };
        let length = layout.socket().as_os_str().len();
        if length > SOCKET_LIMIT {
            return Err(Error::PathTooLong { path: layout.socket(), excess: length - SOCKET_LIMIT });
        }
        Ok(layout)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("containerd.log")
    }

    pub(crate) fn pid(&self) -> PathBuf {
        self.dir.join("containerd.pid")
    }

    pub(crate) fn runc(&self) -> PathBuf {
        self.dir.join("runc")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    fn plugins(&self) -> PathBuf {
        self.dir.join("cni/bin")
    }

    fn networks(&self) -> PathBuf {
        self.dir.join("cni/net.d")
    }

    fn registries(&self) -> PathBuf {
        self.dir.join("certs.d")
    }
}

/// Text as a TOML basic string.
fn quoted(text: impl AsRef<Path>) -> String {
    let mut out = String::from("\"");
    for character in text.as_ref().display().to_string().chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            control if control.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(control))),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// The share of its time that containerd's collector may spend. It looks for work each time that its last round took,
/// divided by this: with its default (0.02) that is every 75 ms on a node that does nothing; with this, 1.5 s.
const GARBAGE_LOOK_SHARE: f64 = 0.001;

/// containerd's own configuration, in the version that 1.x and 2.x read. `may_lower_scores`: this process may make
/// processes less likely to be killed when memory is short.
pub(crate) fn config_toml(layout: &Layout, runc: &Path, may_lower_scores: bool) -> String {
    let oom_score = if may_lower_scores { "oom_score = -999\n" } else { "" };
    format!(
        r#"# Written at each start; changes are lost.
version = 2
root = {root}
state = {state}
{oom_score}disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
  address = {socket}
  max_recv_message_size = 67108864
  max_send_message_size = 67108864
[ttrpc]
  address = {ttrpc}

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  restrict_oom_score_adj = {restrict}
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {plugins}
    conf_dir = {networks}
    max_conf_num = 1
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        BinaryName = {runc}
        Root = {runc_root}
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = {registries}
[plugins."io.containerd.gc.v1.scheduler"]
  pause_threshold = {GARBAGE_LOOK_SHARE}
"#,
        root = quoted(layout.root()),
        state = quoted(layout.state()),
        socket = quoted(layout.socket()),
        ttrpc = quoted(layout.dir.join("containerd.sock.ttrpc")),
        restrict = !may_lower_scores,
        plugins = quoted(layout.plugins()),
        networks = quoted(layout.networks()),
        runc = quoted(runc),
        runc_root = quoted(layout.runc()),
        registries = quoted(layout.registries()),
    )
}

/// Where images of one registry host come from. What stands before the first `[host]` is about the server itself,
/// which is asked last.
fn hosts_toml(registry: &Registry, upstream: Option<&str>) -> String {
    let endpoint = quoted(&registry.endpoint);
    let server = upstream.map_or_else(|| endpoint.clone(), quoted);
    let mut out = format!("# Written at each start; changes are lost.\nserver = {server}\n");
    if upstream.is_some() {
        out.push_str(&format!("[host.{endpoint}]\n"));
    }
    out.push_str("capabilities = [\"pull\", \"resolve\"]\n");
    if let Some(authority) = &registry.authority {
        out.push_str(&format!("ca = {}\n", quoted(authority)));
    }
    if let Some((certificate, key)) = &registry.client {
        out.push_str(&format!("client = [[{}, {}]]\n", quoted(certificate), quoted(key)));
    }
    if upstream.is_none() {
        // containerd 1.6 takes no file without this table, though it may be empty.
        out.push_str("[host]\n");
    }
    out
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkList<'a> {
    cni_version: &'a str,
    name: &'a str,
    plugins: Vec<Plugin<'a>>,
}

#[derive(Serialize)]
#[serde(untagged, rename_all = "camelCase")]
enum Plugin<'a> {
    /// Each pod gets a link of its own to the node, so every packet of a pod passes the node's IP layer.
    #[serde(rename_all = "camelCase")]
    PointToPoint { r#type: &'a str, ip_masq: bool, mtu: u32, ipam: Ipam<'a> },
    #[serde(rename_all = "camelCase")]
    Ports { r#type: &'a str, capabilities: PortCapabilities, snat: bool },
}

#[derive(Serialize)]
struct Ipam<'a> {
    r#type: &'a str,
    socket: &'a Path,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PortCapabilities {
    port_mappings: bool,
}

fn network_list(config: &Config, with_ports: bool) -> Vec<u8> {
    let mut plugins = vec![Plugin::PointToPoint {
        r#type: "ptp",
        ip_masq: false,
        mtu: config.mtu,
        ipam: Ipam { r#type: IPAM_PLUGIN, socket: &config.address_socket },
    }];
    if with_ports {
        let capabilities = PortCapabilities { port_mappings: true };
        plugins.push(Plugin::Ports { r#type: PORT_PLUGIN, capabilities, snat: true });
    }
    let list = NetworkList { cni_version: "1.0.0", name: "pod", plugins };
    serde_json::to_vec_pretty(&list).unwrap_or_default()
}

/// Writes all of them. True if a running containerd has to be started anew to see what changed; the rest it reads
/// when it needs it.
pub(crate) fn write_all(layout: &Layout, config: &Config, programs: &Programs) -> Result<bool, Error> {
    for folder in [layout.dir.clone(), layout.root(), layout.state(), layout.plugins(), layout.networks()] {
        create(&folder)?;
    }
    let with_ports = programs.plugins.join(PORT_PLUGIN).exists();
    for plugin in REQUIRED_PLUGINS {
        link(&programs.plugins.join(plugin), &layout.plugins().join(plugin))?;
    }
    if with_ports {
        link(&programs.plugins.join(PORT_PLUGIN), &layout.plugins().join(PORT_PLUGIN))?;
    }
    link(&config.program, &layout.plugins().join(IPAM_PLUGIN))?;
    replace(&layout.networks().join("10-pod.conflist"), &network_list(config, with_ports))?;
    if let Some(registry) = &config.registry {
        let mirrors = registry.mirrors.iter().map(|mirror| (mirror.host.as_str(), mirror.upstream.as_deref()));
        for (host, upstream) in mirrors.chain([(registry.host.as_str(), None)]) {
            let folder = layout.registries().join(host);
            create(&folder)?;
            replace(&folder.join("hosts.toml"), hosts_toml(registry, upstream).as_bytes())?;
        }
    }
    let text = config_toml(layout, &programs.runc, may_lower_scores());
    replace(&layout.config(), text.as_bytes())
}

const CAP_SYS_RESOURCE: u32 = 24;

fn may_lower_scores() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    has_capability(&status, CAP_SYS_RESOURCE)
}

fn has_capability(status: &str, number: u32) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
        .is_some_and(|capabilities| capabilities & (1 << number) != 0)
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Write { path, source }
}

fn create(folder: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(failed(folder))
}

fn link(target: &Path, path: &Path) -> Result<(), Error> {
    if std::fs::read_link(path).is_ok_and(|present| present == target) {
        return Ok(());
    }
    let temporary = path.with_extension("new");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&temporary)(error)),
        _ => {}
    }
    std::os::unix::fs::symlink(target, &temporary).map_err(failed(&temporary))?;
    std::fs::rename(&temporary, path).map_err(failed(path))
}

/// True if the file was different. Others read it at any time, so it is never half written.
fn replace(path: &Path, contents: &[u8]) -> Result<bool, Error> {
    if std::fs::read(path).is_ok_and(|present| present == contents) {
        return Ok(false);
    }
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, contents).map_err(failed(&temporary))?;
    std::fs::rename(&temporary, path).map_err(failed(path))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::Mirror;

    fn registry() -> Registry {
        Registry {
            host: "registry.tandem".into(),
            endpoint: "https://127.0.0.1:6444".into(),
            authority: Some("/d/ca.crt".into()),
            client: Some(("/d/client.crt".into(), "/d/client.key".into())),
            mirrors: vec![Mirror { host: "docker.io".into(), upstream: None }],
        }
    }

    #[test]
    fn the_cluster_registry_is_asked_with_the_nodes_certificate() {
        expect![[r#"
            # Written at each start; changes are lost.
            server = "https://127.0.0.1:6444"
            capabilities = ["pull", "resolve"]
            ca = "/d/ca.crt"
            client = [["/d/client.crt", "/d/client.key"]]
            [host]
        "#]]
        .assert_eq(&hosts_toml(&registry(), None));
        expect![[r#"
            # Written at each start; changes are lost.
            server = "https://registry-1.docker.io"
            [host."https://127.0.0.1:6444"]
            capabilities = ["pull", "resolve"]
            ca = "/d/ca.crt"
            client = [["/d/client.crt", "/d/client.key"]]
        "#]]
        .assert_eq(&hosts_toml(&registry(), Some("https://registry-1.docker.io")));
    }

    #[test]
    fn the_pod_network_is_point_to_point_with_our_addresses() {
        let config = Config {
            dir: "/d".into(),
            program: "/usr/bin/tandem".into(),
            address_socket: "/d/ipam.sock".into(),
            mtu: 1400,
            registry: None,
            strict: false,
        };
        let text = String::from_utf8(network_list(&config, true)).unwrap();
        expect![[r#"
            {
              "cniVersion": "1.0.0",
              "name": "pod",
              "plugins": [
                {
                  "type": "ptp",
                  "ipMasq": false,
                  "mtu": 1400,
                  "ipam": {
                    "type": "tandem-ipam",
                    "socket": "/d/ipam.sock"
                  }
                },
                {
                  "type": "portmap",
                  "capabilities": {
                    "portMappings": true
                  },
                  "snat": true
                }
              ]
            }"#]]
        .assert_eq(&text);
        assert!(!String::from_utf8(network_list(&config, false)).unwrap().contains("portmap"));
    }

    #[test]
    fn everything_of_a_containerd_is_below_its_folder() {
        let layout = Layout::new(Path::new("/d")).unwrap();
        let text = config_toml(&layout, Path::new("/usr/sbin/runc"), false);
        for line in [
            r#"root = "/d/root""#,
            r#"state = "/d/state""#,
            r#"address = "/d/containerd.sock""#,
            r#"conf_dir = "/d/cni/net.d""#,
            r#"Root = "/d/runc""#,
            "restrict_oom_score_adj = true",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("oom_score ="));
        assert!(config_toml(&layout, Path::new("/r"), true).contains("oom_score = -999"));
    }

    #[test]
    fn a_folder_whose_sockets_would_not_fit_is_refused() {
        let error = Layout::new(Path::new(&format!("/{}", "d".repeat(100)))).unwrap_err();
        assert!(
            error.to_string().ends_with("is 16 bytes too long for a unix socket; choose a shorter data folder"),
            "{error}"
        );
    }

    #[test]
    fn strings_are_quoted() {
        assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\u000A""#);
    }

    #[test]
    fn capabilities_are_read_from_the_process_status() {
        let status = "Name:\tx\nCapEff:\t0000000001000000\n";
        assert!(has_capability(status, 24));
        assert!(!has_capability(status, 23));
    }

    #[test]
    fn writing_twice_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.toml");
        assert!(replace(&file, b"1").unwrap());
        assert!(!replace(&file, b"1").unwrap());
        let name = directory.path().join("link");
        link(&file, &name).unwrap();
        link(&file, &name).unwrap();
        assert_eq!(std::fs::read(&name).unwrap(), b"1");
    }
}
