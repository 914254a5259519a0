use std::{borrow::Cow, collections::HashMap};

use serde_json::Value;

use super::{Field, Label, ListType, PatchStrategy, Schema, Shape, Type, TypeId, WireField, presence};

const TABLE: &str = include_str!("../../data/types.tsv");

/// Types without `metadata` whose objects carry `apiVersion` and `kind` all the same.
const WITHOUT_METADATA: [&str; 22] = [
    "admission.v1.AdmissionReview",
    "apiextensions.v1.ConversionReview",
    "core.v1.NodeProxyOptions",
    "core.v1.PodAttachOptions",
    "core.v1.PodExecOptions",
    "core.v1.PodLogOptions",
    "core.v1.PodPortForwardOptions",
    "core.v1.PodProxyOptions",
    "core.v1.ServiceProxyOptions",
    "meta.v1.APIGroup",
    "meta.v1.APIGroupList",
    "meta.v1.APIResourceList",
    "meta.v1.APIVersions",
    "meta.v1.ApplyOptions",
    "meta.v1.CreateOptions",
    "meta.v1.DeleteOptions",
    "meta.v1.GetOptions",
    "meta.v1.ListOptions",
    "meta.v1.PatchOptions",
    "meta.v1.TableOptions",
    "meta.v1.TypeMeta",
    "meta.v1.UpdateOptions",
];
/// Types with `metadata` that are parts of other kinds.
const TEMPLATES: [&str; 6] = [
    "batch.v1.JobTemplateSpec",
    "core.v1.PersistentVolumeClaimTemplate",
    "core.v1.PodTemplateSpec",
    "resource.v1.ResourceClaimTemplateSpec",
    "resource.v1beta1.ResourceClaimTemplateSpec",
    "resource.v1beta2.ResourceClaimTemplateSpec",
];
/// Types without fields, which the table cannot show.
const EMPTY: [&str; 1] = ["apiextensions.v1.CustomResourceSubresourceStatus"];
/// Structs that are replaced as a whole; the table says this of fields only.
const ATOMIC: [&str; 29] = [
    "admissionregistration.v1.MatchResources",
    "admissionregistration.v1.NamedRuleWithOperations",
    "admissionregistration.v1.ParamKind",
    "admissionregistration.v1.ParamRef",
    "admissionregistration.v1.Variable",
    "autoscaling.v1.CrossVersionObjectReference",
    "core.v1.ConfigMapKeySelector",
    "core.v1.EndpointAddress",
    "core.v1.EndpointPort",
    "core.v1.FileKeySelector",
    "core.v1.LocalObjectReference",
    "core.v1.NodeSelector",
    "core.v1.NodeSelectorTerm",
    "core.v1.ObjectFieldSelector",
    "core.v1.ObjectReference",
    "core.v1.ResourceFieldSelector",
    "core.v1.ScopeSelector",
    "core.v1.ScopedResourceSelectorRequirement",
    "core.v1.SecretKeySelector",
    "core.v1.SecretReference",
    "core.v1.TopologySelectorTerm",
    "core.v1.TypedLocalObjectReference",
    "discovery.v1.EndpointPort",
    "meta.v1.FieldsV1",
    "meta.v1.LabelSelector",
    "meta.v1.OwnerReference",
    "networking.v1.ServiceBackendPort",
    "rbac.v1.RoleRef",
    "rbac.v1.Subject",
];

struct Row<'a> {
    owner: &'a str,
    name: &'a str,
    number: u32,
    label: Label,
    target: &'a str,
    required: bool,
    flag: &'a str,
    rest: Vec<&'a str>,
}

fn rows(table: &'static str) -> impl Iterator<Item = Row<'static>> {
    table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut cells = line.split('\t');
            let (owner, name, number, label, target) =
                (cells.next()?, cells.next()?, cells.next()?, cells.next()?, cells.next()?);
            let required = cells.next()? == "required";
            let flag = cells.next()?;
            let label = match label {
                "repeated" => Label::List,
                "map" => Label::Map,
                _ => Label::One,
            };
            Some(Row {
                owner,
                name,
                number: number.parse().ok()?,
                label,
                target,
                required,
                flag,
                rest: cells.collect(),
            })
        })
        // Fields that the served release does not have yet are unknown to it.
        .filter(|row| row.flag != "newer than 1.36")
}

/// Types whose only field is a list of strings, written as the list alone in JSON.
fn is_string_list(name: &str) -> bool {
    name.ends_with(".ExtraValue") || name == "meta.v1.Verbs"
}

