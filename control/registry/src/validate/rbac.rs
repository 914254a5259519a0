use tandem_api::{Cause, Object};

pub(crate) fn cluster_role(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}

pub(crate) fn cluster_role_binding(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}

pub(crate) fn role(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}

pub(crate) fn role_binding(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}
