use std::{io, sync::Arc, time::Duration};

use tandem_client::events::Recorder;
use tandem_runtime::{Runtime, SandboxId};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Runtimes,
    cgroup::Hierarchies,
    config::Directories,
    context::Context,
    events::Events,
    image_gc,
    images::Images,
    machine,
    metrics::Metrics,
    node::{NodeAgent, Registration},
    objects::Objects,
    observer::Observer,
    reclaim,
    registry::Resolver,
    resize::Room,
    rotation,
    sandbox::NODE_ANNOTATION,
    server,
    services::Services,
    supervisor::{Pods, Supervisor},
    usage::Usage,
    volumes::{self, Volumes},
};

/// What the agent's parts have for coming to an end; workloads are not theirs to end.
const END_TIMEOUT: Duration = Duration::from_millis(800);
/// Status patches under way at once, of all pods.
const PATCHES_MAX: usize = 32;
const REMOVED_AT_ONCE: usize = 16;
const POD_FOLDERS_MODE: u32 = 0o750;

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot make the folder {path}: {source}")]
    Folder { path: String, source: io::Error },
    #[error("cannot listen on {address} for the node's server: {source}")]
    Listen { address: String, source: io::Error },
    #[error("cannot make an HTTP client for probes: {0}")]
    Http(#[source] reqwest::Error),
    #[error("{0}")]
    Volumes(String),
}

/// Runs the agent until it is told to end. What runs on the node goes on without it.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    // Another part of the process may have chosen the same provider before.
    drop(rustls::crypto::ring::default_provider().install_default());
    let directories = Directories::new(&config.directory);
    make_folder(&directories.pods())?;
    make_folder(&directories.persistent())?;
    let listen = config.server.listen;
    let listener =
        TcpListener::bind(listen).await.map_err(|source| Error::Listen { address: listen.to_string(), source })?;
    let port = listener.local_addr().map_or(listen.port(), |address| address.port());
    let (recorder, recording) = Recorder::start(config.client.clone(), "kubelet", config.clock.clone());
    let (services, follower) = Services::new(directories.services_cache());
    let registration = Registration {
        labels: config.labels.clone(),
        port,
        version: config.version.clone(),
        runtime_version: config.runtime_version.clone(),
    };
    let (server, client, pod_cidr) = (config.server.clone(), config.client.clone(), config.pod_cidr.clone());
    let events = Events::new(recorder, &config.node_name);
    let context = Arc::new(context(config, directories, events, services)?);
    let pods = Pods::default();
    let mut tasks = JoinSet::new();
    tasks.spawn(context.observer.clone().run(shutdown.clone()));
    tasks.spawn(follower.run(client, shutdown.clone()));
    tasks.spawn(NodeAgent::new(context.clone(), registration, pod_cidr).run(shutdown.clone()));
    tasks.spawn(server::serve(listener, server, context.clone(), pods.clone(), shutdown.clone()));
    tasks.spawn(rotation::run(context.clone(), shutdown.clone()));
    tasks.spawn(image_gc::run(context.clone(), shutdown.clone()));
    tasks.spawn(reclaim::run(context.clone(), shutdown.clone()));
    tasks.spawn(Supervisor::new(context, pods, shutdown.clone()).run());
    shutdown.cancelled().await;
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(END_TIMEOUT, all).await.is_err() {
        tracing::warn!("parts of the agent did not end in time and are given up");
    }
    recording.abort();
    Ok(())
}

fn make_folder(path: &std::path::Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(POD_FOLDERS_MODE);
    let made = std::fs::create_dir_all(path).and_then(|()| std::fs::set_permissions(path, mode));
    made.map_err(|source| Error::Folder { path: path.display().to_string(), source })
}

