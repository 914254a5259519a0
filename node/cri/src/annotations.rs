//! What travels through CRI as annotations, because CRI has no field for it. A runtime at the other end keeps them
//! as it keeps all annotations; the wasm host also reads those that say so.

/// On a sandbox: its [`tandem_runtime::SandboxSpec`] as JSON, without labels and annotations. CRI wants the sandbox's
/// configuration again with each container, also after a restart of the caller. It also marks a sandbox as ours on
/// a socket that others use too.
pub const SANDBOX: &str = "tandem.dev/sandbox";

/// On a sandbox: how it is on the network: `own`, `host`, `join` or `light`. Read by the wasm host.
pub const NETWORK: &str = "tandem.dev/network";

/// On a sandbox of network `join` or `light`: the path of the network namespace in which its listeners and outgoing
/// connections are made. Read by the wasm host.
pub const NETWORK_NAMESPACE: &str = "tandem.dev/network-namespace";

/// On a sandbox of network `host`, `join` or `light`: its address, on which components are served. Read by the wasm
/// host.
pub const ADDRESS: &str = "tandem.dev/address";

/// On a container: the ports that the pod declares for it, in order, as JSON list of [`tandem_runtime::Port`]:
/// `[{"name":"http","port":8080,"udp":false}]`. Absent if there are none. Read by the wasm host.
pub const PORTS: &str = "tandem.dev/ports";

/// On a container: the image as the pod names it.
pub const IMAGE: &str = "tandem.dev/image";

/// On a container: [`tandem_runtime::ContainerSpec::log_path`].
pub const LOG_PATH: &str = "tandem.dev/log-path";

/// On a container, as kubelet sets it: [`tandem_runtime::ContainerSpec::spec_hash`] in hexadecimal.
pub const HASH: &str = "io.kubernetes.container.hash";

/// On a container, as kubelet sets it: how many containers of this name the pod had before.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";

/// On a sandbox, from the caller: `"true"` if one of the pod's containers is privileged. CRI runtimes refuse a
/// privileged container in a sandbox that was not announced as such.
pub const PRIVILEGED: &str = "tandem.dev/privileged";

/// Added by this crate and taken away again when a sandbox is listed.
pub(crate) const OWN_ON_SANDBOX: [&str; 4] = [SANDBOX, NETWORK, NETWORK_NAMESPACE, ADDRESS];

/// Added by this crate and taken away again when a container is listed.
pub(crate) const OWN_ON_CONTAINER: [&str; 3] = [PORTS, IMAGE, LOG_PATH];
