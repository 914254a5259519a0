//! A disk that loses power: SQLite's own file access, of which only what was synced is remembered.
//!
//! A file's writes wait until it is synced; [`image`] writes down what a machine would find after a power cut: every
//! synced byte, and of the rest whatever the disk had happened to keep, torn within a write too.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::BTreeMap,
    ffi::{CStr, OsStr, c_char, c_int, c_void},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        Once,
        atomic::{AtomicBool, AtomicPtr, Ordering},
    },
};

use libsqlite3_sys::{
    SQLITE_CANTOPEN, SQLITE_OK, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs, sqlite3_vfs_find,
    sqlite3_vfs_register,
};
use parking_lot::Mutex;
use rand::Rng;

/// The unit that a disk writes as a whole.
const SECTOR: usize = 512;

enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Truncate(usize),
}

#[derive(Default)]
struct Shadow {
    synced: Vec<u8>,
    pending: Vec<Change>,
}

struct Open {
    path: PathBuf,
    methods: *const sqlite3_io_methods,
}

// SAFETY: the methods are constants of SQLite, which no thread changes.
unsafe impl Send for Open {}

static SYSTEM: AtomicPtr<sqlite3_vfs> = AtomicPtr::new(std::ptr::null_mut());
static OPEN: Mutex<BTreeMap<usize, Open>> = Mutex::new(BTreeMap::new());
static SHADOWS: Mutex<BTreeMap<PathBuf, Shadow>> = Mutex::new(BTreeMap::new());
/// Whether a write-ahead file is synced when SQLite asks for it. It is not with `synchronous=NORMAL`.
static SYNCS: AtomicBool = AtomicBool::new(true);

/// Every database that this process opens from now on lies on the disk that can lose power.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    // SAFETY: both structures live for ever, and are complete before SQLite hears of them.
    ONCE.call_once(|| unsafe {
        let system = sqlite3_vfs_find(std::ptr::null());
        assert!(!system.is_null(), "SQLite has a file system");
        SYSTEM.store(system, Ordering::SeqCst);
        let ours = Box::leak(Box::new(*system));
        ours.zName = c"power".as_ptr();
        ours.pNext = std::ptr::null_mut();
        ours.xOpen = Some(open);
        ours.xDelete = Some(delete);
        assert_eq!(sqlite3_vfs_register(ours, 1), SQLITE_OK);
    });
}

pub(crate) fn obey_syncs(obey: bool) {
    SYNCS.store(obey, Ordering::SeqCst);
}

/// What becomes of the writes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// Any part of them is lost, as when the power goes.
    Power,
    /// All of them stay, as when the process ends and the machine goes on.
    Process,
}

/// What is on the disk at this moment of the files in `from`, written to `to` as a machine would find it.
pub(crate) fn image(from: &Path, to: &Path, random: &mut impl Rng) {
    std::fs::create_dir_all(to).unwrap();
    let shadows = SHADOWS.lock();
    for (path, shadow) in shadows.iter().filter(|(path, _)| path.parent() == Some(from)) {
        std::fs::write(to.join(path.file_name().unwrap()), shadow.found(End::Power, random)).unwrap();
    }
}

/// The same for all files below `from`, whose machines lose their power at the same moment.
pub(crate) fn image_below(from: &Path, to: &Path, end: End, random: &mut impl Rng) {
    let shadows = SHADOWS.lock();
    for (path, shadow) in shadows.iter() {
        let Ok(within) = path.strip_prefix(from) else { continue };
        let found = to.join(within);
        std::fs::create_dir_all(found.parent().unwrap()).unwrap();
        std::fs::write(found, shadow.found(end, random)).unwrap();
    }
}

impl Shadow {
    fn found(&self, end: End, random: &mut impl Rng) -> Vec<u8> {
        let mut kept = || end == End::Process || random.random_bool(0.5);
        let mut found = self.synced.clone();
        for change in &self.pending {
            match change {
                Change::Write { at, bytes } => {
                    for (index, sector) in bytes.chunks(SECTOR).enumerate().filter(|_| kept()) {
                        write(&mut found, at + index * SECTOR, sector);
                    }
                }
                Change::Truncate(length) if kept() => found.truncate(*length),
                Change::Truncate(_) => {}
            }
        }
        found
    }
}

/// Forgets the files below a folder that nobody will open again.
pub(crate) fn forget(folder: &Path) {
    SHADOWS.lock().retain(|path, _| !path.starts_with(folder));
}

