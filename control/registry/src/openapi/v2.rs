//! The OpenAPI v2 document of all groups, which kubectl before 1.29 and Argo CD read: as JSON, and as the protobuf that
//! the gnostic project defines for it. Made from the v3 parts.

use serde_json::{Value, json};

use crate::{
    json::{Fields, FieldsExt},
    protobuf::wire::{put_bytes, put_number},
};

const MEDIA: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

pub(super) fn document(paths: &Fields, schemas: &Value, version: &str) -> Value {
    let definitions: Fields =
        schemas.as_object().into_iter().flatten().map(|(name, schema)| (name.clone(), kind(schema))).collect();
    let paths: Fields = paths.iter().map(|(path, item)| (path.clone(), path_item(item))).collect();
    json!({
        "swagger": "2.0",
        "info": { "title": "Kubernetes", "version": version },
        "paths": paths,
        "definitions": definitions,
        "securityDefinitions": { "BearerToken": {
            "description": "Bearer Token authentication", "in": "header", "name": "authorization", "type": "apiKey",
        } },
        "security": [{ "BearerToken": [] }],
    })
}

fn reference(text: &str) -> String {
    text.replace("#/components/schemas/", "#/definitions/")
}

/// A definition. Of a custom kind that preserves everything no field is told: kubectl would take others for unknown.
fn kind(schema: &Value) -> Value {
    let kinds = schema.get("x-kubernetes-group-version-kind");
    match (kinds, schema.get("x-kubernetes-preserve-unknown-fields")) {
        (Some(kinds), Some(Value::Bool(true))) => json!({ "type": "object", "x-kubernetes-group-version-kind": kinds }),
        _ => definition(schema),
    }
}

/// A schema without what v2 lacks: `oneOf`, wrapped references, defaults of references.
fn definition(schema: &Value) -> Value {
    let Value::Object(schema) = schema else { return schema.clone() };
    let mut plain = Fields::new();
    let wrapped = schema.each("allOf").next().and_then(|inner| inner.get("$ref")).and_then(Value::as_str);
    let target = wrapped.or_else(|| schema.get("$ref").and_then(Value::as_str));
    if let Some(target) = target {
        plain.insert("$ref".to_owned(), reference(target).into());
    }
    for (key, value) in schema {
        match key.as_str() {
            "allOf" | "$ref" | "anyOf" | "not" | "nullable" | "x-kubernetes-validations" => {}
            "oneOf" if schema.contains_key("type") => {}
            "default" if target.is_some() => {}
            // Either form is written as text.
            "oneOf" => drop(plain.insert("type".to_owned(), "string".into())),
            "items" | "additionalProperties" => drop(plain.insert(key.clone(), definition(value))),
            "properties" => {
                let properties: Fields = value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(name, property)| (name.clone(), definition(property)))
                    .collect();
                plain.insert(key.clone(), Value::Object(properties));
            }
            _ => drop(plain.insert(key.clone(), value.clone())),
        }
    }
    Value::Object(plain)
}

fn path_item(item: &Value) -> Value {
    let mut plain = Fields::new();
    let item = item.as_object().cloned().unwrap_or_default();
    for method in METHODS {
        if let Some(operation) = item.child(method) {
            plain.insert(method.to_owned(), self::operation(operation));
        }
    }
    plain.insert("parameters".to_owned(), item.each("parameters").map(parameter).collect());
    Value::Object(plain)
}

fn parameter(parameter: &Fields) -> Value {
    let mut plain = parameter.clone();
    if let Some(Value::Object(schema)) = plain.shift_remove("schema") {
        plain.extend(schema);
    }
    Value::Object(plain)
}

/// The schema of the first of several media types.
fn first_schema(content: Option<&Fields>) -> Option<Value> {
    let (_, media) = content?.iter().next()?;
    media.get("schema").map(definition)
}

