//! One client: its streams, and the connections that they belong to.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use tandem_runtime::{Runtime, SandboxId};
use tokio::{
    io::AsyncWriteExt,
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Incoming, MESSAGE_MAX, Outgoing};
use crate::{
    observer::Observer,
    pod,
    server::spdy::{Decoder, Encoder, Error, Frame, Headers, INTERNAL_ERROR, PROTOCOL_ERROR, REFUSED_STREAM},
};

/// Streams of one client, two for each connection.
const STREAMS_MAX: usize = 1024;
/// What one client's streams may hold that their pods have not taken yet.
const IN_FLIGHT_MAX_BYTES: usize = 4 << 20;
/// Parts of one stream that wait for the pod, and frames of all streams that wait for the client.
pub(super) const WAITING_MAX: usize = 64;
/// How long a pod may not read a stream whose client goes on sending. All streams of the client wait meanwhile, as
/// SPDY without windows cannot hold back one alone; then that one ends.
const STALL_MAX: Duration = Duration::from_secs(60);
/// As a kubelet: a client that is silent in both directions is gone.
const IDLE_MAX: Duration = Duration::from_secs(4 * 60 * 60);
const CHUNK_BYTES: usize = 32 << 10;

// A message that is longer than what may be in flight would wait for ever.
const _: () = assert!(MESSAGE_MAX <= IN_FLIGHT_MAX_BYTES);

/// The pod that a client asks for.
pub(super) struct Target {
    pub(super) observer: Observer,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) sandbox: SandboxId,
    pub(super) pod: Arc<Pod>,
}

impl Target {
    /// Ends when the sandbox does.
    pub(super) async fn gone(&self) {
        let mut progress = self.observer.progress();
        let is_mine = |seen: &crate::observed::SeenSandbox| seen.sandbox.id == self.sandbox && seen.sandbox.ready;
        while self.observer.view(pod::uid(&self.pod)).iter().any(is_mine) {
            if progress.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Forwards until the client goes, the pod ends, or nothing happens any more.
pub(super) async fn run(source: Incoming, sink: Outgoing, target: Target) {
    let target = Arc::new(target);
    let (out, frames) = mpsc::channel(WAITING_MAX);
    let active = Notify::new();
    let session = Session::new(Arc::clone(&target), out);
    let ended = tokio::select! {
        result = read(source, session, &active) => result.err().map_or("the client went".to_owned(), |why| why.to_string()),
        error = write(sink, frames, &active) => error.to_string(),
        () = idle(&active) => "nothing was sent for too long".to_owned(),
        () = target.gone() => "the pod ended".to_owned(),
    };
    tracing::debug!(ended, pod = pod::name(&target.pod), "port forwarding");
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Connection(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] Error),
}

async fn read(mut source: Incoming, mut session: Session, active: &Notify) -> Result<(), Broken> {
    let mut decoder = Decoder::default();
    loop {
        tokio::select! {
            true = session.forget_ended() => {}
            bytes = source.next() => {
                let Some(bytes) = bytes else { return Ok(()) };
                decoder.push(&bytes?);
                active.notify_one();
                while let Some(frame) = decoder.next()? {
                    if let Frame::GoAway { .. } = frame {
                        return Ok(());
                    }
                    session.take(frame).await;
                }
            }
        }
    }
}

async fn write(mut sink: Outgoing, mut frames: mpsc::Receiver<Frame>, active: &Notify) -> io::Error {
    let mut encoder = Encoder::default();
    while let Some(frame) = frames.recv().await {
        if let Err(error) = sink.send(encoder.encode(&frame)).await {
            return error;
        }
        active.notify_one();
    }
    // The session holds a sender for as long as it reads.
    std::future::pending().await
}

pub(super) async fn idle(active: &Notify) {
    while timeout(IDLE_MAX, active.notified()).await.is_ok() {}
}

/// A piece of what a client sends to a pod, and its share of what may be in flight.
struct Part {
    payload: Bytes,
    _share: OwnedSemaphorePermit,
}

struct Stream {
    /// Where what the client sends goes: nowhere on an error stream, and once the client has sent everything.
    to_pod: Option<mpsc::Sender<Part>>,
    /// Ends the connection.
    reset: CancellationToken,
}

/// A connection whose streams are being opened.
#[derive(Default)]
struct Opening {
    error: Option<u32>,
    data: Option<(u32, mpsc::Receiver<Part>)>,
    reset: CancellationToken,
}

struct Connection {
    port: u16,
    error: u32,
    data: u32,
    from_client: mpsc::Receiver<Part>,
    reset: CancellationToken,
}

pub(super) struct Session {
    target: Arc<Target>,
    out: mpsc::Sender<Frame>,
    streams: HashMap<u32, Stream>,
    /// By request id.
    openings: HashMap<String, Opening>,
    /// The newest stream: the numbers of a client's streams are odd and grow.
    last: u32,
    in_flight: Arc<Semaphore>,
    /// Each gives back its streams when it has ended.
    connections: JoinSet<[u32; 2]>,
}

impl Session {
    pub(super) fn new(target: Arc<Target>, out: mpsc::Sender<Frame>) -> Session {
        Session {
            target,
            out,
            streams: HashMap::new(),
            openings: HashMap::new(),
            last: 0,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX_BYTES)),
            connections: JoinSet::new(),
        }
    }

