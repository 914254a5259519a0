use std::{cmp::Ordering, collections::BTreeMap};

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tandem_api::{ApiError, Cause, Object, groups};
use x509_parser::{certification_request::X509CertificationRequest, pem::Pem, prelude::FromDer as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::Request;
use crate::{
    authz::{self, Attributes, Decision},
    core::Core,
};

const GROUP: &str = "certificates.k8s.io";
/// Conditions that are not taken back.
const FINAL: [&str; 3] = ["Approved", "Denied", "Failed"];
/// Those of them that only `/approval` sets.
const APPROVALS: [&str; 2] = ["Approved", "Denied"];
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// Says in the request for a certificate who makes it: approval is decided from that, so nobody may choose it. And
/// nobody may ask for a certificate that is above all rules.
pub(super) fn stamp(request: &Request<'_>, object: &mut Object) -> Result<(), ApiError> {
    let identity = request.identity;
    object.set(&["spec", "username"], identity.name.as_str());
    object.set(&["spec", "groups"], json!(identity.groups));
    set_or_remove(object, "uid", Some(identity.uid.as_str()).filter(|uid| !uid.is_empty()).map(Value::from));
    set_or_remove(object, "extra", Some(json!(identity.extra)).filter(|_| !identity.extra.is_empty()));
    let is_client = object.str_at(&["spec", "signerName"]) == Some(CLIENT_SIGNER);
    if is_client && organizations(object).iter().any(|group| group == groups::MASTERS) {
        let why = format!("use of {CLIENT_SIGNER} signer with {} group is not allowed", groups::MASTERS);
        return Err(request.forbidden(object.name(), why));
    }
    Ok(())
}

/// Who approves, denies or signs must be allowed to do so for the request's signer, and does it through the door that
/// is for it.
///
/// <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#authorization>
pub(super) async fn decide(core: &Core, request: &Request<'_>, object: &Object, old: &Object) -> Result<(), ApiError> {
    let doing = match request.subresource {
        "approval" => "approve",
        "status" if certificate(object) != certificate(old) || conditions(object, None) != conditions(old, None) => {
            "sign"
        }
        _ => return Ok(()),
    };
    let signer = old.str_at(&["spec", "signerName"]).unwrap_or_default();
    if !may(core, request, doing, signer).await? {
        let why = format!("user not permitted to {doing} requests with signerName {signer:?}");
        return Err(request.forbidden(old.name(), why));
    }
    let causes = forbidden_changes(object, old, doing == "sign");
    if causes.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(GROUP, &request.def.kind, old.name(), causes))
}

/// The permission is for one signer, or for all of its domain.
async fn may(core: &Core, request: &Request<'_>, doing: &str, signer: &str) -> Result<bool, ApiError> {
    let domain = signer.split('/').next().unwrap_or_default();
    for name in [signer, &format!("{domain}/*")] {
        let asked = Attributes::resource(doing, GROUP, "signers", None, Some(name));
        if authz::decide(core, request.identity, &asked).await? == Decision::Allowed {
            return Ok(true);
        }
    }
    Ok(false)
}

fn forbidden_changes(object: &Object, old: &Object, signs: bool) -> Vec<Cause> {
    let forbidden = |field: &str, why: String| Cause {
        reason: "FieldValueForbidden".to_owned(),
        message: format!("Forbidden: {why}"),
        field: field.to_owned(),
    };
    let mut causes = Vec::new();
    for kind in FINAL {
        let (new, old) = (conditions(object, Some(kind)), conditions(old, Some(kind)));
        let change = match new.len().cmp(&old.len()) {
            Ordering::Less => "remove",
            Ordering::Greater if signs && APPROVALS.contains(&kind) => "add",
            Ordering::Equal if signs && APPROVALS.contains(&kind) && new != old => "modify",
            Ordering::Greater | Ordering::Equal => continue,
        };
        causes.push(forbidden("status.conditions", format!("updates may not {change} a condition of type {kind:?}")));
    }
    if !certificate(old).is_empty() && certificate(object) != certificate(old) {
        let why = "updates may not modify existing certificate content".to_owned();
        causes.push(forbidden("status.certificate", why));
    }
    causes
}

fn certificate(object: &Object) -> &str {
    object.str_at(&["status", "certificate"]).unwrap_or_default()
}

/// The conditions of a type, or all of them, in a form in which those that say the same are equal.
fn conditions<'a>(object: &'a Object, kind: Option<&str>) -> Vec<BTreeMap<&'a str, String>> {
    let listed = object.array_at(&["status", "conditions"]).iter().filter_map(Value::as_object);
    let listed =
        listed.filter(|condition| kind.is_none_or(|kind| condition.get("type").and_then(Value::as_str) == Some(kind)));
    let said = |key: &str, value: &Value| match value.as_str() {
        // Times count in seconds, however they are written.
        Some(text) if key.ends_with("Time") => {
            text.parse::<Timestamp>().map_or_else(|_| text.to_owned(), |at| at.as_second().to_string())
        }
        Some(text) => text.to_owned(),
        None if value.is_null() => String::new(),
        None => value.to_string(),
    };
    let form = |condition: &'a Map<String, Value>| {
        let fields = condition.iter().map(|(key, value)| (key.as_str(), said(key, value)));
        fields.filter(|(_, value)| !value.is_empty()).collect()
    };
    listed.map(form).collect()
}

fn set_or_remove(object: &mut Object, key: &str, value: Option<Value>) {
    match value {
        Some(value) => object.set(&["spec", key], value),
        None => {
            object.remove(&["spec", key]);
        }
    }
}

/// The groups that the certificate would speak for; none where the request cannot be read, which validation tells.
fn organizations(object: &Object) -> Vec<String> {
    let read = || {
        let pem = STANDARD.decode(object.str_at(&["spec", "request"])?).ok()?;
        let pem = Pem::iter_from_buffer(&pem).next()?.ok()?;
        let (_, parsed) = X509CertificationRequest::from_der(&pem.contents).ok()?;
        let subject = &parsed.certification_request_info.subject;
        Some(subject.iter_organization().filter_map(|group| group.as_str().ok().map(str::to_owned)).collect())
    };
    read().unwrap_or_default()
}
