use axum::response::Response;
use bytes::Bytes;
use http::{StatusCode, header};
use serde_json::Value;
use tandem_api::{ApiError, Cause, Object, Reason};
use tandem_registry::{ResourceDef, fields};
use tandem_store::Consistency;

use crate::{
    authz::{self, Attributes},
    call::Call,
    core::Core,
    decode::{self, Expected},
    deletion,
    managed::Writer,
    options::{Validation, WriteOptions},
    patch, respond, verbs,
    write::{self, Author, Change, Ownership, Scope, Target},
};

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
/// How often an apply is tried anew when the object appears or goes meanwhile.
const APPLY_TRIES_MAX: usize = 8;

/// A patch as it was sent, read as far as its type allows.
enum Patch {
    Json(Bytes),
    Merge(Value),
    Strategic(serde_json::Map<String, Value>),
    Apply(Object),
}

struct Request {
    patch: Patch,
    /// Fields that were given twice.
    duplicates: Vec<String>,
}

/// Strategic merge needs the merge keys of built-in types.
async fn read(call: &Call, strategic: bool) -> Result<Request, ApiError> {
    let media = decode::media_type(call.header(header::CONTENT_TYPE));
    let mut accepted = vec![JSON, MERGE, STRATEGIC, APPLY];
    accepted.retain(|media| strategic || *media != STRATEGIC);
    let kind = *accepted.iter().find(|kind| **kind == media).ok_or_else(|| {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        ApiError::new(Reason::UnsupportedMediaType, message)
    })?;
    let bytes = call.body().await?;
    if kind == JSON {
        return Ok(Request { patch: Patch::Json(bytes), duplicates: Vec::new() });
    }
    let is_json = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let (object, duplicates) =
        if kind == APPLY && !is_json { decode::yaml(&bytes)? } else { fields::parse_strict(&bytes)? };
    let patch = match kind {
        MERGE => Patch::Merge(Value::Object(object.0)),
        STRATEGIC => Patch::Strategic(object.0),
        _ => Patch::Apply(object),
    };
    Ok(Request { patch, duplicates })
}

impl Patch {
    /// The object after the patch; applying is not done here.
    fn applied_to(&self, core: &Core, expected: &Expected, live: &Object) -> Result<Object, ApiError> {
        match self {
            Patch::Json(bytes) => patch::json_patch(live, bytes),
            Patch::Merge(value) => patch::merge_patch(live, value),
            Patch::Strategic(map) => patch::strategic_merge(&core.schema(), &expected.type_name, live, map),
            Patch::Apply(_) => Err(ApiError::internal("an apply patch reached a place that does not apply")),
        }
    }

    /// As Kubernetes quotes the patch in its refusals.
    fn quoted(&self, patched: &Object) -> String {
        match self {
            Patch::Strategic(map) => patch::go_value(&Value::Object(map.clone())),
            Patch::Json(_) | Patch::Merge(_) | Patch::Apply(_) => Value::Object(patched.0.clone()).to_string(),
        }
    }
}

/// The patched object, checked like one that was sent whole.
fn checked(
    core: &Core,
    call: &Call,
    expected: &Expected,
    validation: Validation,
    request: &Request,
    live: &Object,
) -> Result<Object, ApiError> {
    let patched = request.patch.applied_to(core, expected, live)?;
    let lenient = if validation == Validation::Strict { Validation::Ignore } else { validation };
    if validation == Validation::Strict {
        let problems = fields::strict(&core.schema(), &expected.type_name, &patched, &request.duplicates);
        if !problems.is_empty() {
            return Err(refused(&request.patch.quoted(&patched), &problems));
        }
    }
    decode::clean(core, call, expected, lenient, patched, &request.duplicates)
}

fn refused(quoted: &str, problems: &[String]) -> ApiError {
    let message = format!("Invalid value: {quoted:?}: strict decoding error: {}", problems.join(", "));
    let cause = Cause { reason: "FieldValueInvalid".to_owned(), message, field: "patch".to_owned() };
    ApiError::invalid("", "", "", vec![cause])
}

pub(crate) async fn patch(core: &Core, call: &Call, def: &ResourceDef) -> Result<Response, ApiError> {
    let options = WriteOptions::of(call, "PatchOptions")?;
    call.representation(crate::negotiate::Offer::of(def))?;
    let target = verbs::target(def, call.path()?)?;
    let author = verbs::author(call, &options);
    let expected = Expected::object(def);
    let request = read(call, def.custom.is_none()).await?;
    if options.force && !matches!(request.patch, Patch::Apply(_)) {
        let cause = Cause {
            reason: "FieldValueForbidden".to_owned(),
            message: "Forbidden: may not be specified for non-apply patch".to_owned(),
            field: "force".to_owned(),
        };
        return Err(ApiError::invalid("meta.k8s.io", "PatchOptions", "", vec![cause]));
    }
    if let Patch::Apply(applied) = request.patch {
        let manager = call.info.query.get("fieldManager");
        if manager.is_none() {
            let cause = Cause {
                reason: "FieldValueRequired".to_owned(),
                message: "Required value: is required for apply patch".to_owned(),
                field: "fieldManager".to_owned(),
            };
            return Err(ApiError::invalid("meta.k8s.io", "PatchOptions", "", vec![cause]));
        }
        declared(core, &expected, &target, &applied)?;
        let applied = decode::clean(core, call, &expected, options.validation, applied, &request.duplicates)?;
        let (code, object) = apply(core, &author, &target, applied).await?;
        return respond::object(core, call, def, code, object);
    }
    let scope = if target.subresource == "status" { Scope::Status } else { Scope::Object };
    let make = |live: &Object| checked(core, call, &expected, options.validation, &request, live);
    let change = Change { scope, ownership: Ownership::Update, change: &make };
    let patched = write::update(core, &author, &target, &change).await?;
    respond::object(core, call, def, StatusCode::OK, patched)
}

