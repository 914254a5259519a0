//! The bytes of a command and of a stored value: fixed layouts, integers big-endian, the version first.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use tandem_api::{Key, Revision};

use crate::{COMMAND_VERSION, Command, Expect, Op};

/// Why bytes could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("has a command of version {version}, and this release knows up to {COMMAND_VERSION}")]
    Newer { version: u16 },
    #[error("is damaged: {0}")]
    Damaged(&'static str),
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const COMPACT: u8 = 3;

const ANY: u8 = 0;
const ABSENT: u8 = 1;
const AT: u8 = 2;

/// Bytes that the command's encoding takes, or slightly more.
pub(crate) fn size_of(command: &Command) -> usize {
    let ops = command.ops.iter().map(|operation| match operation {
        Op::Put { key, value, .. } => 18 + key.as_str().len() + value.len(),
        Op::Delete { key, .. } => 14 + key.as_str().len(),
        Op::Compact { .. } => 17,
    });
    15 + ops.sum::<usize>()
}

pub(crate) fn encode(command: &Command) -> Vec<u8> {
    let mut out = Vec::with_capacity(size_of(command));
    out.put_u16(command.version);
    match command.fence {
        Some(fence) => {
            out.put_u8(1);
            out.put_u64(fence);
        }
        None => out.put_u8(0),
    }
    put_length(&mut out, command.ops.len());
    for operation in &command.ops {
        match operation {
            Op::Put { key, value, expect } => {
                out.put_u8(PUT);
                put_bytes(&mut out, key.as_str().as_bytes());
                put_bytes(&mut out, value);
                put_expect(&mut out, *expect);
            }
            Op::Delete { key, expect } => {
                out.put_u8(DELETE);
                put_bytes(&mut out, key.as_str().as_bytes());
                put_expect(&mut out, *expect);
            }
            Op::Compact { before, watches } => {
                out.put_u8(COMPACT);
                out.put_u64(before.0);
                out.put_u64(watches.0);
            }
        }
    }
    out
}

/// Lengths are far below 4 GiB: the size of a command is checked before it is proposed.
fn put_length(out: &mut Vec<u8>, length: usize) {
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.put_slice(bytes);
}

fn put_expect(out: &mut Vec<u8>, expect: Expect) {
    match expect {
        Expect::Any => out.put_u8(ANY),
        Expect::Absent => out.put_u8(ABSENT),
        Expect::At(revision) => {
            out.put_u8(AT);
            out.put_u64(revision.0);
        }
    }
}

pub(crate) fn decode(bytes: Bytes) -> Result<Command, DecodeError> {
    let mut reader = Reader(bytes);
    let version = reader.u16()?;
    if version != COMMAND_VERSION {
        return Err(DecodeError::Newer { version });
    }
    let fence = match reader.u8()? {
        0 => None,
        1 => Some(reader.u64()?),
        _ => return Err(DecodeError::Damaged("a fence is there or not")),
    };
    let count = reader.length()?;
    // An operation takes nine bytes at least, so a damaged count cannot ask for more memory than the input has.
    let mut ops = Vec::with_capacity(count.min(reader.0.len() / 9));
    for _ in 0..count {
        ops.push(reader.operation()?);
    }
    if reader.0.has_remaining() {
        return Err(DecodeError::Damaged("bytes follow the command"));
    }
    Ok(Command { version, fence, ops })
}

struct Reader(Bytes);

impl Reader {
    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.0.try_get_u8().map_err(|_| CUT_SHORT)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.0.try_get_u16().map_err(|_| CUT_SHORT)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.0.try_get_u64().map_err(|_| CUT_SHORT)
    }

    fn length(&mut self) -> Result<usize, DecodeError> {
        let length = self.0.try_get_u32().map_err(|_| CUT_SHORT)?;
        usize::try_from(length).map_err(|_| CUT_SHORT)
    }

    fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let length = self.length()?;
        if length > self.0.len() {
            return Err(CUT_SHORT);
        }
        Ok(self.0.split_to(length))
    }

    fn key(&mut self) -> Result<Key, DecodeError> {
        let text = String::from_utf8(self.bytes()?.to_vec());
        text.map(Key::from_raw).map_err(|_| DecodeError::Damaged("a key is not text"))
    }

    fn expect(&mut self) -> Result<Expect, DecodeError> {
        match self.u8()? {
            ANY => Ok(Expect::Any),
            ABSENT => Ok(Expect::Absent),
            AT => Ok(Expect::At(Revision(self.u64()?))),
            _ => Err(DecodeError::Damaged("an expectation of an unknown kind")),
        }
    }

    fn operation(&mut self) -> Result<Op, DecodeError> {
        match self.u8()? {
            PUT => {
                let (key, value) = (self.key()?, self.bytes()?);
                Ok(Op::Put { key, value, expect: self.expect()? })
            }
            DELETE => Ok(Op::Delete { key: self.key()?, expect: self.expect()? }),
            COMPACT => Ok(Op::Compact { before: Revision(self.u64()?), watches: Revision(self.u64()?) }),
            _ => Err(DecodeError::Damaged("an operation of an unknown kind")),
        }
    }
}

const CUT_SHORT: DecodeError = DecodeError::Damaged("cut short");

