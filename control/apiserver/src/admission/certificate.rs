use serde_json::{Value, json};
use tandem_api::{ApiError, Object, groups};
use x509_parser::{certification_request::X509CertificationRequest, pem::Pem, prelude::FromDer as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::Request;

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
