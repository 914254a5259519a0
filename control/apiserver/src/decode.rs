use http::header;
use tandem_api::{ApiError, Object, Reason};
use tandem_registry::{KindName, ResourceDef, fields, protobuf};

use crate::{call::Call, core::Core, options::Validation};

const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// The kind that a request's body should hold.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) kind: KindName,
    pub(crate) type_name: String,
}

impl Expected {
    pub(crate) fn object(def: &ResourceDef) -> Expected {
        let kind = KindName { group: def.group.clone(), version: def.version.clone(), kind: def.kind.clone() };
        Expected { kind, type_name: def.type_name.clone() }
    }

    /// A kind by its name in the schema, for subresources and options.
    pub(crate) fn kind(core: &Core, kind: &KindName) -> Result<Expected, ApiError> {
        let schema = core.schema();
        let found = schema.kind_type(&kind.group, &kind.version, &kind.kind);
        let found = found.ok_or_else(|| ApiError::internal(format!("no type is known for {}", kind.kind)))?;
        Ok(Expected { kind: kind.clone(), type_name: found.name.to_string() })
    }

    pub(crate) fn api_version(&self) -> String {
        match self.kind.group.as_str() {
            "" => self.kind.version.clone(),
            group => format!("{group}/{}", self.kind.version),
        }
    }
}

/// An object as it was sent.
struct Sent {
    object: Object,
    /// What strict validation has to say about its text: fields that were given twice.
    duplicates: Vec<String>,
    is_text: bool,
}

/// Reads the request's body as the expected kind: format by `Content-Type` (JSON when there is none), then type, unknown
/// fields, wrong types, pruning.
pub(crate) async fn body(
    core: &Core,
    call: &Call,
    expected: &Expected,
    validation: Validation,
) -> Result<Object, ApiError> {
    let bytes = call.body().await?;
    let Sent { mut object, duplicates, is_text } = parse(core, call.header(header::CONTENT_TYPE), &bytes)?;
    check_kind(&mut object, expected)?;
    if is_text { clean(core, call, expected, validation, object, &duplicates) } else { Ok(object) }
}

fn parse(core: &Core, content_type: Option<&str>, bytes: &[u8]) -> Result<Sent, ApiError> {
    match media_type(content_type).as_str() {
        "" | "application/json" => {
            let (object, duplicates) = fields::parse_strict(bytes)?;
            Ok(Sent { object, duplicates, is_text: true })
        }
        "application/yaml" => {
            let (object, duplicates) = yaml(bytes)?;
            Ok(Sent { object, duplicates, is_text: true })
        }
        "application/vnd.kubernetes.protobuf" => {
            let object = protobuf::decode(&core.schema(), &core.registry(), bytes)?;
            Ok(Sent { object, duplicates: Vec::new(), is_text: false })
        }
        _ => Err(ApiError::new(
            Reason::UnsupportedMediaType,
            format!("the body of the request was in an unknown format - accepted media types include: {ACCEPTED}"),
        )),
    }
}

pub(crate) fn media_type(content_type: Option<&str>) -> String {
    content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// YAML, of which JSON is a part; and what strict validation has to say about a key that was given twice, of which the
/// last one counts.
pub(crate) fn yaml(bytes: &[u8]) -> Result<(Object, Vec<String>), ApiError> {
    let wrong = |why: serde_saphyr::Error| ApiError::bad_request(format!("error converting YAML to JSON: {why}"));
    let (value, duplicates): (serde_json::Value, _) = match serde_saphyr::from_slice(bytes) {
        Ok(value) => (value, Vec::new()),
        Err(why) => match duplicate_key(&why) {
            Some(duplicate) => {
                let last = serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
                (serde_saphyr::from_slice_with_options(bytes, last).map_err(wrong)?, vec![duplicate])
            }
            None => return Err(wrong(why)),
        },
    };
    let object = Object::from_value(value)
        .ok_or_else(|| ApiError::bad_request("couldn't get version/kind; the body is not an object"))?;
    Ok((object, duplicates))
}

/// In the words of Kubernetes' YAML reader.
fn duplicate_key(error: &serde_saphyr::Error) -> Option<String> {
    match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key, location } => {
            let key = key.as_deref().unwrap_or_default();
            Some(format!("line {}: key {key:?} already set in map", location.line()))
        }
        _ => None,
    }
}

/// Type and version may be left out; if they are there, they must be what the URL says.
fn check_kind(object: &mut Object, expected: &Expected) -> Result<(), ApiError> {
    let api_version = expected.api_version();
    let kind = &expected.kind.kind;
    // Every group accepts options by the name of its own version.
    let is_options = kind.ends_with("Options");
    match object.api_version() {
        "" => object.set(&["apiVersion"], api_version.as_str()),
        given if given == api_version || is_options => {}
        given => {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({given}) does not match the expected API version ({api_version})"
            )));
        }
    }
    match object.kind() {
        "" => object.set(&["kind"], kind.as_str()),
        given if given == kind => {}
        given => {
            let version = &expected.kind.version;
            return Err(ApiError::bad_request(format!(
                "{given} in version {version:?} cannot be handled as a {kind}: converting ({given}) to ({kind}): unknown conversion"
            )));
        }
    }
    Ok(())
}

/// Unknown fields by the given strictness, wrong types always; what is left is what the schema knows.
pub(crate) fn clean(
    core: &Core,
    call: &Call,
    expected: &Expected,
    validation: Validation,
    mut object: Object,
    duplicates: &[String],
) -> Result<Object, ApiError> {
    let schema = &core.schema();
    let problems = match validation {
        Validation::Ignore => Vec::new(),
        Validation::Warn | Validation::Strict => fields::strict(schema, &expected.type_name, &object, duplicates),
    };
    match validation {
        Validation::Ignore => {}
        Validation::Warn => problems.iter().for_each(|problem| call.warn(problem.as_str())),
        Validation::Strict => {
            if let Some(error) = fields::strict_error(&expected.kind.kind, &expected.kind.version, &problems) {
                return Err(error);
            }
        }
    }
    fields::types(schema, &expected.type_name, &object)?;
    fields::prune(schema, &expected.type_name, &mut object);
    Ok(object)
}
