//! An API that answers with what a test wrote down, and tells what it was asked.

use std::{collections::BTreeMap, fmt::Display, sync::Arc};

use axum::{Router, extract::Request, http::StatusCode, response::IntoResponse};
use parking_lot::Mutex;
use tandem_api::Identity;

const MISSING: &str = r#"{"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}"#;

#[derive(Clone, Default)]
pub(crate) struct Canned {
    answers: Arc<Mutex<BTreeMap<String, (u16, String)>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Canned {
    /// What is asked of the path is answered with this JSON from now on; what nothing is said of is not found.
    pub(crate) fn answer(&self, path: &str, code: u16, body: impl Display) {
        self.answers.lock().insert(path.to_owned(), (code, body.to_string()));
    }

    /// The requests so far, as `METHOD path`.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }

    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let router = Router::new().fallback(move |request: Request| async move {
            let path = request.uri().path();
            api.asked.lock().push(format!("{} {path}", request.method()));
            let (code, body) = api.answers.lock().get(path).cloned().unwrap_or_else(|| (404, MISSING.to_owned()));
            (StatusCode::from_u16(code).unwrap(), body).into_response()
        });
        tandem_client::in_process(router, Identity::node("n1"))
    }
}
