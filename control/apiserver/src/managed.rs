//! Who set which field: `metadata.managedFields`, kept on every write, and the ground of server-side apply.
//!
//! The rules are those of structured-merge-diff, over JSON and the type table.

mod entries;
mod fields;
mod merge;
mod nodes;

pub(crate) use entries::{Managers, Writer, is_reset};
pub(crate) use fields::FieldSet;
pub(crate) use merge::{merge, remove};
pub(crate) use nodes::{Node, compare, field_set};

use tandem_api::{Object, Revision};
use tandem_registry::Schema;

/// What everybody writes and nobody owns.
const UNOWNED: [&[&str]; 13] = [
    &["apiVersion"],
    &["kind"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "generateName"],
    &["metadata", "creationTimestamp"],
    &["metadata", "deletionTimestamp"],
    &["metadata", "deletionGracePeriodSeconds"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// The object without what nobody owns.
pub(crate) fn owned_part(object: &Object) -> Object {
    let mut part = object.clone();
    for path in UNOWNED {
        part.remove(path);
    }
    if part.at(&["metadata"]).and_then(|metadata| metadata.as_object()).is_some_and(serde_json::Map::is_empty) {
        part.remove(&["metadata"]);
    }
    part
}

/// Records in `new` that `writer` made it out of `live` (`None`: made it new). What others owned and this write changed
/// is theirs no longer.
pub(crate) fn record_update(
    schema: &Schema,
    type_name: &str,
    live: Option<&Object>,
    new: &mut Object,
    writer: &Writer<'_>,
) {
    let node = Node::root(schema, type_name);
    let before = live.map(owned_part).unwrap_or_default();
    let after = owned_part(new);
    // A writer may send managedFields of its own: kubectl moves ownership that way.
    let sent = Managers::read(new);
    let mut managers = match (sent, live) {
        _ if is_reset(new) => Managers::default(),
        (Some(sent), _) => sent,
        (None, Some(live)) => Managers::read(live).unwrap_or_default(),
        (None, None) => Managers::default(),
    };
    let change = compare(schema, node, &before, &after);
    if !change.is_empty() {
        managers.update(&change, writer);
    }
    managers.write(new);
}

/// Whether two objects differ in more than the times at which their fields were set.
pub(crate) fn same(one: &Object, other: &Object) -> bool {
    let bare = |object: &Object| {
        let mut bare = object.clone();
        bare.set_revision(Revision::ZERO);
        let managers = Managers::read(&bare).unwrap_or_default();
        bare.remove(&["metadata", "managedFields"]);
        (bare, managers)
    };
    let ((one, its), (other, others)) = (bare(one), bare(other));
    one == other && its.same(&others)
}

#[cfg(test)]
mod tests;
