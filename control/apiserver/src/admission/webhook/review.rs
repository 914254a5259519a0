//! What a webhook is asked (`AdmissionReview`), and what its answer says.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tandem_api::{ApiError, Reason, Told};
use tandem_registry::{KindName, ResourceDef};

use super::hook::Hook;
use crate::{
    admission::{Operation, Request},
    deletion::Propagation,
    options::Validation,
    subresources,
};

/// The kind of what is sent through a row, or through one of its subresources.
pub(super) fn kind_of(row: &ResourceDef, subresource: &str) -> KindName {
    match row.subresource(subresource) {
        Some(sub) => sub.kind.clone(),
        None => KindName { group: row.group.clone(), version: row.version.clone(), kind: row.kind.clone() },
    }
}

/// The request without its objects, as the webhook sees it that asked for `row`.
pub(super) fn request(request: &Request<'_>, row: &ResourceDef, name: &str, uid: &str) -> Value {
    let kind = |row: &ResourceDef| {
        let kind = kind_of(row, request.subresource);
        json!({ "group": kind.group, "version": kind.version, "kind": kind.kind })
    };
    let resource = |row: &ResourceDef| json!({ "group": row.group, "version": row.version, "resource": row.plural });
    let mut review = json!({
        "uid": uid, "kind": kind(row), "resource": resource(row),
        "requestKind": kind(request.def), "requestResource": resource(request.def),
        "operation": request.operation.as_str(), "userInfo": subresources::user_info(request.identity),
        "dryRun": request.options.dry_run, "options": options(request),
    });
    let namespace = request.place().unwrap_or_default();
    let sub = request.subresource;
    for (key, text) in [("subResource", sub), ("requestSubResource", sub), ("name", name), ("namespace", namespace)] {
        if !text.is_empty() {
            review[key] = text.into();
        }
    }
    review
}

fn options(request: &Request<'_>) -> Value {
    let kind = match request.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => return Value::Null,
    };
    let given = request.options;
    let mut options = json!({ "kind": kind, "apiVersion": "meta.k8s.io/v1" });
    if given.dry_run {
        options["dryRun"] = json!(["All"]);
    }
    let Some(deletion) = request.deletion else {
        if given.is_named {
            options["fieldManager"] = given.manager.as_str().into();
        }
        match given.validation {
            Validation::Strict => options["fieldValidation"] = "Strict".into(),
            Validation::Ignore => options["fieldValidation"] = "Ignore".into(),
            Validation::Warn => {}
        }
        return options;
    };
    if let Some(seconds) = deletion.grace_seconds {
        options["gracePeriodSeconds"] = seconds.into();
    }
    if let Some(propagation) = deletion.propagation {
        let policy = match propagation {
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
            Propagation::Orphan => "Orphan",
        };
        options["propagationPolicy"] = policy.into();
    }
    let pinned = [("uid", &deletion.preconditions.uid), ("resourceVersion", &deletion.preconditions.resource_version)];
    let pinned: Map<String, Value> =
        pinned.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?.into()))).collect();
    if !pinned.is_empty() {
        options["preconditions"] = Value::Object(pinned);
    }
    options
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Review {
    kind: String,
    api_version: String,
    response: Option<Response>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Response {
    uid: String,
    allowed: bool,
    status: Option<Status>,
    patch: Option<String>,
    patch_type: Option<String>,
    warnings: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: i64,
    reason: String,
    message: String,
    details: Value,
}

/// What a webhook says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) refusal: Option<ApiError>,
    pub(super) patch: Option<Vec<u8>>,
    pub(super) warnings: Vec<String>,
}

/// Whether webhooks of this sort may change the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Mutating,
    Validating,
}

