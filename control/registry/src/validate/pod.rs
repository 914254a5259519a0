use tandem_api::{Cause, Object};

pub(crate) fn pod(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}
