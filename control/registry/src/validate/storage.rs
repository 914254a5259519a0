use tandem_api::{Cause, Object};

pub(crate) fn claim(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}

pub(crate) fn class(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}

pub(crate) fn volume(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}
