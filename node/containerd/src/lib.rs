//! An own containerd: configured, started and kept running, beside whatever else the machine runs.
//!
//! ```text
//!  Config ──> files: config.toml, certs.d, network list ──> containerd (own session and cgroup) ──> shims, runc
//!                                                               │    ▲
//!                               CriRuntime <── socket ──────────┘    └─ supervisor: adopts, starts, starts again
//!                                                               └─ plugins: ptp ──> tandem-ipam ──> the node
//! ```
//!
//! It survives its supervisor, and its containers survive it: stopping this program, or dropping [`Containerd`], ends
//! neither. Only [`down`] does. It never touches another containerd of the machine; one that somebody else runs can
//! be used with [`external`].

pub mod archive;
mod cgroup;
mod down;
mod events;
mod files;
mod pause;
mod process;
mod programs;
mod supervisor;

pub use down::down;
pub use programs::MissingPrograms;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tandem_cri::{CriRuntime, Options};
use tandem_runtime::{Capabilities, Runtime};
use tokio_util::task::AbortOnDropHandle;

use files::Layout;
use programs::Programs;
use supervisor::Supervisor;

/// How often lists are compared where there are no events.
const POLL: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Missing(MissingPrograms),
    #[error("refused to use containerd: {}", .0.join("; "))]
    Unsafe(Vec<String>),
    #[error("{} is {excess} bytes too long for a unix socket; choose a shorter data folder", path.display())]
    PathTooLong { path: PathBuf, excess: usize },
    #[error("write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{action}: {source}")]
    System { action: &'static str, source: io::Error },
    #[error("containerd does not answer ({reason}); the end of {} says:\n{log}", path.display())]
    NotReady { reason: String, path: PathBuf, log: String },
    #[error("import the pause image: {0}")]
    Pause(String),
    #[error(transparent)]
    Cri(#[from] tandem_cri::Error),
}

/// What an own containerd is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its folder, `D/node/containerd`: root, state, socket, configuration.
    pub dir: PathBuf,
    /// Our own executable, which is the plugin `tandem-ipam` when it is called by that name.
    pub program: PathBuf,
    /// Where that plugin asks for addresses, `D/node/ipam.sock`.
    pub address_socket: PathBuf,
    pub mtu: u32,
    /// The cluster's registry. `None` leaves images to what their names say.
    pub registry: Option<Registry>,
    /// Refuse versions with known holes instead of warning.
    pub strict: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    /// The host in image names: `registry.tandem`.
    pub host: String,
    /// Where it is: `https://127.0.0.1:6444`.
    pub endpoint: String,
    /// The certificate authority that its certificate is checked with.
    pub authority: Option<PathBuf>,
    /// Certificate and key to present to it.
    pub client: Option<(PathBuf, PathBuf)>,
    pub mirrors: Vec<Mirror>,
}

/// A registry host whose images the cluster's registry has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// `docker.io`.
    pub host: String,
    /// Where to ask for what the cluster's registry does not have; `None` means nowhere.
    pub upstream: Option<String>,
}

/// A containerd that answers.
pub struct Containerd {
    pub runtime: Arc<dyn Runtime>,
    /// For calls that the trait does not have.
    pub cri: CriRuntime,
    /// What the administrator should know, in words.
    pub warnings: Vec<String>,
    _supervisor: Option<AbortOnDropHandle<()>>,
}

impl Containerd {
    fn new(cri: CriRuntime, warnings: Vec<String>, supervisor: Option<AbortOnDropHandle<()>>) -> Containerd {
        Containerd { runtime: Arc::new(cri.clone()), cri, warnings, _supervisor: supervisor }
    }
}

/// Takes over the containerd that runs in this folder, or starts one, and keeps it running for as long as the result
/// lives.
pub async fn start(config: Config) -> Result<Containerd, Error> {
    let layout = Layout::new(&config.dir)?;
    let programs = Programs::find()?;
    let warnings = programs.warnings().await;
    if config.strict && !warnings.is_empty() {
        return Err(Error::Unsafe(warnings));
    }
    let reconfigured = files::write_all(&layout, &config, &programs)?;
    let supervisor = Supervisor::new(layout.clone(), programs.clone());
    let process = supervisor.ensure(reconfigured).await?;
    let cri = CriRuntime::connect(&layout.socket(), options(&layout.socket(), true)).await?;
    pause::ensure(&cri, &layout, &programs).await?;
    let supervisor = AbortOnDropHandle::new(tokio::spawn(supervisor.run(process)));
    Ok(Containerd::new(cri, warnings, Some(supervisor)))
}

/// Uses a containerd, or another CRI runtime, that somebody else looks after.
pub async fn external(socket: &Path) -> Result<Containerd, Error> {
    let cri = CriRuntime::connect(socket, options(socket, false)).await?;
    Ok(Containerd::new(cri, Vec::new(), None))
}

fn options(socket: &Path, own_images: bool) -> Options {
    Options {
        counts_requests: false,
        name: "containerd",
        capabilities: Capabilities {
            own_network: true,
            light_network: false,
            user_ids: true,
            terminals: true,
            own_images,
        },
        poll: POLL,
        changes: Some(events::exits(tandem_cri::channel(socket))),
        notices: None,
        sandbox_image: Some(files::PAUSE_IMAGE),
    }
}
