use tandem_api::{Cause, Object};

use crate::ResourceDef;

pub(crate) fn on_create(def: &ResourceDef, object: &Object) -> Vec<Cause> {
    let _ = (def, object);
    Vec::new()
}

pub(crate) fn on_update(object: &Object, old: &Object) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}
