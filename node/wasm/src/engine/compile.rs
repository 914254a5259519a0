use std::{
    collections::HashMap,
    ffi::OsString,
    hash::{Hash, Hasher},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Resource, Rlimit};
use sha2::{Digest, Sha256};
use tandem_component::Binary;
use tokio::{io::AsyncReadExt, sync::Semaphore};

use super::{Engine, settings};

/// What one compile may use.
const COMPILE_CPU_SECONDS: u64 = 300;
const COMPILE_MEMORY_BYTES: u64 = 4 << 30;
const COMPILE_TIME: Duration = Duration::from_secs(600);
const COMPILE_NICE: i32 = 10;
const ERROR_BYTES: u64 = 16 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CompileError {
    /// The file is at fault.
    #[error("cannot be compiled: {0}")]
    Refused(String),
    #[error("the compiler could not be run: {0}")]
    Io(#[from] io::Error),
    #[error("compiling took longer than {} seconds", COMPILE_TIME.as_secs())]
    Timeout,
}

/// Who compiles: a child process with limits of its own.
#[derive(Clone, Debug)]
pub(crate) struct Compiling {
    pub(crate) program: PathBuf,
    /// What comes before the two paths.
    pub(crate) arguments: Vec<OsString>,
}

/// A compiled file that this host made itself.
pub(crate) struct Trusted(PathBuf);

impl Trusted {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

/// Code compiled once for each digest, engine and CPU, and kept in a folder that only this user can write to.
pub(crate) struct Compiler {
    folder: PathBuf,
    compiling: Compiling,
    /// What the code depends on besides the file.
    fingerprint: String,
    permits: Semaphore,
    under_way: parking_lot::Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Compiler {
    pub(crate) fn new(engine: &Engine, folder: PathBuf, compiling: Compiling) -> io::Result<Compiler> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700))?;
        let fingerprint = fingerprint(&engine.wasmtime);
        remove_stale(&folder, &fingerprint)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let permits = Semaphore::new(cores.saturating_sub(1).max(1));
        Ok(Compiler { folder, compiling, fingerprint, permits, under_way: parking_lot::Mutex::default() })
    }

    /// The code of the file with this digest, compiled now if it never was.
    pub(crate) async fn compiled(&self, digest: &str, file: &Path) -> Result<Trusted, CompileError> {
        let name = digest.replace(':', "-");
        let path = self.path(digest);
        let turn = self.under_way.lock().entry(name.clone()).or_default().clone();
        let held = turn.lock().await;
        let found = match self.check(&path) {
            Ok(found) => Ok(found),
            Err(_) => self.compile(file, &path).await,
        };
        drop(held);
        let mut under_way = self.under_way.lock();
        // Two: the map's and this one's. Nobody else waits.
        if under_way.get(&name).is_some_and(|turn| Arc::strong_count(turn) <= 2) {
            under_way.remove(&name);
        }
        found
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.folder.join(format!("{}-{}.cwasm", digest.replace(':', "-"), self.fingerprint))
    }

    /// Removes the code of a file that is not needed any more. What runs goes on.
    pub(crate) fn forget(&self, digest: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// A file is trusted when it is a plain file of this user that nobody else can change, in a folder that is so too.
    fn check(&self, path: &Path) -> io::Result<Trusted> {
        let user = rustix::process::geteuid().as_raw();
        let folder = std::fs::symlink_metadata(&self.folder)?;
        let file = std::fs::symlink_metadata(path)?;
        let own = |metadata: &std::fs::Metadata| metadata.uid() == user && metadata.mode() & 0o022 == 0;
        if folder.is_dir() && own(&folder) && file.is_file() && own(&file) {
            return Ok(Trusted(path.to_owned()));
        }
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "someone else can write to the compile cache"))
    }

    async fn compile(&self, file: &Path, path: &Path) -> Result<Trusted, CompileError> {
        let _permit = self.permits.acquire().await.map_err(io::Error::other)?;
        let temporary = path.with_extension("new");
        compile_in_child(&self.compiling.program, &self.compiling.arguments, file, &temporary).await?;
        std::fs::rename(&temporary, path)?;
        Ok(self.check(path)?)
    }
}

/// Code for another version, engine or processor is of no use any more.
fn remove_stale(folder: &Path, fingerprint: &str) -> io::Result<()> {
    let current = format!("-{fingerprint}.cwasm");
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if !path.to_string_lossy().ends_with(&current) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn fingerprint(engine: &wasmtime::Engine) -> String {
    let mut hasher = Fingerprint(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    let digest: [u8; 32] = hasher.0.finalize().into();
    hex::encode(&digest[..8])
}

struct Fingerprint(Sha256);

impl Hasher for Fingerprint {
    fn finish(&self) -> u64 {
        0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

async fn compile_in_child(
    program: &Path,
    arguments: &[OsString],
    file: &Path,
    output: &Path,
) -> Result<(), CompileError> {
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .arg(file)
        .arg(output)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut message = Vec::new();
    let run = async {
        if let Some(stderr) = child.stderr.take() {
            stderr.take(ERROR_BYTES).read_to_end(&mut message).await?;
        }
        child.wait().await
    };
    let status = tokio::time::timeout(COMPILE_TIME, run).await.map_err(|_| CompileError::Timeout)??;
    if status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&message).trim().to_owned();
    Err(CompileError::Refused(if message.is_empty() { format!("the compiler ended with {status}") } else { message }))
}

/// The compiling child: `compile IN OUT`.
pub(crate) fn compile_main(arguments: &[OsString]) -> ExitCode {
    let [file, output] = arguments else {
        return fail("usage: wasm-host compile IN OUT");
    };
    let (file, output) = (Path::new(file), Path::new(output));
    let compiled = limit_self().map_err(CompileError::Io).and_then(|()| {
        let head = std::fs::read(file)?;
        let binary = tandem_component::magic(&head).map_err(|error| CompileError::Refused(error.to_string()))?;
        compile_here(file, output, binary)
    });
    match compiled {
        Ok(()) => ExitCode::SUCCESS,
        Err(CompileError::Refused(message)) => fail(&message),
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    use std::io::Write as _;
    // The parent reads the reason there; if it is gone there is nobody to tell.
    drop(writeln!(io::stderr(), "{message}"));
    ExitCode::FAILURE
}

fn limit_self() -> io::Result<()> {
    let limit = |maximum| Rlimit { current: Some(maximum), maximum: Some(maximum) };
    rustix::process::setrlimit(Resource::Cpu, limit(COMPILE_CPU_SECONDS))?;
    // Not the address space: the engine reserves far more of that than it uses.
    rustix::process::setrlimit(Resource::Data, limit(COMPILE_MEMORY_BYTES))?;
    rustix::process::setrlimit(Resource::Core, limit(0))?;
    rustix::process::setpriority_process(None, COMPILE_NICE)?;
    Ok(())
}

fn compile_here(file: &Path, output: &Path, binary: Binary) -> Result<(), CompileError> {
    let bytes = std::fs::read(file)?;
    let (engine, _) = settings::engine().map_err(|error| CompileError::Refused(format!("{error:#}")))?;
    let compiled = match binary {
        Binary::Component => engine.precompile_component(&bytes),
        Binary::Module => engine.precompile_module(&bytes),
    };
    let compiled = compiled.map_err(|error| CompileError::Refused(format!("{error:#}")))?;
    std::fs::write(output, compiled)?;
    std::fs::set_permissions(output, std::fs::Permissions::from_mode(0o600))?;
    Ok(())
}
