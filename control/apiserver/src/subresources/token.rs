use axum::response::Response;
use http::StatusCode;
use jiff::SignedDuration;
use serde_json::{Value, json};
use tandem_api::{ApiError, Cause, Object, Reason};
use tandem_registry::Subresource;
use tandem_store::Consistency;

use super::{admit, body, live};
use crate::{
    authn::service_account::{Binding, Bound, Claims},
    call::Call,
    core::Core,
    deletion,
    negotiate::Offer,
    respond,
    write::Target,
};

const SECONDS_DEFAULT: i64 = 3600;
const SECONDS_MIN: i64 = 600;
/// Whoever asks for longer gets this: tokens are renewed, not kept.
const SECONDS_MAX: i64 = 365 * 24 * 3600;

/// TokenRequest: a signed token for a ServiceAccount, bound to a pod or another object where that is asked for.
pub(super) async fn create(
    core: &Core,
    call: &Call,
    target: &Target<'_>,
    sub: &Subresource,
) -> Result<Response, ApiError> {
    let (mut request, options) = body(core, call, sub, "CreateOptions").await?;
    admit(core, call, target, &options, &mut request).await?;
    let key = core.service_account_key.as_ref().ok_or_else(|| {
        ApiError::new(Reason::ServiceUnavailable, "this server has no key to sign ServiceAccount tokens with")
    })?;
    let account = live(core, target).await?;
    let seconds = request.i64_at(&["spec", "expirationSeconds"]).unwrap_or(SECONDS_DEFAULT);
    if seconds < SECONDS_MIN {
        let message = format!("Invalid value: {seconds}: may not specify a duration less than 10 minutes");
        let cause =
            Cause { reason: "FieldValueInvalid".to_owned(), message, field: "spec.expirationSeconds".to_owned() };
        return Err(ApiError::invalid("authentication.k8s.io", "TokenRequest", "", vec![cause]));
    }
    let seconds = seconds.min(SECONDS_MAX);
    let asked = request.array_at(&["spec", "audiences"]).iter().filter_map(Value::as_str).map(str::to_owned);
    let mut audiences: Vec<String> = asked.collect();
    if audiences.is_empty() {
        audiences.push(core.settings.token_issuer.clone());
    }
    let binding = binding(core, call, target, &account, request.at(&["spec", "boundObjectRef"])).await?;
    let now = core.clock.now();
    let claims = Claims {
        aud: audiences.clone(),
        exp: now.as_second() + seconds,
        iat: now.as_second(),
        iss: core.settings.token_issuer.clone(),
        jti: core.entropy.uid(),
        nbf: now.as_second(),
        sub: format!("system:serviceaccount:{}:{}", binding.namespace, account.name()),
        binding,
    };
    let token = key.sign(&claims).map_err(ApiError::internal)?;
    let mut answer = request;
    answer.set(&["metadata", "name"], account.name());
    answer.set(&["metadata", "namespace"], account.namespace().unwrap_or_default());
    answer.set(&["metadata", "creationTimestamp"], deletion::seconds(now));
    answer.set(&["spec", "audiences"], audiences);
    answer.set(&["spec", "expirationSeconds"], seconds);
    let expires = deletion::seconds(now + SignedDuration::from_secs(seconds));
    answer.set(&["status"], json!({ "token": token, "expirationTimestamp": expires }));
    let as_ = call.representation(Offer::COMPUTED)?;
    respond::value(core, call, StatusCode::CREATED, &Value::Object(answer.0), as_)
}

async fn binding(
    core: &Core,
    call: &Call,
    target: &Target<'_>,
    account: &Object,
    reference: Option<&Value>,
) -> Result<Binding, ApiError> {
    let own = Bound { name: account.name().to_owned(), uid: account.uid().to_owned() };
    let namespace = target.namespace.unwrap_or_default().to_owned();
    let mut binding = Binding { namespace, serviceaccount: own, ..Binding::default() };
    let text =
        |key: &str| reference.and_then(|reference| reference.get(key)).and_then(Value::as_str).unwrap_or_default();
    let node = call.identity.node_name();
    let Some(_) = reference else {
        return match node {
            Some(_) => Err(refuse(target, "node requested token not bound to a pod")),
            None => Ok(binding),
        };
    };
    let (kind, name) = (text("kind"), text("name"));
    let (resource, place) = match kind {
        "Pod" => ("pods", target.namespace),
        "Secret" => ("secrets", target.namespace),
        "Node" => ("nodes", None),
        other => return Err(ApiError::bad_request(format!("cannot bind token to object of type {other:?}"))),
    };
    if node.is_some() && kind != "Pod" {
        return Err(refuse(target, "node requested token not bound to a pod"));
    }
    let def = core.row("", "v1", resource)?;
    let found = core.objects.get(&def, place, name, Consistency::Linearizable).await?;
    let found = found.ok_or_else(|| ApiError::not_found("", resource, name))?;
    let uid = text("uid");
    if !uid.is_empty() && uid != found.uid() {
        let actual = found.uid();
        return Err(ApiError::conflict(
            "",
            resource,
            name,
            format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated ({actual})"
            ),
        ));
    }
    let bound = Bound { name: name.to_owned(), uid: found.uid().to_owned() };
    match kind {
        "Pod" => {
            let runs_as = found.str_at(&["spec", "serviceAccountName"]).unwrap_or("default");
            if runs_as != account.name() {
                let why = "cannot bind token for serviceaccount to pod running with different serviceaccount name.";
                return Err(ApiError::bad_request(why));
            }
            let runs_on = found.str_at(&["spec", "nodeName"]).filter(|node| !node.is_empty());
            if node.is_some() && node != runs_on {
                return Err(refuse(target, "node requested token bound to a pod scheduled on a different node"));
            }
            binding.node = match runs_on {
                Some(name) => {
                    let nodes = core.row("", "v1", "nodes")?;
                    let node = core.objects.get(&nodes, None, name, Consistency::Any).await?;
                    let uid = node.map(|node| node.uid().to_owned()).unwrap_or_default();
                    Some(Bound { name: name.to_owned(), uid })
                }
                None => None,
            };
            binding.pod = Some(bound);
        }
        "Secret" => binding.secret = Some(bound),
        _ => binding.node = Some(bound),
    }
    Ok(binding)
}

fn refuse(target: &Target<'_>, why: &str) -> ApiError {
    let message = format!("serviceaccounts {:?} is forbidden: {why}", target.name);
    ApiError::new(Reason::Forbidden, message).about("", "serviceaccounts", target.name)
}
