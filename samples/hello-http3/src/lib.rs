//! Says hello through the asynchronous `wasi:http` of WASI 0.3. One instance may answer many requests.
//!
//! `/` the page · `/wait?ms=N` the page after a while · `/count` requests that this instance has answered · `/healthz`

use std::{
    env,
    sync::atomic::{AtomicU64, Ordering},
};

use wasip3::{
    clocks::monotonic_clock,
    exports::http::handler::Guest,
    http::types::{ErrorCode, Fields, Request, Response},
    wit_bindgen, wit_future, wit_stream,
};

struct Hello;

wasip3::http::service::export!(Hello);

static ANSWERED: AtomicU64 = AtomicU64::new(0);

impl Guest for Hello {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = request.get_path_with_query().unwrap_or_default();
        let (status, text) = answer(&target).await;
        ANSWERED.fetch_add(1, Ordering::Relaxed);
        respond(status, text)
    }
}

async fn answer(target: &str) -> (u16, String) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    match path {
        "/" => (200, page()),
        "/wait" => {
            let ms: u64 = query.strip_prefix("ms=").and_then(|ms| ms.parse().ok()).unwrap_or(100);
            monotonic_clock::wait_for(ms.saturating_mul(1_000_000)).await;
            (200, page())
        }
        "/count" => (200, format!("{}\n", ANSWERED.load(Ordering::Relaxed))),
        "/healthz" => (200, "ok\n".to_owned()),
        _ => (404, format!("nothing at {path}\n")),
    }
}

fn page() -> String {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let pod = variable("POD_NAME").or_else(|| variable("HOSTNAME")).unwrap_or_else(|| "an unnamed pod".to_owned());
    format!("Hello from hello-http3 on {pod}\n")
}

fn respond(status: u16, text: String) -> Result<Response, ErrorCode> {
    let headers = Fields::new();
    headers.set("content-type", &[b"text/plain; charset=utf-8".to_vec()]).expect("a valid header");
    let (mut body, contents) = wit_stream::new();
    let (trailers_out, trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(headers, Some(contents), trailers);
    response.set_status_code(status).expect("a valid status");
    drop(trailers_out);
    wit_bindgen::spawn_local(async move {
        // What is left over was for a client that hung up.
        body.write_all(text.into_bytes()).await;
    });
    Ok(response)
}
