//! The data folder: its format, its lock, and where each part of the product keeps its own.

use std::{
    fs::{self, File, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use tandem_api::Entropy;

const FORMAT_FILE: &str = "format";
const FORMAT_NAME: &str = "tandem-data";
/// The format that this version reads and writes.
const FORMAT_VERSION: u32 = 1;
const ROOT_FOLDER: &str = "/var/lib/tandem";
const CLUSTER_ID: &str = "cluster-id";
const USER_FOLDER: &str = ".local/share/tandem";

/// A data folder in use by this process, until it is dropped.
#[derive(Debug)]
pub(crate) struct DataFolder {
    path: PathBuf,
    _lock: File,
}

/// Another process holds the folder's lock.
#[derive(Debug, thiserror::Error)]
#[error("{folder} is in use by another tandem (process {owner}): stop it or name another --data-dir")]
pub(crate) struct InUse {
    folder: String,
    /// The process that the lock file names; another's while a new owner has not written itself down yet.
    pub(crate) owner: String,
}

/// The folder to use where none was named.
pub(crate) fn default_path(is_root: bool, home: Option<PathBuf>, xdg: Option<PathBuf>) -> PathBuf {
    if is_root {
        return PathBuf::from(ROOT_FOLDER);
    }
    xdg.map(|data| data.join("tandem")).or_else(|| home.map(|home| home.join(USER_FOLDER))).unwrap_or_default()
}

/// The folder that a command was told of, or the user's own.
pub(crate) fn chosen(given: Option<&Path>) -> PathBuf {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let default = || default_path(rustix::process::geteuid().is_root(), variable("HOME"), variable("XDG_DATA_HOME"));
    let path = given.map_or_else(default, Path::to_owned);
    std::path::absolute(&path).unwrap_or(path)
}

/// Whether a folder is one of tandem's, of whatever format.
pub(crate) fn is_data(path: &Path) -> bool {
    path.join(FORMAT_FILE).exists()
}

impl DataFolder {
    /// Takes the folder for this process, making it if it is not there.
    pub(crate) fn open(path: &Path) -> anyhow::Result<DataFolder> {
        fs::create_dir_all(path).with_context(|| format!("cannot make the data folder {}", path.display()))?;
        check_format(path)?;
        let lock = take_lock(&path.join("lock"))?;
        Ok(DataFolder { path: path.to_owned(), _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes this a folder of another member's cluster.
    pub(crate) fn set_cluster_id(&self, id: &str) -> anyhow::Result<()> {
        Ok(tandem_pki::write_private(&self.path.join(CLUSTER_ID), format!("{id}\n").as_bytes())?)
    }

    /// The id of the cluster whose data this is, made when the folder is new.
    pub(crate) fn cluster_id(&self, entropy: &dyn Entropy) -> anyhow::Result<String> {
        let file = self.path.join(CLUSTER_ID);
        match fs::read_to_string(&file) {
            Ok(id) => Ok(id.trim().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let id = entropy.uid();
                fs::write(&file, format!("{id}\n")).with_context(|| format!("cannot write {}", file.display()))?;
                Ok(id)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.path.join("pki")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Who this member is; see [`crate::member`].
    pub(crate) fn member(&self) -> PathBuf {
        self.path.join("member")
    }

    /// Where the other members are; see [`crate::recovery`].
    pub(crate) fn others(&self) -> PathBuf {
        self.path.join("others")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    pub(crate) fn node(&self) -> PathBuf {
        self.path.join("node")
    }

    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.path.join("admin.kubeconfig")
    }
}

fn check_format(path: &Path) -> anyhow::Result<()> {
    let file = path.join(FORMAT_FILE);
    let shown = path.display();
    match fs::read_to_string(&file) {
        Ok(text) => {
            let version = text.trim().strip_prefix(FORMAT_NAME).and_then(|rest| rest.trim().parse::<u32>().ok());
            match version {
                Some(FORMAT_VERSION) => Ok(()),
                Some(newer) if newer > FORMAT_VERSION => bail!(
                    "{shown} has data format {newer}, and this version of tandem knows format {FORMAT_VERSION}: \
                     use the newer version that wrote it"
                ),
                _ => bail!(
                    "{} does not say a data format that tandem knows; is {shown} the right folder?",
                    file.display()
                ),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let occupied = fs::read_dir(path).with_context(|| format!("cannot read {shown}"))?.next().is_some();
            if occupied {
                bail!("{shown} holds files of something else: name an empty folder with --data-dir");
            }
            let text = format!("{FORMAT_NAME} {FORMAT_VERSION}\n");
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

fn take_lock(path: &Path) -> anyhow::Result<File> {
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            file.read_to_string(&mut owner)?;
            let folder = path.parent().unwrap_or(path).display().to_string();
            Err(InUse { folder, owner: owner.trim().to_owned() }.into())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_taken_by_one_process_and_kept_in_one_format() {
        let directory = tempfile::tempdir().unwrap();
        let first = DataFolder::open(directory.path()).unwrap();
        let error = DataFolder::open(directory.path()).unwrap_err();
        assert!(error.to_string().contains("in use by another tandem"), "{error}");
        assert_eq!(error.downcast::<InUse>().unwrap().owner, std::process::id().to_string());
        drop(first);
        let again = DataFolder::open(directory.path()).unwrap();
        let id = again.cluster_id(&tandem_api::SystemEntropy).unwrap();
        assert_eq!(again.cluster_id(&tandem_api::SystemEntropy).unwrap(), id);
    }

    #[test]
    fn foreign_and_newer_folders_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("thesis.txt"), "x").unwrap();
        let error = DataFolder::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("holds files of something else"), "{error}");
        fs::write(directory.path().join("format"), "tandem-data 2\n").unwrap();
        let error = DataFolder::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("use the newer version"), "{error}");
    }

    #[test]
    fn folders_by_user() {
        assert_eq!(default_path(true, None, None), Path::new("/var/lib/tandem"));
        assert_eq!(default_path(false, Some("/home/a".into()), None), Path::new("/home/a/.local/share/tandem"));
        assert_eq!(default_path(false, None, Some("/d".into())), Path::new("/d/tandem"));
    }
}