/// Nobody can own a field that the schema does not know: whatever the strictness, applying one is refused.
fn declared(core: &Core, expected: &Expected, target: &Target<'_>, applied: &Object) -> Result<(), ApiError> {
    let problems = fields::strict(&core.schema(), &expected.type_name, applied, &[]);
    let unknown = problems.iter().filter_map(|problem| problem.strip_prefix("unknown field \"")?.strip_suffix('"'));
    let unknown: Vec<String> = unknown.map(|field| format!(".{field}: field not declared in schema")).collect();
    let what = match unknown.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    let (version, kind) = (target.def.api_version(), &target.def.kind);
    let name = target.namespace.map_or_else(String::new, |namespace| format!("{namespace}/")) + target.name;
    Err(ApiError::bad_request(format!("failed to create typed patch object ({name}; {version}, Kind={kind}): {what}")))
}

/// Server-side apply creates what is not there.
async fn apply(
    core: &Core,
    author: &Author<'_>,
    target: &Target<'_>,
    mut applied: Object,
) -> Result<(StatusCode, Object), ApiError> {
    let def = target.def;
    if applied.api_version() != def.api_version() || applied.kind() != def.kind {
        let (given, kind) = (applied.api_version(), applied.kind());
        return Err(ApiError::bad_request(format!(
            "invalid object type: {given}, Kind={kind} (expected {}, Kind={})",
            def.api_version(),
            def.kind
        )));
    }
    if !applied.name().is_empty() && applied.name() != target.name {
        let given = applied.name();
        return Err(ApiError::bad_request(format!(
            "name in the patch ({given}) does not match the name on the URL ({})",
            target.name
        )));
    }
    // What this door cannot change, its users cannot own.
    match target.subresource {
        "status" => applied.0.retain(|key, _| matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status")),
        _ if def.has_status() => {
            applied.remove(&["status"]);
        }
        _ => {}
    }
    let api_version = def.api_version();
    let time = deletion::seconds(core.clock.now());
    let writer = Writer {
        manager: &author.options.manager,
        api_version: &api_version,
        subresource: target.subresource,
        time: &time,
    };
    let force = author.options.force;
    let schema = core.schema();
    let scope = if target.subresource == "status" { Scope::Status } else { Scope::Object };
    let make = |live: &Object| patch::apply::apply(&schema, &def.type_name, Some(live), &applied, &writer, force);
    for _ in 0..APPLY_TRIES_MAX {
        let there = core.objects.stored(def, target.namespace, target.name, Consistency::Linearizable).await?.is_some();
        let done = if there || !target.subresource.is_empty() {
            let change = Change { scope, ownership: Ownership::Applied, change: &make };
            write::update(core, author, target, &change).await.map(|object| (StatusCode::OK, object))
        } else {
            // Who may patch may not create for that reason.
            let creation = Attributes::resource("create", &def.group, &def.plural, target.namespace, Some(target.name));
            authz::authorize(core, author.identity, &creation).await?;
            let mut object = patch::apply::apply(&schema, &def.type_name, None, &applied, &writer, force)?;
            object.set(&["metadata", "name"], target.name);
            let created = write::create(core, author, target, object, Ownership::Applied).await;
            created.map(|object| (StatusCode::CREATED, object))
        };
        match done {
            Err(error)
                if matches!(error.reason, Reason::AlreadyExists | Reason::NotFound)
                    && target.subresource.is_empty() =>
            {
                // A namespace that is missing will not appear by trying again.
                if error.details.kind != def.plural {
                    return Err(error);
                }
            }
            done => return done,
        }
    }
    Err(target.conflict("the object comes and goes"))
}

/// A subresource's own object (a Scale, say) after the request's patch.
pub(crate) async fn patch_subresource(
    core: &Core,
    call: &Call,
    expected: &Expected,
    validation: Validation,
) -> Result<impl Fn(&Object) -> Result<Object, ApiError> + Send + Sync, ApiError> {
    let request = read(call, true).await?;
    let request = match request.patch {
        // Applying to a subresource that is computed is merging into it.
        Patch::Apply(object) => {
            Request { patch: Patch::Merge(Value::Object(object.0)), duplicates: request.duplicates }
        }
        patch => Request { patch, duplicates: request.duplicates },
    };
    Ok(move |live: &Object| checked(core, call, expected, validation, &request, live))
}