fn operation(operation: &Fields) -> Value {
    let mut plain = Fields::new();
    for (key, value) in operation {
        if !matches!(key.as_str(), "responses" | "requestBody" | "parameters") {
            plain.insert(key.clone(), value.clone());
        }
    }
    let mut parameters: Vec<Value> = operation.each("parameters").map(parameter).collect();
    let body = operation.child("requestBody");
    let content = body.and_then(|body| body.child("content"));
    if let Some(schema) = first_schema(content) {
        let required = body.is_some_and(|body| body.flag("required"));
        parameters.push(json!({ "in": "body", "name": "body", "required": required, "schema": schema }));
    }
    let consumes: Vec<&String> = content.into_iter().flat_map(Fields::keys).collect();
    plain.insert("consumes".to_owned(), json!(consumes));
    plain.insert("produces".to_owned(), json!(MEDIA));
    plain.insert("schemes".to_owned(), json!(["https"]));
    plain.insert("parameters".to_owned(), parameters.into());
    let responses = operation.child("responses").into_iter().flatten().map(|(code, response)| {
        let mut plain = json!({ "description": response["description"] });
        if let Some(schema) = first_schema(response.get("content").and_then(Value::as_object)) {
            plain["schema"] = schema;
        }
        (code.clone(), plain)
    });
    plain.insert("responses".to_owned(), Value::Object(responses.collect()));
    Value::Object(plain)
}

/// The document as gnostic's `openapi.v2.Document`.
pub(super) fn protobuf(document: &Value) -> Vec<u8> {
    let none = Fields::new();
    let document = document.as_object().unwrap_or(&none);
    let mut bytes = Vec::new();
    put_text(&mut bytes, 1, document, "swagger");
    let mut info = Vec::new();
    if let Some(fields) = document.child("info") {
        put_text(&mut info, 1, fields, "title");
        put_text(&mut info, 2, fields, "version");
    }
    put_bytes(&mut bytes, 2, &info);
    let mut paths = Vec::new();
    for (path, item) in document.child("paths").into_iter().flatten() {
        put_named(&mut paths, 2, path, &put_path(item));
    }
    put_bytes(&mut bytes, 8, &paths);
    let mut definitions = Vec::new();
    for (name, schema) in document.child("definitions").into_iter().flatten() {
        put_named(&mut definitions, 1, name, &put_schema(schema));
    }
    put_bytes(&mut bytes, 9, &definitions);
    bytes
}

fn put_text(into: &mut Vec<u8>, number: u32, fields: &Fields, key: &str) {
    let text = fields.text(key);
    if !text.is_empty() {
        put_bytes(into, number, text.as_bytes());
    }
}

fn put_texts(into: &mut Vec<u8>, number: u32, fields: &Fields, key: &str) {
    for text in fields.list(key).iter().filter_map(Value::as_str) {
        put_bytes(into, number, text.as_bytes());
    }
}

fn put_flag(into: &mut Vec<u8>, number: u32, fields: &Fields, key: &str) {
    if fields.flag(key) {
        put_number(into, number, 1);
    }
}

/// A name and a message, as all maps of gnostic are.
fn put_named(into: &mut Vec<u8>, number: u32, name: &str, value: &[u8]) {
    let mut entry = Vec::new();
    put_bytes(&mut entry, 1, name.as_bytes());
    put_bytes(&mut entry, 2, value);
    put_bytes(into, number, &entry);
}

/// `x-..` keys, whose values are YAML, of which JSON is a part.
fn put_extensions(into: &mut Vec<u8>, number: u32, fields: &Fields) {
    for (key, value) in fields.iter().filter(|(key, _)| key.starts_with("x-")) {
        let mut any = Vec::new();
        put_bytes(&mut any, 2, value.to_string().as_bytes());
        put_named(into, number, key, &any);
    }
}

fn put_path(item: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Some(item) = item.as_object() else { return bytes };
    for (method, number) in [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)] {
        if let Some(operation) = item.child(method) {
            put_bytes(&mut bytes, number, &put_operation(operation));
        }
    }
    item.each("parameters").for_each(|parameter| put_bytes(&mut bytes, 9, &put_parameter(parameter)));
    bytes
}

