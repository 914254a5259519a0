use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use http::{Method, Request, Response, StatusCode, header, uri::Scheme};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::sync::oneshot;
use wasmtime::{Store, component::Accessor};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::{
    WasiBody, WasiHttpView,
    p2::bindings::{ProxyPre, http::types::Scheme as GuestScheme},
    p3::{self, bindings::ServicePre},
};

use super::{
    Admission, Place, Service,
    connection::{Answer, Hold, plain},
};
use crate::{
    engine::{Guest, GuestStreams, Handler, Pulse, is_out_of_room, trap_text},
    notices::Notice,
    output::Output,
};

/// The longest that one request with its answer's body may take.
const LIFE_TIME: Duration = Duration::from_secs(3600);
/// The part of a trap's text that fits into an event.
const NOTICE_BYTES: usize = 900;

/// Why an instance gave no answer.
enum Failure {
    /// The pool has no slot, though the semaphore had a permit, or the node no memory.
    Busy,
    /// The guest itself answered with an error.
    Declined,
}

type Reply = Result<Response<WasiBody>, Failure>;

/// Has a fresh instance answer the request.
pub(super) async fn respond(
    service: &Arc<Service>,
    admission: Admission,
    request: Request<Incoming>,
) -> Response<Answer> {
    let (sender, receiver) = oneshot::channel();
    let pulse = Arc::new(Pulse::default());
    let place = Place::take(service.clone(), pulse.clone());
    let mut hold = Hold::new(pulse.clone());
    let wants_body = request.method() != Method::HEAD;
    let guest = run(service.clone(), admission, place, request, sender);
    service.lanes.run_express(service.cpu.clone(), pulse, guest);
    match tokio::time::timeout(service.limits.answer_time, receiver).await {
        Ok(Ok(Ok(response))) => {
            let is_empty = response.body().is_end_stream() || response.body().size_hint().exact() == Some(0);
            if is_empty || !wants_body {
                // Nobody will fetch it, and that is no sign that the client has gone.
                hold.release();
            }
            response.map(|body| Answer::Guest { body, hold })
        }
        Ok(Ok(Err(Failure::Busy))) => {
            service.metrics.rejected.fetch_add(1, Ordering::Relaxed);
            let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, "this node has no room for another instance\n");
            response.headers_mut().insert(header::RETRY_AFTER, http::HeaderValue::from_static("1"));
            response
        }
        Ok(Ok(Err(Failure::Declined))) => {
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the component answered with an error\n")
        }
        Ok(Err(_)) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the component failed before it answered\n"),
        Err(_) => plain(StatusCode::GATEWAY_TIMEOUT, "the component did not answer in time\n"),
    }
}

async fn run(
    service: Arc<Service>,
    admission: Admission,
    place: Place,
    request: Request<Incoming>,
    sender: oneshot::Sender<Reply>,
) {
    let streams = GuestStreams {
        stdin: None,
        stdout: Output::log(service.log.clone(), "stdout"),
        stderr: Output::log(service.log.clone(), "stderr"),
    };
    let mut store = service.blueprint.store(&service.engine, &service.blueprint.args, streams);
    service.metrics.instances.fetch_add(1, Ordering::Relaxed);
    let answering = async {
        match service.handler() {
            Some(Handler::Release2(pre)) => release2(pre, &mut store, request, sender).await,
            Some(Handler::Release3(pre)) => release3(pre, &mut store, request, sender).await,
            None => Err(wasmtime::Error::msg("the component exports no HTTP handler")),
        }
    };
    let ended = match tokio::time::timeout(LIFE_TIME, answering).await {
        Ok(ended) => ended,
        Err(_) => Err(wasmtime::Error::msg("an instance lived longer than a request may take")),
    };
    // In this order: its memory is free before another instance may begin.
    drop(store);
    drop((admission, place));
    match ended {
        // It ended itself, content.
        Err(error) if matches!(error.downcast_ref(), Some(I32Exit(0))) => {}
        Err(error) => failed(&service, &error),
        Ok(()) => {}
    }
}

fn failed(service: &Service, error: &wasmtime::Error) {
    if is_out_of_room(error) {
        tracing::warn!(%error, container = service.container, "the node has no room for another instance");
        return;
    }
    service.metrics.traps.fetch_add(1, Ordering::Relaxed);
    let Some(held_back) = service.pace.pass(Instant::now()) else { return };
    let mut message = trap_text(error);
    if message.len() > NOTICE_BYTES {
        let end = (0..=NOTICE_BYTES).rev().find(|index| message.is_char_boundary(*index)).unwrap_or(0);
        message.truncate(end);
    }
    if held_back > 0 {
        message = format!("{message}\n({held_back} more since the last notice)");
    }
    tracing::info!(container = service.container, %message, "an instance failed");
    // Whoever reads the log of the container looks for it there.
    Output::log(service.log.clone(), "stderr").line(&message);
    service.notices.publish(Notice { container: service.container.clone(), reason: "Trapped", message, warning: true });
}

async fn release2(
    pre: &ProxyPre<Guest>,
    store: &mut Store<Guest>,
    request: Request<Incoming>,
    sender: oneshot::Sender<Reply>,
) -> Result<(), wasmtime::Error> {
    let proxy = match pre.instantiate_async(&mut *store).await {
        Ok(proxy) => proxy,
        Err(error) => return Err(not_begun(error, store.data(), sender)),
    };
    let mut view = store.data_mut().http();
    let request = view.new_incoming_request(GuestScheme::Http, request)?;
    let out = view.new_response_outparam_from_callback(move |answer| {
        // A client that has gone waits for no answer.
        drop(sender.send(answer.map_err(|_| Failure::Declined)));
    })?;
    proxy.wasi_http_incoming_handler().call_handle(&mut *store, request, out).await
}

async fn release3(
    pre: &ServicePre<Guest>,
    store: &mut Store<Guest>,
    request: Request<Incoming>,
    sender: oneshot::Sender<Reply>,
) -> Result<(), wasmtime::Error> {
    let service = match pre.instantiate_async(&mut *store).await {
        Ok(service) => service,
        Err(error) => return Err(not_begun(error, store.data(), sender)),
    };
    let authority = request.uri().authority().cloned().or_else(|| {
        request.headers().get(header::HOST).and_then(|host| http::uri::Authority::try_from(host.as_bytes()).ok())
    });
    let handle = async |accessor: &Accessor<Guest>| -> Result<(), wasmtime::Error> {
        let (request, sent) = accessor.with(|mut access| {
            let (mut request, sent) = p3::Request::from_http(access.data_mut().http().hooks, request);
            request.scheme = Some(Scheme::HTTP);
            request.authority = authority;
            let sent: Pin<Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>> = Box::pin(sent);
            (request, sent)
        });
        let answer = match service.handle(accessor, request).await? {
            Ok(response) => accessor.with(|mut access| response.into_http(&mut access, sent)).map(Ok)?,
            Err(_) => Err(Failure::Declined),
        };
        // A client that has gone waits for no answer.
        drop(sender.send(answer));
        // The guest may still be writing the body, or finish other work.
        poll_fn(|context| accessor.poll_no_interesting_tasks(context)).await;
        Ok(())
    };
    store.run_concurrent(handle).await?
}

fn not_begun(error: wasmtime::Error, guest: &Guest, sender: oneshot::Sender<Reply>) -> wasmtime::Error {
    let error = guest.explain(error);
    if is_out_of_room(&error) {
        drop(sender.send(Err(Failure::Busy)));
    }
    error
}
