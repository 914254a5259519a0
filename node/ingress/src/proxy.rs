//! One request from end to end: checked, routed, sent to an endpoint, answered.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body::Body as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use rand::Rng as _;
use tandem_client::wake::Wake;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    answer::{Body, Held, Refusal},
    hold::Holds,
    metrics::{Ended, Metrics},
    patience::{Activity, Progress, Upload},
    places::{Places, share_of_files},
    pool::{Lent, Pool, Unsent},
    request::{self, Client},
    routes::{Backend, Protocol, Reach, Table, normal_host},
    tunnel,
};

/// Requests that run at a time, where the process may have files enough, and of one address among them.
const REQUESTS_MAX: usize = 16_384;
const REQUESTS_PER_ADDRESS_MAX: usize = 2_048;
/// Endpoints that are tried for one request.
const ATTEMPTS_MAX: usize = 4;
/// From the last that was sent of a request to the head of its answer.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(60);

/// What is known of the connection that a request comes on.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) client: Client,
    /// The name that the client gave in the TLS handshake.
    pub(crate) server_name: Option<String>,
    pub(crate) activity: Arc<Activity>,
}

pub(crate) struct Proxy {
    table: watch::Receiver<Arc<Table>>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) metrics: Metrics,
    requests: Arc<Semaphore>,
    places: Arc<Places>,
    holds: Holds,
    shutdown: CancellationToken,
}

impl Proxy {
    pub(crate) fn new(
        table: watch::Receiver<Arc<Table>>,
        metrics: Metrics,
        wake: Wake,
        shutdown: CancellationToken,
    ) -> Proxy {
        let requests_max = share_of_files(REQUESTS_MAX);
        let requests = Arc::new(Semaphore::new(requests_max));
        let places = Arc::new(Places::new(REQUESTS_PER_ADDRESS_MAX.min(requests_max)));
        Proxy { table, pool: Arc::default(), metrics, requests, places, holds: Holds::new(wake), shutdown }
    }

    pub(crate) fn table(&self) -> Arc<Table> {
        self.table.borrow().clone()
    }

    /// Answers a request, whatever happens.
    pub(crate) async fn handle(
        self: Arc<Self>,
        origin: Arc<Origin>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let version = request.version();
        let running = origin.activity.begin(version == Version::HTTP_2);
        let mut ended = Ended::new(&self.metrics, &request, origin.client);
        let permit = self.requests.clone().try_acquire_owned().ok();
        let place = self.places.take(origin.client.address.to_canonical());
        let mut held = Held { running: Some(running), permit, place, ended: None };
        let answer = match (&held.permit, &held.place) {
            (_, None) => {
                Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "this client has too many requests at a time"))
            }
            (None, _) => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the ingress has too many requests")),
            (Some(_), Some(_)) => self.answer(&origin, request, &mut ended, &mut held).await,
        };
        let mut response = answer.unwrap_or_else(|refusal| refusal.response(version));
        ended.answered(response.status());
        // A tunnel holds what it needs for as long as it lasts.
        held.ended = Some(ended);
        response.body_mut().hold(held);
        Ok(response)
    }

    async fn answer(
        &self,
        origin: &Origin,
        request: Request<Incoming>,
        ended: &mut Ended,
        held: &mut Held,
    ) -> Result<Response<Body>, Refusal> {
        let (parts, body) = request.into_parts();
        let asked = request::asked(&parts)?;
        let table = self.table();
        if let Some(name) = &origin.server_name
            && !table.certificates.share(&normal_host(name), &asked.host)
        {
            let why = "this connection was opened for another host";
            return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, why));
        }
        let unrouted = || Refusal::new(StatusCode::NOT_FOUND, "no Ingress has this host and path");
        let mut backend = table.route(&asked.host, &asked.path).ok_or_else(unrouted)?.clone();
        drop(table);
        ended.routed(&backend);
        if let Some(workload) = backend.asleep().cloned() {
            let way = (asked.host.as_str(), asked.path.as_str());
            backend = self.holds.awake(self.table.clone(), way, &workload, &self.metrics).await?;
        }
        let (addresses, protocol) = reach(&backend)?;
        let upgrade = request::upgrade(parts.version, &parts.headers).filter(|_| protocol == Protocol::Http1);
        let mut request = Request::from_parts(parts, body);
        let client_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let progress = Progress::new();
        let request = request.map(|body| Upload::new(body, progress.clone()));
        let request = request::prepare(request, &asked, origin.client, protocol, upgrade.as_ref())?;
        let sent = Sent { proxy: self, addresses, protocol, progress };
        let (response, lent) = sent.send(request, upgrade.is_some()).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(response, client_side, held);
        }
        let mut response = response.map(|body| Body::relayed(body, lent, &self.pool));
        request::strip(response.headers_mut());
        Ok(response)
    }

    /// Connects both ends of an upgrade, for as long as they want.
    fn switch(
        &self,
        mut response: Response<Incoming>,
        client_side: Option<OnUpgrade>,
        held: &mut Held,
    ) -> Result<Response<Body>, Refusal> {
        let Some(client_side) = client_side else {
            return Err(Refusal::new(StatusCode::BAD_GATEWAY, "the backend changed the protocol unasked"));
        };
        let backend_side = hyper::upgrade::on(&mut response);
        let (running, permit) = (held.running.take(), held.permit.take());
        let lasting = Held { running, permit, place: held.place.take(), ended: None };
        tokio::spawn(tunnel::run(client_side, backend_side, self.metrics.tunnel(), lasting, self.shutdown.clone()));
        let to = response.headers().get(header::UPGRADE).cloned();
        let mut response = response.map(|_| Body::empty());
        request::strip(response.headers_mut());
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(to) = to {
            response.headers_mut().insert(header::UPGRADE, to);
        }
        Ok(response)
    }
}