fn put_operation(operation: &Fields) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_texts(&mut bytes, 1, operation, "tags");
    put_text(&mut bytes, 3, operation, "description");
    put_text(&mut bytes, 5, operation, "operationId");
    put_texts(&mut bytes, 6, operation, "produces");
    put_texts(&mut bytes, 7, operation, "consumes");
    operation.each("parameters").for_each(|parameter| put_bytes(&mut bytes, 8, &put_parameter(parameter)));
    let mut responses = Vec::new();
    for (code, response) in operation.child("responses").into_iter().flatten() {
        let (mut inner, mut value) = (Vec::new(), Vec::new());
        let fields = response.as_object().cloned().unwrap_or_default();
        put_text(&mut inner, 1, &fields, "description");
        if let Some(schema) = fields.get("schema") {
            let mut item = Vec::new();
            put_bytes(&mut item, 1, &put_schema(schema));
            put_bytes(&mut inner, 2, &item);
        }
        put_bytes(&mut value, 1, &inner);
        put_named(&mut responses, 1, code, &value);
    }
    put_bytes(&mut bytes, 9, &responses);
    put_texts(&mut bytes, 10, operation, "schemes");
    put_extensions(&mut bytes, 13, operation);
    bytes
}

/// `ParametersItem { parameter: Parameter { body | non_body { query | path } } }`
fn put_parameter(parameter: &Fields) -> Vec<u8> {
    let place = parameter.text("in");
    let (mut inner, mut choice) = (Vec::new(), Vec::new());
    if place == "body" {
        put_text(&mut inner, 2, parameter, "name");
        put_text(&mut inner, 3, parameter, "in");
        put_flag(&mut inner, 4, parameter, "required");
        if let Some(schema) = parameter.get("schema") {
            put_bytes(&mut inner, 5, &put_schema(schema));
        }
        put_bytes(&mut choice, 1, &inner);
    } else {
        let is_query = place == "query";
        put_flag(&mut inner, 1, parameter, "required");
        put_text(&mut inner, 2, parameter, "in");
        put_text(&mut inner, 3, parameter, "description");
        put_text(&mut inner, 4, parameter, "name");
        // Query parameters have one more field before the type.
        put_text(&mut inner, if is_query { 6 } else { 5 }, parameter, "type");
        let mut non_body = Vec::new();
        put_bytes(&mut non_body, if is_query { 3 } else { 4 }, &inner);
        put_bytes(&mut choice, 2, &non_body);
    }
    let mut item = Vec::new();
    put_bytes(&mut item, 1, &choice);
    item
}

fn put_schema(schema: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Some(schema) = schema.as_object() else { return bytes };
    put_text(&mut bytes, 1, schema, "$ref");
    put_text(&mut bytes, 2, schema, "format");
    put_text(&mut bytes, 4, schema, "description");
    put_texts(&mut bytes, 19, schema, "required");
    if let Some(element) = schema.get("additionalProperties") {
        let mut item = Vec::new();
        put_bytes(&mut item, 1, &put_schema(element));
        put_bytes(&mut bytes, 21, &item);
    }
    if schema.contains_key("type") {
        let mut item = Vec::new();
        put_text(&mut item, 1, schema, "type");
        put_bytes(&mut bytes, 22, &item);
    }
    if let Some(element) = schema.get("items") {
        let mut item = Vec::new();
        put_bytes(&mut item, 1, &put_schema(element));
        put_bytes(&mut bytes, 23, &item);
    }
    if let Some(properties) = schema.child("properties") {
        let mut item = Vec::new();
        properties.iter().for_each(|(name, property)| put_named(&mut item, 1, name, &put_schema(property)));
        put_bytes(&mut bytes, 25, &item);
    }
    put_extensions(&mut bytes, 31, schema);
    bytes
}
