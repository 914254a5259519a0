//! What the expressions of admission policies may read, and what is wrong with them by their types.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tandem_api::{GroupVersion, Object};
use tandem_cel::{Patterns, Program, Type};

use crate::{
    Registry, Schema,
    json::{Fields, FieldsExt},
    schema::{Field, Label, Shape},
};

/// What the patterns of one policy may take together, in bytes.
pub const PATTERNS_MAX_BYTES: usize = 4 << 20;
/// Against how many kinds a policy is checked, as in Kubernetes.
const KINDS_MAX: usize = 10;
/// One variable's type goes into the next one's: without a bound, texts of moderate length make types that overflow a stack.
const VARIABLE_DEPTH_MAX: usize = 100;

const REQUEST: &str = "kubernetes.AdmissionRequest";
const NAMESPACE: &str = "kubernetes.Namespace";
const VARIABLES: &str = "kubernetes.variables";
const USER: &str = "kubernetes.UserInfo";
const KIND: &str = "kubernetes.GroupVersionKind";
const RESOURCE: &str = "kubernetes.GroupVersionResource";

/// What an expression must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Any,
    Bool,
    Text,
    TextOrNull,
    /// An `Object{…}`.
    Object,
    /// A list of `JSONPatch{…}`.
    Patch,
}

impl Wanted {
    fn accepts(self, found: &Type) -> bool {
        let is_patch = |item: &Type| matches!(item, Type::Dyn) || *item == Type::Object("JSONPatch".to_owned());
        match self {
            Wanted::Any => true,
            _ if *found == Type::Dyn => true,
            Wanted::Bool => *found == Type::Bool,
            Wanted::Text => *found == Type::Text,
            Wanted::TextOrNull => matches!(found, Type::Text | Type::Null),
            Wanted::Object => *found == Type::Object("Object".to_owned()),
            Wanted::Patch => matches!(found, Type::List(item) if is_patch(item)),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Wanted::Any => "dyn",
            Wanted::Bool => "bool",
            Wanted::Text => "string",
            Wanted::TextOrNull => "one of {string, null_type}",
            Wanted::Object => "Object",
            Wanted::Patch => "list(JSONPatch)",
        }
    }
}

/// What can be read by name.
#[derive(Debug)]
pub struct Environment<'s> {
    schema: Option<&'s Schema>,
    object: Type,
    params: Option<Type>,
    variables: BTreeMap<String, Type>,
    patterns: Patterns,
}

impl<'s> Environment<'s> {
    /// For objects of no known type.
    pub fn new(has_params: bool) -> Environment<'s> {
        Environment {
            schema: None,
            object: Type::Dyn,
            params: has_params.then_some(Type::Dyn),
            variables: BTreeMap::new(),
            patterns: Patterns::new(PATTERNS_MAX_BYTES),
        }
    }

    fn of(schema: &'s Schema, object: Type, params: Option<Type>) -> Environment<'s> {
        Environment { schema: Some(schema), object, params, ..Environment::new(false) }
    }

    /// Adds `variables.NAME`.
    pub fn define(&mut self, name: &str, expression: &str) -> Result<(), String> {
        let found = self.compile(expression, true).and_then(|found| {
            let deep = found.is_deeper_than(VARIABLE_DEPTH_MAX);
            if deep { Err("compilation failed: its type is nested too deeply".to_owned()) } else { Ok(found) }
        });
        self.variables.insert(name.to_owned(), found.clone().unwrap_or(Type::Dyn));
        found.map(drop)
    }

    pub fn check(&mut self, expression: &str, wanted: Wanted, authorizer: bool) -> Result<(), String> {
        let found = self.compile(expression, authorizer)?;
        if wanted.accepts(&found) { Ok(()) } else { Err(format!("must evaluate to {}", wanted.name())) }
    }

    fn compile(&mut self, expression: &str, authorizer: bool) -> Result<Type, String> {
        let failed = |why: String| format!("compilation failed: {why}");
        let program = Program::compile(expression, &mut self.patterns).map_err(|why| failed(why.to_string()))?;
        let named = |name: &str| Type::Object(name.to_owned());
        let mut known = vec![
            ("object", self.object.clone()),
            ("oldObject", self.object.clone()),
            ("request", named(REQUEST)),
            ("namespaceObject", named(NAMESPACE)),
            ("variables", named(VARIABLES)),
        ];
        known.extend(self.params.clone().map(|params| ("params", params)));
        if authorizer {
            known.push(("authorizer", Type::Dyn));
        }
        program.check(expression, &known, self).map_err(failed)
    }
}