fn reach(backend: &Backend) -> Result<(&[SocketAddr], Protocol), Refusal> {
    let unavailable = |why: &str| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why);
    match &backend.reach {
        Reach::Nowhere(why) => Err(unavailable(why)),
        Reach::Endpoints(addresses, _) if addresses.is_empty() => {
            Err(unavailable("the Service of this path has no ready endpoints"))
        }
        Reach::Endpoints(addresses, protocol) => Ok((addresses, *protocol)),
    }
}

/// The head of a request that may be sent a second time.
struct Repeat {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
}

impl Repeat {
    /// Safe methods without a body change nothing, however often they arrive (RFC 9110, section 9.2.1).
    fn of(request: &Request<Upload>) -> Option<Repeat> {
        (request.method().is_safe() && request.body().is_end_stream()).then(|| Repeat {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
        })
    }

    fn request(&self, progress: &Arc<Progress>) -> Request<Upload> {
        let mut request = Request::new(Upload::empty(progress.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// A request that endpoints are tried for, one after another.
struct Sent<'a> {
    proxy: &'a Proxy,
    addresses: &'a [SocketAddr],
    protocol: Protocol,
    progress: Arc<Progress>,
}

impl Sent<'_> {
    /// Sends it to one endpoint, and to another only where the first cannot have seen it. What may have been seen is
    /// sent again only if that does no harm and the connection had been used before, whose server may have closed it.
    async fn send(self, mut request: Request<Upload>, upgrades: bool) -> Result<(Response<Incoming>, Lent), Refusal> {
        let repeat = Repeat::of(&request).filter(|_| !upgrades);
        let first = rand::rng().random_range(0..self.addresses.len());
        let turns = self.addresses.iter().cycle().skip(first).take(ATTEMPTS_MAX);
        let mut fresh = repeat.is_none();
        let mut why = None;
        let mut full = false;
        for address in turns {
            if why.is_some() {
                self.proxy.metrics.retried();
            }
            let mut lent = match self.proxy.pool.lend(*address, self.protocol, fresh).await {
                Ok(lent) => lent,
                Err(error) => {
                    full |= error.kind() == std::io::ErrorKind::QuotaExceeded;
                    why = Some(error.to_string());
                    continue;
                }
            };
            let answer = tokio::select! {
                answer = lent.send(request) => answer,
                () = self.progress.quiet(ANSWER_MAX) => {
                    return Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, "the backend does not answer in time"));
                }
            };
            match (answer, &repeat) {
                (Ok(response), _) => {
                    self.progress.set_answered();
                    return Ok((response, lent));
                }
                (Err(Unsent::Returned(back, error)), _) => {
                    (request, fresh) = (*back, true);
                    why = Some(error.to_string());
                }
                (Err(Unsent::Lost(error)), Some(repeat)) if lent.used => {
                    tracing::debug!(%address, %error, "sent again: the connection was being closed");
                    (request, fresh) = (repeat.request(&self.progress), true);
                    why = Some(error.to_string());
                }
                (Err(Unsent::Lost(error)), _) => return Err(self.lost(*address, &error)),
            }
        }
        tracing::debug!(why, "no endpoint takes the request");
        if full {
            let why = "the endpoints of the backend have as many requests as they take";
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
        }
        Err(Refusal::new(StatusCode::BAD_GATEWAY, "no endpoint of the backend takes the connection"))
    }

    fn lost(&self, address: SocketAddr, error: &hyper::Error) -> Refusal {
        if self.progress.is_stalled() {
            return Refusal::new(StatusCode::REQUEST_TIMEOUT, "the rest of the request did not come in time");
        }
        tracing::debug!(%address, %error, "a backend gave no answer");
        Refusal::new(StatusCode::BAD_GATEWAY, "the backend closed the connection without an answer")
    }
}

#[cfg(test)]
mod tests;
