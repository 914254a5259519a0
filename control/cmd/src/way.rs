//! A node's way to the API server: a loopback port that leads to whichever member is ready, and what is known of the
//! members, kept on disk so that a restart finds the cluster when the member that was joined is gone.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use tandem_net::forward::{self, Members, Probe};
use tandem_pki::write_private;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Says whether a member can read and write; what else it waits for does not matter here.
const READY_PATH: &str = "/readyz/store";

/// Ends with what it is dropped with.
pub(crate) struct Way {
    pub(crate) members: Members,
    /// Told which members there are.
    pub(crate) known: Option<watch::Sender<Vec<SocketAddr>>>,
    _tasks: JoinSet<()>,
}

impl Way {
    /// The way to the member in this process, whatever others there are.
    pub(crate) async fn to_own(port: u16, member: SocketAddr, shutdown: &CancellationToken) -> anyhow::Result<Way> {
        let members = Members::new(watch::channel(vec![member]).1);
        let mut tasks = JoinSet::new();
        tasks.spawn(forward::forward(listen(port).await?, members.clone(), shutdown.clone()));
        Ok(Way { members, known: None, _tasks: tasks })
    }

    /// The way to any member: those that were known last, or the ones given.
    pub(crate) async fn to_any(
        port: u16,
        folder: &Path,
        given: Vec<SocketAddr>,
        authority: &Path,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Way> {
        let file = folder.join("members.json");
        let (known, all) = watch::channel(remembered(&file, given)?);
        let members = Members::new(all.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(forward::forward(listen(port).await?, members.clone(), shutdown.clone()));
        tasks.spawn(members.clone().watch(probe(authority)?, shutdown.clone()));
        tasks.spawn(remember(file, all));
        Ok(Way { members, known: Some(known), _tasks: tasks })
    }
}

async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("cannot listen on {address}: is the port in use? Choose another with --local-port"))
}

/// The members of the last run, then those that were named and are not among them.
fn remembered(file: &Path, given: Vec<SocketAddr>) -> anyhow::Result<Vec<SocketAddr>> {
    let mut members: Vec<SocketAddr> = match std::fs::read(file) {
        Ok(text) => {
            serde_json::from_slice(&text).with_context(|| format!("{} is damaged: remove it", file.display()))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    for member in given {
        if !members.contains(&member) {
            members.push(member);
        }
    }
    Ok(members)
}

async fn remember(file: PathBuf, mut members: watch::Receiver<Vec<SocketAddr>>) {
    while members.changed().await.is_ok() {
        let now = members.borrow_and_update().clone();
        let written = serde_json::to_vec(&now).map_err(|error| error.to_string());
        if let Err(error) = written.and_then(|text| write_private(&file, &text).map_err(|error| error.to_string())) {
            tracing::warn!(error, "the members of the control plane could not be written down");
        }
    }
}

fn probe(authority: &Path) -> anyhow::Result<Probe> {
    let text = std::fs::read(authority).with_context(|| format!("cannot read {}", authority.display()))?;
    let client = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(&text)?])
        .no_proxy()
        .pool_max_idle_per_host(1)
        .build()?;
    Ok(Arc::new(move |member| {
        let client = client.clone();
        Box::pin(async move {
            let answer = client.get(format!("https://{member}{READY_PATH}")).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_known_last_comes_before_what_was_given() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("members.json");
        let [a, b] = ["192.0.2.1:6443", "192.0.2.2:6443"].map(|text| text.parse::<SocketAddr>().unwrap());
        assert_eq!(remembered(&file, vec![a]).unwrap(), [a]);
        std::fs::write(&file, r#"["192.0.2.2:6443"]"#).unwrap();
        assert_eq!(remembered(&file, vec![a, b]).unwrap(), [b, a]);
        std::fs::write(&file, "x").unwrap();
        assert!(remembered(&file, vec![a]).unwrap_err().to_string().contains("remove it"));
    }
}
