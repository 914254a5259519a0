//! What a body may contain: unknown and duplicate fields, wrong types, pruning. Driven by the type table, in the words
//! of Kubernetes' decoder, which clients show and tests compare.

mod prune;
mod strict;
mod types;

#[cfg(test)]
mod tests;

pub use prune::prune;
pub use strict::{check, parse_strict, strict};
pub use types::types;

use tandem_api::ApiError;

/// The error of strict field validation; `None` where there is nothing to complain about. `messages` are those of
/// [`strict`].
pub fn strict_error(kind: &str, version: &str, messages: &[String]) -> Option<ApiError> {
    if messages.is_empty() {
        return None;
    }
    let list = messages.join(", ");
    Some(ApiError::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {list}"
    )))
}
