//! Whether a value is as its schema says, in the words of Kubernetes' validator (kube-openapi).

use std::collections::HashMap;

use serde_json::{Map, Value};
use tandem_api::Cause;

use super::{
    formats,
    structure::{Additional, JsonType, Limits, Node},
};
use crate::schema::ListType;

/// How much is told of one object.
const CAUSES_MAX: usize = 100;
/// How many single checks one object may cost: alternatives within alternatives multiply.
pub(crate) const STEPS_MAX: usize = 4_000_000;
/// How many bytes of a text are looked at in one step.
const BYTES_OF_STEP: usize = 64;

/// What is wrong with an object. `path` is where it stands; empty for a whole one. What has not changed since `old` is
/// not looked at: what was wrong before, under an older schema, does not hold up a change of something else.
pub(crate) fn validate(node: &Node, value: &Value, old: Option<&Value>, path: &str, steps: &mut usize) -> Vec<Cause> {
    let mut check = Check { causes: Vec::new(), steps: *steps, counting: false, wrong: 0 };
    check.value(node, value, old, path);
    *steps = check.steps;
    if check.steps == 0 {
        check.causes = vec![cause(
            "FieldValueInvalid",
            path,
            "Invalid value: the schema takes too long to check this object: it is too large, or its alternatives are too many",
        )];
    }
    check.causes
}

/// Whether rules can still be checked: not where values are missing, too large or of the wrong type.
pub(crate) fn blocks_rules(causes: &[Cause]) -> bool {
    let blocking = ["FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid"];
    causes.iter().any(|cause| blocking.contains(&cause.reason.as_str()))
}

pub(crate) fn cause(reason: &str, path: &str, message: impl Into<String>) -> Cause {
    Cause { reason: reason.to_owned(), message: message.into(), field: path.to_owned() }
}

struct Check {
    causes: Vec<Cause>,
    steps: usize,
    /// Whether an alternative is tried, of which only counts how much is wrong.
    counting: bool,
    wrong: usize,
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if is_integer(number) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_integer(number: &serde_json::Number) -> bool {
    number.is_i64() || number.is_u64() || number.as_f64().is_some_and(|number| number.fract() == 0.0)
}

fn has_type(ty: JsonType, value: &Value) -> bool {
    match (ty, value) {
        (JsonType::Object, Value::Object(_))
        | (JsonType::Array, Value::Array(_))
        | (JsonType::String, Value::String(_))
        | (JsonType::Boolean, Value::Bool(_))
        | (JsonType::Number, Value::Number(_)) => true,
        (JsonType::Integer, Value::Number(number)) => is_integer(number),
        _ => false,
    }
}

pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// A number as Go prints it.
fn number(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 { format!("{value:.0}") } else { value.to_string() }
}

impl Check {
    fn say(&mut self, reason: &str, path: &str, message: String) {
        self.wrong += 1;
        if !self.counting && self.causes.len() < CAUSES_MAX {
            self.causes.push(cause(reason, path, message));
        }
    }

    fn invalid(&mut self, path: &str, value: &Value, why: &str) {
        if self.counting {
            self.wrong += 1;
            return;
        }
        self.say("FieldValueInvalid", path, format!("Invalid value: {value}: {path} in body {why}"));
    }

    fn spend(&mut self, steps: usize) {
        self.steps = self.steps.saturating_sub(steps);
    }

    fn value(&mut self, node: &Node, value: &Value, old: Option<&Value>, path: &str) {
        self.spend(1);
        if self.steps == 0 || (value.is_null() && node.nullable) || old == Some(value) {
            return;
        }
        if let Some(wanted) = self.wrong_type(node, value) {
            let found = json_type(value);
            let message = format!("Invalid value: {found:?}: {path} in body must be of type {wanted}: {found:?}");
            self.say("FieldValueTypeInvalid", path, message);
            return;
        }
        self.scalar(&node.limits, value, path);
        match value {
            Value::Object(map) => self.object(node, map, old, path),
            Value::Array(list) => self.list(node, list, old, path),
            _ => {}
        }
        self.logic(node, value, path);
    }

    fn wrong_type(&self, node: &Node, value: &Value) -> Option<&'static str> {
        if node.int_or_string {
            let sound = has_type(JsonType::Integer, value) || value.is_string();
            return (!sound).then_some("integer,string");
        }
        let ty = node.ty?;
        (!has_type(ty, value)).then_some(ty.name())
    }

    fn scalar(&mut self, limits: &Limits, value: &Value, path: &str) {
        if let Some(allowed) = &limits.allowed {
            self.spend(allowed.len());
            if !allowed.iter().any(|one| same(one, value)) {
                self.unsupported(allowed, value, path);
            }
        }
        match value {
            Value::String(text) => self.text(limits, text, value, path),
            Value::Number(_) => self.number(limits, value.as_f64().unwrap_or_default(), value, path),
            _ => {}
        }
    }

