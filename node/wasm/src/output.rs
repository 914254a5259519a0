//! Where the standard output of guests goes: into log files as CRI writes them, or to whoever runs a command.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tandem_api::{Clock, SystemClock};
use tokio::{io::AsyncWrite, sync::mpsc};
use tokio_util::sync::PollSender;
use wasmtime_wasi::{
    async_trait,
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamError, StreamResult},
};

use crate::live::Live;

/// A longer line is split into parts, as containerd does.
const LINE_BYTES: usize = 16 * 1024;
/// How often a log file is looked at to see whether somebody rotated it away.
const ROTATION_CHECK: Duration = Duration::from_secs(1);
/// What a guest may write in one go.
const WRITE_BYTES: usize = 64 * 1024;

/// One container's log file.
pub(crate) struct LogFile {
    /// `None`: the pod has no log folder, and nothing is kept.
    path: Option<PathBuf>,
    open: Mutex<Option<OpenLog>>,
    /// Those who hear what goes into it.
    pub(crate) live: Live,
}

struct OpenLog {
    file: File,
    inode: u64,
    checked: Instant,
}

impl LogFile {
    pub(crate) fn new(path: Option<PathBuf>) -> Arc<LogFile> {
        Arc::new(LogFile { path, open: Mutex::new(None), live: Live::default() })
    }

    /// Goes on in what has the file's path now, or in a new file.
    pub(crate) fn reopen(&self) -> io::Result<()> {
        *self.open.lock() = None;
        self.touch()
    }

    /// Creates the file, since readers expect one for a container that has started.
    pub(crate) fn touch(&self) -> io::Result<()> {
        self.append(b"")
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut slot = self.open.lock();
        let now = Instant::now();
        if let Some(open) = slot.as_mut()
            && now.duration_since(open.checked) > ROTATION_CHECK
        {
            open.checked = now;
            let same = std::fs::metadata(path).is_ok_and(|metadata| metadata.ino() == open.inode);
            if !same {
                *slot = None;
            }
        }
        let open = match slot.as_mut() {
            Some(open) => open,
            None => {
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                let file = OpenOptions::new().create(true).append(true).open(path)?;
                let inode = file.metadata()?.ino();
                slot.insert(OpenLog { file, inode, checked: now })
            }
        };
        open.file.write_all(bytes)
    }
}

/// The stream of one instance, as a guest and its copies of the handle share it.
#[derive(Clone)]
pub(crate) struct Output(Arc<Stream>);

struct Stream {
    sink: Sink,
}

enum Sink {
    Log { log: Arc<LogFile>, name: &'static str, line: Mutex<Vec<u8>> },
    Captured { bytes: Arc<Mutex<Vec<u8>>>, limit: usize },
    Sent(mpsc::Sender<Bytes>),
}

impl Output {
    /// `name` is `stdout` or `stderr`.
    pub(crate) fn log(log: Arc<LogFile>, name: &'static str) -> Output {
        Output(Arc::new(Stream { sink: Sink::Log { log, name, line: Mutex::default() } }))
    }

    /// Keeps the first `limit` bytes.
    pub(crate) fn captured(bytes: Arc<Mutex<Vec<u8>>>, limit: usize) -> Output {
        Output(Arc::new(Stream { sink: Sink::Captured { bytes, limit } }))
    }

    pub(crate) fn sent(sender: mpsc::Sender<Bytes>) -> Output {
        Output(Arc::new(Stream { sink: Sink::Sent(sender) }))
    }

