use axum::response::Response;
use http::{HeaderValue, StatusCode};
use tandem_api::ApiError;
use tandem_store::Consistency;

use crate::{call::Call, core::Core, respond};

const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The outcome of one check, by name.
struct Outcome {
    name: String,
    problem: Option<String>,
}

/// Health and metrics; `None` where the path is none of these.
pub(crate) async fn serve(core: &Core, call: &Call, path: &str) -> Option<Result<Response, ApiError>> {
    if path == "/metrics" {
        let text = core.metrics.text(core).map_err(ApiError::internal);
        return Some(text.map(|text| respond::bytes(StatusCode::OK, HeaderValue::from_static(METRICS_TYPE), text)));
    }
    let (kind, only) = match path.split('/').collect::<Vec<_>>()[..] {
        ["", kind @ ("livez" | "readyz" | "healthz")] => (kind, None),
        ["", kind @ ("livez" | "readyz" | "healthz"), check] => (kind, Some(check)),
        _ => return None,
    };
    let excluded: Vec<&str> = call.info.query.all("exclude").collect();
    let mut outcomes = vec![Outcome { name: "ping".to_owned(), problem: None }];
    // A member without a leader lives; restarting it would not help.
    if kind != "livez" {
        outcomes.push(Outcome { name: "store".to_owned(), problem: store(core).await });
        outcomes.extend(
            core.ready.iter().map(|check| Outcome { name: check.name.clone(), problem: (check.check)().err() }),
        );
    }
    if let Some(only) = only {
        if !outcomes.iter().any(|outcome| outcome.name == only) {
            return Some(Err(crate::request::not_found()));
        }
        outcomes.retain(|outcome| outcome.name == only);
    }
    outcomes.retain(|outcome| !excluded.contains(&outcome.name.as_str()));
    Some(Ok(report(kind, &outcomes, call.info.query.has("verbose"))))
}

async fn store(core: &Core) -> Option<String> {
    if !core.has_quorum() {
        return Some("this member is not part of a quorum".to_owned());
    }
    let key = tandem_api::Key::prefix("", "namespaces", None);
    core.objects.storage().get(&key, Consistency::Linearizable).await.err().map(|error| error.to_string())
}

/// The lines that Kubernetes' health endpoints print: reasons are withheld here and stand in the log.
fn report(kind: &str, outcomes: &[Outcome], verbose: bool) -> Response {
    let failed = outcomes.iter().any(|outcome| outcome.problem.is_some());
    if !failed && !verbose {
        return respond::text(StatusCode::OK, "ok");
    }
    let mut text = String::new();
    for Outcome { name, problem } in outcomes {
        match problem {
            None => text.push_str(&format!("[+]{name} ok\n")),
            Some(problem) => {
                tracing::info!(check = name, problem, "a health check fails");
                text.push_str(&format!("[-]{name} failed: reason withheld\n"));
            }
        }
    }
    let (code, verdict) =
        if failed { (StatusCode::INTERNAL_SERVER_ERROR, "failed") } else { (StatusCode::OK, "passed") };
    text.push_str(&format!("{kind} check {verdict}\n"));
    respond::text(code, text)
}