    fn unsupported(&mut self, allowed: &[Value], value: &Value, path: &str) {
        if self.counting {
            self.wrong += 1;
            return;
        }
        let texts: Vec<String> = allowed
            .iter()
            .map(|one| one.as_str().map_or_else(|| format!("{:?}", one.to_string()), |text| format!("{text:?}")))
            .collect();
        let message = format!("Unsupported value: {value}: supported values: {}", texts.join(", "));
        self.say("FieldValueNotSupported", path, message);
    }

    fn text(&mut self, limits: &Limits, text: &str, value: &Value, path: &str) {
        let pattern = limits.pattern.as_ref().map_or(0, |pattern| pattern.cost(text));
        self.spend((text.len() / BYTES_OF_STEP + 1).saturating_add(usize::try_from(pattern).unwrap_or(usize::MAX)));
        if self.steps == 0 {
            return;
        }
        let length = text.chars().count();
        if let Some(most) = limits.max_length.filter(|most| length > *most) {
            let message = format!("Too long: may not be more than {most} bytes");
            self.say("FieldValueTooLong", path, message);
        }
        if let Some(least) = limits.min_length.filter(|least| length < *least) {
            self.invalid(path, value, &format!("should be at least {least} chars long"));
        }
        if let Some(pattern) = &limits.pattern
            && !pattern.is_match(text)
        {
            self.invalid(path, value, &format!("should match '{}'", pattern.text()));
        }
        if let Some(format) = limits.format.as_deref().filter(|format| !formats::matches(format, text)) {
            let message = format!("Invalid value: {value}: {path} in body must be of type {format}: {value}");
            self.say("FieldValueTypeInvalid", path, message);
        }
    }

    fn number(&mut self, limits: &Limits, found: f64, value: &Value, path: &str) {
        match limits.maximum {
            Some((most, true)) if found >= most => {
                self.invalid(path, value, &format!("should be less than {}", number(most)))
            }
            Some((most, false)) if found > most => {
                self.invalid(path, value, &format!("should be less than or equal to {}", number(most)));
            }
            _ => {}
        }
        match limits.minimum {
            Some((least, true)) if found <= least => {
                self.invalid(path, value, &format!("should be greater than {}", number(least)));
            }
            Some((least, false)) if found < least => {
                self.invalid(path, value, &format!("should be greater than or equal to {}", number(least)));
            }
            _ => {}
        }
        if let Some(step) = limits.multiple_of.filter(|step| *step > 0.0) {
            let times = found / step;
            if (times - times.round()).abs() > 1e-9 {
                self.invalid(path, value, &format!("should be a multiple of {}", number(step)));
            }
        }
        // Integers have the size of their format, and never more than 64 bits.
        let fits = match limits.format.as_deref() {
            Some("int32") => value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
            Some("int64") => value.as_i64().is_some() || value.is_f64(),
            _ => true,
        };
        if !fits {
            let format = limits.format.as_deref().unwrap_or_default();
            self.invalid(path, value, &format!("must be of type {format}: {value:?}"));
        }
    }

    fn count(&mut self, path: &str, found: usize, (least, most): (Option<usize>, Option<usize>), what: &str) {
        if let Some(most) = most.filter(|most| found > *most) {
            self.say("FieldValueTooMany", path, format!("Too many: {found}: must have at most {most} items"));
        }
        if let Some(least) = least.filter(|least| found < *least) {
            let message = format!("Invalid value: {found}: {path} in body should have at least {least} {what}");
            self.say("FieldValueInvalid", path, message);
        }
    }

    fn object(&mut self, node: &Node, map: &Map<String, Value>, old: Option<&Value>, path: &str) {
        let limits = &node.limits;
        self.count(path, map.len(), (limits.min_properties, limits.max_properties), "properties");
        for name in limits.required.iter().filter(|name| !map.contains_key(*name)) {
            self.say("FieldValueRequired", &join(path, name), "Required value".to_owned());
        }
        if node.properties.is_empty() && !matches!(node.additional, Additional::Node(_)) {
            return;
        }
        for (name, value) in map {
            if let Some(member) = node.member(name) {
                let old = old.and_then(|old| old.get(name));
                self.value(member, value, old, &join(path, name));
            }
        }
    }

    fn list(&mut self, node: &Node, list: &[Value], old: Option<&Value>, path: &str) {
        let limits = &node.limits;
        self.count(path, list.len(), (limits.min_items, limits.max_items), "items");
        let Some(items) = &node.items else { return };
        let old = old.and_then(Value::as_array);
        let known = old.filter(|_| node.list_type == ListType::Map).map(|old| by_key(node, old)).unwrap_or_default();
        for (at, value) in list.iter().enumerate() {
            let key = if known.is_empty() { None } else { element_key(node, value) };
            let old = key.and_then(|key| known.get(&key.to_string()).copied());
            self.value(items, value, old, &format!("{path}[{at}]"));
        }
    }

