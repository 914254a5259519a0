//! What Kubernetes asks of a schema before objects are held to it: it must be structural (KEP-1693), so that pruning,
//! defaulting and merging know every field.

use serde_json::Value;
use tandem_cel::{Patterns, Program};

use super::{
    shape,
    structure::{self, DEPTH_MAX, JsonType, PATTERNS_MAX_BYTES},
    values,
};
use crate::{
    json::{Fields, FieldsExt},
    validate::Problems,
};

/// What the patterns of a version may take at least, however many versions there are.
const PATTERNS_MIN_BYTES: usize = 1 << 20;
/// What is told of one schema.
const PROBLEMS_MAX: usize = 50;
/// Parts of JSON Schema that are not served.
const FORBIDDEN: [(&str, &str); 7] = [
    ("$ref", "$ref is not supported"),
    ("$schema", "$schema is not supported"),
    ("id", "id is not supported"),
    ("definitions", "definitions is not supported"),
    ("dependencies", "dependencies is not supported"),
    ("patternProperties", "patternProperties is not supported"),
    ("additionalItems", "additionalItems is not supported"),
];
/// What alternatives may not say: it belongs to the place where they stand.
const STRUCTURAL: [(&str, &str); 9] = [
    ("description", "must be empty to be structural"),
    ("type", "must be empty to be structural"),
    ("title", "must be empty to be structural"),
    ("default", "must be undefined to be structural"),
    ("additionalProperties", "must be undefined to be structural"),
    ("nullable", "must be false to be structural"),
    ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
    ("x-kubernetes-embedded-resource", "must be false to be structural"),
    ("x-kubernetes-int-or-string", "must be false to be structural"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Item,
}

/// `versions` is how many of them share what patterns may take.
pub(crate) fn check(schema: &Fields, path: &str, versions: usize, problems: &mut Problems) {
    let before = problems.len();
    let patterns = Patterns::new((PATTERNS_MAX_BYTES / versions.max(1)).max(PATTERNS_MIN_BYTES));
    Checker { problems, most: before + PROBLEMS_MAX, patterns }.node(schema, path, Level::Root, 0);
    if problems.len() > before {
        return;
    }
    match structure::read(schema) {
        Err(why) => problems.invalid(path, "", why),
        Ok(node) => {
            let (mut growth, mut steps) = (shape::Growth::default(), values::STEPS_MAX);
            defaults(&node, path, &mut growth, &mut steps, problems);
        }
    }
}

struct Checker<'p> {
    problems: &'p mut Problems,
    most: usize,
    patterns: Patterns,
}

