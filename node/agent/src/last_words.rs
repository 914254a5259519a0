//! The termination message: what a container wrote for its pod's status before it ended.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use k8s_openapi::api::core::v1::Pod;
use tandem_runtime::{Container, State};

use crate::{
    config::{Directories, log_file},
    logs, pod,
};

const MESSAGE_MAX: u64 = 4096;
/// How much of the log stands in for a message, where the pod wants that.
const LOG_BYTES: u64 = 2048;
const LOG_LINES: usize = 80;

pub(crate) fn read(directories: &Directories, pod: &Pod, container: &Container) -> Option<String> {
    let State::Exited { code, .. } = container.state else { return None };
    let written = text(&directories.last_words(pod::uid(pod), &container.name, container.attempt), MESSAGE_MAX);
    if written.is_some() || code == 0 {
        return written;
    }
    let (_, spec) = pod::container(pod, &container.name)?;
    if spec.termination_message_policy.as_deref() != Some("FallbackToLogsOnError") {
        return None;
    }
    let log = directories.logs(pod).join(log_file(&container.name, container.attempt));
    let mut file = File::open(log).ok()?;
    // A CRI line is longer than its text: twice the bytes hold what is wanted of most logs.
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(LOG_BYTES * 2))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES * 2).read_to_end(&mut bytes).ok()?;
    let lines: Vec<String> = String::from_utf8_lossy(&bytes).lines().filter_map(logs::text_of).collect();
    let last = lines.iter().skip(lines.len().saturating_sub(LOG_LINES)).cloned().collect::<Vec<_>>().join("\n");
    let start = last.len().saturating_sub(LOG_BYTES as usize);
    let start = (start..last.len()).find(|index| last.is_char_boundary(*index)).unwrap_or(last.len());
    Some(last[start..].to_owned()).filter(|text| !text.is_empty())
}

fn text(path: &Path, max: u64) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(max).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned()).filter(|text| !text.is_empty())
}
