//! One request, passed on.

use std::{sync::Arc, time::Duration};

use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::pki_types::ServerName;
use tandem_api::{ApiError, Identity, Reason};
use tokio::time::timeout;

use super::{Route, tls};
use crate::{
    NodeStream,
    call::Call,
    core::Core,
    request::Verb,
    server::Endless,
    services,
    subresources::{self, DIAL_MAX},
};

const REMOTE: &str = "x-remote-";
/// How long a server may think before it begins to answer.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Endpoints that are tried before a Service is said to be out of reach.
const TRIES: usize = 3;
/// What may stand in the name of a header as it is.
const TOKEN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

fn unavailable(why: &str) -> ApiError {
    ApiError::new(Reason::ServiceUnavailable, format!("service unavailable{why}"))
}

/// Passes the request on. It has been authorized already.
pub(crate) async fn serve(core: &Arc<Core>, call: &Call, route: &Route) -> Result<Response, ApiError> {
    pass(core, call, route, &call.identity).await
}

pub(super) async fn pass(core: &Core, call: &Call, route: &Route, as_: &Identity) -> Result<Response, ApiError> {
    if !route.available {
        return Err(unavailable(""));
    }
    let stream = route.open(core).await.map_err(|why| {
        tracing::debug!(api = route.name, why, "an API server is out of reach");
        unavailable(&format!(": {why}"))
    })?;
    let upgrade = subresources::is_upgrade(call);
    let mut headers = subresources::headers_for_backend(call.headers(), upgrade, &route.host());
    strip(&mut headers);
    if upgrade {
        // What else a client lists there would be taken off on the way, our own headers too.
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    tell(&mut headers, as_)?;
    let path = call.parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let answered = timeout(ANSWER_MAX, subresources::forward(core, call, stream, path, headers)).await;
    let mut response = answered.map_err(|_| {
        ApiError::new(Reason::Timeout, format!("the server of {} did not answer in time", route.name))
    })??;
    let redirects = response.status().is_redirection() && response.status() != StatusCode::NOT_MODIFIED;
    if redirects && response.headers().contains_key(header::LOCATION) {
        // Clients would follow it with the rights of somebody else.
        let message = "the backend attempted to redirect this request, which is not permitted";
        return Err(ApiError::new(Reason::ServiceUnavailable, message));
    }
    if call.info.verb == Verb::Watch {
        response.extensions_mut().insert(Endless);
    }
    Ok(response)
}

/// Takes off who the client says that it is. Some servers read `_` as `-`.
fn strip(headers: &mut HeaderMap) {
    let is_remote = |name: &&HeaderName| name.as_str().replace('_', "-").starts_with(REMOTE);
    let given: Vec<HeaderName> = headers.keys().filter(is_remote).cloned().collect();
    for name in given {
        headers.remove(name);
    }
}

/// Says who asks.
pub(super) fn tell(headers: &mut HeaderMap, identity: &Identity) -> Result<(), ApiError> {
    let unreadable = |what: &str| ApiError::internal(format!("{what} of the user cannot be passed on in a header"));
    let value = |text: &str, what: &str| HeaderValue::from_bytes(text.as_bytes()).map_err(|_| unreadable(what));
    headers.insert("x-remote-user", value(&identity.name, "the name")?);
    if !identity.uid.is_empty() {
        headers.insert("x-remote-uid", value(&identity.uid, "the uid")?);
    }
    for group in &identity.groups {
        headers.append("x-remote-group", value(group, "a group")?);
    }
    for (key, values) in &identity.extra {
        let name = format!("{REMOTE}extra-{}", utf8_percent_encode(key, TOKEN));
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unreadable("an extra key"))?;
        for one in values {
            headers.append(name.clone(), value(one, "an extra value")?);
        }
    }
    Ok(())
}

impl Route {
    /// A connection to one of the Service's ready endpoints.
    pub(super) async fn open(&self, core: &Core) -> Result<NodeStream, String> {
        let front = core.aggregation.front.as_ref().ok_or("this server has no front-proxy certificate")?;
        let make = || tls::connector(front.clone(), &self.bundle, self.insecure);
        let connector = self.connector.get_or_init(make).as_ref().map_err(Clone::clone)?;
        let name = ServerName::try_from(self.host()).map_err(|why| why.to_string())?;
        let services = core.row("", "v1", "services").map_err(|why| why.message)?;
        let found = core.objects.find(&services, Some(&self.namespace), &self.service).await;
        let service = found
            .map_err(|why| why.message)?
            .ok_or_else(|| format!("service/{} in {:?} is not present", self.service, self.namespace))?;
        let endpoints = services::endpoints(core, &service, &self.port.to_string()).await;
        let mut failure = format!("no endpoints available for service {:?}", self.service);
        for address in endpoints.map_err(|why| why.message)?.into_iter().take(TRIES) {
            let stream = match services::dial(core, address).await {
                Ok(stream) => stream,
                Err(why) => {
                    failure = why.message;
                    continue;
                }
            };
            match timeout(DIAL_MAX, connector.connect(name.clone(), stream)).await {
                Ok(Ok(stream)) => return Ok(Box::new(stream)),
                Ok(Err(why)) => failure = format!("tls: {address}: {why}"),
                Err(_) => failure = format!("tls: {address}: handshake timeout"),
            }
        }
        Err(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_told_by_this_server_alone() {
        let mut headers = HeaderMap::new();
        for name in ["x-remote-user", "X-Remote-Extra-Scopes", "x_remote_group", "accept"] {
            headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("forged"));
        }
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
        let mut identity = Identity::user("jané", &["a", "b"]);
        identity.extra.insert("example.org/s c%".to_owned(), vec!["1".to_owned(), "2".to_owned()]);
        tell(&mut headers, &identity).unwrap();
        assert_eq!(headers["x-remote-user"].as_bytes(), "jané".as_bytes());
        assert_eq!(headers.get_all("x-remote-group").iter().count(), 3, "with system:authenticated");
        assert_eq!(headers.get_all("x-remote-extra-example.org%2fs%20c%25").iter().count(), 2);
        assert!(!headers.contains_key("x-remote-uid"));
        assert!(tell(&mut headers, &Identity::user("a\nb", &[])).is_err());
    }
}
