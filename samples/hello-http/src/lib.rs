//! Says hello, with the version that it was built as and the pod that it runs in.
//!
//! `/` the page · `/env?name=X` the variable X · `/version` · `/healthz`

use std::{env, io::Write};

use wasip2::{
    exports::http::incoming_handler::Guest,
    http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam},
};

/// Set by the build, so that two builds of the sample differ in their page.
const VERSION: &str = env!("HELLO_VERSION");

struct Hello;

wasip2::http::proxy::export!(Hello);

impl Guest for Hello {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (status, text) = answer(&target);
        respond(out, status, &text);
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn answer(target: &str) -> (u16, String) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    match path {
        "/" => {
            let greeting = variable("GREETING").unwrap_or_else(|| "Hello".to_owned());
            let pod = variable("POD_NAME").or_else(|| variable("HOSTNAME")).unwrap_or_else(|| "an unnamed pod".to_owned());
            (200, format!("{greeting} from hello-http, version {VERSION}, on {pod}\n"))
        }
        "/env" => match query.strip_prefix("name=").and_then(variable) {
            Some(value) => (200, format!("{value}\n")),
            None => (404, "no such variable\n".to_owned()),
        },
        "/version" => (200, format!("{VERSION}\n")),
        "/healthz" => (200, "ok\n".to_owned()),
        _ => (404, format!("nothing at {path}\n")),
    }
}

fn respond(out: ResponseOutparam, status: u16, text: &str) {
    let headers = Fields::new();
    headers.set("content-type", &[b"text/plain; charset=utf-8".to_vec()]).expect("a valid header");
    let response = OutgoingResponse::new(headers);
    response.set_status_code(status).expect("a valid status");
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(out, Ok(response));
    let mut stream = body.write().expect("the stream is taken once");
    // A client that hung up is no reason to fail.
    let written = stream.write_all(text.as_bytes()).and_then(|()| Write::flush(&mut stream));
    drop(stream);
    if written.is_ok() {
        let _ = OutgoingBody::finish(body, None);
    }
}