    /// Waits for a connection to end and forgets its streams; false if there is no connection.
    pub(super) async fn forget_ended(&mut self) -> bool {
        let Some(ended) = self.connections.join_next().await else { return false };
        // One that panicked has left its streams, which end with the client.
        for stream in ended.into_iter().flatten() {
            self.streams.remove(&stream);
        }
        true
    }

    /// Connects a client that has named its port beforehand, and tells it on both streams which port that was.
    pub(super) async fn begin(&mut self, port: u16, data: u32, error: u32) {
        let (to_pod, from_client) = mpsc::channel(WAITING_MAX);
        let reset = CancellationToken::new();
        self.streams.insert(data, Stream { to_pod: Some(to_pod), reset: reset.clone() });
        self.streams.insert(error, Stream { to_pod: None, reset: reset.clone() });
        for stream in [data, error] {
            let payload = Bytes::copy_from_slice(&port.to_le_bytes());
            self.say(Frame::Data { stream, fin: false, payload }).await;
        }
        let connection = Connection { port, error, data, from_client, reset };
        self.connections.spawn(forward(Arc::clone(&self.target), connection, self.out.clone()));
    }

    async fn take(&mut self, frame: Frame) {
        match frame {
            Frame::SynStream { stream, fin, headers } => match self.open(stream, fin, &headers) {
                Ok(connection) => {
                    self.say(Frame::SynReply { stream, fin: false, headers: Headers::default() }).await;
                    let begin = |connection| forward(Arc::clone(&self.target), connection, self.out.clone());
                    if let Some(work) = connection.map(begin) {
                        self.connections.spawn(work);
                    }
                }
                Err(status) => self.say(Frame::RstStream { stream, status }).await,
            },
            Frame::Data { stream, fin, payload } => self.deliver(stream, fin, payload).await,
            Frame::RstStream { stream, .. } => {
                if let Some(stream) = self.streams.get(&stream) {
                    stream.reset.cancel();
                }
            }
            // Even numbers would be answers to pings of ours, of which there are none.
            Frame::Ping(id) if id % 2 == 1 => self.say(Frame::Ping(id)).await,
            _ => {}
        }
    }

    async fn say(&self, frame: Frame) {
        // When nobody takes frames any more, the session ends by that.
        drop(self.out.send(frame).await);
    }