    /// How much is wrong with the value under an alternative.
    fn attempt(&mut self, node: &Node, value: &Value, path: &str) -> usize {
        let (counting, wrong) = (std::mem::replace(&mut self.counting, true), std::mem::take(&mut self.wrong));
        self.value(node, value, None, path);
        self.counting = counting;
        std::mem::replace(&mut self.wrong, wrong)
    }

    /// Alternatives: Kubernetes tells them of no field, and quotes the path.
    fn logic(&mut self, node: &Node, value: &Value, path: &str) {
        let say = |check: &mut Check, why: String| {
            check.say("FieldValueInvalid", "<nil>", format!("Invalid value: \"\": {path:?} {why}"));
        };
        if !node.any_of.is_empty() && !node.int_or_string && !self.best(&node.any_of, value, path, |sound, _| sound > 0)
        {
            say(self, "must validate at least one schema (anyOf)".to_owned());
        }
        if !node.one_of.is_empty() {
            let mut valid = 0;
            let done = self.best(&node.one_of, value, path, |sound, _| {
                valid = sound;
                sound == 1
            });
            if !done {
                let found = if valid == 0 { "none valid".to_owned() } else { format!("{valid} valid alternatives") };
                say(self, format!("must validate one and only one schema (oneOf). Found {found}"));
            }
        }
        let before = self.wrong;
        for inner in &node.all_of {
            self.value(inner, value, None, path);
        }
        if self.wrong > before {
            say(self, "must validate all the schemas (allOf)".to_owned());
        }
        if let Some(not) = &node.not
            && self.attempt(not, value, path) == 0
            && self.steps > 0
        {
            say(self, "must not validate the schema (not)".to_owned());
        }
    }

    /// Tries alternatives. Where none holds, what the best of them lacks is told.
    fn best(
        &mut self,
        nodes: &[Node],
        value: &Value,
        path: &str,
        mut enough: impl FnMut(usize, usize) -> bool,
    ) -> bool {
        let wrong: Vec<usize> = nodes.iter().map(|node| self.attempt(node, value, path)).collect();
        let sound = wrong.iter().filter(|wrong| **wrong == 0).count();
        if enough(sound, nodes.len()) {
            return true;
        }
        let nearest = wrong.iter().enumerate().min_by_key(|(_, wrong)| **wrong).map(|(at, _)| &nodes[at]);
        if let Some(nearest) = nearest.filter(|_| sound == 0 && !self.counting) {
            self.value(nearest, value, None, path);
        }
        false
    }
}

/// Equality of JSON, in which `1` and `1.0` are one number.
pub(crate) fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        _ => one == other,
    }
}

/// The elements of a keyed list by their keys.
fn by_key<'v>(node: &Node, list: &'v [Value]) -> HashMap<String, &'v Value> {
    list.iter().filter_map(|element| Some((element_key(node, element)?.to_string(), element))).collect()
}

/// Elements that a set or keyed list has twice, unless it has not changed since `old`.
pub(crate) fn duplicates(node: &Node, value: &Value, old: Option<&Value>, path: &str, causes: &mut Vec<Cause>) {
    if old == Some(value) {
        return;
    }
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if let Some(member) = node.member(name) {
                    let old = old.and_then(|old| old.get(name));
                    duplicates(member, value, old, &join(path, name), causes);
                }
            }
        }
        Value::Array(list) => {
            let mut seen = std::collections::HashSet::new();
            for (at, element) in list.iter().enumerate() {
                let Some(key) = element_key(node, element) else { break };
                let path = format!("{path}[{at}]");
                if !seen.insert(key.to_string()) && causes.len() < CAUSES_MAX {
                    causes.push(cause("FieldValueDuplicate", &path, format!("Duplicate value: {key}")));
                }
            }
            if let Some(items) = &node.items {
                for (at, element) in list.iter().enumerate() {
                    let old = old.and_then(|old| old.get(at));
                    duplicates(items, element, old, &format!("{path}[{at}]"), causes);
                }
            }
        }
        _ => {}
    }
}

/// By what the elements of a list are told apart; `None` where they need not be.
fn element_key(node: &Node, element: &Value) -> Option<Value> {
    match node.list_type {
        crate::schema::ListType::Set => Some(element.clone()),
        crate::schema::ListType::Map => {
            let mut keys = Map::new();
            for key in &node.list_keys {
                if let Some(value) = element.get(&**key).or_else(|| node.key_default(key)) {
                    keys.insert(key.to_string(), value.clone());
                }
            }
            Some(Value::Object(keys))
        }
        _ => None,
    }
}
