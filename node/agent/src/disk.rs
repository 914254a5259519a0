//! Small files that the agent keeps for its next start. Losing one costs time, never correctness.

use std::{fs, io, os::unix::fs::OpenOptionsExt, path::Path};

use serde::{Serialize, de::DeserializeOwned};

/// What the file says, or `None` where there is no such file or it is not sound.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read a file of the agent");
            return None;
        }
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a file of the agent is not sound and is not used");
            None
        }
    }
}

/// Writes the whole file or nothing; readable by its owner only.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let next = path.with_extension("next");
    let bytes = serde_json::to_vec(value)?;
    let mut file = fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(&next)?;
    io::Write::write_all(&mut file, &bytes)?;
    fs::rename(&next, path)
}
