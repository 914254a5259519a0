//! Where this program is.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

/// What the program is called where nobody renamed it.
const NAME: &[u8] = b"tandem";

/// What Linux appends to the path of a running program whose file was replaced or removed.
const GONE: &[u8] = b" (deleted)";

/// The path at which others can start this program, or the version that has replaced it.
pub(crate) fn installed() -> anyhow::Result<PathBuf> {
    standing(&std::env::current_exe().context("cannot tell where this program is")?)
}

/// Whether the program file of a process is this program, or an earlier version of it that was replaced.
pub(crate) fn is_same(executable: &Path, own: &Path) -> bool {
    name(executable).is_some_and(|it| it == NAME || Some(it) == name(own))
}

fn name(executable: &Path) -> Option<&[u8]> {
    let name = executable.file_name()?.as_bytes();
    Some(name.strip_suffix(GONE).unwrap_or(name))
}

fn standing(path: &Path) -> anyhow::Result<PathBuf> {
    if path.exists() {
        return Ok(path.to_owned());
    }
    let replaced = path.as_os_str().as_bytes().strip_suffix(GONE).map(|path| PathBuf::from(OsStr::from_bytes(path)));
    match replaced {
        Some(path) if path.exists() => Ok(path),
        _ => bail!("the program file {} is gone: put it back and start again", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_replaced_is_found_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("tandem");
        let replaced = folder.path().join("tandem (deleted)");
        assert!(standing(&replaced).unwrap_err().to_string().contains("is gone"));
        std::fs::write(&program, "").unwrap();
        assert_eq!(standing(&program).unwrap(), program);
        assert_eq!(standing(&replaced).unwrap(), program);
        std::fs::write(&replaced, "").unwrap();
        assert_eq!(standing(&replaced).unwrap(), replaced);
    }

    #[test]
    fn a_program_is_known_by_its_name() {
        for (executable, own, same) in [
            ("/usr/bin/tandem", "/usr/bin/tandem", true),
            ("/usr/bin/tandem (deleted)", "/opt/tandem", true),
            ("/opt/tandem-2", "/opt/tandem-2", true),
            ("/opt/tandem-2 (deleted)", "/opt/tandem-2", true),
            ("/usr/bin/tandem", "/opt/tandem-2", true),
            ("/usr/sbin/sshd", "/usr/bin/tandem", false),
            ("/opt/tandem-1", "/usr/bin/tandem", false),
            ("/opt/tandem/sh", "/usr/bin/tandem", false),
            ("/", "/usr/bin/tandem", false),
        ] {
            assert_eq!(is_same(Path::new(executable), Path::new(own)), same, "{executable} {own}");
        }
    }
}
