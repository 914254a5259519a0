use http::HeaderMap;
use tandem_api::{ApiError, Identity, Reason, groups};

use crate::{
    authz::{self, Attributes},
    core::Core,
};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

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
    let text = |name: &str| headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned);
    let Some(name) = text(USER).next().filter(|name| !name.is_empty()) else {
        let alone = [GROUP, UID].iter().any(|name| headers.contains_key(*name))
            || headers.keys().any(|name| name.as_str().starts_with(EXTRA));
        let message = "requested impersonation without impersonating a user";
        return if alone { Err(ApiError::new(Reason::InternalError, message)) } else { Ok(None) };
    };
    let mut identity = Identity {
        name,
        uid: text(UID).next().unwrap_or_default(),
        groups: text(GROUP).collect(),
        extra: Default::default(),
    };
    for header in headers.keys() {
        if let Some(key) = header.as_str().strip_prefix(EXTRA) {
            let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy().into_owned();
            identity.extra.insert(key, text(header.as_str()).collect());
        }
    }
    Ok(Some(identity))
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