fn shape(target: &str, ids: &HashMap<&str, TypeId>) -> Shape {
    let schema =
        |ids: &HashMap<&str, TypeId>| ids.get("apiextensions.v1.JSONSchemaProps").copied().unwrap_or(TypeId(0));
    match target {
        "string" => Shape::String,
        "bool" => Shape::Bool,
        "int32" => Shape::Int32,
        "int64" => Shape::Int64,
        "double" => Shape::Double,
        "bytes" => Shape::Bytes,
        "api.resource.Quantity" | "api.resource.QuantityValue" => Shape::Quantity,
        "util.intstr.IntOrString" => Shape::IntOrString,
        "meta.v1.Time" => Shape::Time,
        "meta.v1.MicroTime" => Shape::MicroTime,
        "meta.v1.Duration" => Shape::Duration,
        "meta.v1.FieldsV1" => Shape::Fields,
        "runtime.RawExtension" => Shape::Raw,
        "apiextensions.v1.JSON" => Shape::Json,
        "apiextensions.v1.JSONSchemaPropsOrArray" => Shape::SchemaOrArray(schema(ids)),
        "apiextensions.v1.JSONSchemaPropsOrBool" => Shape::SchemaOrBool(schema(ids)),
        "apiextensions.v1.JSONSchemaPropsOrStringArray" => Shape::SchemaOrStrings(schema(ids)),
        name if is_string_list(name) => Shape::Strings,
        name => ids.get(name).map_or(Shape::Json, |id| Shape::Object(*id)),
    }
}

fn field(row: &Row<'static>, ids: &HashMap<&str, TypeId>) -> Field {
    let text = |index: usize| row.rest.get(index).copied().filter(|text| !text.is_empty());
    let strategy = text(2).unwrap_or_default();
    Field {
        name: Cow::Borrowed(row.name),
        number: row.number,
        label: row.label,
        shape: shape(row.target, ids),
        required: row.required,
        list_type: match text(0).unwrap_or_default() {
            "atomic" => ListType::Atomic,
            "set" => ListType::Set,
            "map" => ListType::Map,
            "map:atomic" => ListType::AtomicMap,
            "map:granular" => ListType::GranularMap,
            _ => ListType::Unset,
        },
        list_keys: text(1).into_iter().flat_map(|keys| keys.split(',')).map(Cow::Borrowed).collect(),
        patch_strategy: PatchStrategy {
            merge: strategy.split(',').any(|word| word == "merge"),
            retain_keys: strategy.split(',').any(|word| word == "retainKeys"),
        },
        patch_key: text(3).map(Cow::Borrowed),
        format: text(4).map(Cow::Borrowed),
        default: text(5).and_then(|json| serde_json::from_str::<Value>(json).ok()),
        presence: presence::distinguishes_zero(row.owner, row.name),
    }
}

pub(super) fn builtin() -> Schema {
    let mut names: Vec<&'static str> = Vec::new();
    let mut ids: HashMap<&'static str, TypeId> = HashMap::new();
    for name in rows(TABLE).map(|row| row.owner).chain(EMPTY) {
        ids.entry(name).or_insert_with(|| {
            names.push(name);
            TypeId(u32::try_from(names.len() - 1).unwrap_or(u32::MAX))
        });
    }
    let mut types: Vec<Type> = names.iter().map(|name| Type { name: Cow::Borrowed(name), ..Type::default() }).collect();
    for row in rows(TABLE) {
        let Some(owner) = ids.get(row.owner).map(|id| &mut types[id.0 as usize]) else { continue };
        let entry = match ids.get(row.target) {
            Some(inner) if row.flag == "inline" => WireField::Inline(*inner),
            _ => {
                owner.fields.push(field(&row, &ids));
                WireField::Field(owner.fields.len() - 1)
            }
        };
        owner.wire.push((row.number, entry));
    }
    spread_inlined(&mut types);
    for owner in &mut types {
        owner.atomic = ATOMIC.contains(&&*owner.name);
        owner.wire.sort_by_key(|(number, _)| *number);
        let has_metadata = owner.fields.iter().any(|field| field.name == "metadata");
        owner.has_type_meta =
            (has_metadata && !TEMPLATES.contains(&&*owner.name)) || WITHOUT_METADATA.contains(&&*owner.name);
    }
    let by_name: HashMap<_, _> =
        names.iter().enumerate().map(|(at, name)| (Cow::Borrowed(*name), TypeId(at as u32))).collect();
    Schema { types: types.into(), by_name: by_name.into(), ..Schema::default() }
}

/// Copies the fields of inlined types into their parents, innermost first.
fn spread_inlined(types: &mut [Type]) {
    fn collect(types: &[Type], at: usize, depth: usize, into: &mut Vec<Field>) {
        for (_, entry) in &types[at].wire {
            if let WireField::Inline(inner) = entry
                && depth < 4
            {
                into.extend(types[inner.0 as usize].fields.iter().cloned());
                collect(types, inner.0 as usize, depth + 1, into);
            }
        }
    }
    for at in 0..types.len() {
        let mut inlined = Vec::new();
        collect(types, at, 0, &mut inlined);
        // A copy twice over would come from a parent that was spread before its child.
        for field in inlined {
            if types[at].field(&field.name).is_none() {
                types[at].fields.push(field);
            }
        }
    }
}
