use tandem_api::{Cause, Object};

pub(crate) fn autoscaler(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}

pub(crate) fn disruption_budget(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}

pub(crate) fn lease(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}

pub(crate) fn priority_class(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}

pub(crate) fn runtime_class(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}

pub(crate) fn signing_request(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}
