use std::fmt;

/// What a file that is not a component or module seems to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looks {
    Empty,
    Precompiled,
    Executable(&'static str),
    Archive(&'static str),
    WatText,
    Script,
    Json,
    Text,
    Data,
}

impl fmt::Display for Looks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Looks::Empty => out.write_str("the file is empty"),
            Looks::Precompiled => out.write_str(
                "it is a precompiled .cwasm file, which is never accepted from outside: give the .wasm it was made from",
            ),
            Looks::Executable(format) => {
                write!(out, "it is an executable for a processor ({format}): build it for a wasm target")
            }
            Looks::Archive(format) => write!(out, "it is an archive ({format}): give the .wasm file that is in it"),
            Looks::WatText => out.write_str("it is WebAssembly text (.wat): assemble it with `wasm-tools parse` first"),
            Looks::Script => out.write_str("it is a script"),
            Looks::Json => out.write_str("it is JSON"),
            Looks::Text => out.write_str("it is text"),
            Looks::Data => out.write_str("it does not start with the WebAssembly magic number"),
        }
    }
}

const MAGIC: &[(&[u8], Looks)] = &[
    (b"\x7fELF", Looks::Executable("ELF")),
    (b"MZ", Looks::Executable("PE")),
    (b"\xcf\xfa\xed\xfe", Looks::Executable("Mach-O")),
    (b"\xca\xfe\xba\xbe", Looks::Executable("Mach-O")),
    (b"\x1f\x8b", Looks::Archive("gzip")),
    (b"PK\x03\x04", Looks::Archive("zip")),
    (b"\x28\xb5\x2f\xfd", Looks::Archive("zstd")),
    (b"#!", Looks::Script),
];
/// The `EI_OSABI` that wasmtime writes into the ELF files it compiles to.
const ELF_OSABI_WASMTIME: u8 = 200;
const ELF_OSABI_AT: usize = 7;
const TAR_MAGIC_AT: usize = 257;
const HEAD_BYTES: usize = 4096;

/// What bytes without the wasm magic number look like.
pub(crate) fn looks(bytes: &[u8]) -> Looks {
    if bytes.is_empty() {
        return Looks::Empty;
    }
    if bytes.starts_with(b"\x7fELF") && bytes.get(ELF_OSABI_AT) == Some(&ELF_OSABI_WASMTIME) {
        return Looks::Precompiled;
    }
    if let Some((_, found)) = MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return *found;
    }
    if bytes.get(TAR_MAGIC_AT..).is_some_and(|rest| rest.starts_with(b"ustar")) {
        return Looks::Archive("tar");
    }
    text(&bytes[..bytes.len().min(HEAD_BYTES)])
}

fn text(head: &[u8]) -> Looks {
    let valid = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The head may end inside a character.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return Looks::Data,
    };
    if valid.chars().any(|letter| letter.is_control() && !letter.is_whitespace()) {
        return Looks::Data;
    }
    let code = valid.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with(";;"));
    match code.and_then(|line| line.chars().next()) {
        Some('(') => Looks::WatText,
        Some('{' | '[') => Looks::Json,
        _ => Looks::Text,
    }
}
