//! Keeps one containerd running.

use std::{path::Path, time::Duration};

use tandem_cri::CriRuntime;
use tokio::time::Instant;

use crate::{
    Error,
    files::Layout,
    options,
    process::{self, Process},
    programs::Programs,
};

/// A first start makes databases and loads every plugin; a busy machine takes its time.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const READY_POLL: Duration = Duration::from_millis(30);

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(10);
/// One that ran this long is started again without waiting.
const SETTLED: Duration = Duration::from_secs(60);

const LOG_CHECK: Duration = Duration::from_secs(60);

/// How much of containerd's log goes into an error.
const LOG_LINES: usize = 8;

#[derive(Debug)]
pub(crate) struct Supervisor {
    layout: Layout,
    programs: Programs,
}

impl Supervisor {
    pub(crate) fn new(layout: Layout, programs: Programs) -> Supervisor {
        Supervisor { layout, programs }
    }

    /// A process that answers: the one that runs, unless its configuration is out of date, or else a new one.
    pub(crate) async fn ensure(&self, reconfigured: bool) -> Result<Process, Error> {
        if let Some(process) = Process::find(&self.layout) {
            if !reconfigured && self.ready(&process).await.is_ok() {
                tracing::info!(pid = %process.pid(), "adopted containerd");
                return Ok(process);
            }
            tracing::info!(pid = %process.pid(), reconfigured, "containerd is started anew; its containers go on");
            process.end().await.map_err(|source| Error::System { action: "end containerd", source })?;
        }
        self.start().await
    }

    async fn start(&self) -> Result<Process, Error> {
        let process = Process::spawn(&self.layout, &self.programs)?;
        tracing::info!(pid = %process.pid(), "started containerd");
        self.ready(&process).await?;
        Ok(process)
    }

    async fn ready(&self, process: &Process) -> Result<(), Error> {
        let socket = self.layout.socket();
        let answers = async {
            loop {
                match CriRuntime::connect(&socket, options(&socket, true)).await {
                    Ok(_) => return,
                    Err(_) => tokio::time::sleep(READY_POLL).await,
                }
            }
        };
        let reason = tokio::select! {
            answered = tokio::time::timeout(READY_TIMEOUT, answers) => match answered {
                Ok(()) => return Ok(()),
                Err(_) => format!("nothing within {READY_TIMEOUT:?}"),
            },
            ended = process.ended() => ended.unwrap_or_else(|error| error.to_string()),
        };
        let path = self.layout.log();
        Err(Error::NotReady { reason, log: tail(&path), path })
    }

    /// Starts it again whenever it ends. Never ends it: the caller going away is not its end.
    pub(crate) async fn run(self, mut process: Process) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let since = Instant::now();
            let status = self.until_ended(&process).await;
            tracing::warn!(%status, log = %self.layout.log().display(), "containerd ended; it is started again");
            if since.elapsed() > SETTLED {
                backoff = FIRST_BACKOFF;
            }
            process = loop {
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(LAST_BACKOFF);
                match self.start().await {
                    Ok(process) => break process,
                    Err(error) => tracing::error!(%error, "start containerd"),
                }
            };
        }
    }

    async fn until_ended(&self, process: &Process) -> String {
        let mut check = tokio::time::interval(LOG_CHECK);
        loop {
            tokio::select! {
                ended = process.ended() => return ended.unwrap_or_else(|error| error.to_string()),
                _ = check.tick() => if let Err(error) = process::cut_log(&self.layout.log()) {
                    tracing::warn!(%error, "cut containerd's log");
                },
            }
        }
    }
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
