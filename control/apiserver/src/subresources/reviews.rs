use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, Value, json};
use tandem_api::{ApiError, Identity, Object, groups};
use tandem_registry::ResourceDef;

use crate::{
    authn::{self, service_account},
    authz::{self, Attributes, Decision, rbac::PolicyRule},
    call::Call,
    core::Core,
    decode::{self, Expected},
    deletion,
    negotiate::Offer,
    options::WriteOptions,
    request::{self, Verb},
    respond,
    write::Target,
};

/// Whether objects of the row are answered, not stored.
pub(crate) fn is_review(def: &ResourceDef) -> bool {
    matches!(def.group.as_str(), "authorization.k8s.io" | "authentication.k8s.io")
}

pub(super) async fn create(core: &Core, call: &Call, def: &ResourceDef) -> Result<Response, ApiError> {
    let named = call.path()?.name.is_some();
    if call.info.verb != Verb::Create || named {
        return Err(request::method_not_allowed());
    }
    let as_ = call.representation(Offer::COMPUTED)?;
    let options = WriteOptions::of(call, "CreateOptions")?;
    let mut review = decode::body(core, call, &Expected::object(def), options.validation).await?;
    let name = review.name().to_owned();
    let target = Target { def, namespace: call.path()?.namespace.as_deref(), name: &name, subresource: "" };
    super::admit(core, call, &target, &options, &mut review).await?;
    let status = match def.plural.as_str() {
        "selfsubjectreviews" => {
            review.set(&["metadata", "creationTimestamp"], deletion::seconds(core.clock.now()));
            json!({ "userInfo": user_info(&call.identity) })
        }
        "selfsubjectaccessreviews" => access(core, &call.identity, &review).await?,
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            check_namespace(call, &review)?;
            access(core, &subject(&review), &review).await?
        }
        "selfsubjectrulesreviews" => {
            rules(core, &call.identity, review.str_at(&["spec", "namespace"]).unwrap_or_default()).await?
        }
        "tokenreviews" => token(core, &review).await,
        _ => return Err(request::not_found()),
    };
    review.set(&["status"], status);
    respond::value(core, call, StatusCode::CREATED, &Value::Object(review.0), as_)
}

pub(crate) fn user_info(identity: &Identity) -> Value {
    let mut info = Map::new();
    info.insert("username".to_owned(), identity.name.as_str().into());
    if !identity.uid.is_empty() {
        info.insert("uid".to_owned(), identity.uid.as_str().into());
    }
    info.insert("groups".to_owned(), json!(identity.groups));
    if !identity.extra.is_empty() {
        info.insert("extra".to_owned(), json!(identity.extra));
    }
    Value::Object(info)
}

fn subject(review: &Object) -> Identity {
    let text = |key: &str| review.str_at(&["spec", key]).unwrap_or_default().to_owned();
    let members = review.array_at(&["spec", "groups"]).iter().filter_map(Value::as_str).map(str::to_owned);
    Identity { name: text("user"), uid: text("uid"), groups: members.collect(), extra: Default::default() }
}

fn check_namespace(call: &Call, review: &Object) -> Result<(), ApiError> {
    let Some(namespace) = &call.path()?.namespace else { return Ok(()) };
    let asked = review.str_at(&["spec", "resourceAttributes", "namespace"]).unwrap_or_default();
    if asked == namespace {
        return Ok(());
    }
    Err(ApiError::bad_request(format!("spec.resourceAttributes.namespace must match namespace: {namespace}")))
}

async fn access(core: &Core, identity: &Identity, review: &Object) -> Result<Value, ApiError> {
    let text = |path: &[&str]| review.str_at(path).unwrap_or_default().to_owned();
    let attributes = if review.at(&["spec", "nonResourceAttributes"]).is_some() {
        let of = |key: &str| text(&["spec", "nonResourceAttributes", key]);
        Attributes { verb: of("verb"), path: of("path"), ..Attributes::default() }
    } else if review.at(&["spec", "resourceAttributes"]).is_some() {
        let of = |key: &str| Some(text(&["spec", "resourceAttributes", key])).filter(|text| !text.is_empty());
        let resource = match (of("resource"), of("subresource")) {
            (resource, None) => resource.unwrap_or_default(),
            (resource, Some(sub)) => format!("{}/{sub}", resource.unwrap_or_default()),
        };
        let verb = of("verb").unwrap_or_default();
        let group = of("group").unwrap_or_default();
        Attributes::resource(&verb, &group, &resource, of("namespace").as_deref(), of("name").as_deref())
    } else {
        return Err(ApiError::bad_request(
            "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    };
    Ok(match authz::decide(core, identity, &attributes).await? {
        Decision::Allowed => json!({ "allowed": true }),
        Decision::Denied(why) if why.is_empty() => json!({ "allowed": false }),
        Decision::Denied(why) => json!({ "allowed": false, "reason": why }),
    })
}

async fn rules(core: &Core, identity: &Identity, namespace: &str) -> Result<Value, ApiError> {
    if identity.in_group(groups::MASTERS) {
        return Ok(json!({
            "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
            "incomplete": false,
        }));
    }
    let grants = core.grants.grants(core).await?;
    let here = |only: &str| only == namespace;
    let compiled_in = authz::rules_of(identity).filter(|rule| rule.namespace.is_none_or(here)).map(PolicyRule::from);
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in compiled_in.chain(grants.rules_of(identity, Some(namespace)).cloned()) {
        if !rule.paths.is_empty() {
            paths.push(json!({ "verbs": rule.verbs, "nonResourceURLs": rule.paths }));
        } else if rule.resource_names.is_empty() {
            resources.push(json!({ "verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources }));
        } else {
            resources.push(json!({
                "verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources,
                "resourceNames": rule.resource_names,
            }));
        }
    }
    let incomplete = identity.node_name().is_some();
    Ok(json!({ "resourceRules": resources, "nonResourceRules": paths, "incomplete": incomplete }))
}

async fn token(core: &Core, review: &Object) -> Value {
    let token = review.str_at(&["spec", "token"]).unwrap_or_default();
    let asked: Vec<&str> = review.array_at(&["spec", "audiences"]).iter().filter_map(Value::as_str).collect();
    let own = core.settings.token_issuer.as_str();
    let found = match asked.as_slice() {
        [] => authn::by_token(core, token).await,
        audiences => service_account::authenticate(core, token, audiences).await,
    };
    match found {
        Ok(identity) => {
            let audiences = if asked.is_empty() { vec![own] } else { asked };
            json!({ "authenticated": true, "user": user_info(&identity), "audiences": audiences })
        }
        Err(error) => json!({ "user": {}, "error": error.message }),
    }
}
