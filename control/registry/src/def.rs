use std::{borrow::Cow, sync::Arc};

use jiff::Timestamp;
use serde_json::Value;
use tandem_api::{Cause, Object, names};

use crate::{custom::CustomType, strategy};

/// Whether objects of a kind live in namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Namespaced,
    Cluster,
}

/// A kind together with where its schema is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KindName {
    pub group: String,
    pub version: String,
    pub kind: String,
}

/// A path below an object, such as `status` or `scale`, and the kind that is sent and answered there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    pub name: String,
    pub kind: KindName,
    pub verbs: Vec<String>,
}

/// A column of `kubectl get`. Columns with a priority above 0 show with `-o wide` only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: Cow<'static, str>,
    /// The OpenAPI type of the cells: `string`, `integer`, `boolean`, `date`.
    pub kind: &'static str,
    /// `name` for the column that names the object, else usually empty.
    pub format: &'static str,
    pub description: Cow<'static, str>,
    pub priority: i32,
}

/// What names of a kind may look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameRule {
    #[default]
    Dns1123Subdomain,
    Dns1123Label,
    Dns1035Label,
    /// RBAC and a few others: anything that can stand as one segment of a URL path.
    PathSegment,
    /// An address as it is written canonically (RFC 5952).
    IpAddress,
}

impl NameRule {
    /// What is wrong with a name; empty when nothing is. For a `generateName`, pass the prefix itself.
    pub fn problems(self, name: &str, is_prefix: bool) -> Vec<String> {
        // A prefix may end in '-': the random suffix follows.
        let masked =
            if is_prefix && name.ends_with('-') { format!("{}a", &name[..name.len() - 1]) } else { name.to_owned() };
        match self {
            NameRule::Dns1123Subdomain => names::dns1123_subdomain(&masked),
            NameRule::Dns1123Label => names::dns1123_label(&masked),
            NameRule::Dns1035Label => names::dns1035_label(&masked),
            NameRule::PathSegment => path_segment(name, is_prefix),
            NameRule::IpAddress => ip_address(name),
        }
    }
}

fn ip_address(name: &str) -> Vec<String> {
    let canonical = name.parse().is_ok_and(|address: std::net::IpAddr| address.to_string() == name);
    if canonical { Vec::new() } else { vec!["must be a valid IP address in canonical form".to_owned()] }
}

fn path_segment(name: &str, is_prefix: bool) -> Vec<String> {
    if !is_prefix && (name == "." || name == "..") {
        return vec![format!("may not be '{name}'")];
    }
    ["/", "%"].into_iter().filter(|bad| name.contains(bad)).map(|bad| format!("may not contain '{bad}'")).collect()
}

/// What a kind means beyond its schema. All are pure.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// Fills in what the writer left out. Runs on every write and must be idempotent.
    pub default: fn(&mut Object),
    /// Sets what clients may not choose, on create (`None`) and on update (the stored object).
    pub prepare: fn(&mut Object, Option<&Object>),
    /// What is wrong with the object beyond its metadata.
    pub validate: fn(&Object, Option<&Object>) -> Vec<Cause>,
    pub name: NameRule,
    /// The values of the field selectors of this kind, beyond `metadata.name` and `metadata.namespace`.
    pub fields: fn(&Object) -> Vec<(&'static str, String)>,
    /// One value for each of the row's columns.
    pub cells: fn(&Object, Timestamp) -> Vec<Value>,
    /// Whether clients may set `status` when they create the object (nodes register with theirs).
    pub keeps_status: bool,
    /// How an object of this kind says that its writer lives, where it does.
    pub heartbeat: Option<Heartbeat>,
}