impl Checker<'_> {
    fn node(&mut self, schema: &Fields, path: &str, level: Level, depth: usize) {
        if self.problems.len() >= self.most {
            return;
        }
        if depth > DEPTH_MAX {
            self.problems.invalid(path, "", format!("a schema may be nested at most {DEPTH_MAX} deep"));
            return;
        }
        self.ty(schema, path, level);
        self.common(schema, path);
        self.lists(schema, path);
        self.resource(schema, path, level);
        self.rules(schema, path);
        for (name, property) in schema.child("properties").into_iter().flatten() {
            if let Value::Object(property) = property {
                self.node(property, &format!("{path}.properties[{name}]"), Level::Field, depth + 1);
            }
        }
        if let Some(additional) = schema.child("additionalProperties") {
            self.node(additional, &format!("{path}.additionalProperties"), Level::Field, depth + 1);
        }
        if let Some(items) = schema.child("items") {
            self.node(items, &format!("{path}.items"), Level::Item, depth + 1);
        }
        self.alternatives(schema, path, schema.flag("x-kubernetes-int-or-string"), depth);
    }

    fn ty(&mut self, schema: &Fields, path: &str, level: Level) {
        let at = format!("{path}.type");
        let free = schema.flag("x-kubernetes-int-or-string") || schema.flag("x-kubernetes-preserve-unknown-fields");
        match schema.text("type") {
            "" if free => {}
            "" => self.problems.required(
                at,
                match level {
                    Level::Root => "must not be empty at the root",
                    Level::Field => "must not be empty for specified object fields",
                    Level::Item => "must not be empty for specified array items",
                },
            ),
            "null" => self.problems.forbidden(at, "type cannot be set to null, use nullable as an alternative"),
            ty if !JsonType::NAMES.contains(&ty) => self.problems.unsupported(at, ty, &JsonType::NAMES),
            ty if level == Level::Root && ty != "object" => {
                self.problems.invalid(at, ty, "must be object at the root");
            }
            ty if schema.flag("x-kubernetes-int-or-string") => {
                self.problems.invalid(at, ty, "must be empty if x-kubernetes-int-or-string is true");
            }
            "array" if schema.child("items").is_none() => {
                self.problems.required(format!("{path}.items"), "must be specified");
            }
            _ => {}
        }
    }

    fn common(&mut self, schema: &Fields, path: &str) {
        for (key, why) in FORBIDDEN {
            let said = schema.get(key).is_some_and(|value| !value.is_null() && value != "");
            if said {
                self.problems.forbidden(format!("{path}.{key}"), why);
            }
        }
        if schema.flag("uniqueItems") {
            let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.problems.forbidden(format!("{path}.uniqueItems"), why);
        }
        let additional = schema.get("additionalProperties").filter(|value| !value.is_null());
        let at = format!("{path}.additionalProperties");
        if additional == Some(&Value::Bool(false)) {
            self.problems.forbidden(at, "additionalProperties cannot be set to false");
        } else if additional.is_some() && schema.child("properties").is_some_and(|properties| !properties.is_empty()) {
            self.problems.forbidden(at, "additionalProperties and properties are mutual exclusive");
        }
        if schema.get("items").is_some_and(Value::is_array) {
            self.problems.forbidden(format!("{path}.items"), "items must be a schema object and not an array");
        }
        let pattern = schema.text("pattern");
        if !pattern.is_empty()
            && let Err(why) = self.patterns.compile(pattern)
        {
            let why = format!("must be a valid regular expression, but isn't: {why}");
            self.problems.invalid(format!("{path}.pattern"), pattern, why);
        }
    }

    fn lists(&mut self, schema: &Fields, path: &str) {
        let at = format!("{path}.x-kubernetes-list-type");
        let keys_at = format!("{path}.x-kubernetes-list-map-keys");
        let ty = schema.text("type");
        let keys: Vec<&str> = schema.list("x-kubernetes-list-map-keys").iter().filter_map(Value::as_str).collect();
        match schema.text("x-kubernetes-list-type") {
            "" => {}
            "atomic" | "set" | "map" if ty != "array" => {
                self.problems.invalid(
                    format!("{path}.type"),
                    ty,
                    "must be array if x-kubernetes-list-type is specified",
                );
            }
            "map" if keys.is_empty() => {
                self.problems.required(keys_at, "must not be empty if x-kubernetes-list-type is map");
            }
            "atomic" | "set" | "map" => {}
            other => self.problems.unsupported(at, other, &["atomic", "set", "map"]),
        }
        let map_type = schema.text("x-kubernetes-map-type");
        if !["", "atomic", "granular"].contains(&map_type) {
            self.problems.unsupported(format!("{path}.x-kubernetes-map-type"), map_type, &["atomic", "granular"]);
        }
        let Some(items) = schema.child("items") else { return };
        for key in keys {
            let property = items.child("properties").and_then(|properties| properties.child(key));
            let Some(property) = property else {
                let why = "entries must all be names of item properties";
                self.problems.invalid(format!("{path}.x-kubernetes-list-map-keys"), key, why);
                continue;
            };
            let required = items.list("required").iter().any(|name| name == key);
            if !required && property.get("default").is_none_or(Value::is_null) {
                let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                self.problems.required(format!("{path}.items.properties[{key}].default"), why);
            }
        }
    }

    fn resource(&mut self, schema: &Fields, path: &str, level: Level) {
        let embedded = schema.flag("x-kubernetes-embedded-resource");
        if embedded && schema.text("type") != "object" {
            let why = "must be object if x-kubernetes-embedded-resource is true";
            self.problems.invalid(format!("{path}.type"), schema.text("type"), why);
        }
        if level != Level::Root && !embedded {
            return;
        }
        let Some(properties) = schema.child("properties") else { return };
        for name in ["apiVersion", "kind"] {
            let ty = properties.child(name).map(|property| property.text("type"));
            if let Some(ty) = ty.filter(|ty| *ty != "string") {
                self.problems.invalid(format!("{path}.properties[{name}].type"), ty, "must be string");
            }
        }
        let Some(metadata) = properties.child("metadata") else { return };
        let at = format!("{path}.properties[metadata]");
        if metadata.text("type") != "object" {
            self.problems.invalid(format!("{at}.type"), metadata.text("type"), "must be object");
        }
        let other = |name: &&String| !matches!(name.as_str(), "name" | "generateName");
        if metadata.child("properties").into_iter().flat_map(Fields::keys).any(|name| other(&name)) {
            let why =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            self.problems.forbidden(at, why);
        }
    }

    fn rules(&mut self, schema: &Fields, path: &str) {
        for (at, rule) in schema.each("x-kubernetes-validations").enumerate() {
            let path = format!("{path}.x-kubernetes-validations[{at}]");
            let text = rule.text("rule");
            if text.trim().is_empty() {
                self.problems.required(format!("{path}.rule"), "rule is not specified");
            } else {
                self.expression(text, &format!("{path}.rule"));
            }
            if !rule.text("messageExpression").is_empty() {
                self.expression(rule.text("messageExpression"), &format!("{path}.messageExpression"));
            }
            let message = rule.text("message");
            if rule.contains_key("message") && message.trim().is_empty() {
                self.problems.invalid(format!("{path}.message"), message, "message must be non-empty if specified");
            } else if message.contains('\n') {
                self.problems.invalid(format!("{path}.message"), message, "message must not contain line breaks");
            }
            let reasons = ["FieldValueRequired", "FieldValueForbidden", "FieldValueInvalid", "FieldValueDuplicate"];
            if !rule.text("reason").is_empty() && !reasons.contains(&rule.text("reason")) {
                self.problems.unsupported(format!("{path}.reason"), rule.text("reason"), &reasons);
            }
        }
    }

    fn expression(&mut self, text: &str, path: &str) {
        if let Err(why) = Program::compile(text, &mut self.patterns) {
            self.problems.invalid(path, text, format!("compilation failed: {why}"));
        }
    }

    /// What stands within alternatives only limits values.
    fn alternatives(&mut self, schema: &Fields, path: &str, any_type: bool, depth: usize) {
        for key in ["allOf", "anyOf", "oneOf"] {
            for (at, inner) in schema.each(key).enumerate() {
                self.alternative(inner, &format!("{path}.{key}[{at}]"), any_type, depth + 1);
            }
        }
        if let Some(not) = schema.child("not") {
            self.alternative(not, &format!("{path}.not"), any_type, depth + 1);
        }
    }

    fn alternative(&mut self, schema: &Fields, path: &str, any_type: bool, depth: usize) {
        if self.problems.len() >= self.most || depth > DEPTH_MAX {
            return;
        }
        for (key, why) in STRUCTURAL {
            let said = schema.get(key).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)));
            if said && !(key == "type" && any_type) {
                self.problems.forbidden(format!("{path}.{key}"), why);
            }
        }
        self.common(schema, path);
        for (name, property) in schema.child("properties").into_iter().flatten() {
            if let Value::Object(property) = property {
                self.alternative(property, &format!("{path}.properties[{name}]"), any_type, depth + 1);
            }
        }
        if let Some(items) = schema.child("items") {
            self.alternative(items, &format!("{path}.items"), any_type, depth + 1);
        }
        self.alternatives(schema, path, any_type, depth);
    }
}

