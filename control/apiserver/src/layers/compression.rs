use tower_http::{
    CompressionLevel,
    compression::{CompressionLayer, predicate::Predicate},
};

/// Smaller responses cost more to compress than to send (Kubernetes' own threshold).
const SIZE_MIN_BYTES: u64 = 128 * 1024;

const KINDS: [&[u8]; 3] = [b"application/json", b"application/yaml", b"application/vnd.kubernetes.protobuf"];

/// Compresses whole, large API responses. Streams have no known size and pass as they are, and so do images, which are
/// compressed already.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Large;

impl Predicate for Large {
    fn should_compress<B: http_body::Body>(&self, response: &http::Response<B>) -> bool {
        let is_object = response.headers().get(http::header::CONTENT_TYPE).is_some_and(|kind| {
            let kind = kind.as_bytes();
            KINDS.iter().any(|known| kind.starts_with(known))
        });
        is_object && response.body().size_hint().exact().is_some_and(|size| size >= SIZE_MIN_BYTES)
    }
}

pub(crate) fn layer() -> CompressionLayer<Large> {
    CompressionLayer::new().gzip(true).quality(CompressionLevel::Fastest).compress_when(Large)
}
