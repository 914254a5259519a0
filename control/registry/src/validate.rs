//! Semantic validation: what the schema cannot say, in Kubernetes' words and with its field paths.
//!
//! The hooks of the kinds are one file a family; what they share stands here.

pub(crate) mod admission;
pub(crate) mod apiservice;
pub(crate) mod autoscaling;
pub(crate) mod batch;
pub(crate) mod config;
pub mod labels;
pub(crate) mod limits;
pub mod metadata;
pub(crate) mod network;
pub mod pod;
pub(crate) mod policy;
mod problems;
pub(crate) mod rbac;
pub(crate) mod service;
pub(crate) mod storage;
#[cfg(test)]
mod tests;
pub mod webhooks;
pub(crate) mod workloads;

pub(crate) use problems::Problems;

use serde_json::{Value, json};
use tandem_api::{Object, names};

use crate::{
    json::{Fields, FieldsExt},
    quantity::Quantity,
};

pub(crate) const IMMUTABLE: &str = "field is immutable";
const NON_NEGATIVE: &str = "must be greater than or equal to 0";
const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";
const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";

/// The spec of an object; nothing where there is none.
pub(crate) fn spec(object: &Object) -> Fields {
    object.0.child("spec").cloned().unwrap_or_default()
}

impl Problems {
    pub(crate) fn check_non_negative(&mut self, fields: &Fields, key: &str, path: &str) {
        if let Some(number) = fields.int(key).filter(|number| *number < 0) {
            self.invalid(format!("{path}.{key}"), number, NON_NEGATIVE);
        }
    }

    /// A text that must be one of a few. An empty one is `required` or left alone.
    pub(crate) fn check_enum(&mut self, fields: &Fields, key: &str, path: &str, allowed: &[&str], required: bool) {
        let at = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match fields.text(key) {
            "" if required => self.required(at, ""),
            "" => {}
            text if allowed.contains(&text) => {}
            text => self.unsupported(at, text, allowed),
        }
    }

    pub(crate) fn check_port(&mut self, port: i64, path: String) {
        if !(1..=65535).contains(&port) {
            self.invalid(path, port, PORT_RANGE);
        }
    }

    /// A port by number or by name.
    pub(crate) fn check_port_or_name(&mut self, value: Option<&Value>, path: String) {
        match value {
            Some(Value::String(name)) => {
                port_name(name).into_iter().for_each(|why| self.invalid(path.clone(), name.as_str(), why));
            }
            Some(number) => self.check_port(number.as_i64().unwrap_or_default(), path),
            None => self.check_port(0, path),
        }
    }

    pub(crate) fn check_label(&mut self, text: &str, path: &str) {
        names::dns1123_label(text).into_iter().for_each(|why| self.invalid(path, text, why));
    }

    pub(crate) fn check_subdomain(&mut self, text: &str, path: &str) {
        names::dns1123_subdomain(text).into_iter().for_each(|why| self.invalid(path, text, why));
    }

    pub(crate) fn check_labels(&mut self, fields: &Fields, key: &str, path: &str) {
        for (name, value) in fields.pairs(key) {
            labels::qualified_name(name).into_iter().for_each(|why| self.invalid(path, name, why));
            labels::label_value(value).into_iter().for_each(|why| self.invalid(path, value, why));
        }
    }

    pub(crate) fn check_selector(&mut self, selector: &Fields, path: &str) {
        self.check_labels(selector, "matchLabels", &format!("{path}.matchLabels"));
        for (at, expression) in selector.each("matchExpressions").enumerate() {
            let path = format!("{path}.matchExpressions[{at}]");
            let values = expression.list("values");
            match expression.text("operator") {
                "In" | "NotIn" if values.is_empty() => {
                    self.required(format!("{path}.values"), "must be specified when `operator` is 'In' or 'NotIn'");
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    self.forbidden(format!("{path}.values"), why);
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                other => self.invalid(format!("{path}.operator"), other, "not a valid selector operator"),
            }
            let key = expression.text("key");
            labels::qualified_name(key).into_iter().for_each(|why| self.invalid(format!("{path}.key"), key, why));
            for (at, value) in values.iter().filter_map(Value::as_str).enumerate() {
                let path = format!("{path}.values[{at}]");
                labels::label_value(value).into_iter().for_each(|why| self.invalid(path.clone(), value, why));
            }
        }
    }

    /// A number of pods or a percentage of them.
    pub(crate) fn check_share(&mut self, value: Option<&Value>, path: &str) {
        match value {
            Some(Value::String(text)) => match percent(text) {
                None => self.invalid(path, text.as_str(), PERCENT),
                Some(number) if number > 100 => self.invalid(path, text.as_str(), "must not be greater than 100%"),
                Some(_) => {}
            },
            Some(Value::Number(number)) if number.as_i64().is_some_and(|number| number < 0) => {
                self.invalid(path, json!(number), NON_NEGATIVE);
            }
            _ => {}
        }
    }

    /// A quantity that is not negative.
    pub(crate) fn check_quantity(&mut self, text: &str, path: String) -> Option<Quantity> {
        let quantity = Quantity::parse(text).ok()?;
        if quantity.is_negative() {
            self.invalid(path, text, NON_NEGATIVE);
        }
        Some(quantity)
    }

    /// A field that may not change once the object is there.
    pub(crate) fn check_immutable(&mut self, new: Option<&Value>, old: Option<&Value>, path: &str, why: &str) {
        if new != old {
            self.invalid(path, new.cloned().unwrap_or_default(), why);
        }
    }
}

pub(crate) fn percent(text: &str) -> Option<u32> {
    let digits = text.strip_suffix('%')?;
    let sound = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    sound.then(|| digits.parse().unwrap_or(u32::MAX))
}

/// What is wrong with the name of a port (an IANA service name).
pub(crate) fn port_name(name: &str) -> Vec<&'static str> {
    let mut problems = Vec::new();
    if name.len() > 15 {
        problems.push("must be no more than 15 characters");
    }
    if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        problems.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        problems.push("must contain at least one letter (a-z)");
    }
    if name.contains("--") {
        problems.push("must not contain consecutive hyphens");
    }
    if name.starts_with('-') || name.ends_with('-') {
        problems.push("must not begin or end with a hyphen");
    }
    problems
}