/// Defaults must be what they make others be.
fn defaults(
    node: &structure::Node,
    path: &str,
    growth: &mut shape::Growth,
    steps: &mut usize,
    problems: &mut Problems,
) {
    if !node.has_defaults || problems.len() >= PROBLEMS_MAX {
        return;
    }
    if let Some(default) = &node.default {
        let at = format!("{path}.default");
        let mut pruned = default.clone();
        let mut dropped = Vec::new();
        if let Value::Object(map) = &mut pruned {
            shape::prune(node, map, &mut dropped);
        }
        for name in dropped {
            problems.invalid(&at, default.clone(), format!("must not have unknown fields: {name}"));
        }
        if growth.value(node, &mut pruned).is_err() {
            problems.invalid(&at, "", shape::TOO_LARGE);
            return;
        }
        for cause in values::validate(node, &pruned, None, &at, steps) {
            problems.add(cause);
        }
    }
    for (name, property) in &node.properties {
        defaults(property, &format!("{path}.properties[{name}]"), growth, steps, problems);
    }
    if let structure::Additional::Node(inner) = &node.additional {
        defaults(inner, &format!("{path}.additionalProperties"), growth, steps, problems);
    }
    if let Some(items) = &node.items {
        defaults(items, &format!("{path}.items"), growth, steps, problems);
    }
}
