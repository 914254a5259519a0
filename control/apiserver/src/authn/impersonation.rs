use http::{HeaderMap, HeaderName, HeaderValue};
use tandem_api::{ApiError, Identity, Reason, groups};

use crate::{
    authz::{self, Attributes},
    core::Core,
};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
/// What all headers begin with that impersonate.
const PREFIX: &str = "impersonate-";

/// The identity that the request acts as (`kubectl --as`), if its own may do so.
pub(crate) async fn impersonate(core: &Core, own: Identity, headers: &HeaderMap) -> Result<Identity, ApiError> {
    let Some(wanted) = wanted(headers)? else { return Ok(own) };
    let mut asked = vec![user_attributes(&wanted.name)];
    asked.extend(wanted.groups.iter().map(|group| attributes("", "groups", "", group)));
    if !wanted.uid.is_empty() {
        asked.push(attributes("authentication.k8s.io", "uids", "", &wanted.uid));
    }
    for (key, values) in &wanted.extra {
        asked.extend(
            values.iter().map(|value| attributes("authentication.k8s.io", &format!("userextras/{key}"), "", value)),
        );
    }
    for attributes in &asked {
        authz::authorize(core, &own, attributes).await?;
    }
    Ok(completed(wanted))
}

fn user_attributes(name: &str) -> Attributes {
    match service_account(name) {
        Some((namespace, name)) => attributes("", "serviceaccounts", namespace, name),
        None => attributes("", "users", "", name),
    }
}

fn service_account(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("system:serviceaccount:")?.split_once(':')
}

fn attributes(group: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
    Attributes::resource(
        "impersonate",
        group,
        resource,
        Some(namespace).filter(|namespace| !namespace.is_empty()),
        Some(name),
    )
}

fn wanted(headers: &HeaderMap) -> Result<Option<Identity>, ApiError> {
    // What cannot be read must not be taken for absent: the request would run with the caller's own rights.
    for (header, value) in headers.iter().filter(|(header, _)| header.as_str().starts_with(PREFIX)) {
        text(header, value)?;
    }
    let all = |name: &str| -> Result<Vec<String>, ApiError> {
        let values = headers.iter().filter(|(header, _)| header.as_str() == name);
        values.map(|(header, value)| text(header, value)).collect()
    };
    let Some(name) = all(USER)?.into_iter().next() else {
        let alone =
            headers.keys().any(|name| [GROUP, UID].contains(&name.as_str()) || name.as_str().starts_with(EXTRA));
        let message = "requested impersonation without impersonating a user";
        return if alone { Err(ApiError::new(Reason::InternalError, message)) } else { Ok(None) };
    };
    let mut identity = Identity {
        name,
        uid: all(UID)?.into_iter().next().unwrap_or_default(),
        groups: all(GROUP)?,
        extra: Default::default(),
    };
    for header in headers.keys() {
        if let Some(key) = header.as_str().strip_prefix(EXTRA) {
            let decoded = percent_encoding::percent_decode_str(key).decode_utf8().map_err(|_| unreadable(header))?;
            if decoded.is_empty() {
                return Err(unreadable(header));
            }
            identity.extra.insert(decoded.into_owned(), all(header.as_str())?);
        }
    }
    Ok(Some(identity))
}

/// The value of a header; clients send names as UTF-8.
fn text(header: &HeaderName, value: &HeaderValue) -> Result<String, ApiError> {
    let may_be_empty = header.as_str().starts_with(EXTRA);
    let text = std::str::from_utf8(value.as_bytes()).ok().filter(|text| may_be_empty || !text.is_empty());
    text.map(str::to_owned).ok_or_else(|| unreadable(header))
}

fn unreadable(header: &HeaderName) -> ApiError {
    ApiError::bad_request(format!("invalid impersonation header {header}: it must be UTF-8 and not empty"))
}

/// Adds the groups that the user has by nature.
fn completed(mut identity: Identity) -> Identity {
    if let Some((namespace, name)) = service_account(&identity.name)
        && identity.groups.is_empty()
    {
        identity.groups = Identity::service_account(namespace, name).groups;
    }
    let nature =
        if identity.name == Identity::anonymous().name { groups::UNAUTHENTICATED } else { groups::AUTHENTICATED };
    if !identity.in_group(nature) {
        identity.groups.push(nature.to_owned());
    }
    identity
}
