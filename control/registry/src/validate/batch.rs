use tandem_api::{Cause, Object};

pub(crate) fn cron_job(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}

pub(crate) fn job(object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let _ = (object, old);
    Vec::new()
}
