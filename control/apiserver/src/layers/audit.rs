use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use tracing::Instrument as _;

use crate::core::Core;

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
/// Longer ids from clients are replaced: they end up in logs and headers.
const ID_MAX_BYTES: usize = 64;

/// How a request is found again: in the response, in logs, on the pods that it creates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Audit {
    pub(crate) id: String,
    /// 32 hexadecimal digits, the caller's own where it sent a `traceparent`.
    pub(crate) trace: String,
}

impl Audit {
    fn of(headers: &HeaderMap, fresh: impl FnOnce() -> String) -> Audit {
        let given = headers.get(&AUDIT_ID).and_then(|value| value.to_str().ok());
        let sound = |id: &&str| {
            !id.is_empty()
                && id.len() <= ID_MAX_BYTES
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let id = given.filter(sound).map_or_else(fresh, str::to_owned);
        let traceparent = headers.get("traceparent").and_then(|value| value.to_str().ok());
        let trace = traceparent.and_then(trace_id).map_or_else(|| trace_of(&id), str::to_owned);
        Audit { id, trace }
    }
}

/// The trace id of a `traceparent` (W3C Trace Context): `00-TRACE-SPAN-FLAGS`.
fn trace_id(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let (_version, trace) = (parts.next()?, parts.next()?);
    let hexadecimal = trace.len() == 32 && trace.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let zero = trace.bytes().all(|byte| byte == b'0');
    (hexadecimal && !zero && parts.count() >= 2).then_some(trace)
}

fn trace_of(id: &str) -> String {
    let digits: String =
        id.chars().filter(char::is_ascii_hexdigit).map(|digit| digit.to_ascii_lowercase()).take(32).collect();
    format!("{digits:0>32}")
}

pub(crate) async fn identify(State(core): State<Arc<Core>>, mut request: Request, next: Next) -> Response {
    let audit = Audit::of(request.headers(), || core.entropy.uid());
    let header = HeaderValue::from_str(&audit.id);
    let span =
        tracing::debug_span!("request", method = %request.method(), path = request.uri().path(), trace = audit.trace);
    request.extensions_mut().insert(audit);
    let mut response = next.run(request).instrument(span.clone()).await;
    span.in_scope(|| tracing::debug!(code = response.status().as_u16(), "answered"));
    if let Ok(header) = header {
        response.headers_mut().insert(AUDIT_ID, header);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&'static str, &'static str)], id: &str, trace: &str) {
        let map = headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let audit = Audit::of(&map.collect(), || "0a1b2c3d-0000-4000-8000-00000000000f".to_owned());
        assert_eq!((audit.id.as_str(), audit.trace.as_str()), (id, trace));
    }

    #[test]
    fn ids_and_traces() {
        let fresh = "0a1b2c3d-0000-4000-8000-00000000000f";
        let own = "0a1b2c3d00004000800000000000000f";
        check(&[], fresh, own);
        check(&[("audit-id", "abc-1")], "abc-1", &format!("{:0>32}", "abc1"));
        check(&[("audit-id", "no spaces please")], fresh, own);
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        check(&[("traceparent", parent)], fresh, "4bf92f3577b34da6a3ce929d0e0e4736");
        check(&[("traceparent", "00-00000000000000000000000000000000-00f067aa0ba902b7-01")], fresh, own);
        check(&[("traceparent", "junk")], fresh, own);
    }
}
