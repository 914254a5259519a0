//! One connection to one member that carries many calls at a time, and is made again whenever it is lost.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, interval, sleep_until, timeout},
};

use crate::{
    Error, Identity,
    dialer::{self, Connection},
    frame::{Frame, Lane},
};

/// Calls that wait for their answers at once, sent or not; more are refused.
pub(crate) const CALLS_MAX: usize = 1024;
/// The pause after a failed attempt to connect, doubled by each further one up to the longest.
const BACKOFF: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// How often a connection with open calls is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// A connection that was silent for this long is asked for a sign of life.
const QUIET: Duration = Duration::from_millis(500);
/// A connection that gave none for this long is given up.
const SILENCE_MAX: Duration = Duration::from_millis(1500);
/// A connection that nobody needed for this long is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long the other side may take to take what is sent.
const SEND_MAX: Duration = Duration::from_secs(5);

type Answer = Result<Bytes, Error>;

/// One call on its way.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) body: Bytes,
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// Where a lane leads.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) identity: Arc<Identity>,
    pub(crate) member: u64,
    pub(crate) address: String,
    pub(crate) lane: Lane,
}

#[derive(Debug, Default)]
struct Open {
    calls: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
}

impl Open {
    fn answer(&self, id: u64, answer: Answer) {
        // Whoever asked may have stopped waiting.
        if let Some(sender) = self.calls.lock().remove(&id) {
            let _given_up = sender.send(answer);
        }
    }

    fn fail_all(&self, error: &Error) {
        for (_, sender) in self.calls.lock().drain() {
            let _given_up = sender.send(Err(error.clone()));
        }
    }

    fn count(&self) -> usize {
        self.calls.lock().len()
    }
}

/// Serves a lane until nobody can ask any more.
pub(crate) async fn run(route: Route, mut asks: mpsc::Receiver<Ask>) {
    let mut pause = BACKOFF;
    while let Some(first) = asks.recv().await {
        match dialer::dial(&route.identity, route.member, &route.address, route.lane).await {
            Ok(connection) => {
                pause = BACKOFF;
                converse(connection, first, &mut asks).await;
            }
            Err(error) => {
                tracing::debug!(member = route.member, address = route.address, %error, "a member cannot be reached");
                let _given_up = first.answer.send(Err(error.clone()));
                refuse(&mut asks, &error, Instant::now() + pause).await;
                pause = (pause * 2).min(BACKOFF_MAX);
            }
        }
    }
}

/// Answers with why the last attempt failed, until the next one is due.
async fn refuse(asks: &mut mpsc::Receiver<Ask>, error: &Error, until: Instant) {
    loop {
        tokio::select! {
            () = sleep_until(until) => return,
            ask = asks.recv() => match ask {
                Some(ask) => drop(ask.answer.send(Err(error.clone()))),
                None => return,
            },
        }
    }
}

async fn converse(connection: Connection, first: Ask, asks: &mut mpsc::Receiver<Ask>) {
    let open = Open::default();
    let (sink, stream) = connection.split();
    let (pings, pinged) = mpsc::channel(1);
    let ended = tokio::select! {
        ended = send(sink, &open, first, asks, pinged) => ended,
        ended = receive(stream, &open, pings) => ended,
    };
    let error = Error::Lost(ended.map_or_else(|error| error.to_string(), |()| "nobody needed it".to_owned()));
    open.fail_all(&error);
}

async fn send(
    mut sink: SplitSink<Connection, Frame>,
    open: &Open,
    first: Ask,
    asks: &mut mpsc::Receiver<Ask>,
    mut pinged: mpsc::Receiver<()>,
) -> io::Result<()> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it takes nothing that is sent");
    let (mut id, mut fed) = (0, false);
    let mut next = Some(first);
    loop {
        if fed && next.is_none() && asks.is_empty() {
            timeout(SEND_MAX, sink.flush()).await.map_err(late)??;
            fed = false;
        }
        let frame = match next.take() {
            Some(Ask { answer, .. }) if answer.is_closed() => None,
            Some(Ask { body, answer }) => {
                id += 1;
                open.calls.lock().insert(id, answer);
                Some(Frame::Call { id, body })
            }
            None => tokio::select! {
                ask = asks.recv() => match ask {
                    Some(Ask { answer, .. }) if open.count() >= CALLS_MAX => {
                        let _given_up = answer.send(Err(Error::Full(CALLS_MAX)));
                        None
                    }
                    Some(ask) => {
                        next = Some(ask);
                        None
                    }
                    None => return Ok(()),
                },
                Some(()) = pinged.recv() => Some(Frame::Ping),
            },
        };
        if let Some(frame) = frame {
            timeout(SEND_MAX, sink.feed(frame)).await.map_err(late)??;
            fed = true;
        }
    }
}

async fn receive(mut stream: SplitStream<Connection>, open: &Open, pings: mpsc::Sender<()>) -> io::Result<()> {
    let mut look = interval(LOOK);
    let mut heard = Instant::now();
    let mut needed = Instant::now();
    loop {
        let frame = tokio::select! {
            frame = stream.next() => frame,
            _ = look.tick() => {
                let now = Instant::now();
                if open.count() == 0 {
                    heard = now;
                    if now - needed > IDLE_MAX {
                        return Ok(());
                    }
                    continue;
                }
                needed = now;
                if now - heard > SILENCE_MAX {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "it gives no sign of life"));
                }
                if now - heard > QUIET {
                    // One that waits to be sent already is as good.
                    let _waiting = pings.try_send(());
                }
                continue;
            }
        };
        heard = Instant::now();
        match frame {
            Some(Ok(Frame::Answer { id, body })) => open.answer(id, Ok(body)),
            Some(Ok(Frame::Failure { id, why })) => open.answer(id, Err(Error::Failed(why))),
            Some(Ok(Frame::Pong)) => {}
            Some(Ok(_)) => return Err(io::Error::other("it sent what nobody asked for")),
            Some(Err(error)) => return Err(error),
            None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")),
        }
    }
}