fn context(config: Config, directories: Directories, events: Events, services: Services) -> Result<Context, Error> {
    let objects = Arc::new(Objects::new(config.client.clone()));
    let http = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .tls_danger_accept_invalid_certs(true)
        .pool_max_idle_per_host(0)
        .no_proxy()
        .build()
        .map_err(Error::Http)?;
    let resolver = Resolver::new(config.registries);
    let (client, clock) = (config.client.clone(), config.clock.clone());
    let volumes = Volumes::new(directories.clone(), objects.clone(), client, &config.node_name, clock);
    Ok(Context {
        node_name: config.node_name,
        node_ip: config.node_ip,
        size: machine::size(),
        settings: config.settings,
        observer: Observer::new(config.runtimes.clone()),
        addresses: config.addresses,
        light_namespace: config.light_namespace,
        cgroup_root: config.cgroup_root,
        hierarchies: Hierarchies::of_machine(),
        images: Images::new(config.runtimes.clone(), resolver, objects.clone(), events.clone(), config.clock.clone()),
        volumes,
        runtimes: config.runtimes,
        client: config.client,
        clock: config.clock,
        events,
        services,
        objects,
        directories,
        http,
        metrics: Arc::new(Metrics::new(config.metrics)),
        usage: Usage::new(config.metric_window, config.ingresses),
        room: Room::default(),
        patches: Semaphore::new(PATCHES_MAX),
    })
}

/// Unmounts what the agent mounted for pods of this node (`D/node`), when none of them runs any more.
pub fn unmount_volumes(node: &std::path::Path) -> Result<(), Error> {
    volumes::unmount_all(&Directories::new(node).pods()).map_err(Error::Volumes)
}

/// What `down` needs to know of the node.
pub struct Remains {
    pub node_name: String,
    pub runtimes: Runtimes,
    /// `D/node`.
    pub directory: std::path::PathBuf,
    pub cgroup_root: String,
}

/// Stops and removes every sandbox that this node's agent made, with its mounts and cgroups. The data stays.
///
/// Gives the number of sandboxes removed, and what could not be done.
pub async fn down(remains: Remains) -> (usize, Vec<String>) {
    let mut problems = Vec::new();
    let mut removed = 0;
    for (_, runtime) in remains.runtimes.all() {
        let sandboxes = match runtime.list().await {
            Ok(sandboxes) => sandboxes,
            Err(error) => {
                problems.push(format!("cannot ask {} what runs: {error}", runtime.name()));
                continue;
            }
        };
        let mine = sandboxes
            .into_iter()
            .filter(|sandbox| sandbox.annotations.get(NODE_ANNOTATION) == Some(&remains.node_name))
            .map(|sandbox| sandbox.id);
        let (count, failed) = remove_all(runtime, mine.collect()).await;
        removed += count;
        problems.extend(failed);
    }
    let directories = Directories::new(&remains.directory);
    problems.extend(volumes::unmount_all(&directories.pods()).err());
    if let Err(error) = Hierarchies::of_machine().remove(&remains.cgroup_root) {
        problems.push(format!("cannot remove the cgroups of {}: {error}", remains.cgroup_root));
    }
    (removed, problems)
}

async fn remove_all(runtime: &Arc<dyn Runtime>, ids: Vec<SandboxId>) -> (usize, Vec<String>) {
    let mut waiting = ids.into_iter();
    let mut tasks = JoinSet::new();
    let mut removed = 0;
    let mut problems = Vec::new();
    loop {
        while tasks.len() < REMOVED_AT_ONCE {
            let Some(id) = waiting.next() else { break };
            let runtime = runtime.clone();
            tasks.spawn(async move {
                let result = match runtime.stop_sandbox(&id).await {
                    Ok(()) => runtime.remove_sandbox(&id).await,
                    Err(error) => Err(error),
                };
                result.map_err(|error| format!("cannot remove sandbox {id}: {error}"))
            });
        }
        match tasks.join_next().await {
            None => return (removed, problems),
            Some(Ok(Ok(()))) => removed += 1,
            Some(Ok(Err(problem))) => problems.push(problem),
            Some(Err(error)) => problems.push(error.to_string()),
        }
    }
}
