//! Reads the log files that runtimes write: lines in CRI's format, followed while they grow.

use std::{
    io::{Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    fs::File,
    io::{AsyncBufReadExt, AsyncSeekExt, BufReader},
    sync::mpsc,
};

/// A log that grows is looked at this often.
const FOLLOW_PAUSE: Duration = Duration::from_millis(100);
/// A line longer than this is passed on in parts.
const LINE_MAX: usize = 256 << 10;
const BLOCK: u64 = 64 << 10;

/// Which part of a log is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    pub(crate) follow: bool,
    pub(crate) timestamps: bool,
    pub(crate) tail: Option<usize>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) limit_bytes: Option<usize>,
    /// Only `stdout` or only `stderr`.
    pub(crate) stream: Option<&'static str>,
}

/// A line of a CRI log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line<'a> {
    time: &'a str,
    stream: &'a str,
    /// More of the same line follows.
    partial: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tags = std::str::from_utf8(parts.next()?).ok()?;
    let partial = tags.split(':').next() == Some("P");
    Some(Line { time, stream, partial, text: parts.next().unwrap_or_default() })
}

/// The text of a line, without what CRI puts before it.
pub(crate) fn text_of(line: &str) -> Option<String> {
    parse(line.as_bytes()).map(|line| String::from_utf8_lossy(line.text).into_owned())
}

/// Turns log lines into what the reader wants to see.
struct Filter {
    options: LogOptions,
    left: Option<usize>,
    /// The last line of each stream goes on.
    within: Option<String>,
}

impl Filter {
    fn new(options: LogOptions) -> Filter {
        Filter { left: options.limit_bytes, options, within: None }
    }

    fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    fn pass(&mut self, raw: &[u8]) -> Option<Bytes> {
        let line = parse(raw)?;
        if self.options.stream.is_some_and(|wanted| wanted != line.stream) {
            return None;
        }
        if let Some(since) = self.options.since
            && line.time.parse::<Timestamp>().is_ok_and(|time| time < since)
        {
            return None;
        }
        let mut out = Vec::with_capacity(raw.len());
        let continues = self.within.as_deref() == Some(line.stream);
        if self.options.timestamps && !continues {
            out.extend_from_slice(line.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if line.partial {
            self.within = Some(line.stream.to_owned());
        } else {
            out.push(b'\n');
            if continues {
                self.within = None;
            }
        }
        if let Some(left) = &mut self.left {
            out.truncate(*left);
            *left -= out.len();
        }
        Some(Bytes::from(out))
    }
}

/// Where the last `lines` lines of a file begin.
fn tail_start(path: &Path, lines: usize) -> std::io::Result<u64> {
    let mut file = std::fs::File::open(path)?;
    let mut end = file.metadata()?.len();
    if lines == 0 {
        return Ok(end);
    }
    let size = end;
    let mut found = 0;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        Read::by_ref(&mut file).take(end - start).read_to_end(&mut block)?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let next = start + index as u64 + 1;
            // The newline at the very end closes the last line, it does not begin another.
            if next == size {
                continue;
            }
            found += 1;
            if found == lines {
                return Ok(next);
            }
        }
        end = start;
    }
    Ok(0)
}

/// Sends the wanted part of the log until its end, and what is added to it while `lives` says so.
///
/// Ends quietly when the reader goes away.
pub(crate) async fn send(
    path: &Path,
    options: LogOptions,
    lives: impl Fn() -> bool,
    out: mpsc::Sender<std::io::Result<Bytes>>,
) -> std::io::Result<()> {
    let start = match options.tail {
        Some(lines) => {
            let path = path.to_owned();
            tokio::task::spawn_blocking(move || tail_start(&path, lines)).await.map_err(std::io::Error::other)??
        }
        None => 0,
    };
    let mut file = File::open(path).await?;
    file.seek(SeekFrom::Start(start)).await?;
    let mut reader = BufReader::new(file);
    let follow = options.follow;
    let mut filter = Filter::new(options);
    let mut line = Vec::new();
    let mut successor = None;
    loop {
        // Asked before reading: what was written before the end is then read to its end.
        let living = follow && lives();
        loop {
            let whole = read_line(&mut reader, &mut line).await?;
            if !whole {
                break;
            }
            let passed = filter.pass(&line);
            line.clear();
            if let Some(bytes) = passed
                && out.send(Ok(bytes)).await.is_err()
            {
                return Ok(());
            }
            if filter.is_full() {
                return Ok(());
            }
        }
        if let Some(file) = successor.take() {
            reader = BufReader::new(file);
            continue;
        }
        if follow {
            // Read after what was put aside has been read to its end once more.
            successor = newer(path, reader.get_ref()).await;
        }
        if !living {
            match &successor {
                Some(_) => continue,
                None => return Ok(()),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW_PAUSE) => {}
            () = out.closed() => return Ok(()),
        }
    }
}

