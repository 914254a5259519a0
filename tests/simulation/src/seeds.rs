//! Many runs, each in a process of its own, as many at once as there are processors.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{bugs::Bug, run::Report, world::tell};

/// A run that takes longer in real time hangs.
const RUN_MAX: Duration = Duration::from_secs(300);

/// Where a run keeps what cannot be in memory, by the id of its process: snapshots on their way.
pub fn scratch(process: u32) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    base.join(format!("tandem-simulation-{process}"))
}

/// The binary of this crate, and what it is to run.
#[derive(Clone, Debug)]
pub struct Runs {
    pub binary: PathBuf,
    pub bug: Option<Bug>,
}

impl Runs {
    pub fn new(binary: impl AsRef<Path>, bug: Option<Bug>) -> Runs {
        Runs { binary: binary.as_ref().to_owned(), bug }
    }

    /// What repeats a seed.
    pub fn command(&self, seed: u64) -> String {
        let bug = self.bug.map_or_else(String::new, |bug| format!(" --bug {}", bug.name()));
        format!("{} {seed}{bug} --tell", self.binary.display())
    }

    /// Runs one seed.
    pub fn one(&self, seed: u64) -> Report {
        let failed = |why: String| Report { seed, violations: vec![why], ..Report::default() };
        let ended = self.start(seed).and_then(|child| {
            let dir = scratch(child.id());
            let ended = finish(child, RUN_MAX);
            // There only when the run was ended by force.
            drop(std::fs::remove_dir_all(dir));
            ended
        });
        match ended {
            Ok(text) => match serde_json::from_str(&text) {
                Ok(report) => report,
                Err(error) => failed(format!("the run ended without a report ({error}): {text}")),
            },
            Err(error) => failed(format!("the run did not end: {error}")),
        }
    }

    fn start(&self, seed: u64) -> io::Result<Child> {
        let mut command = Command::new(&self.binary);
        command.arg(seed.to_string());
        if let Some(bug) = self.bug {
            command.args(["--bug", bug.name()]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    }

    /// Runs the seeds until `each` has seen enough of their reports, which come in no particular order.
    pub fn all(&self, seeds: std::ops::Range<u64>, each: impl FnMut(Report) -> Enough + Send) {
        let (next, enough) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
        let each = Mutex::new(each);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds.end || enough.load(Ordering::Relaxed) {
                            return;
                        }
                        let report = self.one(seed);
                        if each.lock()(report) == Enough::Yes {
                            enough.store(true, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
    }
}

/// Whether further seeds are of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enough {
    Yes,
    No,
}

/// What the process printed, or its last words.
fn finish(mut child: Child, limit: Duration) -> io::Result<String> {
    let id = child.id();
    let begun = Instant::now();
    let over = AtomicBool::new(false);
    let (Some(mut out), Some(mut errors)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("the run has no output"));
    };
    let child = Mutex::new(child);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if begun.elapsed() > limit {
                    tell(&format!("process {id} takes too long and is ended"));
                    drop(child.lock().kill());
                    return;
                }
                std::thread::park_timeout(Duration::from_millis(50));
            }
        });
        let complaints = scope.spawn(move || io::read_to_string(&mut errors));
        let text = io::read_to_string(&mut out);
        let ended = child.lock().wait();
        over.store(true, Ordering::Relaxed);
        let complaints = complaints.join().unwrap_or_else(|_| Ok(String::new()))?;
        let (text, status) = (text?, ended?);
        if text.is_empty() {
            return Err(io::Error::other(format!("it ended with {status}: {complaints}")));
        }
        Ok(text)
    })
}
