use serde_json::Value;
use tandem_api::{ApiError, Object};
use tandem_registry::Schema;

use crate::managed::{self, FieldSet, Managers, Node, Writer};

/// Server-side apply: `live` with what `applied` says, without what the same manager said before and no longer does.
/// What others own may only be changed by `force`.
pub(crate) fn apply(
    schema: &Schema,
    type_name: &str,
    live: Option<&Object>,
    applied: &Object,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Object, ApiError> {
    if applied.at(&["metadata", "managedFields"]).is_some() {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let node = Node::root(schema, type_name);
    let mut applied = applied.clone();
    drop_nulls(&mut applied);
    let fields = managed::field_set(schema, node, &managed::owned_part(&applied));
    let base = live.cloned().unwrap_or_default();
    let mut managers = Managers::read(&base).unwrap_or_default();
    let mut kept = managers.others(writer);
    kept.union(&fields);
    let gone = orphaned(&managers.applied(writer), Some(&kept));

    let mut merged = managed::merge(schema, node, &Value::Object(base.0.clone()), &Value::Object(applied.0));
    managed::remove(schema, node, &mut merged, &gone);
    let mut merged = Object::from_value(merged).unwrap_or_default();
    let change = managed::compare(schema, node, &managed::owned_part(&base), &managed::owned_part(&merged));
    managers.apply(fields, &change, writer, force)?;
    managers.write(&mut merged);
    Ok(merged)
}

/// The paths of `last` that nobody keeps: neither themselves nor anything below them.
fn orphaned(last: &FieldSet, kept: Option<&FieldSet>) -> FieldSet {
    let mut gone = FieldSet::default();
    if last.owns_itself() && kept.is_none_or(FieldSet::is_empty) {
        gone.insert_self();
        return gone;
    }
    for (element, child) in last.children() {
        let below = orphaned(child, kept.and_then(|kept| kept.child(element)));
        if !below.is_empty() {
            *gone.enter(element.to_owned()) = below;
        }
    }
    gone
}

pub(crate) fn drop_nulls(object: &mut Object) {
    fn inner(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|_, value| !value.is_null());
                map.values_mut().for_each(inner);
            }
            Value::Array(list) => list.iter_mut().for_each(inner),
            _ => {}
        }
    }
    object.0.retain(|_, value| !value.is_null());
    object.0.values_mut().for_each(inner);
}