impl tandem_cel::Fields for Environment<'_> {
    fn field(&self, of: &str, name: &str) -> Option<Type> {
        let named = |name: &str| Some(Type::Object(name.to_owned()));
        match of {
            VARIABLES => self.variables.get(name).cloned(),
            REQUEST => match name {
                "kind" | "requestKind" => named(KIND),
                "resource" | "requestResource" => named(RESOURCE),
                "userInfo" => named(USER),
                "uid" | "subResource" | "requestSubResource" | "name" | "namespace" | "operation" => Some(Type::Text),
                "dryRun" => Some(Type::Bool),
                "options" => Some(Type::Dyn),
                _ => None,
            },
            KIND => ["group", "version", "kind"].contains(&name).then_some(Type::Text),
            RESOURCE => ["group", "version", "resource"].contains(&name).then_some(Type::Text),
            USER => match name {
                "username" | "uid" => Some(Type::Text),
                "groups" => Some(Type::list(Type::Text)),
                "extra" => Some(Type::map(Type::list(Type::Text))),
                _ => None,
            },
            NAMESPACE => match name {
                "metadata" | "spec" | "status" => Some(Type::Dyn),
                "apiVersion" | "kind" => Some(Type::Text),
                _ => None,
            },
            // What is being built may have any field; whether the kind has it shows when it is laid over an object.
            of if of == "JSONPatch" || of == "Object" || of.starts_with("Object.") => Some(Type::Dyn),
            of => {
                let found = self.schema?.ty(of)?;
                if found.has_type_meta && (name == "apiVersion" || name == "kind") {
                    return Some(Type::Text);
                }
                found.field(name).map(|field| self.of_field(field))
            }
        }
    }
}

impl Environment<'_> {
    fn of_field(&self, field: &Field) -> Type {
        let one = match field.shape {
            Shape::String => Type::Text,
            Shape::Bool => Type::Bool,
            Shape::Int32 | Shape::Int64 => Type::Int,
            Shape::Double => Type::Double,
            Shape::Strings => Type::list(Type::Text),
            Shape::Object(id) => self.schema.map_or(Type::Dyn, |schema| Type::Object(schema.get(id).name.to_string())),
            _ => Type::Dyn,
        };
        match field.label {
            Label::One => one,
            Label::List => Type::list(one),
            Label::Map => Type::map(one),
        }
    }
}

/// The type of a kind, where its fields are known.
fn kind_type(registry: &Registry, api_version: &str, kind: &str) -> Option<Type> {
    let GroupVersion { group, version } = GroupVersion::parse(api_version)?;
    let def = registry.by_kind(&group, &version, kind)?;
    Some(if def.custom.is_some() { Type::Dyn } else { Type::Object(def.type_name.clone()) })
}

/// The kinds that a policy names, as far as it names them without wildcards: `apps/v1, Kind=Deployment` and type.
fn kinds(registry: &Registry, spec: &Fields) -> Vec<(String, Type)> {
    let mut found = BTreeMap::new();
    let rules = spec.child("matchConstraints").into_iter().flat_map(|constraints| constraints.each("resourceRules"));
    for rule in rules {
        let texts =
            |key: &str| -> Vec<String> { rule.list(key).iter().filter_map(Value::as_str).map(str::to_owned).collect() };
        let (groups, versions) = (texts("apiGroups"), texts("apiVersions"));
        if groups.iter().chain(&versions).any(|text| text.contains('*')) {
            continue;
        }
        for group in &groups {
            for version in &versions {
                for resource in texts("resources").iter().filter(|resource| !resource.contains(['*', '/'])) {
                    let Some(def) = registry.by_path(group, version, resource).filter(|def| def.custom.is_none())
                    else {
                        continue;
                    };
                    let shown = format!("{}, Kind={}", def.api_version(), def.kind);
                    found.insert(shown, Type::Object(def.type_name.clone()));
                }
            }
        }
    }
    found.into_iter().take(KINDS_MAX).collect()
}

