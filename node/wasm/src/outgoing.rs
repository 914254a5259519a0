//! Requests that guests send: from inside their pod, over connections that are kept for the next request.

use std::{
    error::Error as StdError,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri, uri::Scheme};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};
use tokio_rustls::TlsConnector;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::{
    network::{DialError, Dialer},
    resolver,
};

/// Connections that one container holds at once.
const CONNECTIONS: usize = 512;
const IDLE_EACH_HOST: usize = 32;
const IDLE_TIME: Duration = Duration::from_secs(30);
/// Where the guest sets no limit.
const ANSWER_TIME: Duration = Duration::from_secs(600);

/// One container's client, cheap to clone.
#[derive(Clone)]
pub(crate) struct Outgoing(Arc<Inner>);

struct Inner {
    connector: Connector,
    client: OnceLock<Client<Connector, WasiBody>>,
}

impl Outgoing {
    pub(crate) fn new(dialer: Dialer) -> Outgoing {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let connector = Connector { dialer: Arc::new(dialer), permits, tls: Arc::default() };
        Outgoing(Arc::new(Inner { connector, client: OnceLock::new() }))
    }

    pub(crate) fn dialer(&self) -> &Arc<Dialer> {
        &self.0.connector.dialer
    }

    /// Made at the first request: most components send none.
    fn client(&self) -> Client<Connector, WasiBody> {
        let make = || {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIME)
                .pool_max_idle_per_host(IDLE_EACH_HOST)
                .build(self.0.connector.clone())
        };
        self.0.client.get_or_init(make).clone()
    }
}

type Sent = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _sent: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let client = self.client();
        let options = options.unwrap_or_default();
        Box::new(async move {
            let first = options.first_byte_timeout.unwrap_or(ANSWER_TIME);
            let wait = first.saturating_add(options.connect_timeout.unwrap_or_default());
            let answer = tokio::time::timeout(wait, client.request(request)).await;
            let answer = answer.map_err(|_| Error::ConnectionReadTimeout)?.map_err(|error| translate(&error))?;
            let between = options.between_bytes_timeout.unwrap_or(ANSWER_TIME);
            let answer = answer.map(|body| Timed::new(body, between).boxed_unsync());
            let done: Box<dyn Future<Output = Result<(), Error>> + Send> = Box::new(std::future::ready(Ok(())));
            Ok((answer, done))
        })
    }
}

/// What a guest is told about a failed request.
fn translate(error: &hyper_util::client::legacy::Error) -> Error {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(failed) = current.downcast_ref::<ConnectError>() {
            return failed.for_guest();
        }
        cause = current.source();
    }
    if error.is_connect() { Error::DestinationUnavailable } else { Error::ConnectionTerminated }
}

#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("the request names no host")]
    NoHost,
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("too many connections")]
    TooMany,
    #[error("TLS: {0}")]
    Tls(io::Error),
}

impl ConnectError {
    fn for_guest(&self) -> Error {
        match self {
            ConnectError::NoHost => Error::HttpRequestUriInvalid,
            ConnectError::TooMany => Error::ConnectionLimitReached,
            ConnectError::Tls(_) => Error::TlsProtocolError,
            ConnectError::Dial(DialError::Timeout) => Error::ConnectionTimeout,
            ConnectError::Dial(DialError::Connect { source, .. }) => match source.kind() {
                io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
                io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => Error::DestinationIpUnroutable,
                _ => Error::DestinationUnavailable,
            },
            ConnectError::Dial(DialError::Resolve(error)) => match error {
                resolver::Error::Timeout { .. } => Error::DnsTimeout,
                resolver::Error::NotFound { .. } => {
                    Error::DnsError { rcode: Some("NXDOMAIN".to_owned()), info_code: None }
                }
                other => Error::DnsError { rcode: Some(other.to_string()), info_code: None },
            },
        }
    }
}

#[derive(Clone)]
struct Connector {
    dialer: Arc<Dialer>,
    permits: Arc<Semaphore>,
    tls: Arc<OnceLock<TlsConnector>>,
}

impl Connector {
    async fn connect(self, uri: Uri) -> Result<TokioIo<Wire>, ConnectError> {
        let host = uri.host().ok_or(ConnectError::NoHost)?;
        let secure = uri.scheme() == Some(&Scheme::HTTPS);
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| ConnectError::TooMany)?;
        let stream = self.dialer.connect(host, port).await?;
        let stream: Box<dyn Duplex> = if secure {
            let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let name = ServerName::try_from(name).map_err(|_| ConnectError::NoHost)?;
            let connector = self.tls.get_or_init(tls).clone();
            Box::new(connector.connect(name, stream).await.map_err(ConnectError::Tls)?)
        } else {
            Box::new(stream)
        };
        Ok(TokioIo::new(Wire { stream, _permit: permit }))
    }
}

fn tls() -> TlsConnector {
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.into() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    // The provider is the one that the versions are safe with.
    let config = versions.map(|builder| builder.with_root_certificates(roots).with_no_client_auth());
    match config {
        Ok(config) => TlsConnector::from(Arc::new(config)),
        Err(error) => unreachable!("ring supports TLS 1.2 and 1.3: {error}"),
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = Box<dyn StdError + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(uri).await.map_err(Into::into) })
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

struct Wire {
    stream: Box<dyn Duplex>,
    _permit: OwnedSemaphorePermit,
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A body that must not fall silent for longer than the guest allows.
struct Timed {
    body: Incoming,
    between: Duration,
    silence: Pin<Box<Sleep>>,
}

impl Timed {
    fn new(body: Incoming, between: Duration) -> Timed {
        Timed { body, between, silence: Box::pin(tokio::time::sleep(between)) }
    }
}

impl Body for Timed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.silence.as_mut().reset(tokio::time::Instant::now() + this.between);
            return Poll::Ready(frame.map(|frame| frame.map_err(Error::from)));
        }
        match this.silence.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err(Error::ConnectionReadTimeout))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