/// A field that is written again and again only to show that its writer lives: what it was before, nobody asks.
#[derive(Clone, Copy, Debug)]
pub struct Heartbeat {
    /// Elsewhere the field means more: a lock, an election.
    pub namespace: &'static str,
    pub field: &'static [&'static str],
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Hooks").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Hooks {
    /// A kind of which nothing is known but its schema.
    pub const NONE: Hooks = Hooks {
        default: |_| {},
        prepare: |_, _| {},
        validate: |_, _| Vec::new(),
        name: NameRule::Dns1123Subdomain,
        fields: |_| Vec::new(),
        cells: crate::columns::name_and_creation,
        keeps_status: false,
        heartbeat: None,
    };
}

/// Where objects of a kind are kept. Two kinds with one storage are two shapes of the same objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageName {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub kind: String,
}

/// A row: one resource of one group and version.
#[derive(Clone, Debug)]
pub struct ResourceDef {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub list_kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub scope: Scope,
    pub verbs: Vec<String>,
    pub subresources: Vec<Subresource>,
    /// The version in which objects are stored (`storage` says all of it).
    pub storage_version: String,
    pub storage: StorageName,
    /// The type's name in the schema: `apps.v1.Deployment`.
    pub type_name: String,
    pub columns: Cow<'static, [Column]>,
    pub hooks: Hooks,
    /// From this row's shape to the stored one and back; `None` where they are the same.
    pub conversion: Option<Conversion>,
    /// What a kind has that is defined at run time.
    pub custom: Option<Arc<CustomType>>,
}

/// How objects of a row change their shape on the way to the store and back.
#[derive(Clone, Copy)]
pub struct Conversion {
    pub to_storage: fn(&mut Object),
    pub from_storage: fn(&mut Object),
}

impl std::fmt::Debug for Conversion {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Conversion")
    }
}

impl ResourceDef {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|mine| mine == verb)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }

    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Fills in type and defaults. Runs on every write, after the body was read and pruned.
    pub fn default(&self, object: &mut Object) {
        strategy::default(self, object);
    }

    /// Sets what a creator may not choose: status, generation, and what the kind adds.
    pub fn prepare_create(&self, object: &mut Object) {
        strategy::prepare_create(self, object);
    }

    /// Before an update of the object itself: status stays as it was, the generation counts changes of the rest.
    pub fn prepare_update(&self, object: &mut Object, old: &Object) {
        strategy::prepare_update(self, object, old);
    }

    /// Before an update through `/status`: all but status and metadata stays as it was.
    pub fn prepare_status(&self, object: &mut Object, old: &Object) {
        strategy::prepare_status(object, old);
    }

    /// What is wrong with a new object, its metadata included.
    pub fn validate_create(&self, object: &Object) -> Vec<Cause> {
        strategy::validate_create(self, object)
    }

    /// What is wrong with a changed object, forbidden changes included.
    pub fn validate_update(&self, object: &Object, old: &Object) -> Vec<Cause> {
        strategy::validate_update(self, object, old)
    }

    /// What is wrong with a change of status: only the metadata is looked at.
    pub fn validate_status(&self, object: &Object, old: &Object) -> Vec<Cause> {
        strategy::validate_status(self, object, old)
    }

    /// One value for each of the row's columns.
    pub fn cells(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        match &self.custom {
            Some(custom) => custom.cells(object, now),
            None => (self.hooks.cells)(object, now),
        }
    }

    /// Whether lists can be asked by fields of this kind's own.
    pub fn has_own_fields(&self) -> bool {
        self.custom
            .as_ref()
            .map_or_else(|| !(self.hooks.fields)(&Object::default()).is_empty(), |custom| custom.has_fields())
    }

    /// The value of a field selector of this kind; `None` if the kind has no such selector.
    /// A selector that exists but whose field is not set has the empty value.
    pub fn field(&self, object: &Object, field: &str) -> Option<String> {
        match field {
            "metadata.name" => Some(object.name().to_owned()),
            "metadata.namespace" if self.is_namespaced() => Some(object.namespace().unwrap_or_default().to_owned()),
            _ if self.custom.is_some() => self.custom.as_ref()?.field(object, field),
            _ => (self.hooks.fields)(object).into_iter().find(|(name, _)| *name == field).map(|(_, value)| value),
        }
    }
}