    /// What the host itself has to say.
    pub(crate) fn line(&self, text: &str) {
        if let Err(error) = self.write(format!("{}\n", text.trim_end()).as_bytes()) {
            tracing::warn!(%error, "cannot write the log");
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.0.sink {
            Sink::Log { log, name, line } => {
                log.live.tell(name, bytes);
                let mut text = Vec::new();
                {
                    let mut line = line.lock();
                    line.extend_from_slice(bytes);
                    take_lines(&mut line, name, false, &mut text);
                }
                if text.is_empty() { Ok(()) } else { log.append(&text) }
            }
            Sink::Captured { bytes: kept, limit } => {
                let mut kept = kept.lock();
                let room = limit.saturating_sub(kept.len());
                kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
                Ok(())
            }
            Sink::Sent(sender) => match sender.try_send(Bytes::copy_from_slice(bytes)) {
                Ok(()) => Ok(()),
                Err(mpsc::error::TrySendError::Full(_)) => Err(io::ErrorKind::WouldBlock.into()),
                Err(mpsc::error::TrySendError::Closed(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            },
        }
    }

    fn room(&self) -> usize {
        match &self.0.sink {
            Sink::Sent(sender) if sender.capacity() == 0 && !sender.is_closed() => 0,
            _ => WRITE_BYTES,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Sink::Log { log, name, line } = &self.sink {
            let mut text = Vec::new();
            take_lines(&mut line.lock(), name, true, &mut text);
            if !text.is_empty()
                && let Err(error) = log.append(&text)
            {
                tracing::warn!(%error, path = ?log.path, "cannot write the log");
            }
        }
    }
}

/// Moves what is complete out of `line` into log lines; at the `end` also what is not.
fn take_lines(line: &mut Vec<u8>, name: &str, end: bool, text: &mut Vec<u8>) {
    let mut rest = line.as_slice();
    loop {
        let newline = rest.iter().take(LINE_BYTES + 1).position(|byte| *byte == b'\n');
        let (part, tag, skip) = match newline {
            Some(at) => (&rest[..at], 'F', at + 1),
            None if rest.len() > LINE_BYTES => (&rest[..LINE_BYTES], 'P', LINE_BYTES),
            None if end && !rest.is_empty() => (rest, 'P', rest.len()),
            None => break,
        };
        let now = SystemClock.now();
        // Writing to a vector cannot fail.
        drop(write!(text, "{now} {name} {tag} "));
        text.extend_from_slice(part);
        text.push(b'\n');
        rest = &rest[skip..];
    }
    let left = line.len() - rest.len();
    line.drain(..left);
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        match &self.0.sink {
            Sink::Sent(sender) => Box::new(Sending(PollSender::new(sender.clone()))),
            _ => Box::new(Writing(self.clone())),
        }
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Writing(self.clone()))
    }
}

struct Writing(Output);

#[async_trait]
impl Pollable for Writing {
    async fn ready(&mut self) {
        if let Sink::Sent(sender) = &self.0.0.sink {
            // A closed channel is as ready as it will ever be: the write says so.
            drop(sender.reserve().await);
        }
    }
}

#[async_trait]
impl OutputStream for Writing {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.write(&bytes).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => StreamError::Closed,
            _ => StreamError::LastOperationFailed(error.into()),
        })
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(self.0.room())
    }
}

impl AsyncWrite for Writing {
    fn poll_write(self: Pin<&mut Self>, _context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.write(bytes).map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Sending(PollSender<Bytes>);

impl AsyncWrite for Sending {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        futures::ready!(self.0.poll_reserve(context)).map_err(closed)?;
        self.0.send_item(Bytes::copy_from_slice(bytes)).map_err(closed)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(writes: &[&[u8]]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("container/0.log");
        let log = LogFile::new(Some(path.clone()));
        log.touch().unwrap();
        let output = Output::log(log, "stdout");
        for bytes in writes {
            output.write(bytes).unwrap();
        }
        drop(output);
        let text = String::from_utf8(std::fs::read(path).unwrap()).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn lines_are_whole_or_marked() {
        assert_eq!(
            logged(&[b"one\ntw", b"o\n", b"\nend without newline"]),
            ["stdout F one", "stdout F two", "stdout F ", "stdout P end without newline"]
        );
        let long = [b'x'; LINE_BYTES + 5];
        let lines = logged(&[&long, b"\n"]);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len(), "stdout P ".len() + LINE_BYTES);
        assert_eq!(lines[1], "stdout F xxxxx");
    }

    #[test]
    fn capture_stops_at_its_limit() {
        let kept = Arc::default();
        let output = Output::captured(Arc::clone(&kept), 4);
        output.write(b"abc").unwrap();
        output.write(b"def").unwrap();
        assert_eq!(*kept.lock(), b"abcd");
    }
}
