use tower_http::{
    CompressionLevel,
    compression::{CompressionLayer, predicate::Predicate},
};

/// Smaller responses cost more to compress than to send (Kubernetes' own threshold).
const SIZE_MIN_BYTES: u64 = 128 * 1024;

/// Compresses whole, large API responses. Streams have no known size and pass as they are, and so do images, which are
/// compressed already.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Large;

impl Predicate for Large {
    fn should_compress<B: http_body::Body>(&self, response: &http::Response<B>) -> bool {
        let json = response.headers().get(http::header::CONTENT_TYPE).is_some_and(|kind| {
            let kind = kind.as_bytes();
            kind.starts_with(b"application/json") || kind.starts_with(b"application/yaml")
        });
        json && response.body().size_hint().exact().is_some_and(|size| size >= SIZE_MIN_BYTES)
    }
}

pub(crate) fn layer() -> CompressionLayer<Large> {
    CompressionLayer::new().gzip(true).quality(CompressionLevel::Fastest).compress_when(Large)
}
