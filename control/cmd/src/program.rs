//! Where this program is.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

/// What Linux appends to the path of a running program whose file was replaced or removed.
const GONE: &[u8] = b" (deleted)";

/// The path at which others can start this program, or the version that has replaced it.
pub(crate) fn installed() -> anyhow::Result<PathBuf> {
    standing(&std::env::current_exe().context("cannot tell where this program is")?)
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
}