    /// Takes a new stream in: gives back its connection if both streams are there, or the status of a refusal.
    fn open(&mut self, stream: u32, fin: bool, headers: &Headers) -> Result<Option<Connection>, u32> {
        if stream.is_multiple_of(2) || stream <= self.last {
            return Err(PROTOCOL_ERROR);
        }
        self.last = stream;
        if self.streams.len() >= STREAMS_MAX {
            return Err(REFUSED_STREAM);
        }
        let port = headers.get("port").and_then(|port| port.parse().ok()).filter(|port| *port > 0);
        let port: u16 = port.ok_or(REFUSED_STREAM)?;
        let is_data = match headers.get("streamtype") {
            Some("data") => true,
            Some("error") => false,
            _ => return Err(REFUSED_STREAM),
        };
        // Clients of long ago open the two streams one after the other and do not name their request.
        let first = if is_data { stream.wrapping_sub(2) } else { stream };
        let request = headers.get("requestid").map_or_else(|| first.to_string(), str::to_owned);
        let opening = self.openings.entry(request.clone()).or_default();
        if (is_data && opening.data.is_some()) || (!is_data && opening.error.is_some()) {
            return Err(REFUSED_STREAM);
        }
        let mut to_pod = None;
        if is_data {
            let (sender, from_client) = mpsc::channel(WAITING_MAX);
            to_pod = Some(sender).filter(|_| !fin);
            opening.data = Some((stream, from_client));
        } else {
            opening.error = Some(stream);
        }
        self.streams.insert(stream, Stream { to_pod, reset: opening.reset.clone() });
        if opening.data.is_none() || opening.error.is_none() {
            return Ok(None);
        }
        let Some(Opening { error: Some(error), data: Some((data, from_client)), reset }) =
            self.openings.remove(&request)
        else {
            return Err(INTERNAL_ERROR);
        };
        Ok(Some(Connection { port, error, data, from_client, reset }))
    }

    pub(super) async fn deliver(&mut self, number: u32, fin: bool, payload: Bytes) {
        // Streams that have ended may still be sent to.
        let Some(stream) = self.streams.get_mut(&number) else { return };
        if let Some(to_pod) = stream.to_pod.as_ref().filter(|_| !payload.is_empty()) {
            let bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
            let in_flight = Arc::clone(&self.in_flight);
            let queued = timeout(STALL_MAX, async {
                let share = in_flight.acquire_many_owned(bytes).await.ok()?;
                to_pod.send(Part { payload, _share: share }).await.ok()
            });
            match queued.await {
                Ok(Some(())) => {}
                // The pod takes no more; what it has to say is still to come.
                Ok(None) => stream.to_pod = None,
                Err(_) => stream.reset.cancel(),
            }
        }
        if fin {
            stream.to_pod = None;
        }
    }
}

/// Carries one connection to its end; gives back its streams.
async fn forward(target: Arc<Target>, connection: Connection, out: mpsc::Sender<Frame>) -> [u32; 2] {
    let Connection { port, error, data, from_client, reset } = connection;
    let carried = reset.run_until_cancelled(carry(&target, port, data, from_client, &out)).await;
    let (name, uid) = (pod::name(&target.pod), pod::uid(&target.pod));
    let failure = carried.and_then(Result::err);
    let message = failure.map(|why| format!("error forwarding port {port} to pod {name}, uid {uid}: {why}"));
    let ends = [(data, Bytes::new()), (error, message.map(Bytes::from).unwrap_or_default())];
    for (stream, payload) in ends {
        drop(out.send(Frame::Data { stream, fin: true, payload }).await);
    }
    [data, error]
}

/// Ends when the pod has said everything: clients do not send any more then.
async fn carry(
    target: &Target,
    port: u16,
    data: u32,
    from_client: mpsc::Receiver<Part>,
    out: &mpsc::Sender<Frame>,
) -> tandem_runtime::Result<()> {
    let stream = target.runtime.connect(&target.sandbox, port).await?;
    let (from_pod, to_pod) = stream.into_split();
    tokio::select! {
        result = receive(from_pod, data, out) => if let Err(error) = result {
            // Not told: kubectl would end all its connections for the error of one.
            tracing::debug!(%error, port, "a forwarded connection broke");
        },
        never = send(to_pod, from_client) => match never {},
    }
    Ok(())
}

async fn receive(from_pod: OwnedReadHalf, stream: u32, out: &mpsc::Sender<Frame>) -> io::Result<()> {
    loop {
        // A buffer for each read, so that connections at rest hold none.
        from_pod.readable().await?;
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        match from_pod.try_read_buf(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(_) => {
                let frame = Frame::Data { stream, fin: false, payload: chunk.freeze() };
                if out.send(frame).await.is_err() {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn send(mut to_pod: OwnedWriteHalf, mut from_client: mpsc::Receiver<Part>) -> std::convert::Infallible {
    while let Some(part) = from_client.recv().await {
        if to_pod.write_all(&part.payload).await.is_err() {
            break;
        }
    }
    // What comes now is refused, so that it does not hold up other streams.
    from_client.close();
    while from_client.try_recv().is_ok() {}
    drop(to_pod.shutdown().await);
    std::future::pending().await
}
