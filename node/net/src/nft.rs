//! The program `nft`, which makes one transaction of each script.

use std::process::{Output, Stdio};

use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::{
    Error,
    rules::{self, Ruleset},
};

const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);

/// Turns the table from `old`, or whatever the kernel has, into `new`.
pub(crate) async fn apply(old: Option<&Ruleset>, new: &Ruleset) -> Result<(), Error> {
    let script = rules::transaction(old, new);
    if script.is_empty() {
        return Ok(());
    }
    tracing::debug!(bytes = script.len(), whole = old.is_none(), "change the packet filter");
    run(&script).await
}

pub(crate) async fn run(script: &str) -> Result<(), Error> {
    call(&["-f", "-"], script).await.map(drop)
}

/// What `nft` says, read as far as `T` is interested.
pub(crate) async fn list<T: serde::de::DeserializeOwned>(what: &[&str]) -> Result<T, Error> {
    let output = call(&[&["-j", "list"], what].concat(), "").await?;
    serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))
}

fn failed(why: String) -> Error {
    Error::Rules { why }
}

async fn call(arguments: &[&str], input: &str) -> Result<Output, Error> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("cannot run nft ({error}): install the package nftables")))?;
    let Some(mut stdin) = child.stdin.take() else { return Err(failed("nft has no standard input".to_owned())) };
    stdin.write_all(input.as_bytes()).await.map_err(|error| failed(error.to_string()))?;
    drop(stdin);
    let output = tokio::time::timeout(TIMEOUT, child.wait_with_output())
        .await
        .map_err(|_| failed("nft does not answer".to_owned()))?
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(output);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(failed(text.lines().take(3).collect::<Vec<_>>().join("; ")))
}
