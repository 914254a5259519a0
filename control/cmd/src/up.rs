//! `up`, `control` and `node`: what runs in the foreground until it is told to stop.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, bail};
use tandem_api::Settings;
use tandem_client::{Kubeconfig, in_process, k8s_openapi::api::core::v1::ConfigMap, kube::Api};
use tokio_util::sync::CancellationToken;

use crate::{
    address,
    cli::{Control, JoinFlags, Node, Up},
    control::{self, ControlPlane, Start},
    data::{self, DataFolder},
    join::{self, NodeFiles},
    kubeconfig, node,
    terminal::Progress,
    way::Way,
};

fn need_root(command: &str) -> anyhow::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!("running pods needs root. Type: sudo tandem {command}")
}

/// Cancelled by Ctrl-C and by SIGTERM.
fn until_told() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let shutdown = CancellationToken::new();
    let mut signals = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let token = shutdown.clone();
    drop(tokio::spawn(async move {
        tokio::select! {
            _ = signals.0.recv() => {}
            _ = signals.1.recv() => {}
        }
        token.cancel();
    }));
    Ok(shutdown)
}

pub(crate) async fn up(up: &Up) -> anyhow::Result<()> {
    need_root("up")?;
    let progress = Progress::begin();
    let shutdown = until_told()?;
    let name = address::node_name(up.node.node_name.as_deref())?;
    let address = address::of_node(up.node.node_ip)?;
    let (data, listener) = control::take(&data::chosen(up.data.data_dir.as_deref()), &up.member).await?;
    let start = Start {
        data: &data,
        flags: &up.member,
        join: &JoinFlags::default(),
        machine: address.into(),
        progress: &progress,
    };
    let starting = control::start(start, listener, shutdown.clone());
    let Some(started) = shutdown.run_until_cancelled(starting).await else { return Ok(()) };
    let started = started?;
    progress.done(&format!("control plane: the API server answers at {}", started.server));
    if up.set_context {
        set_context(&started, &progress)?;
    }
    let directory = data.node();
    std::fs::create_dir_all(&directory)?;
    let files = NodeFiles::below(&directory);
    started.issue_node(&files, &name, address)?;
    let plan = node::Plan {
        client: in_process(started.router.clone(), tandem_api::Identity::node(&name)),
        name,
        address,
        directory,
        files,
        settings: started.settings.clone(),
        way: Way::to_own(up.node.local_port, started.local, &shutdown).await?,
        member_everywhere: up.member.listen.ip().is_unspecified().then_some(up.member.listen.port()),
    };
    let kubeconfig = data.admin_kubeconfig().display().to_string();
    let node_ready = started.node_ready.clone();
    let finished = || {
        node_ready.store(true, std::sync::atomic::Ordering::Relaxed);
        progress.done("the cluster is ready");
        progress.note(&format!("next:  export KUBECONFIG={kubeconfig}; kubectl get nodes"));
    };
    let removed = started.until_removed();
    let result = tokio::select! {
        result = node::run(plan, &up.node, &progress, shutdown.clone(), finished) => result,
        error = removed => Err(error),
    };
    shutdown.cancel();
    started.stop().await;
    result
}

pub(crate) async fn control(control: &Control) -> anyhow::Result<()> {
    let progress = Progress::begin();
    let shutdown = until_told()?;
    let (data, listener) = control::take(&data::chosen(control.data.data_dir.as_deref()), &control.member).await?;
    let fallback = address::of_default_route().unwrap_or(Ipv4Addr::LOCALHOST);
    let start = Start {
        data: &data,
        flags: &control.member,
        join: &control.join,
        machine: fallback.into(),
        progress: &progress,
    };
    let starting = control::start(start, listener, shutdown.clone());
    let Some(started) = shutdown.run_until_cancelled(starting).await else { return Ok(()) };
    let started = started?;
    started.node_ready.store(true, std::sync::atomic::Ordering::Relaxed);
    progress.done(&format!("the API server answers at {}", started.server));
    progress.note("next:  tandem token create --role node");
    let result = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        error = started.until_removed() => Err(error),
    };
    shutdown.cancel();
    started.stop().await;
    result
}

pub(crate) async fn node(flags: &Node) -> anyhow::Result<()> {
    need_root("node …")?;
    let progress = Progress::begin();
    let shutdown = until_told()?;
    let name = address::node_name(flags.node.node_name.as_deref())?;
    let address = address::of_node(flags.node.node_ip)?;
    let (host, port) = join::host_and_port(&flags.server)?;
    let data = DataFolder::open(&data::chosen(flags.data.data_dir.as_deref()))?;
    let directory = data.node();
    std::fs::create_dir_all(&directory)?;
    let files = NodeFiles::below(&directory);
    let joining = async {
        let members = tokio::net::lookup_host((host.as_str(), port)).await;
        let members: Vec<SocketAddr> = members.with_context(|| format!("cannot find {host}"))?.collect();
        join::ensure(&files, &flags.server, flags.token.as_deref(), &name, address.into()).await?;
        progress.done(&format!("this machine is node {name} of the cluster at {}", flags.server));
        let way = Way::to_any(flags.node.local_port, &directory, members, &files.authority, &shutdown).await?;
        // Through its own port, so that the node goes on when the member that it joined through is gone.
        let client = tandem_client::with_credentials(&node::local_url(&flags.node), &files.credentials())?;
        let settings = cluster_settings(&client).await?;
        anyhow::Ok((way, client, settings))
    };
    let Some(joined) = shutdown.run_until_cancelled(joining).await else { return Ok(()) };
    let (way, client, settings) = joined?;
    let plan = node::Plan { name, address, directory, files, client, settings, way, member_everywhere: None };
    let finished = || progress.done("the node is ready");
    node::run(plan, &flags.node, &progress, shutdown, finished).await
}

async fn cluster_settings(client: &tandem_client::kube::Client) -> anyhow::Result<Settings> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), control::SETTINGS_NAMESPACE);
    let map = maps.get(control::SETTINGS_NAME).await.context("cannot read the cluster's settings")?;
    let text = map.data.unwrap_or_default().remove(control::SETTINGS_KEY).unwrap_or_default();
    serde_json::from_str(&text).context("the cluster's settings are not what this version knows")
}

/// Merges the administrator's context into the kubeconfig of whoever typed the command.
fn set_context(started: &ControlPlane, progress: &Progress) -> anyhow::Result<()> {
    let path = kubeconfig::of_user()?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let content = Kubeconfig {
        name: "tandem",
        server: &started.server,
        authority: started.pki.cluster.certificate(),
        certificate: &started.administrator.certificate,
        key: &started.administrator.key,
    };
    let merged = content.merged_into(&path)?;
    tandem_pki::write_private(&path, merged.as_bytes())?;
    progress.done(&format!("kubeconfig: the current context of {} is now tandem", path.display()));
    Ok(())
}
