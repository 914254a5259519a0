use http::header;
use serde_json::{Value, json};
use tandem_api::{ApiError, Cause, Revision};
use tandem_registry::{
    ResourceDef,
    selectors::{FieldSelector, LabelSelector},
};
use tandem_store::Consistency;

use crate::{call::Call, request::Query};

const MANAGER_MAX_BYTES: usize = 128;

/// What to do about fields that the schema does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Validation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// The options of everything that writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WriteOptions {
    pub(crate) dry_run: bool,
    pub(crate) manager: String,
    /// Whether the client named its manager itself.
    pub(crate) is_named: bool,
    pub(crate) validation: Validation,
    pub(crate) force: bool,
}

/// An option that cannot be honoured, as Kubernetes words it.
fn invalid(options: &str, field: &str, message: String) -> ApiError {
    let cause = Cause { reason: "FieldValueInvalid".to_owned(), message, field: field.to_owned() };
    ApiError::invalid("meta.k8s.io", options, "", vec![cause])
}

pub(crate) fn dry_run(value: Option<&str>, options: &str) -> Result<bool, ApiError> {
    match value {
        None | Some("") => Ok(false),
        Some("All") => Ok(true),
        Some(other) => {
            Err(invalid(options, "dryRun", format!("Unsupported value: {other:?}: supported values: \"All\"")))
        }
    }
}

impl WriteOptions {
    pub(crate) fn of(call: &Call, options: &str) -> Result<WriteOptions, ApiError> {
        let query = &call.info.query;
        let manager = match query.get("fieldManager") {
            Some(manager) => manager.to_owned(),
            None => manager(call.header(header::USER_AGENT).unwrap_or_default()),
        };
        if manager.len() > MANAGER_MAX_BYTES {
            let message = format!("Too long: may not be more than {MANAGER_MAX_BYTES} bytes");
            return Err(invalid(options, "fieldManager", message));
        }
        let validation = match query.get("fieldValidation") {
            None | Some("Warn") => Validation::Warn,
            Some("Strict") => Validation::Strict,
            Some("Ignore") => Validation::Ignore,
            Some(other) => {
                let message =
                    format!("Unsupported value: {other:?}: supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"");
                return Err(invalid(options, "fieldValidation", message));
            }
        };
        Ok(WriteOptions {
            dry_run: dry_run(query.get("dryRun"), options)?,
            manager,
            is_named: query.get("fieldManager").is_some(),
            validation,
            force: query.flag("force")?,
        })
    }
}

impl WriteOptions {
    /// The options as an object of their kind.
    pub(crate) fn described(&self, kind: &str) -> Value {
        let mut options = json!({ "kind": kind, "apiVersion": "meta.k8s.io/v1" });
        if self.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        if !self.manager.is_empty() && kind != "DeleteOptions" {
            options["fieldManager"] = self.manager.as_str().into();
        }
        options
    }
}

/// The name that a client has by its `User-Agent`: what stands before the first slash.
fn manager(agent: &str) -> String {
    let name: String =
        agent.split('/').next().unwrap_or_default().chars().filter(|letter| !letter.is_control()).collect();
    let mut end = name.len().min(MANAGER_MAX_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    if name.is_empty() { "unknown".to_owned() } else { name[..end].to_owned() }
}

/// Which objects of a resource are meant.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) labels: LabelSelector,
    pub(crate) fields: FieldSelector,
}

impl Selection {
    pub(crate) fn of(query: &Query, def: &ResourceDef, name: Option<&str>) -> Result<Selection, ApiError> {
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default())?;
        let mut text = query.get("fieldSelector").unwrap_or_default().to_owned();
        if let Some(name) = name {
            let comma = if text.is_empty() { "" } else { "," };
            text = format!("{text}{comma}metadata.name={name}");
        }
        let fields = FieldSelector::parse(&text)?;
        fields.check(def)?;
        Ok(Selection { labels, fields })
    }

    /// Whether every object is meant, so that none need be looked at.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, def: &ResourceDef, object: &tandem_api::Object) -> bool {
        self.labels.matches(object) && self.fields.matches(def, object)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    Exact,
    NotOlderThan,
}

