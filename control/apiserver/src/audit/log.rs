//! The file that events go to, one JSON object a line. A thread of its own writes it: a slow or a full disk stops no
//! request, and what does not fit into the queue is counted.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use jiff::{SignedDuration, Timestamp};
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tandem_api::Clock;

/// Events that wait to be written, and the bytes of them.
const QUEUE_MAX: usize = 10_000;
const QUEUE_MAX_BYTES: usize = 64 << 20;
const MODE: u32 = 0o600;

/// Where events go, and for how long they stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// `-` stands for the standard output.
    pub path: PathBuf,
    /// A file that has become so large is put aside.
    pub max_bytes: u64,
    /// Files that were put aside longer ago go; none do by their age where this is `None`.
    pub max_age: Option<SignedDuration>,
    /// The newest of them that stay; all where this is `None`.
    pub max_backups: Option<usize>,
}

#[derive(Clone, Default)]
struct Counts {
    written: Counter,
    dropped: Counter,
    failed: Counter,
}

/// The way into the log. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Log {
    queue: SyncSender<String>,
    waiting: Arc<AtomicUsize>,
    counts: Counts,
}

impl Log {
    pub(crate) fn open(options: LogOptions, clock: Arc<dyn Clock>, registry: &mut Registry) -> io::Result<Log> {
        let out: Box<dyn Write + Send> = if options.path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            Box::new(Rotated::open(options, clock)?)
        };
        let (log, events) = Log::new();
        let Counts { written, dropped, failed } = log.counts.clone();
        registry.register("apiserver_audit_event", "Audit events that were written", written);
        let help = "Audit events that were lost because the log could not be written as fast as they came";
        registry.register("apiserver_audit_event_dropped", help, dropped);
        registry.register("apiserver_audit_error", "Audit events that could not be written", failed);
        let writer = log.clone();
        let run = move || writer.write(&events, out);
        std::thread::Builder::new().name("audit-log".to_owned()).spawn(run)?;
        Ok(log)
    }

    fn new() -> (Log, Receiver<String>) {
        let (queue, events) = sync_channel(QUEUE_MAX);
        (Log { queue, waiting: Arc::default(), counts: Counts::default() }, events)
    }

    /// Never waits.
    pub(crate) fn add(&self, mut line: String) {
        line.push('\n');
        let bytes = line.len();
        let fits = self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes <= QUEUE_MAX_BYTES;
        if !fits || self.queue.try_send(line).is_err() {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            self.counts.dropped.inc();
        }
    }

    fn write(&self, events: &Receiver<String>, mut out: Box<dyn Write + Send>) {
        // It holds a sender itself: the thread lives as long as the process does.
        while let Ok(line) = events.recv() {
            match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
                Ok(()) => {
                    self.counts.written.inc();
                }
                Err(error) => {
                    if self.counts.failed.inc().is_power_of_two() || self.counts.failed.get() == 1 {
                        tracing::error!(%error, "the audit log cannot be written");
                    }
                }
            }
            self.waiting.fetch_sub(line.len(), Ordering::Relaxed);
        }
    }
}

/// A file that is put aside when it has become large.
struct Rotated {
    options: LogOptions,
    clock: Arc<dyn Clock>,
    file: File,
    bytes: u64,
    /// A line was written in part: the next one begins anew.
    torn: bool,
}

impl Rotated {
    fn open(options: LogOptions, clock: Arc<dyn Clock>) -> io::Result<Rotated> {
        let file = open(&options.path)?;
        let bytes = file.metadata()?.len();
        let rotated = Rotated { options, clock, file, bytes, torn: false };
        rotated.forget();
        Ok(rotated)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let aside = aside(&self.options.path, self.clock.now());
        fs::rename(&self.options.path, aside)?;
        self.file = open(&self.options.path)?;
        self.bytes = 0;
        self.forget();
        Ok(())
    }

    /// Removes what was put aside too long ago, or is too much.
    fn forget(&self) {
        let Ok(files) = put_aside(&self.options.path) else { return };
        let oldest = self.options.max_age.and_then(|age| self.clock.now().checked_sub(age).ok());
        for path in doomed(files, oldest, self.options.max_backups) {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(%error, path = %path.display(), "remove an old audit log");
            }
        }
    }
}

impl Write for Rotated {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let bytes = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if self.bytes > 0 && self.bytes.saturating_add(bytes) > self.options.max_bytes {
            self.rotate()?;
        }
        if std::mem::take(&mut self.torn) {
            self.file.write_all(b"\n").inspect_err(|_| self.torn = true)?;
        }
        self.file.write_all(line).inspect_err(|_| self.torn = true)?;
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(MODE).open(path)
}

