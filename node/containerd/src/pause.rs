//! The pause image: a program of a few kilobytes that is part of ours, so that no registry is needed for a pod.

use std::{process::Stdio, time::Duration};

use tandem_cri::CriRuntime;
use tandem_runtime::Runtime;

use crate::{
    Error,
    archive::{Content, File, Settings, archive, image},
    files::{Layout, PAUSE_IMAGE},
    programs::Programs,
};

const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

/// CRI learns of an import by an event.
const SEEN_TIMEOUT: Duration = Duration::from_secs(10);
const SEEN_POLL: Duration = Duration::from_millis(20);

fn contents() -> Vec<u8> {
    let program = File { path: "pause".to_owned(), mode: 0o755, content: Content::Data(PROGRAM.to_vec()) };
    let settings = Settings { entrypoint: vec!["/pause".to_owned()], ..Settings::default() };
    archive(PAUSE_IMAGE, &image(&[program], &settings))
}

/// Imports the image if containerd does not have it.
pub(crate) async fn ensure(cri: &CriRuntime, layout: &Layout, programs: &Programs) -> Result<(), Error> {
    if present(cri).await? {
        return Ok(());
    }
    let file = layout.dir().join("pause.tar");
    tokio::fs::write(&file, contents()).await.map_err(|source| Error::Write { path: file.clone(), source })?;
    let imported = tokio::process::Command::new(&programs.ctr)
        .arg("--address")
        .arg(layout.socket())
        .args(["--namespace", "k8s.io", "images", "import"])
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| Error::Pause(format!("{}: {error}", programs.ctr.display())))?;
    if !imported.status.success() {
        return Err(Error::Pause(String::from_utf8_lossy(&imported.stderr).trim().to_owned()));
    }
    tokio::fs::remove_file(&file).await.map_err(|source| Error::Write { path: file, source })?;
    let seen = async {
        while !present(cri).await? {
            tokio::time::sleep(SEEN_POLL).await;
        }
        Ok(())
    };
    let missing = |_| Error::Pause("it was imported, but CRI does not see it".to_owned());
    tokio::time::timeout(SEEN_TIMEOUT, seen).await.map_err(missing)?
}

async fn present(cri: &CriRuntime) -> Result<bool, Error> {
    let found = cri.image(PAUSE_IMAGE).await.map_err(|error| Error::Pause(error.to_string()))?;
    Ok(found.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_small_and_static() {
        assert!(PROGRAM.starts_with(b"\x7fELF"));
        assert!(PROGRAM.len() < 64 << 10, "{} bytes", PROGRAM.len());
        assert!(!PROGRAM.windows(6).any(|window| window == b".so.\x00\x00" || window == b"ld-lin"));
    }
}
