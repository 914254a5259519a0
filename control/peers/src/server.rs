//! The side of a connection that answers.

use std::{collections::HashMap, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    SinkExt as _, StreamExt as _,
    stream::{self, SplitSink, SplitStream},
};
use parking_lot::Mutex;
use tokio::{
    io::AsyncRead,
    net::TcpStream,
    runtime::Handle,
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{StartHandshake, server::TlsStream};
use tokio_util::{codec::Framed, io::StreamReader, sync::CancellationToken};

use crate::{
    Error, Identity, dialer,
    frame::{FRAME_BYTES_MAX, Frame, Frames, Lane, VERSION},
    lane::CALLS_MAX,
};

/// Connections of one member at a time: its lanes, twice after it lost them, and its transfers.
const CONNECTIONS_PER_MEMBER_MAX: usize = 12;
/// How long TLS and the greeting may take.
const GREETING_MAX: Duration = Duration::from_secs(5);
/// How long a frame may take to arrive once it has begun.
const FRAME_MAX: Duration = Duration::from_secs(10);
/// A connection on which nothing arrived for this long is closed; the other side closes idle ones sooner.
const IDLE_MAX: Duration = Duration::from_secs(120);
/// How long the other side may take to take its answers.
const SEND_MAX: Duration = Duration::from_secs(10);
/// Bytes of calls that are being answered on one connection; what follows waits in the socket.
const OPEN_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;
/// Files that arrive at the same time; a member needs one.
const TRANSFERS_MAX: usize = 1;
/// How often a member that works on a file says so.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// What a member does with what others ask. The transport looks into neither.
#[async_trait]
pub trait Answerer: Send + Sync + 'static {
    /// The member has proved to be this one.
    async fn answer(&self, member: u64, call: Bytes) -> Result<Bytes, String>;

    /// `file` ends in an error where not all of it arrives.
    async fn receive(
        &self,
        member: u64,
        header: Bytes,
        file: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<Bytes, String>;
}

/// Answers other members. Cloning shares it.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    identity: Arc<Identity>,
    answerer: Arc<dyn Answerer>,
    threads: Handle,
    shutdown: CancellationToken,
    connections: Mutex<HashMap<u64, usize>>,
    transfers: Semaphore,
}

impl Server {
    pub fn new(
        identity: Arc<Identity>,
        answerer: Arc<dyn Answerer>,
        threads: Handle,
        shutdown: CancellationToken,
    ) -> Server {
        let (connections, transfers) = (Mutex::default(), Semaphore::new(TRANSFERS_MAX));
        Server { shared: Arc::new(Shared { identity, answerer, threads, shutdown, connections, transfers }) }
    }

    /// Takes over a connection whose first bytes asked for [`crate::ALPN`], and serves it on the threads of members.
    pub fn take(&self, start: StartHandshake<TcpStream>, from: SocketAddr) {
        let shared = self.shared.clone();
        let StartHandshake { accepted, io, .. } = start;
        let moved = io.into_std();
        let serving = async move {
            let ended = async {
                // Registered again here: readiness is told by these threads, not by those that serve clients.
                let stream = TcpStream::from_std(moved?)?;
                shared.serve(StartHandshake::from_parts(accepted, stream)).await
            };
            if let Err(error) = ended.await {
                tracing::debug!(%from, %error, "the connection of a member ended");
            }
        };
        let shutdown = self.shared.shutdown.clone();
        drop(self.shared.threads.spawn(async move {
            tokio::select! {
                () = serving => {}
                () = shutdown.cancelled() => {}
            }
        }));
    }
}

type Connection = Framed<TlsStream<TcpStream>, Frames>;

fn other(why: &str) -> io::Error {
    io::Error::other(why.to_owned())
}

/// One of the connections that a member may have.
struct Slot<'a> {
    connections: &'a Mutex<HashMap<u64, usize>>,
    member: u64,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut connections = self.connections.lock();
        if let Some(count) = connections.get_mut(&self.member) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.member);
            }
        }
    }
}

impl Shared {
    async fn serve(&self, start: StartHandshake<TcpStream>) -> io::Result<()> {
        let greeted = timeout(GREETING_MAX, self.greet(start)).await;
        let (connection, member, lane, _slot) = greeted.map_err(|_| other("it does not greet in time"))??;
        match lane {
            Lane::Transfer => self.receive(connection, member).await,
            Lane::Control | Lane::Log | Lane::Forward => self.converse(connection, member).await,
        }
    }

    async fn greet(&self, start: StartHandshake<TcpStream>) -> io::Result<(Connection, u64, Lane, Slot<'_>)> {
        dialer::prepare(&start.io)?;
        let stream = start.into_stream(self.identity.server()).await?;
        let shown = self.identity.member(stream.get_ref().1.peer_certificates());
        let mut connection = Framed::new(stream, Frames::default());
        let (version, lane) = match connection.next().await {
            Some(Ok(Frame::Hello { version, lane })) => (version, lane),
            Some(Err(error)) => return Err(error),
            Some(Ok(_)) | None => return Err(other("it does not greet")),
        };
        let admitted = shown.and_then(|member| self.admit(member, version).map(|slot| (member, slot)));
        match admitted {
            Ok((member, slot)) => {
                connection.send(Frame::Welcome { version: VERSION }).await?;
                connection.codec_mut().bytes_max = FRAME_BYTES_MAX;
                Ok((connection, member, lane, slot))
            }
            Err(error) => {
                connection.send(Frame::Refused { why: error.to_string() }).await?;
                connection.close().await?;
                Err(io::Error::other(error))
            }
        }
    }