/// Reads an answer, which must be one to the question with this uid.
pub(super) fn read(hook: &Hook, sort: Sort, uid: &str, answer: &[u8]) -> Result<Verdict, String> {
    let review: Review = serde_json::from_slice(answer).map_err(|why| format!("it is no AdmissionReview: {why}"))?;
    let version = format!("admission.k8s.io/{}", hook.review_version);
    let is_v1 = hook.review_version == "v1";
    let named = !review.kind.is_empty() || !review.api_version.is_empty() || is_v1;
    if named && (review.kind != "AdmissionReview" || review.api_version != version) {
        let (found, kind) = (review.api_version, review.kind);
        return Err(format!("expected webhook response of {version}, Kind=AdmissionReview, got {found}, Kind={kind}"));
    }
    let response = review.response.ok_or("webhook response was absent")?;
    if response.uid != uid && (is_v1 || !response.uid.is_empty()) {
        return Err(format!("expected response.uid={uid:?}, got {:?}", response.uid));
    }
    let patch = response.patch.filter(|patch| !patch.is_empty());
    let patch_type = response.patch_type.filter(|_| is_v1 || patch.is_some());
    match (sort, &patch, patch_type.as_deref()) {
        (Sort::Validating, Some(_), _) => return Err("validating webhook may not return response.patch".to_owned()),
        (Sort::Validating, None, Some(_)) => {
            return Err("validating webhook may not return response.patchType".to_owned());
        }
        (Sort::Mutating, Some(_), None) if is_v1 => {
            return Err("webhook returned response.patch but not response.patchType".to_owned());
        }
        (Sort::Mutating, None, Some(_)) => {
            return Err("webhook returned response.patchType but not response.patch".to_owned());
        }
        (Sort::Mutating, Some(_), Some(other)) if other != "JSONPatch" => {
            return Err(format!("webhook returned invalid response.patchType of {other:?}"));
        }
        _ => {}
    }
    let patch = patch.map(|patch| STANDARD.decode(patch)).transpose();
    Ok(Verdict {
        refusal: (!response.allowed).then(|| refusal(&hook.name, response.status.unwrap_or_default())),
        patch: patch.map_err(|why| format!("response.patch is no base64: {why}"))?,
        warnings: response.warnings.unwrap_or_default(),
    })
}

/// A refusal with the webhook's own code, reason and details.
fn refusal(name: &str, status: Status) -> ApiError {
    let by = format!("admission webhook {name:?} denied the request");
    let message = match (status.message.as_str(), status.reason.as_str()) {
        ("", "") => format!("{by} without explanation"),
        ("", why) | (why, _) => format!("{by}: {why}"),
    };
    let code = u16::try_from(status.code).ok().filter(|code| (400..=599).contains(code)).unwrap_or(400);
    let mut error = ApiError::new(Reason::Forbidden, message);
    error.told = Some(Box::new(Told { code, reason: status.reason, details: status.details }));
    error
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use tandem_api::Object;

    use super::*;

    fn check(sort: Sort, response: Value, expected: Expect) {
        let configuration = json!({ "webhooks": [{ "name": "a.b.c", "admissionReviewVersions": ["v1"] }] });
        let hook = Hook::all(&Object::from_value(configuration).unwrap()).unwrap().pop().unwrap();
        let answer = json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response });
        let read = read(&hook, sort, "u", answer.to_string().as_bytes());
        expected.assert_eq(&match read {
            Err(why) => why,
            Ok(Verdict { refusal: Some(error), .. }) => format!("{} {}", error.code(), error.status()),
            Ok(verdict) => {
                let patch = verdict.patch.map(|patch| String::from_utf8(patch).unwrap());
                format!("{patch:?} {:?}", verdict.warnings)
            }
        });
    }

    #[test]
    fn answers() {
        use Sort::{Mutating, Validating};
        check(
            Validating,
            json!({ "uid": "u", "allowed": true, "warnings": ["careful"] }),
            expect![[r#"None ["careful"]"#]],
        );
        check(
            Mutating,
            json!({ "uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch" }),
            expect![[r#"Some("[]") []"#]],
        );
        check(
            Mutating,
            json!({ "uid": "u", "allowed": true, "patch": "W10=" }),
            expect!["webhook returned response.patch but not response.patchType"],
        );
        check(
            Mutating,
            json!({ "uid": "u", "allowed": true, "patch": "W10=", "patchType": "Merge" }),
            expect![[r#"webhook returned invalid response.patchType of "Merge""#]],
        );
        check(
            Validating,
            json!({ "uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch" }),
            expect!["validating webhook may not return response.patch"],
        );
        check(Mutating, json!({ "uid": "x", "allowed": true }), expect![[r#"expected response.uid="u", got "x""#]]);
        check(Mutating, Value::Null, expect!["webhook response was absent"]);
        check(
            Validating,
            json!({ "uid": "u", "allowed": false }),
            expect![[
                r#"400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"admission webhook \"a.b.c\" denied the request without explanation","code":400}"#
            ]],
        );
        check(
            Validating,
            json!({ "uid": "u", "status": { "message": "no", "reason": "Because", "code": 418, "details": { "name": "x" } } }),
            expect![[
                r#"418 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"admission webhook \"a.b.c\" denied the request: no","reason":"Because","code":418,"details":{"name":"x"}}"#
            ]],
        );
        check(
            Validating,
            json!({ "uid": "u", "status": { "reason": "Because", "code": 200 } }),
            expect![[
                r#"400 {"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"admission webhook \"a.b.c\" denied the request: Because","reason":"Because","code":400}"#
            ]],
        );
    }
}
