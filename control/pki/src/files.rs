use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use crate::Error;

/// Keys are read and written by their owner only.
pub const PRIVATE_MODE: u32 = 0o600;
pub const DIRECTORY_MODE: u32 = 0o700;

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::File { operation, path: path.display().to_string(), source }
}

pub(crate) fn make_private_directory(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path).map_err(failed("create", path))?;
    fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE)).map_err(failed("restrict", path))
}

pub(crate) fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Replaces a file in one step, so that a crash leaves the old content or the new, and nobody else can read either.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    let next = path.with_extension("next");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(PRIVATE_MODE).open(&next)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&next, path)?;
        path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    };
    write().map_err(failed("write", path))
}