    fn admit(&self, member: u64, version: u16) -> Result<Slot<'_>, Error> {
        if version < VERSION {
            return Err(Error::Refused(format!("version {version} of the protocol is not spoken here any more")));
        }
        let mut connections = self.connections.lock();
        let count = connections.entry(member).or_default();
        if *count >= CONNECTIONS_PER_MEMBER_MAX {
            return Err(Error::Full(CONNECTIONS_PER_MEMBER_MAX));
        }
        *count += 1;
        Ok(Slot { connections: &self.connections, member })
    }

    async fn converse(&self, connection: Connection, member: u64) -> io::Result<()> {
        let (sink, stream) = connection.split();
        let (replies, queue) = mpsc::channel(CALLS_MAX);
        tokio::select! {
            ended = send(sink, queue) => ended,
            ended = self.listen(stream, member, replies) => ended,
        }
    }

    async fn listen(
        &self,
        mut stream: SplitStream<Connection>,
        member: u64,
        replies: mpsc::Sender<Frame>,
    ) -> io::Result<()> {
        let bytes = Arc::new(Semaphore::new(OPEN_BYTES_MAX));
        let mut answering = JoinSet::new();
        let gone = |_| other("its answers cannot be sent");
        loop {
            while answering.try_join_next().is_some() {}
            match timeout(IDLE_MAX, stream.next()).await {
                Err(_) => return Err(other("nothing came for long")),
                Ok(None) => return Ok(()),
                Ok(Some(frame)) => match frame? {
                    Frame::Ping => replies.send(Frame::Pong).await.map_err(gone)?,
                    Frame::Call { .. } if answering.len() >= CALLS_MAX => {
                        return Err(other("it asks too much at once"));
                    }
                    Frame::Call { id, body } => {
                        let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
                        let room = bytes.clone().acquire_many_owned(size).await.map_err(io::Error::other)?;
                        let (answerer, replies) = (self.answerer.clone(), replies.clone());
                        answering.spawn(async move {
                            let frame = match answerer.answer(member, body).await {
                                Ok(body) => Frame::Answer { id, body },
                                Err(why) => Frame::Failure { id, why },
                            };
                            drop(room);
                            // The connection may have ended meanwhile.
                            let _unsent = replies.send(frame).await;
                        });
                    }
                    _ => return Err(other("it sent what has no place here")),
                },
            }
        }
    }

    async fn receive(&self, mut connection: Connection, member: u64) -> io::Result<()> {
        let (length, header) = match next(&mut connection).await? {
            Frame::Begin { length, header } => (length, header),
            _ => return Err(other("it announces no file")),
        };
        let (mut sink, mut stream) = connection.split();
        let answered = match self.transfers.try_acquire() {
            Ok(_only) => {
                let mut file = StreamReader::new(Box::pin(content(&mut stream, length)));
                let work = self.answerer.receive(member, header, &mut file);
                alive(&mut sink, work).await?
            }
            Err(_) => Err("another file is arriving".to_owned()),
        };
        let frame = match answered {
            Ok(body) => Frame::Answer { id: 0, body },
            Err(why) => Frame::Failure { id: 0, why },
        };
        timeout(SEND_MAX, sink.send(frame)).await.map_err(|_| other("it takes no answer"))?
    }
}

/// Says that this member lives for as long as the work takes.
async fn alive<T>(sink: &mut SplitSink<Connection, Frame>, work: impl Future<Output = T>) -> io::Result<T> {
    let mut work = pin!(work);
    loop {
        match timeout(SIGN_OF_LIFE, work.as_mut()).await {
            Ok(done) => return Ok(done),
            Err(_) => {
                let sent = timeout(SEND_MAX, sink.send(Frame::Pong)).await;
                sent.map_err(|_| other("it takes no sign of life"))??;
            }
        }
    }
}

/// The bytes of a file; an error where they are not as many as announced.
fn content<S>(frames: &mut S, length: u64) -> impl stream::Stream<Item = io::Result<Bytes>> + Send + use<'_, S>
where
    S: stream::Stream<Item = io::Result<Frame>> + Send + Unpin,
{
    stream::try_unfold((frames, length), |(frames, left)| async move {
        match next(frames).await? {
            Frame::Chunk(bytes) => match left.checked_sub(bytes.len() as u64) {
                Some(left) => Ok(Some((bytes, (frames, left)))),
                None => Err(other("it is longer than announced")),
            },
            Frame::End if left == 0 => Ok(None),
            Frame::End => Err(other("it is shorter than announced")),
            _ => Err(other("something else came in between")),
        }
    })
}

async fn send(mut sink: SplitSink<Connection, Frame>, mut queue: mpsc::Receiver<Frame>) -> io::Result<()> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it takes no answers");
    while let Some(frame) = queue.recv().await {
        timeout(SEND_MAX, sink.feed(frame)).await.map_err(late)??;
        if queue.is_empty() {
            timeout(SEND_MAX, sink.flush()).await.map_err(late)??;
        }
    }
    Ok(())
}

async fn next<S>(frames: &mut S) -> io::Result<Frame>
where
    S: stream::Stream<Item = io::Result<Frame>> + Unpin,
{
    match timeout(FRAME_MAX, frames.next()).await {
        Ok(Some(frame)) => frame,
        Ok(None) => Err(other("the connection was closed")),
        Err(_) => Err(other("nothing arrives")),
    }
}
