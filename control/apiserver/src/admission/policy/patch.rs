//! What a mutating policy makes of an object: what it applies, merged as server-side apply merges, or a JSON patch.

use serde_json::Value;
use tandem_api::{ApiError, Object};
use tandem_registry::{ResourceDef, Schema, fields};

use super::{
    super::Request,
    compile::Mutation,
    evaluate::{self, Purse, Steps},
    invocation::{Input, Invocation},
};
use crate::{
    managed::{self, Node},
    patch::{JsonFailure, apply_json, drop_nulls},
};

/// What stays as it is: the object's place in the store.
const FIXED: [&str; 5] = ["name", "generateName", "namespace", "uid", "resourceVersion"];

/// The object after all mutations of a policy, one after the other, and what failed. What fails changes nothing. Of the
/// input the old object stands as the policy sees it.
pub(super) fn all(
    schema: &Schema,
    request: &Request<'_>,
    invocation: &Invocation,
    input: &Input<'_>,
    object: &Object,
    steps: &mut Steps,
) -> (Object, Vec<String>) {
    let (own, matched) = (request.def, &*invocation.def);
    let (mut object, mut failures) = (object.clone(), Vec::new());
    for mutation in &invocation.policy.mutations {
        let seen = convert(own, matched, &object);
        let input = Input { object: Some(&seen), ..input.clone() };
        let changed = one(schema, matched, invocation, mutation, &input, steps);
        match changed.and_then(|new| settled(schema, own, convert(matched, own, &new), &object)) {
            Ok(new) => object = new,
            Err(why) => failures.push(why),
        }
    }
    (object, failures)
}

/// The object as another row shows it.
pub(super) fn convert(from: &ResourceDef, to: &ResourceDef, object: &Object) -> Object {
    let mut object = object.clone();
    if from.api_version() == to.api_version() && from.kind == to.kind {
        return object;
    }
    if let Some(conversion) = from.conversion {
        (conversion.to_storage)(&mut object);
    }
    if let Some(conversion) = to.conversion {
        (conversion.from_storage)(&mut object);
    }
    object.set(&["apiVersion"], to.api_version());
    object.set(&["kind"], to.kind.as_str());
    object
}

fn one(
    schema: &Schema,
    def: &ResourceDef,
    invocation: &Invocation,
    mutation: &Mutation,
    input: &Input<'_>,
    steps: &mut Steps,
) -> Result<Object, String> {
    let (Mutation::Apply(expression) | Mutation::Patch(expression)) = mutation;
    let scope = evaluate::scope(&invocation.policy, input, true, true);
    let made = Purse::for_policy(steps).evaluate(&scope, expression, |value, budget| value.to_json(budget))?;
    let object = input.object.cloned().unwrap_or_default();
    match mutation {
        Mutation::Apply(_) => applied(schema, def, &object, made),
        Mutation::Patch(_) => patched(&object, &made),
    }
}

fn applied(schema: &Schema, def: &ResourceDef, object: &Object, applied: Value) -> Result<Object, String> {
    let mut applied = Object::from_value(applied).ok_or("must evaluate to Object")?;
    drop_nulls(&mut applied);
    let node = Node::root(schema, &def.type_name);
    let applied = Value::Object(applied.0);
    check(schema, node, &applied, "").map_err(|why| format!("invalid ApplyConfiguration: {why}"))?;
    let merged = managed::merge(schema, node, &Value::Object(object.0.clone()), &applied);
    Object::from_value(merged).ok_or_else(|| "the patched value is not an object".to_owned())
}

/// What is set as a whole cannot be laid over: nobody could tell what of it was there before.
fn check(schema: &Schema, node: Node<'_>, value: &Value, path: &str) -> Result<(), String> {
    match (value, node.parts(value)) {
        (Value::Object(map), Some(_)) => map
            .iter()
            .try_for_each(|(name, value)| check(schema, node.member(schema, name), value, &format!("{path}.{name}"))),
        (Value::Array(items), Some(_)) => {
            items.iter().try_for_each(|item| check(schema, node.item(schema), item, &format!("{path}[]")))
        }
        (Value::Object(_) | Value::Array(_), None) => {
            Err(format!("may not mutate atomic arrays, maps or structs: {path}"))
        }
        _ => Ok(()),
    }
}

fn patched(object: &Object, operations: &Value) -> Result<Object, String> {
    let bytes = serde_json::to_vec(operations).map_err(|why| why.to_string())?;
    match apply_json(object, &bytes) {
        Ok(new) => Ok(new),
        // A test that does not hold is how a patch says that it is not for this object.
        Err(JsonFailure::Test(_)) => Ok(object.clone()),
        Err(JsonFailure::Refused(error)) => Err(format!("JSON Patch: {}", error.message)),
    }
}

/// The changed object as a client could have sent it: of the right types, with defaults, at the same place.
fn settled(schema: &Schema, def: &ResourceDef, mut new: Object, before: &Object) -> Result<Object, String> {
    let words = |error: ApiError| error.message;
    for key in FIXED {
        if new.at(&["metadata", key]) != before.at(&["metadata", key]) {
            return Err(format!("metadata.{key} may not be changed by a policy"));
        }
    }
    if new.api_version() != before.api_version() || new.kind() != before.kind() {
        return Err("apiVersion and kind may not be changed by a policy".to_owned());
    }
    fields::types(schema, &def.type_name, &new).map_err(words)?;
    if let Some(unknown) = fields::strict(schema, &def.type_name, &new, &[]).first()
        && fields::strict(schema, &def.type_name, before, &[]).is_empty()
    {
        return Err(unknown.clone());
    }
    fields::prune(schema, &def.type_name, &mut new);
    def.default(&mut new);
    Ok(new)
}
