use std::fmt::Display;

use serde_json::Value;
use tandem_api::Cause;

/// The list of what is wrong, in the words of Kubernetes' `field.Error`.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<Cause>);

impl Problems {
    pub(crate) fn into_causes(self) -> Vec<Cause> {
        self.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn add(&mut self, cause: Cause) {
        self.0.push(cause);
    }

    fn push(&mut self, reason: &str, path: impl Into<String>, what: String, why: &str) {
        let message = if why.is_empty() { what } else { format!("{what}: {why}") };
        self.0.push(Cause { reason: reason.to_owned(), message, field: path.into() });
    }

    pub(crate) fn required(&mut self, path: impl Into<String>, why: &str) {
        self.push("FieldValueRequired", path, "Required value".to_owned(), why);
    }

    pub(crate) fn invalid(&mut self, path: impl Into<String>, value: impl Into<Value>, why: impl Display) {
        self.push("FieldValueInvalid", path, format!("Invalid value: {}", value.into()), &why.to_string());
    }

    pub(crate) fn forbidden(&mut self, path: impl Into<String>, why: &str) {
        self.push("FieldValueForbidden", path, "Forbidden".to_owned(), why);
    }

    pub(crate) fn unsupported(&mut self, path: impl Into<String>, value: &str, allowed: &[&str]) {
        let allowed: Vec<String> = allowed.iter().map(|one| format!("{one:?}")).collect();
        let why = format!("supported values: {}", allowed.join(", "));
        self.push("FieldValueNotSupported", path, format!("Unsupported value: {value:?}"), &why);
    }

    pub(crate) fn duplicate(&mut self, path: impl Into<String>, value: impl Into<Value>) {
        self.push("FieldValueDuplicate", path, format!("Duplicate value: {}", value.into()), "");
    }

    pub(crate) fn not_found(&mut self, path: impl Into<String>, value: &str) {
        self.push("FieldValueNotFound", path, format!("Not found: {value:?}"), "");
    }

    pub(crate) fn too_long(&mut self, path: impl Into<String>, most: usize) {
        self.push("FieldValueTooLong", path, "Too long".to_owned(), &format!("may not be more than {most} bytes"));
    }

    pub(crate) fn too_many(&mut self, path: impl Into<String>, count: usize, most: usize) {
        let why = format!("must have at most {most} items");
        self.push("FieldValueTooMany", path, format!("Too many: {count}"), &why);
    }
}
