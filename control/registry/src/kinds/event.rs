use tandem_api::Object;

use crate::{Hooks, columns, validate};

pub(super) const CORE: Hooks =
    Hooks { fields, validate: validate::config::event, cells: columns::core::event, ..Hooks::NONE };
pub(super) const EVENTS: Hooks = Hooks { fields: events_fields, cells: columns::core::events_event, ..Hooks::NONE };

fn text(object: &Object, path: &[&str]) -> String {
    object.str_at(path).unwrap_or_default().to_owned()
}

fn fields(event: &Object) -> Vec<(&'static str, String)> {
    let about = |key: &str| text(event, &["involvedObject", key]);
    let source = text(event, &["source", "component"]);
    let reporter = text(event, &["reportingComponent"]);
    vec![
        ("involvedObject.kind", about("kind")),
        ("involvedObject.namespace", about("namespace")),
        ("involvedObject.name", about("name")),
        ("involvedObject.uid", about("uid")),
        ("involvedObject.apiVersion", about("apiVersion")),
        ("involvedObject.resourceVersion", about("resourceVersion")),
        ("involvedObject.fieldPath", about("fieldPath")),
        ("reason", text(event, &["reason"])),
        ("reportingComponent", reporter.clone()),
        ("source", if source.is_empty() { reporter } else { source }),
        ("type", text(event, &["type"])),
    ]
}

fn events_fields(event: &Object) -> Vec<(&'static str, String)> {
    let about = |key: &str| text(event, &["regarding", key]);
    vec![
        ("regarding.kind", about("kind")),
        ("regarding.namespace", about("namespace")),
        ("regarding.name", about("name")),
        ("regarding.uid", about("uid")),
        ("regarding.apiVersion", about("apiVersion")),
        ("regarding.resourceVersion", about("resourceVersion")),
        ("regarding.fieldPath", about("fieldPath")),
        ("reason", text(event, &["reason"])),
        ("reportingController", text(event, &["reportingController"])),
        ("type", text(event, &["type"])),
    ]
}