const STAMP: &str = "%Y-%m-%dT%H-%M-%S%.3f";

/// `audit.log` becomes `audit-2026-01-01T00-00-00.000.log`.
fn aside(path: &Path, now: Timestamp) -> PathBuf {
    let (before, after) = parts(path);
    path.with_file_name(format!("{before}{}{after}", now.strftime(STAMP)))
}

/// What stands before and after the time.
fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let after = text(path.extension()).map(|extension| format!(".{extension}")).unwrap_or_default();
    (format!("{}-", text(path.file_stem()).unwrap_or_default()), after)
}

fn put_aside(path: &Path) -> io::Result<Vec<(Timestamp, PathBuf)>> {
    let (before, after) = parts(path);
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let stamp = name.strip_prefix(&before).and_then(|rest| rest.strip_suffix(&after));
        let at = stamp.and_then(|stamp| jiff::civil::DateTime::strptime(STAMP, stamp).ok());
        if let Some(at) = at.and_then(|at| at.to_zoned(jiff::tz::TimeZone::UTC).ok()) {
            found.push((at.timestamp(), entry.path()));
        }
    }
    Ok(found)
}

fn doomed(mut files: Vec<(Timestamp, PathBuf)>, oldest: Option<Timestamp>, most: Option<usize>) -> Vec<PathBuf> {
    files.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    let is_doomed = |(index, (at, path)): (usize, (Timestamp, PathBuf))| {
        let too_old = oldest.is_some_and(|oldest| at < oldest);
        (too_old || most.is_some_and(|most| index >= most)).then_some(path)
    };
    files.into_iter().enumerate().filter_map(is_doomed).collect()
}

#[cfg(test)]
mod tests {
    use tandem_api::FixedClock;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn files_are_put_aside_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let clock = Arc::new(FixedClock::new(at("2026-01-02T03:04:05.006Z")));
        let options = LogOptions { path: path.clone(), max_bytes: 10, max_age: None, max_backups: Some(1) };
        fs::write(folder.path().join("audit-2020-01-01T00-00-00.000.log"), "old").unwrap();
        fs::write(folder.path().join("audit-notes.log"), "not ours").unwrap();
        let mut log = Rotated::open(options, clock).unwrap();
        for line in ["12345\n", "67890\n", "abcde\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "abcde\n");
        let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["audit-2026-01-02T03-04-05.006.log", "audit-notes.log", "audit.log"]);
    }

    #[test]
    fn old_files_go_by_age_and_by_number() {
        let file = |day: &str| (at(&format!("2026-01-{day}T00:00:00Z")), PathBuf::from(day));
        let files = || vec![file("01"), file("03"), file("02")];
        let check = |oldest: Option<&str>, most, expected: &[&str]| {
            let found = doomed(files(), oldest.map(at), most);
            assert_eq!(found, expected.iter().map(PathBuf::from).collect::<Vec<_>>());
        };
        check(None, None, &[]);
        check(None, Some(2), &["01"]);
        check(Some("2026-01-02T12:00:00Z"), None, &["02", "01"]);
    }

    #[test]
    fn what_does_not_fit_is_counted_and_nobody_waits() {
        let (log, events) = Log::new();
        for _ in 0..QUEUE_MAX + 5 {
            log.add("{}".to_owned());
        }
        assert_eq!(log.counts.dropped.get(), 5);
        drop(events);
        let (log, _events) = Log::new();
        log.add("x".repeat(QUEUE_MAX_BYTES));
        assert_eq!((log.counts.dropped.get(), log.waiting.load(Ordering::Relaxed)), (1, 0));
    }

    /// A disk that is full at first.
    struct Full(usize, Arc<parking_lot::Mutex<Vec<u8>>>);

    impl Write for Full {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            if self.0 > 0 {
                self.0 -= 1;
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.1.lock().extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn writing_goes_on_when_there_is_room_again() {
        let (log, events) = Log::new();
        let written = Arc::default();
        let (counts, out) = (log.counts.clone(), Box::new(Full(2, Arc::clone(&written))));
        for line in ["a", "b", "c"] {
            log.add(line.to_owned());
        }
        let writing = std::thread::spawn(move || log.write(&events, out));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while counts.written.get() == 0 && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!((counts.failed.get(), written.lock().as_slice()), (2, b"c\n".as_slice()));
        assert!(!writing.is_finished());
    }
}
