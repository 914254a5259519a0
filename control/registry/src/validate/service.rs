use tandem_api::{Cause, Object};

pub(crate) fn endpoint_slice(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}

pub(crate) fn endpoints(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}

pub(crate) fn service(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}
