use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::descriptions::{Descriptions, plain};
use crate::{
    Registry, ResourceDef, Schema,
    json::Fields,
    schema::{Field, Label, ListType, Shape, Type, TypeId},
};

const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const METADATA: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

/// The component schemas of one document: what is asked for, and what that refers to.
pub(super) struct Schemas<'a> {
    schema: &'a Schema,
    registry: &'a Registry,
    descriptions: Descriptions<'a>,
    wanted: Vec<TypeId>,
    seen: BTreeSet<TypeId>,
    special: BTreeSet<&'static str>,
    /// Components of kinds that are defined at run time.
    custom: BTreeMap<String, Value>,
    /// Type name to the kinds that objects of it have.
    kinds: BTreeMap<String, Vec<Value>>,
}

/// The name of a type in OpenAPI: `io.k8s.api.apps.v1.Deployment`.
fn component(name: &str) -> String {
    let prefix = match name.split('.').next().unwrap_or_default() {
        "meta" => "io.k8s.apimachinery.pkg.apis.",
        "api" | "util" | "runtime" => "io.k8s.apimachinery.pkg.",
        "apiextensions" => "io.k8s.apiextensions-apiserver.pkg.apis.",
        "metrics" => "io.k8s.metrics.pkg.apis.",
        "tandem" => "dev.",
        "apiregistration" => "io.k8s.kube-aggregator.pkg.apis.",
        _ => "io.k8s.api.",
    };
    format!("{prefix}{name}")
}

/// The name of a kind that is defined at run time: `com.example.stable.v1.CronTab`.
fn custom_component(def: &ResourceDef, kind: &str) -> String {
    let mut parts: Vec<&str> = def.group.split('.').rev().collect();
    parts.extend([def.version.as_str(), kind]);
    parts.join(".")
}

/// A reference beside a description, wrapped since it may have no siblings.
fn described(text: &str, reference: Value) -> Value {
    json!({ "description": text, "allOf": [reference] })
}

pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{}", component(name)) })
}

fn group_version_kind(group: &str, version: &str, kind: &str) -> Value {
    json!({ "group": group, "version": version, "kind": kind })
}