/// `status.typeChecking` of a ValidatingAdmissionPolicy: what its expressions do that no object of its kinds bears.
pub fn type_checking(registry: &Registry, policy: &Object) -> Value {
    let empty = Fields::new();
    let spec = policy.0.child("spec").unwrap_or(&empty);
    let params = spec
        .child("paramKind")
        .map(|kind| kind_type(registry, kind.text("apiVersion"), kind.text("kind")).unwrap_or(Type::Dyn));
    let kinds = kinds(registry, spec);
    let mut environments: Vec<(String, Environment<'_>)> = kinds
        .into_iter()
        .map(|(shown, ty)| {
            let mut environment = Environment::of(registry.schema(), ty, params.clone());
            for variable in spec.each("variables") {
                // What is wrong with a variable shows where it is read, as far as it does.
                let _ = environment.define(variable.text("name"), variable.text("expression"));
            }
            (shown, environment)
        })
        .collect();
    let mut warnings = Vec::new();
    for (at, validation) in spec.each("validations").enumerate() {
        for key in ["expression", "messageExpression"] {
            let expression = validation.text(key);
            if expression.trim().is_empty() {
                continue;
            }
            let problems: Vec<String> = environments
                .iter_mut()
                .filter_map(|(shown, environment)| {
                    let why = environment.check(expression, Wanted::Any, true).err()?;
                    Some(format!("{shown}: {}\n", why.strip_prefix("compilation failed: ").unwrap_or(&why)))
                })
                .collect();
            if !problems.is_empty() {
                let field = format!("spec.validations[{at}].{key}");
                warnings.push(json!({ "fieldRef": field, "warning": problems.join("\n") }));
            }
        }
    }
    if warnings.is_empty() { json!({}) } else { json!({ "expressionWarnings": warnings }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(validation: &Value) -> Object {
        Object::from_value(json!({ "spec": {
            "paramKind": { "apiVersion": "v1", "kind": "ConfigMap" },
            "variables": [{ "name": "replicas", "expression": "object.spec.replicas" }],
            "matchConstraints": { "resourceRules": [{ "apiGroups": ["apps"], "apiVersions": ["v1"],
                "operations": ["CREATE"], "resources": ["deployments", "replicasets/scale"] }] },
            "validations": [validation],
        } }))
        .unwrap()
    }

    #[test]
    fn types_are_checked_against_the_kinds_of_a_policy() {
        let registry = Registry::builtin();
        let check = |validation: Value| type_checking(&registry, &policy(&validation));
        for sound in [
            "object.spec.replicas > 1 && variables.replicas < 10 && has(oldObject.spec)",
            "object.spec.template.spec.containers.all(c, c.image.startsWith('a') && c.resources.limits['cpu'] != null)",
            "object.metadata.labels['app'] == params.data.app && request.userInfo.groups.exists(g, g == 'x')",
            "!has(object.metadata.annotations) || object.kind == 'Deployment'",
        ] {
            assert_eq!(check(json!({ "expression": sound })), json!({}), "{sound}");
        }
        let found =
            check(json!({ "expression": "object.spec.replicas > '1'", "messageExpression": "object.replicas" }));
        let expected = "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'\n | object.spec.replicas > '1'\n | .....................^\n";
        assert_eq!(found["expressionWarnings"][0]["fieldRef"], "spec.validations[0].expression");
        assert_eq!(found["expressionWarnings"][0]["warning"], expected);
        let expected = "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'replicas'\n | object.replicas\n | ......^\n";
        assert_eq!(found["expressionWarnings"][1]["fieldRef"], "spec.validations[0].messageExpression");
        assert_eq!(found["expressionWarnings"][1]["warning"], expected);
        for wrong in ["params.dat.x == 'a'", "variables.replicas == 'x'", "variables.lost == 1", "request.user == 'x'"]
        {
            assert_ne!(check(json!({ "expression": wrong })), json!({}), "{wrong}");
        }
    }
}
