//! One file out of a layer of an ordinary image: `FROM scratch` images that hold a wasm file.

use std::io::{self, Read};

use serde::Deserialize;

const BLOCK: usize = 512;
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
/// Layers that hold more than this besides the file are no wasm images.
const ENTRIES: usize = 10_000;

#[derive(Deserialize)]
struct ImageConfig {
    #[serde(default)]
    config: Execution,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Execution {
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    cmd: Option<Vec<String>>,
}

/// The file that the image starts.
pub(super) fn entrypoint(config: &[u8]) -> Option<String> {
    let config: ImageConfig = serde_json::from_slice(config).ok()?;
    let Execution { entrypoint, cmd } = config.config;
    entrypoint.into_iter().chain(cmd).flatten().next()
}

/// The regular file with this path, of at most `limit` bytes, in a tar archive, compressed or not. Of a compressed one
/// at most `unpacked` bytes are looked at.
pub(super) fn find(archive: &[u8], path: &str, limit: u64, unpacked: u64) -> io::Result<Option<Vec<u8>>> {
    let wanted = normal(path);
    if archive.starts_with(GZIP_MAGIC) {
        let reader = flate2::read::MultiGzDecoder::new(archive);
        search(&mut Bounded { reader, limit: unpacked, count: 0 }, &wanted, limit)
    } else {
        search(&mut { archive }, &wanted, limit)
    }
}

/// Fails beyond its bound, where a reader that ended there would look like an archive that does.
struct Bounded<R> {
    reader: R,
    limit: u64,
    count: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.count += count as u64;
        if self.count > self.limit {
            let text = format!("a layer unpacks to more than the {} bytes that are accepted", self.limit);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(count)
    }
}

fn normal(path: &str) -> String {
    path.trim_start_matches("./").trim_start_matches('/').to_owned()
}

fn search(archive: &mut dyn Read, wanted: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let broken = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("a layer is no tar archive: {why}"));
    let mut header = [0; BLOCK];
    for _ in 0..ENTRIES {
        match archive.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let size = octal(&header[124..136]).ok_or_else(|| broken("a size is no number"))?;
        let padded = size.div_ceil(BLOCK as u64) * BLOCK as u64;
        let is_file = matches!(header[156], b'0' | 0);
        if is_file && normal(&name(&header)) == wanted {
            if size > limit {
                return Err(broken("the file is too large"));
            }
            let mut file = Vec::new();
            archive.take(size).read_to_end(&mut file)?;
            return if file.len() as u64 == size { Ok(Some(file)) } else { Err(broken("it ends inside the file")) };
        }
        io::copy(&mut archive.take(padded), &mut io::sink())?;
    }
    Err(broken("too many entries"))
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

fn name(header: &[u8; BLOCK]) -> String {
    let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
    let is_ustar = &header[257..262] == b"ustar";
    if is_ustar && !prefix.is_empty() { format!("{prefix}/{name}") } else { name }
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = text(field);
    let digits = text.trim();
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const PLENTY: u64 = 1 << 20;

    fn compressed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn entry(name: &str, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        bytes[156] = b'0';
        bytes[257..262].copy_from_slice(b"ustar");
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().div_ceil(BLOCK) * BLOCK, 0);
        bytes
    }

    #[test]
    fn finds_the_entrypoint() {
        let mut archive = entry("etc/hosts", b"x");
        archive.extend(entry("app.wasm", b"\0asm..."));
        archive.extend([0; 2 * BLOCK]);
        assert_eq!(find(&archive, "/app.wasm", 100, PLENTY).unwrap().unwrap(), b"\0asm...");
        assert_eq!(find(&archive, "other.wasm", 100, PLENTY).unwrap(), None);
        assert!(find(&archive, "app.wasm", 2, PLENTY).is_err());
        assert!(find(b"this is no archive, whatever somebody says it is", "a", 10, PLENTY).unwrap().is_none());
        let config = br#"{"os":"wasi","config":{"Entrypoint":["/app.wasm","x"],"Cmd":["y"]}}"#;
        assert_eq!(entrypoint(config).as_deref(), Some("/app.wasm"));
    }

    #[test]
    fn finds_it_compressed() {
        let archive = compressed(&entry("plugin.wasm", b"abc"));
        assert_eq!(find(&archive, "plugin.wasm", 100, PLENTY).unwrap().unwrap(), b"abc");
    }

    #[test]
    fn what_unpacks_to_too_much_is_refused() {
        let mut archive = entry("zeros", &[0; 64 * BLOCK]);
        archive.extend(entry("app.wasm", b"abc"));
        let bomb = compressed(&archive);
        assert_eq!(find(&bomb, "app.wasm", 100, archive.len() as u64).unwrap().unwrap(), b"abc");
        let refused = find(&bomb, "app.wasm", 100, 32 * BLOCK as u64).unwrap_err();
        assert_eq!(refused.to_string(), "a layer unpacks to more than the 16384 bytes that are accepted");
    }
}
