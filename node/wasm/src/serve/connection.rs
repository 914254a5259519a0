use std::{
    convert::Infallible,
    io,
    os::fd::AsFd,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, server::conn::http1, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::net::{SocketFlags, accept_with, sockopt};
use tokio::{net::TcpStream, sync::OwnedSemaphorePermit};
use wasmtime_wasi_http::WasiBody;

use super::{Refusal, Service, instance};
use crate::engine::{Pulse, Seat};

/// A connection that says nothing is closed: at first, between requests, and in the middle of a head.
const FIRST_BYTE_TIME: Duration = Duration::from_secs(30);
const HEAD_TIME: Duration = Duration::from_secs(75);
const BUFFER_BYTES: usize = 64 * 1024;
const STREAMS: u32 = 128;
const H2_PING: Duration = Duration::from_secs(30);
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");
const CLOSE: HeaderValue = HeaderValue::from_static("close");
const NO_HOST: HeaderValue = HeaderValue::from_static("localhost");
/// How every HTTP/2 connection begins; no HTTP/1 method does.
const PREFACE: &[u8] = b"PRI";
/// How the agent's probes introduce themselves, as a kubelet's do.
const PROBE_AGENT: &[u8] = b"kube-probe/";

pub(super) fn accept(listener: &std::net::TcpListener) -> io::Result<std::net::TcpStream> {
    let stream = accept_with(listener.as_fd(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    sockopt::set_tcp_nodelay(&stream, true)?;
    Ok(std::net::TcpStream::from(stream))
}

pub(super) async fn serve(
    service: Arc<Service>,
    stream: std::net::TcpStream,
    _permit: OwnedSemaphorePermit,
    _seat: Seat,
) {
    let kill = service.kill.clone();
    tokio::select! {
        served = converse(service, stream) => {
            if let Err(error) = served {
                tracing::trace!(%error, "a connection ended");
            }
        }
        () = kill.cancelled() => {}
    }
}

type ServeError = Box<dyn std::error::Error + Send + Sync>;

async fn converse(service: Arc<Service>, stream: std::net::TcpStream) -> Result<(), ServeError> {
    let stream = TcpStream::from_std(stream)?;
    let wind_down = service.wind_down.clone();
    let is_http2 = tokio::select! {
        sniffed = tokio::time::timeout(FIRST_BYTE_TIME, is_http2(&stream)) => sniffed??,
        () = wind_down.cancelled() => return Ok(()),
    };
    let answer = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(answer(service, request).await) }
    });
    let io = TokioIo::new(stream);
    if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).max_concurrent_streams(STREAMS).keep_alive_interval(H2_PING);
        let mut connection = pin!(builder.serve_connection(io, answer));
        tokio::select! {
            served = connection.as_mut() => return Ok(served?),
            () = wind_down.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        return Ok(connection.await?);
    }
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(BUFFER_BYTES);
    let mut connection = pin!(builder.serve_connection(io, answer));
    tokio::select! {
        served = connection.as_mut() => return Ok(served?),
        () = wind_down.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

async fn is_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut head = [0; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut head).await?;
        if seen == 0 || head[..seen] != PREFACE[..seen] {
            return Ok(false);
        }
        if seen == PREFACE.len() {
            return Ok(true);
        }
        // The rest is on its way; until then looking again would find the same.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Answers one request, whatever happens.
async fn answer(service: Arc<Service>, mut request: Request<Incoming>) -> Response<Answer> {
    let began = Instant::now();
    if request.uri().authority().is_none() && !request.headers().contains_key(header::HOST) {
        // HTTP/1.0 needs no host, components do.
        request.headers_mut().insert(header::HOST, NO_HOST);
    }
    let is_http1 = request.version() < http::Version::HTTP_2;
    let is_probe =
        request.headers().get(header::USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(PROBE_AGENT));
    let mut response = match service.admit().await {
        Ok(admission) => instance::respond(&service, admission, request).await,
        Err(refusal) => refuse(&service, refusal),
    };
    if is_http1 && service.closing.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, CLOSE);
    }
    service.metrics.answered(response.status(), began.elapsed());
    if !is_probe {
        service.metrics.asked(began.elapsed());
    }
    response
}

fn refuse(service: &Service, refusal: Refusal) -> Response<Answer> {
    service.metrics.rejected.fetch_add(1, Ordering::Relaxed);
    let why = match refusal {
        Refusal::Full => "too many requests are waiting for an instance of this component\n",
        Refusal::Slow => "no instance of this component became free in time\n",
        Refusal::Closed => "this component is stopping\n",
    };
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, why);
    response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    response
}

/// An answer that the host itself gives.
pub(super) fn plain(status: StatusCode, text: &'static str) -> Response<Answer> {
    let mut response = Response::new(Answer::Host(Some(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The body of an answer.
pub(super) enum Answer {
    Host(Option<Bytes>),
    Guest { body: WasiBody, hold: Hold },
}

/// Ends the instance when its client has gone before the answer was complete.
pub(super) struct Hold(Option<Arc<Pulse>>);

impl Hold {
    pub(super) fn new(pulse: Arc<Pulse>) -> Hold {
        Hold(Some(pulse))
    }

    pub(super) fn release(&mut self) {
        self.0 = None;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(pulse) = self.0.take() {
            pulse.stop();
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, wasmtime_wasi_http::Error>>> {
        match self.get_mut() {
            Answer::Host(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Answer::Guest { body, hold } => {
                let polled = Pin::new(&mut *body).poll_frame(context);
                if matches!(polled, Poll::Ready(None)) || body.is_end_stream() {
                    hold.release();
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::Host(bytes) => bytes.is_none(),
            // Never said ahead of time: the instance is only let go once its last frame was fetched.
            Answer::Guest { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Host(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Answer::Guest { body, .. } => body.size_hint(),
        }
    }
}