/// One version of one key as it lies in the state file and in snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionRow {
    pub key: Key,
    pub revision: Revision,
    pub created: Revision,
    /// `None` when the key was deleted at this revision.
    pub value: Option<Bytes>,
}

impl VersionRow {
    pub(crate) fn checksum(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(self.key.as_str().as_bytes());
        hasher.update(&self.revision.0.to_be_bytes());
        hasher.update(&self.created.0.to_be_bytes());
        hasher.update(&[u8::from(self.value.is_some())]);
        hasher.update(self.value.as_deref().unwrap_or_default());
        hasher.finalize()
    }

    pub(crate) fn size(&self) -> usize {
        64 + self.key.as_str().len() + self.value.as_ref().map_or(0, Bytes::len)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.size());
        put_bytes(&mut out, self.key.as_str().as_bytes());
        out.put_u64(self.revision.0);
        out.put_u64(self.created.0);
        match &self.value {
            Some(value) => {
                out.put_u8(1);
                put_bytes(&mut out, value);
            }
            None => out.put_u8(0),
        }
        out
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<VersionRow, DecodeError> {
        let mut reader = Reader(bytes);
        let (key, revision, created) = (reader.key()?, Revision(reader.u64()?), Revision(reader.u64()?));
        let value = match reader.u8()? {
            0 => None,
            1 => Some(reader.bytes()?),
            _ => return Err(DecodeError::Damaged("a value is there or not")),
        };
        Ok(VersionRow { key, revision, created, value })
    }
}

/// A command on its way through the log, shared so that the log's copies cost nothing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Proposal(pub Arc<Command>);

impl std::fmt::Display for Proposal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "command of {} operations", self.0.ops.len())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect_file;
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Command {
        Command {
            version: COMMAND_VERSION,
            fence: Some(7),
            ops: vec![
                Op::Put {
                    key: Key::from_raw("/core/pods/default/a"),
                    value: Bytes::from_static(b"\0v"),
                    expect: Expect::Absent,
                },
                Op::Put {
                    key: Key::from_raw("/core/pods/default/b"),
                    value: Bytes::new(),
                    expect: Expect::At(Revision(258)),
                },
                Op::Delete { key: Key::from_raw("/core/nodes/n"), expect: Expect::Any },
                Op::Compact { before: Revision(9), watches: Revision(4) },
            ],
        }
    }

    fn hex(bytes: &[u8]) -> String {
        let lines: Vec<String> =
            bytes.chunks(32).map(|chunk| chunk.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
        lines.join("\n") + "\n"
    }

    /// The layout is frozen: logs of older releases are read with it.
    #[test]
    fn the_command_layout_is_frozen() {
        expect_file!["../tests/golden/command-v1.hex"].assert_eq(&hex(&encode(&sample())));
        assert_eq!(decode(Bytes::from(encode(&sample()))), Ok(sample()));
    }

    #[test]
    fn the_version_row_layout_is_frozen() {
        let row = |value| VersionRow {
            key: Key::from_raw("/core/pods/default/a"),
            revision: Revision(513),
            created: Revision(5),
            value,
        };
        let rows = [row(Some(Bytes::from_static(b"v\xff"))), row(None)];
        let shown: String =
            rows.iter().map(|row| format!("{}checksum {:08x}\n", hex(&row.encode()), row.checksum())).collect();
        expect_file!["../tests/golden/version-row-v1.hex"].assert_eq(&shown);
        for row in rows {
            assert_eq!(VersionRow::decode(Bytes::from(row.encode())), Ok(row));
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let bytes = encode(&Command { version: 2, ..sample() });
        assert_eq!(decode(Bytes::from(bytes)), Err(DecodeError::Newer { version: 2 }));
    }

    fn expectation() -> impl Strategy<Value = Expect> {
        prop_oneof![Just(Expect::Any), Just(Expect::Absent), any::<u64>().prop_map(|at| Expect::At(Revision(at)))]
    }

    fn operation() -> impl Strategy<Value = Op> {
        let key = "[/a-z]{0,20}".prop_map(Key::from_raw);
        let value = prop::collection::vec(any::<u8>(), 0..50).prop_map(Bytes::from);
        prop_oneof![
            (key.clone(), value, expectation()).prop_map(|(key, value, expect)| Op::Put { key, value, expect }),
            (key, expectation()).prop_map(|(key, expect)| Op::Delete { key, expect }),
            (any::<u64>(), any::<u64>())
                .prop_map(|(before, watches)| Op::Compact { before: Revision(before), watches: Revision(watches) }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(fence: Option<u64>, ops in prop::collection::vec(operation(), 0..8)) {
            let command = Command { version: COMMAND_VERSION, fence, ops };
            let bytes = encode(&command);
            prop_assert!(bytes.len() <= size_of(&command));
            prop_assert_eq!(decode(Bytes::from(bytes)), Ok(command));
        }

        #[test]
        fn damaged_bytes_are_refused_without_a_panic(cut in 0usize..120, at in 0usize..120, to: u8) {
            let mut bytes = encode(&sample());
            let (cut, at) = (cut.min(bytes.len()), at.min(bytes.len() - 1));
            bytes[at] = to;
            bytes.truncate(cut);
            let _ = decode(Bytes::from(bytes));
        }
    }
}