fn write(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    file.resize(file.len().max(end), 0);
    file[at..end].copy_from_slice(bytes);
}

fn natural(number: impl TryInto<usize>) -> usize {
    number.try_into().unwrap_or_else(|_| panic!("SQLite gives sizes and places that are not negative"))
}

/// The path of an open file and SQLite's own methods for it.
fn of(file: *mut sqlite3_file) -> (PathBuf, &'static sqlite3_io_methods) {
    let open = OPEN.lock();
    let found = open.get(&(file as usize)).expect("the file is open");
    // SAFETY: the methods are constants of SQLite.
    (found.path.clone(), unsafe { &*found.methods })
}

unsafe extern "C" fn open(
    _: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    let system = SYSTEM.load(Ordering::SeqCst);
    // SAFETY: SQLite's own file system is asked exactly as SQLite asks it, and the name is a C string.
    unsafe {
        let Some(system_open) = (*system).xOpen else { return SQLITE_CANTOPEN };
        let answer = system_open(system, name, file, flags, out);
        if answer != SQLITE_OK || name.is_null() || (*file).pMethods.is_null() {
            return answer;
        }
        let path = PathBuf::from(OsStr::from_bytes(CStr::from_ptr(name).to_bytes()));
        let methods = (*file).pMethods;
        let ours = Box::leak(Box::new(*methods));
        // Without memory maps, which would write past these methods.
        ours.iVersion = 2;
        ours.xWrite = Some(write_file);
        ours.xTruncate = Some(truncate);
        ours.xSync = Some(sync);
        ours.xClose = Some(close);
        (*file).pMethods = ours;
        let there = std::fs::read(&path).unwrap_or_default();
        SHADOWS.lock().entry(path.clone()).or_insert_with(|| Shadow { synced: there, pending: Vec::new() });
        OPEN.lock().insert(file as usize, Open { path, methods });
        answer
    }
}

/// A name that is gone stays gone: SQLite deletes only what it has no use for any more.
unsafe extern "C" fn delete(_: *mut sqlite3_vfs, name: *const c_char, sync_folder: c_int) -> c_int {
    let system = SYSTEM.load(Ordering::SeqCst);
    // SAFETY: SQLite's own file system is asked exactly as SQLite asks it, and the name is a C string.
    unsafe {
        SHADOWS.lock().remove(Path::new(OsStr::from_bytes(CStr::from_ptr(name).to_bytes())));
        (*system).xDelete.map_or(SQLITE_CANTOPEN, |delete| delete(system, name, sync_folder))
    }
}

unsafe extern "C" fn write_file(
    file: *mut sqlite3_file,
    data: *const c_void,
    amount: c_int,
    at: sqlite3_int64,
) -> c_int {
    let (path, methods) = of(file);
    // SAFETY: SQLite gives `amount` readable bytes.
    let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), natural(amount)) }.to_vec();
    let mut shadows = SHADOWS.lock();
    shadows.entry(path).or_default().pending.push(Change::Write { at: natural(at), bytes });
    // SAFETY: the arguments are passed on as they came.
    unsafe { methods.xWrite.map_or(SQLITE_CANTOPEN, |write| write(file, data, amount, at)) }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, length: sqlite3_int64) -> c_int {
    let (path, methods) = of(file);
    SHADOWS.lock().entry(path).or_default().pending.push(Change::Truncate(natural(length)));
    // SAFETY: the arguments are passed on as they came.
    unsafe { methods.xTruncate.map_or(SQLITE_CANTOPEN, |truncate| truncate(file, length)) }
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, _: c_int) -> c_int {
    let (path, _) = of(file);
    if SYNCS.load(Ordering::SeqCst) || !path.to_string_lossy().ends_with("-wal") {
        let mut shadows = SHADOWS.lock();
        let shadow = shadows.entry(path).or_default();
        for change in std::mem::take(&mut shadow.pending) {
            match change {
                Change::Write { at, bytes } => write(&mut shadow.synced, at, &bytes),
                Change::Truncate(length) => shadow.synced.truncate(length),
            }
        }
    }
    SQLITE_OK
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    let open = OPEN.lock().remove(&(file as usize)).expect("the file is open");
    // SAFETY: the file goes back to SQLite's own methods, which end it.
    unsafe { (*open.methods).xClose.map_or(SQLITE_OK, |close| close(file)) }
}