impl<'a> Schemas<'a> {
    pub(super) fn new(registry: &'a Registry, descriptions: Descriptions<'a>) -> Schemas<'a> {
        Schemas {
            schema: registry.schema(),
            registry,
            descriptions,
            wanted: Vec::new(),
            seen: BTreeSet::new(),
            special: BTreeSet::new(),
            custom: BTreeMap::new(),
            kinds: BTreeMap::new(),
        }
    }

    /// A reference to the type of a kind, which then becomes part of the document.
    pub(super) fn kind(&mut self, group: &str, version: &str, kind: &str) -> Value {
        if let Some(reference) = self.custom_kind(group, version, kind) {
            return reference;
        }
        let Some(ty) = self.schema.kind_type(group, version, kind) else { return json!({ "type": "object" }) };
        let (name, id) = (ty.name.clone(), self.schema.id(&ty.name));
        let entry = self.kinds.entry(name.clone().into_owned()).or_default();
        let stamp = group_version_kind(group, version, kind);
        if !entry.contains(&stamp) {
            entry.push(stamp);
        }
        self.want(id);
        reference(&name)
    }

    /// A reference to a kind that is defined at run time.
    fn custom_kind(&mut self, group: &str, version: &str, kind: &str) -> Option<Value> {
        let def = self.registry.by_kind(group, version, kind)?;
        let custom = def.custom.as_ref()?;
        let name = custom_component(&def, kind);
        if !self.custom.contains_key(&name) {
            let mut schema = custom.open_api();
            let metadata = self.kind_of_meta("ObjectMeta");
            let mut properties = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
            properties.insert("apiVersion".to_owned(), json!({ "description": API_VERSION, "type": "string" }));
            properties.insert("kind".to_owned(), json!({ "description": KIND, "type": "string" }));
            properties.insert("metadata".to_owned(), described(METADATA, metadata));
            schema.insert("properties".to_owned(), properties.into());
            let stamp = json!([group_version_kind(group, version, kind)]);
            schema.insert("x-kubernetes-group-version-kind".to_owned(), stamp);
            self.custom.insert(name.clone(), schema.into());
        }
        Some(json!({ "$ref": format!("#/components/schemas/{name}") }))
    }

    fn kind_of_meta(&mut self, name: &str) -> Value {
        let name = format!("meta.v1.{name}");
        self.want(self.schema.id(&name));
        reference(&name)
    }

    fn custom_list(&mut self, def: &ResourceDef) -> Value {
        let name = custom_component(def, &def.list_kind);
        let item = self.custom_kind(&def.group, &def.version, &def.kind).unwrap_or_default();
        let metadata = self.kind_of_meta("ListMeta");
        let list = json!({
            "description": format!("{} is a list of {}", def.list_kind, def.kind),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": { "description": API_VERSION, "type": "string" },
                "items": { "description": format!("List of {}.", def.plural), "type": "array", "items": item },
                "kind": { "description": KIND, "type": "string" },
                "metadata": described("Standard list metadata.", metadata),
            },
            "x-kubernetes-group-version-kind": [group_version_kind(&def.group, &def.version, &def.list_kind)],
        });
        self.custom.insert(name.clone(), list);
        json!({ "$ref": format!("#/components/schemas/{name}") })
    }

    pub(super) fn list(&mut self, def: &ResourceDef) -> Value {
        if def.custom.is_some() {
            return self.custom_list(def);
        }
        self.kind(&def.group, &def.version, &def.list_kind)
    }

    /// `DeleteOptions` and `Status`, which belong to every group.
    pub(super) fn meta(&mut self, kind: &str) -> Value {
        let name = format!("meta.v1.{kind}");
        if kind == "DeleteOptions" && !self.kinds.contains_key(&name) {
            let mut versions: Vec<Value> = Vec::new();
            for group in self.registry.groups() {
                versions.extend(group.versions.iter().map(|version| group_version_kind(&group.name, version, kind)));
            }
            self.kinds.insert(name, versions);
            self.want(self.schema.id("meta.v1.DeleteOptions"));
            return reference("meta.v1.DeleteOptions");
        }
        self.kind("", "v1", kind)
    }

    pub(super) fn patch(&mut self) -> Value {
        self.special.insert("meta.v1.Patch");
        reference("meta.v1.Patch")
    }

    fn want(&mut self, id: Option<TypeId>) {
        if let Some(id) = id
            && self.seen.insert(id)
        {
            self.wanted.push(id);
        }
    }

    pub(super) fn finish(mut self) -> Value {
        let mut components = BTreeMap::new();
        while let Some(id) = self.wanted.pop() {
            let ty = self.schema.get(id);
            let schema = self.object(ty);
            components.insert(component(&ty.name), schema);
        }
        for name in self.special.clone() {
            components.insert(component(name), self.special(name));
        }
        components.append(&mut self.custom);
        Value::Object(components.into_iter().collect())
    }

    fn describe(&self, ty: &str, field: &str) -> Option<String> {
        self.descriptions.get(&(ty, field)).map(|text| plain(text))
    }

    fn object(&mut self, ty: &Type) -> Value {
        let mut properties = BTreeMap::new();
        if ty.has_type_meta {
            properties.insert("apiVersion".to_owned(), json!({ "description": API_VERSION, "type": "string" }));
            properties.insert("kind".to_owned(), json!({ "description": KIND, "type": "string" }));
        }
        for field in &ty.fields {
            properties.insert(field.name.clone().into_owned(), self.field(ty, field));
        }
        let mut required: Vec<&str> =
            ty.fields.iter().filter(|field| field.required).map(|field| &*field.name).collect();
        required.sort_unstable();
        let mut object = Fields::new();
        if let Some(text) = self.describe(&ty.name, "") {
            object.insert("description".to_owned(), text.into());
        }
        object.insert("type".to_owned(), "object".into());
        if !properties.is_empty() {
            object.insert("properties".to_owned(), Value::Object(properties.into_iter().collect()));
        }
        if !required.is_empty() {
            object.insert("required".to_owned(), json!(required));
        }
        if ty.atomic {
            object.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
        }
        if let Some(kinds) = self.kinds.get(&*ty.name) {
            object.insert("x-kubernetes-group-version-kind".to_owned(), kinds.clone().into());
        }
        Value::Object(object)
    }

    fn field(&mut self, ty: &Type, field: &Field) -> Value {
        let element = self.value(field.shape);
        let mut schema = match field.label {
            Label::One => element,
            Label::List => into_fields(json!({ "type": "array", "items": in_container(element) })),
            Label::Map => into_fields(json!({ "type": "object", "additionalProperties": in_container(element) })),
        };
        // A reference may have no siblings in OpenAPI 3.0, so it is wrapped where a description stands beside it.
        if let Some(reference) = schema.shift_remove("$ref") {
            schema.insert("allOf".to_owned(), json!([{ "$ref": reference }]));
        }
        if let Some(text) = self.describe(&ty.name, &field.name) {
            schema.insert("description".to_owned(), text.into());
        }
        if let Some(default) = &field.default {
            schema.insert("default".to_owned(), default.clone());
        }
        merge_rules(field, &mut schema);
        Value::Object(schema)
    }

    fn value(&mut self, shape: Shape) -> Fields {
        let plain = |value: Value| into_fields(value);
        let name = match shape {
            Shape::String | Shape::Duration => return plain(json!({ "type": "string" })),
            Shape::Bool => return plain(json!({ "type": "boolean" })),
            Shape::Int32 => return plain(json!({ "type": "integer", "format": "int32" })),
            Shape::Int64 => return plain(json!({ "type": "integer", "format": "int64" })),
            Shape::Double => return plain(json!({ "type": "number", "format": "double" })),
            Shape::Bytes => return plain(json!({ "type": "string", "format": "byte" })),
            Shape::Strings => return plain(json!({ "type": "array", "items": { "type": "string", "default": "" } })),
            Shape::Object(id) => {
                self.want(Some(id));
                let name = self.schema.get(id).name.clone();
                return into_fields(reference(&name));
            }
            Shape::Quantity => "api.resource.Quantity",
            Shape::IntOrString => "util.intstr.IntOrString",
            Shape::Time => "meta.v1.Time",
            Shape::MicroTime => "meta.v1.MicroTime",
            Shape::Raw => "runtime.RawExtension",
            Shape::Fields => "meta.v1.FieldsV1",
            Shape::Json => "apiextensions.v1.JSON",
            Shape::SchemaOrArray(_) => "apiextensions.v1.JSONSchemaPropsOrArray",
            Shape::SchemaOrBool(_) => "apiextensions.v1.JSONSchemaPropsOrBool",
            Shape::SchemaOrStrings(_) => "apiextensions.v1.JSONSchemaPropsOrStringArray",
        };
        self.special.insert(name);
        into_fields(reference(name))
    }

    /// Types that write themselves in a form of their own.
    fn special(&self, name: &str) -> Value {
        let mut schema = into_fields(match name {
            "api.resource.Quantity" => json!({ "oneOf": [{ "type": "string" }, { "type": "number" }] }),
            "util.intstr.IntOrString" => {
                json!({ "format": "int-or-string", "oneOf": [{ "type": "integer" }, { "type": "string" }] })
            }
            "meta.v1.Time" | "meta.v1.MicroTime" => json!({ "type": "string", "format": "date-time" }),
            "runtime.RawExtension" | "meta.v1.FieldsV1" | "meta.v1.Patch" => json!({ "type": "object" }),
            _ => json!({}),
        });
        let text = if name == "meta.v1.Patch" {
            Some("Patch is provided to give a concrete name and type to the Kubernetes PATCH request body.".to_owned())
        } else {
            self.describe(name, "")
        };
        if let Some(text) = text {
            schema.insert("description".to_owned(), text.into());
        }
        Value::Object(schema)
    }
}

