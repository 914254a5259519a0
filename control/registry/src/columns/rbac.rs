use jiff::Timestamp;
use serde_json::Value;
use tandem_api::Object;

use super::{age, part};
use crate::json::FieldsExt;

pub(crate) fn binding(object: &Object, now: Timestamp) -> Vec<Value> {
    let role = part(object, "roleRef");
    let subjects = |kind: &str| {
        let names =
            object.0.each("subjects").filter(|subject| subject.text("kind") == kind).map(|subject| {
                match subject.text("namespace") {
                    "" => subject.text("name").to_owned(),
                    namespace => format!("{namespace}/{}", subject.text("name")),
                }
            });
        names.collect::<Vec<_>>().join(", ")
    };
    vec![
        object.name().into(),
        format!("{}/{}", role.text("kind"), role.text("name")).into(),
        age(object, now).into(),
        subjects("User").into(),
        subjects("Group").into(),
        subjects("ServiceAccount").into(),
    ]
}