/// The file that has taken the place of an open one that was given another name.
async fn newer(path: &Path, open: &File) -> Option<File> {
    let (now, mine) = (tokio::fs::metadata(path).await.ok()?, open.metadata().await.ok()?);
    if now.ino() == mine.ino() {
        return None;
    }
    File::open(path).await.ok()
}

/// Adds to `line` until it is whole; false at the end of what is there.
async fn read_line(reader: &mut BufReader<File>, line: &mut Vec<u8>) -> std::io::Result<bool> {
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Ok(false);
        }
        let (taken, whole) = match available.iter().position(|byte| *byte == b'\n') {
            Some(index) => (index + 1, true),
            None => (available.len(), false),
        };
        line.extend_from_slice(available.get(..taken).unwrap_or_default());
        reader.consume(taken);
        if whole || line.len() > LINE_MAX {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::AtomicBool, atomic::Ordering};

    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.5Z stdout F one\n\
        2026-01-01T00:00:02Z stderr F oh\n\
        2026-01-01T00:00:03Z stdout P a long\n\
        2026-01-01T00:00:03Z stdout F  line\n\
        2026-01-01T00:00:04Z stdout F last\n";

    async fn read(options: LogOptions) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let (out, mut bytes) = mpsc::channel(64);
        send(&path, options, || false, out).await.unwrap();
        let mut text = Vec::new();
        while let Some(part) = bytes.recv().await {
            text.extend_from_slice(&part.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn parts_of_a_log() {
        let all = LogOptions::default();
        assert_eq!(read(all.clone()).await, "one\noh\na long line\nlast\n");
        assert_eq!(read(LogOptions { tail: Some(1), ..all.clone() }).await, "last\n");
        assert_eq!(read(LogOptions { tail: Some(0), ..all.clone() }).await, "");
        assert_eq!(read(LogOptions { tail: Some(99), ..all.clone() }).await, "one\noh\na long line\nlast\n");
        assert_eq!(read(LogOptions { limit_bytes: Some(5), ..all.clone() }).await, "one\no");
        assert_eq!(read(LogOptions { stream: Some("stderr"), ..all.clone() }).await, "oh\n");
        let since = Some("2026-01-01T00:00:03Z".parse().unwrap());
        assert_eq!(read(LogOptions { since, ..all.clone() }).await, "a long line\nlast\n");
        let stamped = read(LogOptions { timestamps: true, tail: Some(3), ..all }).await;
        assert_eq!(stamped, "2026-01-01T00:00:03Z a long line\n2026-01-01T00:00:04Z last\n");
    }

    #[tokio::test]
    async fn a_growing_log_is_followed_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        std::fs::write(&path, "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:01Z std").unwrap();
        let lives = Arc::new(AtomicBool::new(true));
        let (out, mut bytes) = mpsc::channel(64);
        let (file, living) = (path.clone(), lives.clone());
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let task = tokio::spawn(async move { send(&file, options, || living.load(Ordering::SeqCst), out).await });
        assert_eq!(bytes.recv().await.unwrap().unwrap(), "one\n");
        let mut grown = std::fs::read_to_string(&path).unwrap();
        grown.push_str("out F two\n");
        std::fs::write(&path, grown).unwrap();
        assert_eq!(bytes.recv().await.unwrap().unwrap(), "two\n");
        // Put aside, and gone on with in a new file.
        std::fs::rename(&path, folder.path().join("0.log.aside")).unwrap();
        std::fs::write(&path, "2026-01-01T00:00:02Z stdout F three\n").unwrap();
        assert_eq!(bytes.recv().await.unwrap().unwrap(), "three\n");
        lives.store(false, Ordering::SeqCst);
        assert!(bytes.recv().await.is_none());
        task.await.unwrap().unwrap();
    }
}
