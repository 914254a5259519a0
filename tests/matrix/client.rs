//! One client with one connection at a time, which turns to the next member when one does not answer.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tandem_tests::https::{Access, Answer, Connection, Failure};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use crate::{DEADLINE, objects::Refusal};

/// How long a client gives a member before it asks the next one.
const PATIENCE: Duration = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 1 });
/// A client that was refused tries again no sooner.
const PAUSE: Duration = Duration::from_millis(20);

/// What became of all requests of a load.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Writes that were acknowledged.
    pub(crate) acknowledged: AtomicU64,
    /// Answers 5xx and 429.
    pub(crate) refused: AtomicU64,
    /// No answer, though the request was sent, or nobody who took it.
    pub(crate) lost: AtomicU64,
    /// Members that could not be reached, so that the request went to another one.
    pub(crate) turned: AtomicU64,
    /// What was said of requests that failed.
    reasons: Mutex<BTreeMap<String, u64>>,
}

/// Different reasons that are kept.
const REASONS_MAX: usize = 20;

impl Tally {
    /// Requests that a client sees fail.
    pub(crate) fn failed(&self) -> u64 {
        self.refused.load(Ordering::Relaxed) + self.lost.load(Ordering::Relaxed)
    }

    fn note(&self, reason: String) {
        let mut reasons = self.reasons.lock();
        if reasons.len() < REASONS_MAX || reasons.contains_key(&reason) {
            *reasons.entry(reason).or_default() += 1;
        }
    }

    pub(crate) fn reasons(&self) -> String {
        let reasons = self.reasons.lock();
        reasons.iter().map(|(reason, count)| format!("  {count} x {reason}\n")).collect()
    }
}

pub(crate) fn count(number: &AtomicU64) {
    number.fetch_add(1, Ordering::Relaxed);
}

/// What all clients of a load have in common.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) access: Access,
    pub(crate) servers: watch::Receiver<Vec<SocketAddr>>,
    pub(crate) tally: Arc<Tally>,
}

pub(crate) struct Client {
    common: Common,
    place: usize,
    connection: Option<(SocketAddr, Connection)>,
}

impl Client {
    pub(crate) fn new(common: Common, place: usize) -> Client {
        Client { common, place, connection: None }
    }

    /// The member that is asked at the moment, by the last number of its address.
    pub(crate) fn member(&self) -> u64 {
        match self.server() {
            SocketAddr::V4(server) => u64::from(server.ip().octets()[3]),
            SocketAddr::V6(_) => 0,
        }
    }

    pub(crate) fn server(&self) -> SocketAddr {
        let servers = self.common.servers.borrow();
        servers[self.place % servers.len()]
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.common.tally
    }

    pub(crate) fn turn(&mut self) {
        self.connection = None;
        self.place += 1;
    }

    async fn connected(&mut self) -> Result<(SocketAddr, &mut Connection), Failure> {
        let server = self.server();
        if self.connection.as_ref().is_none_or(|(to, _)| *to != server) {
            self.connection = Some((server, Connection::open(&self.common.access, server).await?));
        }
        let (server, connection) = self.connection.as_mut().expect("it was made");
        Ok((*server, connection))
    }

    /// Asks one member after the other until one takes the request; `None` when what became of it is not known.
    pub(crate) async fn ask(&mut self, method: Method, path: &str, body: &Bytes) -> Result<Answer, Failure> {
        let members = self.common.servers.borrow().len();
        let mut last = Failure::Unsent("nobody was asked".to_owned());
        for _ in 0..=members {
            let asking = async {
                let (server, connection) = self.connected().await?;
                connection.ask(server, method.clone(), path, body.clone()).await
            };
            let asked = timeout(PATIENCE, asking).await;
            match asked.unwrap_or_else(|_| Err(Failure::Lost("no answer in time".to_owned()))) {
                Ok(answer) => {
                    self.judge(&answer).await;
                    return Ok(answer);
                }
                Err(failure @ Failure::Lost(_)) => {
                    count(&self.tally().lost);
                    self.tally().note(format!("{method}: {failure:?}"));
                    self.turn();
                    return Err(failure);
                }
                Err(failure) => {
                    count(&self.tally().turned);
                    self.turn();
                    last = failure;
                }
            }
        }
        count(&self.tally().lost);
        self.tally().note(format!("{last:?}"));
        pause().await;
        Err(last)
    }

    /// Asks until it is done, by any member; what is there already counts as done.
    pub(crate) async fn insist(&mut self, method: Method, path: &str, body: &Bytes) -> Answer {
        let ends = Instant::now() + DEADLINE;
        loop {
            let answer = self.ask(method.clone(), path, body).await;
            match answer {
                Ok(answer) if answer.status.is_success() || answer.status == StatusCode::CONFLICT => return answer,
                other => assert!(Instant::now() < ends, "{method} {path}: {other:?}"),
            }
            pause().await;
        }
    }

    /// Turns to another member when this one cannot do it.
    async fn judge(&mut self, answer: &Answer) {
        if answer.status.is_server_error() || answer.status == StatusCode::TOO_MANY_REQUESTS {
            count(&self.tally().refused);
            let refusal = serde_json::from_slice::<Refusal>(&answer.body).unwrap_or_default();
            self.tally().note(format!("{} {}", answer.status, refusal.message));
            self.turn();
            pause().await;
        }
    }

    /// Begins a watch.
    pub(crate) async fn begin(&mut self, path: &str) -> Result<http::Response<Incoming>, Failure> {
        let beginning = async {
            let (server, connection) = self.connected().await?;
            connection.begin(server, Method::GET, path, Bytes::new()).await
        };
        timeout(PATIENCE, beginning).await.unwrap_or_else(|_| Err(Failure::Lost("no answer in time".to_owned())))
    }
}

pub(crate) async fn pause() {
    tokio::time::sleep(PAUSE).await;
}
