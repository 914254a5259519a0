//! Shares a pod with a container and talks to it over localhost.
//!
//! `/self` answers by itself · anything else is fetched from the container at `BACKEND` and passed on

use std::{
    env,
    io::{Read, Write},
};

use wasip2::{
    exports::http::incoming_handler::Guest,
    http::{
        outgoing_handler,
        types::{
            ErrorCode, Fields, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam, Scheme,
        },
    },
};

struct Mixed;

wasip2::http::proxy::export!(Mixed);

const BACKEND: &str = "127.0.0.1:80";

impl Guest for Mixed {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_else(|| "/".to_owned());
        let backend = env::var("BACKEND").unwrap_or_else(|_| BACKEND.to_owned());
        let (status, body) = if target == "/self" {
            (200, b"the component answers\n".to_vec())
        } else {
            fetch(&backend, &target).unwrap_or_else(|error| (502, format!("{backend}{target}: {error:?}\n").into_bytes()))
        };
        respond(out, status, &body);
    }
}

/// The status and the body that the backend answers with.
fn fetch(authority: &str, target: &str) -> Result<(u16, Vec<u8>), ErrorCode> {
    let wrong = |()| ErrorCode::HttpRequestUriInvalid;
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&Scheme::Http)).map_err(wrong)?;
    request.set_authority(Some(authority)).map_err(wrong)?;
    request.set_path_with_query(Some(target)).map_err(wrong)?;
    let pending = outgoing_handler::handle(request, None)?;
    pending.subscribe().block();
    let response = pending.get().expect("it is ready").expect("it is taken once")?;
    let body = response.consume().expect("the body is taken once");
    let mut bytes = Vec::new();
    let mut stream = body.stream().expect("the stream is taken once");
    stream.read_to_end(&mut bytes).map_err(|error| ErrorCode::InternalError(Some(error.to_string())))?;
    Ok((response.status(), bytes))
}

fn respond(out: ResponseOutparam, status: u16, text: &[u8]) {
    let response = OutgoingResponse::new(Fields::new());
    response.set_status_code(status).expect("a valid status");
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(out, Ok(response));
    let mut stream = body.write().expect("the stream is taken once");
    let written = stream.write_all(text).and_then(|()| Write::flush(&mut stream));
    drop(stream);
    if written.is_ok() {
        let _ = OutgoingBody::finish(body, None);
    }
}