/// How fresh a list or the start of a watch is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Freshness {
    /// `None` where the client asks for the newest.
    pub(crate) revision: Option<Revision>,
    matching: Option<Match>,
}

impl Freshness {
    pub(crate) fn of(query: &Query) -> Result<Freshness, ApiError> {
        let revision = match query.get("resourceVersion") {
            None => None,
            Some(text) => Some(Revision::parse(text).ok_or_else(|| {
                invalid(
                    "ListOptions",
                    "resourceVersion",
                    format!("Invalid value: {text:?}: strconv.ParseUint: invalid syntax"),
                )
            })?),
        };
        let matching = match query.get("resourceVersionMatch") {
            None => None,
            Some("Exact") => Some(Match::Exact),
            Some("NotOlderThan") => Some(Match::NotOlderThan),
            Some(other) => {
                let message =
                    format!("Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\", \"\"");
                return Err(invalid("ListOptions", "resourceVersionMatch", message));
            }
        };
        Ok(Freshness { revision, matching })
    }

    /// The consistency of a list's first page.
    pub(crate) fn for_list(self, has_limit: bool) -> Result<Consistency, ApiError> {
        let forbidden = |why: &str| Err(invalid("ListOptions", "resourceVersionMatch", format!("Forbidden: {why}")));
        match (self.revision, self.matching) {
            (None, Some(_)) => forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided"),
            (Some(Revision::ZERO), Some(Match::Exact)) => {
                forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
            }
            (None, None) => Ok(Consistency::Linearizable),
            (Some(Revision::ZERO), _) => Ok(Consistency::Any),
            (Some(revision), Some(Match::Exact)) => Ok(Consistency::Exactly(revision)),
            // Pages of one listing were always exact, even before resourceVersionMatch.
            (Some(revision), None) if has_limit => Ok(Consistency::Exactly(revision)),
            (Some(revision), _) => Ok(Consistency::AtLeast(revision)),
        }
    }

    /// Whether the watch is to begin with the objects that are there, as `sendInitialEvents` asks.
    pub(crate) fn for_watch(self, send_initial: Option<bool>) -> Result<(), ApiError> {
        let forbidden = |why: &str| Err(invalid("ListOptions", "resourceVersionMatch", format!("Forbidden: {why}")));
        match (send_initial, self.matching) {
            (None, Some(_)) => {
                forbidden("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")
            }
            (Some(_), None) => forbidden("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
            (Some(_), Some(Match::Exact)) => {
                forbidden("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, has_limit: bool, expected: Result<Consistency, &str>) {
        let found = Freshness::of(&Query::parse(query)).and_then(|freshness| freshness.for_list(has_limit));
        match expected {
            Ok(expected) => assert_eq!(found.unwrap(), expected, "{query}"),
            Err(text) => assert!(found.unwrap_err().message.contains(text), "{query}"),
        }
    }

    #[test]
    fn resource_versions_of_lists() {
        check("", false, Ok(Consistency::Linearizable));
        check("resourceVersion=0", true, Ok(Consistency::Any));
        check("resourceVersion=5", false, Ok(Consistency::AtLeast(Revision(5))));
        check("resourceVersion=5", true, Ok(Consistency::Exactly(Revision(5))));
        check("resourceVersion=5&resourceVersionMatch=NotOlderThan", true, Ok(Consistency::AtLeast(Revision(5))));
        check("resourceVersion=5&resourceVersionMatch=Exact", false, Ok(Consistency::Exactly(Revision(5))));
        check("resourceVersionMatch=Exact", false, Err("forbidden unless resourceVersion"));
        check("resourceVersion=0&resourceVersionMatch=Exact", false, Err("forbidden for resourceVersion"));
        check("resourceVersion=05", false, Err("invalid syntax"));
        check("resourceVersion=5&resourceVersionMatch=Same", false, Err("Unsupported value"));
    }

    #[test]
    fn managers_come_from_the_user_agent() {
        assert_eq!(manager("kubectl/v1.36.0 (linux/amd64) kubernetes/abc"), "kubectl");
        assert_eq!(manager(""), "unknown");
        assert_eq!(manager(&"x".repeat(200)).len(), 128);
    }
}