fn into_fields(value: Value) -> Fields {
    match value {
        Value::Object(fields) => fields,
        _ => Fields::new(),
    }
}

/// Elements of lists and maps: as in Kubernetes' documents, references are wrapped there too.
fn in_container(mut element: Fields) -> Value {
    if let Some(reference) = element.shift_remove("$ref") {
        element.insert("allOf".to_owned(), json!([{ "$ref": reference }]));
        element.insert("default".to_owned(), json!({}));
    }
    Value::Object(element)
}

fn merge_rules(field: &Field, schema: &mut Fields) {
    let mut set = |key: &str, value: Value| schema.insert(format!("x-kubernetes-{key}"), value);
    match field.list_type {
        ListType::Unset => {}
        ListType::Atomic => drop(set("list-type", "atomic".into())),
        ListType::Set => drop(set("list-type", "set".into())),
        ListType::Map => drop(set("list-type", "map".into())),
        ListType::AtomicMap => drop(set("map-type", "atomic".into())),
        ListType::GranularMap => drop(set("map-type", "granular".into())),
    }
    if !field.list_keys.is_empty() {
        set("list-map-keys", json!(field.list_keys));
    }
    if let Some(key) = &field.patch_key {
        set("patch-merge-key", json!(key));
    }
    let strategy = match (field.patch_strategy.merge, field.patch_strategy.retain_keys) {
        (true, true) => "merge,retainKeys",
        (true, false) => "merge",
        (false, true) => "retainKeys",
        (false, false) => return,
    };
    set("patch-strategy", strategy.into());
}
