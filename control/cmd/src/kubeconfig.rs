//! Which kubeconfig a command reads and writes.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::data;

/// Where a client command finds the cluster: the file it was given, that of the environment, or the administrator's in
/// the data folder.
pub(crate) fn path(given: Option<&Path>, data_dir: Option<&Path>) -> PathBuf {
    let environment = || std::env::var_os("KUBECONFIG").as_deref().and_then(of_list);
    let administrators = || data::chosen(data_dir).join("admin.kubeconfig");
    given.map(Path::to_owned).or_else(environment).unwrap_or_else(administrators)
}

/// The kubeconfig of whoever typed the command, which may not be there yet.
pub(crate) fn of_user() -> anyhow::Result<PathBuf> {
    chosen_of_user(std::env::var_os("KUBECONFIG").as_deref(), std::env::var_os("HOME"))
}

fn chosen_of_user(list: Option<&OsStr>, home: Option<OsString>) -> anyhow::Result<PathBuf> {
    if let Some(path) = list.and_then(of_list) {
        return Ok(path);
    }
    let home = home.context("there is no HOME to keep a kubeconfig in")?;
    Ok(Path::new(&home).join(".kube/config"))
}

/// `KUBECONFIG` is a list of files as `PATH` is one of folders. As in kubectl, a value is written to the first that
/// exists, or to the last when none does; files are not merged, so that one is read, too.
fn of_list(list: &OsStr) -> Option<PathBuf> {
    let files: Vec<PathBuf> = std::env::split_paths(list).filter(|file| !file.as_os_str().is_empty()).collect();
    files.iter().find(|file| file.exists()).or(files.last()).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_its_first_file_that_exists() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b", "c"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        for (list, name) in [
            (&["b"][..], Some("b")),
            (&["a"], Some("a")),
            (&["a", "b"], Some("b")),
            (&["c", "b"], Some("c")),
            (&["x", "y"], Some("y")),
            (&["", "a", ""], Some("a")),
            (&["", ""], None),
            (&[], None),
        ] {
            let paths = list.iter().map(|name| if name.is_empty() { PathBuf::new() } else { folder.path().join(name) });
            let joined = std::env::join_paths(paths).unwrap();
            assert_eq!(of_list(&joined), name.map(|name| folder.path().join(name)), "{list:?}");
        }
    }

    #[test]
    fn without_a_list_it_is_the_file_in_the_home_folder() {
        let chosen = |list: Option<&str>, home: Option<&str>| {
            chosen_of_user(list.map(OsStr::new), home.map(OsString::from)).map_err(|error| error.to_string())
        };
        assert_eq!(chosen(None, Some("/home/a")), Ok("/home/a/.kube/config".into()));
        assert_eq!(chosen(Some(""), Some("/home/a")), Ok("/home/a/.kube/config".into()));
        assert_eq!(chosen(Some("/x/none:/y/none"), None), Ok("/y/none".into()));
        assert!(chosen(None, None).unwrap_err().contains("there is no HOME"));
    }

    #[test]
    fn what_is_given_is_one_file() {
        assert_eq!(path(Some(Path::new("/x/a:b")), None), Path::new("/x/a:b"));
    }
}
