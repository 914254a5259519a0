//! Header blocks. All blocks of one direction are one zlib stream that begins with a dictionary (SPDY/3, 2.6.10) and
//! is flushed after each block.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

/// What all headers of a block together may unpack to.
const BLOCK_MAX_BYTES: usize = 16 << 10;
const HEADERS_MAX: u32 = 64;

const ZLIB_HEAD: [u8; 2] = [0x78, 0x01];
const DEFLATE: u8 = 8;
/// The bit of the zlib head that says that a dictionary is used, which its checksum then names.
const WITH_DICTIONARY: u8 = 0x20;
const DICTIONARY_CHECKSUM: u32 = 0xe3c6_a7c2;

/// The dictionary begins with these words, each behind its length, and ends with `DICTIONARY_TEXT`.
const DICTIONARY_WORDS: &str = "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|accept-ranges|age|allow|authorization|cache-control|connection|content-base|content-encoding|content-language|content-length|content-location|content-md5|content-range|content-type|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|location|max-forwards|pragma|proxy-authenticate|proxy-authorization|range|referer|retry-after|server|te|trailer|transfer-encoding|upgrade|user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|set-cookie|keep-alive|origin";
const DICTIONARY_TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::server) enum Error {
    #[error("headers that are not compressed as SPDY/3 says")]
    Compression,
    #[error("headers of more than {BLOCK_MAX_BYTES} bytes")]
    TooLong,
    #[error("headers that cannot be read")]
    Malformed,
}

/// The headers of one frame, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::server) struct Headers(pub(super) Vec<(String, String)>);

impl Headers {
    pub(in crate::server) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn parse(mut block: &[u8]) -> Option<Headers> {
        let count = block.try_get_u32().ok().filter(|count| *count <= HEADERS_MAX)?;
        let mut text = || {
            let length = usize::try_from(block.try_get_u32().ok()?).ok()?;
            let (bytes, rest) = block.split_at_checked(length)?;
            block = rest;
            String::from_utf8(bytes.to_vec()).ok()
        };
        let headers = (0..count).map(|_| Some((text()?, text()?))).collect::<Option<Vec<_>>>()?;
        block.is_empty().then_some(Headers(headers))
    }

    pub(super) fn block(&self) -> BytesMut {
        let mut block = BytesMut::new();
        let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        block.put_u32(length(self.0.len()));
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            block.put_u32(length(text.len()));
            block.put_slice(text.as_bytes());
        }
        block
    }
}

fn dictionary() -> Vec<u8> {
    let words = DICTIONARY_WORDS.split('|').flat_map(|word| {
        let length = u32::try_from(word.len()).unwrap_or(u32::MAX).to_be_bytes();
        length.into_iter().chain(word.bytes())
    });
    words.chain(DICTIONARY_TEXT.bytes()).collect()
}

/// A deflate block that holds its bytes as they are.
fn stored(bytes: &[u8]) -> Bytes {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    let mut block = BytesMut::with_capacity(bytes.len() + 5);
    block.put_u8(0);
    block.put_u16_le(length);
    block.put_u16_le(!length);
    block.put_slice(bytes);
    block.freeze()
}

#[derive(Default)]
pub(super) struct Reader {
    /// Made by the first block, which has the head of the zlib stream.
    stream: Option<Decompress>,
}

impl Reader {
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, Error> {
        let (stream, rest) = match self.stream.as_mut() {
            Some(stream) => (stream, block),
            None => {
                let (stream, rest) = begin(block)?;
                (self.stream.insert(stream), rest)
            }
        };
        Headers::parse(&unpack(stream, rest)?).ok_or(Error::Malformed)
    }
}

/// A decompressor behind the head of a zlib stream.
fn begin(block: &[u8]) -> Result<(Decompress, &[u8]), Error> {
    let (head, mut rest) = block.split_first_chunk::<2>().ok_or(Error::Compression)?;
    if head[0] & 0x0f != DEFLATE || u16::from_be_bytes(*head) % 31 != 0 {
        return Err(Error::Compression);
    }
    let mut stream = Decompress::new(false);
    if head[1] & WITH_DICTIONARY != 0 {
        if rest.try_get_u32() != Ok(DICTIONARY_CHECKSUM) {
            return Err(Error::Compression);
        }
        // To have unpacked the dictionary is to know it, whichever library is behind flate2.
        unpack(&mut stream, &stored(&dictionary()))?;
    }
    Ok((stream, rest))
}

fn unpack(stream: &mut Decompress, mut input: &[u8]) -> Result<Vec<u8>, Error> {
    let mut output = Vec::with_capacity(BLOCK_MAX_BYTES + 1);
    loop {
        let (taken, given) = (stream.total_in(), output.len());
        let status = stream.decompress_vec(input, &mut output, FlushDecompress::Sync);
        let taken = usize::try_from(stream.total_in() - taken).map_err(|_| Error::Compression)?;
        input = input.get(taken..).ok_or(Error::Compression)?;
        match status {
            Ok(_) if output.len() > BLOCK_MAX_BYTES => return Err(Error::TooLong),
            // Output may be left over when the input is used up, so what counts is that nothing moves any more.
            Ok(Status::Ok | Status::BufError) if taken > 0 || output.len() > given => {}
            Ok(Status::Ok | Status::BufError) if input.is_empty() => return Ok(output),
            Ok(_) | Err(_) => return Err(Error::Compression),
        }
    }
}

/// Blocks are stored, not compressed: ours are a few bytes.
#[derive(Default)]
pub(super) struct Writer {
    begun: bool,
}

impl Writer {
    pub(super) fn write(&mut self, headers: &Headers) -> Bytes {
        let mut out = BytesMut::new();
        if !std::mem::replace(&mut self.begun, true) {
            out.put_slice(&ZLIB_HEAD);
        }
        out.put_slice(&stored(&headers.block()));
        // An empty block, at which a reader hands out what it has.
        out.put_slice(&stored(&[]));
        out.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl<const N: usize> From<[(&str, &str); N]> for Headers {
        fn from(pairs: [(&str, &str); N]) -> Headers {
            Headers(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec())
        }
    }

    #[test]
    fn the_dictionary_is_the_one_that_its_checksum_names() {
        let (mut low, mut high) = (1_u32, 0_u32);
        for byte in dictionary() {
            low = (low + u32::from(byte)) % 65521;
            high = (high + low) % 65521;
        }
        assert_eq!(high << 16 | low, DICTIONARY_CHECKSUM);
    }
}
