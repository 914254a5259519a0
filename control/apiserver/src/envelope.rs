use bytes::{Bytes, BytesMut};
use tandem_api::ApiError;

/// The only layout that this version writes and reads.
const FORMAT: u8 = 1;
/// The key id of values that are not encrypted.
const PLAIN: u32 = 0;
const FIXED_BYTES: usize = 1 + 1 + 4;

/// A stored value as it was written: `FORMAT, length, storage version, key id (big endian), JSON`.
///
/// The storage version (`apps/v1`) says which shape the JSON has, so that values can be migrated one by one; the key id
/// says with what they are encrypted. Neither needs a new format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub storage_version: String,
    pub json: Bytes,
}

/// A stored value that this version cannot read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a stored value is cut short")]
    Short,
    #[error(
        "a stored value has format {0}, and this version reads format {FORMAT} only: it was written by a newer version of tandem"
    )]
    Format(u8),
    #[error("a stored value is encrypted with key {0}, which this server does not have")]
    Key(u32),
    #[error("a stored value names its version in bytes that are not text")]
    Version,
}

impl From<Error> for ApiError {
    fn from(error: Error) -> ApiError {
        ApiError::internal(error)
    }
}

/// Puts JSON into its envelope. Storage versions are short words such as `apps/v1`: longer ones are cut.
pub fn seal(storage_version: &str, json: &[u8]) -> Bytes {
    let length = u8::try_from(storage_version.len()).unwrap_or(u8::MAX);
    let mut bytes = BytesMut::with_capacity(FIXED_BYTES + usize::from(length) + json.len());
    bytes.extend_from_slice(&[FORMAT, length]);
    bytes.extend_from_slice(&storage_version.as_bytes()[..usize::from(length)]);
    bytes.extend_from_slice(&PLAIN.to_be_bytes());
    bytes.extend_from_slice(json);
    bytes.freeze()
}

/// Takes a value out of its envelope without copying it.
pub fn open(value: &Bytes) -> Result<Envelope, Error> {
    let format = *value.first().ok_or(Error::Short)?;
    if format != FORMAT {
        return Err(Error::Format(format));
    }
    let length = usize::from(*value.get(1).ok_or(Error::Short)?);
    let head = FIXED_BYTES + length;
    if value.len() < head {
        return Err(Error::Short);
    }
    let version = std::str::from_utf8(&value[2..2 + length]).map_err(|_| Error::Version)?;
    let key = value[2 + length..head].iter().fold(0, |key, byte| key << 8 | u32::from(*byte));
    if key != PLAIN {
        return Err(Error::Key(key));
    }
    Ok(Envelope { storage_version: version.to_owned(), json: value.slice(head..) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by version 0.1. It stays readable for as long as format 1 does.
    const GOLDEN: &[u8] = b"\x01\x07apps/v1\0\0\0\0{\"kind\":\"Deployment\"}";

    #[test]
    fn the_golden_value_stays_readable() {
        let opened = open(&Bytes::from_static(GOLDEN)).unwrap();
        assert_eq!(opened.storage_version, "apps/v1");
        assert_eq!(opened.json, "{\"kind\":\"Deployment\"}");
        assert_eq!(seal("apps/v1", &opened.json), GOLDEN);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let check = |bytes: &'static [u8]| open(&Bytes::from_static(bytes)).unwrap_err();
        assert_eq!(check(b""), Error::Short);
        assert_eq!(check(b"\x01\x07apps"), Error::Short);
        assert_eq!(check(b"\x02\x02v1\0\0\0\0{}"), Error::Format(2));
        assert_eq!(check(b"\x01\x02v1\0\0\x01\x02{}"), Error::Key(258));
        assert!(Error::Format(2).to_string().contains("newer version"));
    }
}
