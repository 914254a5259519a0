//! What the person at the terminal sees: progress while things start, and logs.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Instant,
};

use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::cli::LogFormat;

/// What is logged where `RUST_LOG` says nothing. The client of the API logs each failure that it also gives back.
const DEFAULT_FILTER: &str = "warn,kube_client::client::builder=off,\
    tandem=info,tandem_apiserver=info,tandem_agent=info,tandem_controllers=info,tandem_store=info";
/// On a terminal the progress lines tell what goes well; logs tell the rest.
const TERMINAL_FILTER: &str = "warn,kube_client::client::builder=off";

pub(crate) fn start_logging(format: LogFormat, quiet: bool) {
    let fallback = if quiet && std::io::stderr().is_terminal() { TERMINAL_FILTER } else { DEFAULT_FILTER };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(fallback));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Json => registry.with(layer.json()).init(),
        LogFormat::Text => registry.with(layer.with_ansi(std::io::stderr().is_terminal())).init(),
    }
}

/// A line for each step of a start, with the time since the start.
#[derive(Debug)]
pub(crate) struct Progress {
    began: Instant,
    colour: bool,
}

impl Progress {
    pub(crate) fn begin() -> Progress {
        Progress { began: Instant::now(), colour: std::io::stderr().is_terminal() }
    }

    pub(crate) fn done(&self, what: &str) {
        let (on, off) = if self.colour { ("\x1b[32m", "\x1b[0m") } else { ("", "") };
        self.line(&format!("{on}✓{off} {what}"));
    }

    pub(crate) fn note(&self, what: &str) {
        self.line(&format!("  {what}"));
    }

    fn line(&self, text: &str) {
        // Whoever closed our standard error does not want to read this.
        let _unread = writeln!(std::io::stderr(), "{:>7.2}s {text}", self.began.elapsed().as_secs_f64());
    }
}

/// Prints what a command was asked for.
pub(crate) fn answer(text: &str) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{text}")
}

/// Says something beside the answer.
pub(crate) fn remark(text: &str) {
    // Whoever closed our standard error does not want to read this.
    let _unread = writeln!(std::io::stderr(), "{text}");
}
