use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::Path,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::{Answer, Ask, Call, LINK_PROTOCOL, Reply, Wire};
use crate::network::{SocketKind, Sockets};

const ASKS: usize = 256;

type Waiting = oneshot::Sender<io::Result<(Answer, Option<OwnedFd>)>>;

/// The worker's end of the conversation.
#[derive(Clone)]
pub(crate) struct Link {
    asks: mpsc::Sender<(Ask, Waiting)>,
}

impl Link {
    /// Greets the parent; the conversation then goes on in a task that ends with it.
    pub(crate) async fn open(end: OwnedFd) -> io::Result<(Link, tokio::task::JoinHandle<()>)> {
        let wire = Wire::new(end)?;
        let (asks, asked) = mpsc::channel(ASKS);
        let task = tokio::spawn(converse(wire, asked));
        let link = Link { asks };
        match link.ask(Ask::Hello { protocol: LINK_PROTOCOL }).await? {
            (Answer::Hello { protocol: LINK_PROTOCOL }, _) => Ok((link, task)),
            (Answer::Hello { protocol }, _) => Err(io::Error::other(format!(
                "the parent speaks version {protocol} of the link, this worker {LINK_PROTOCOL}"
            ))),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// The listening socket that clients of the host come to.
    pub(crate) async fn control(&self) -> io::Result<OwnedFd> {
        self.socket(Ask::Control).await
    }

    pub(crate) async fn kept(&self) -> io::Result<Vec<String>> {
        let mut all = Vec::new();
        loop {
            match self.ask(Ask::Kept { from: all.len() }).await? {
                (Answer::Keys { keys, more }, _) => {
                    all.extend(keys);
                    if !more {
                        return Ok(all);
                    }
                }
                (other, _) => return Err(unexpected(&other)),
            }
        }
    }

    pub(crate) async fn shutdown(&self) -> io::Result<()> {
        self.ask(Ask::Shutdown).await.map(drop)
    }

    async fn socket(&self, ask: Ask) -> io::Result<OwnedFd> {
        match self.ask(ask).await? {
            (Answer::Socket, Some(socket)) => Ok(socket),
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn ask(&self, ask: Ask) -> io::Result<(Answer, Option<OwnedFd>)> {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the parent of the wasm host is gone");
        let (sender, receiver) = oneshot::channel();
        self.asks.send((ask, sender)).await.map_err(|_| gone())?;
        let (answer, socket) = receiver.await.map_err(|_| gone())??;
        match answer {
            Answer::Failed { code: Some(code), message } => {
                let kind = io::Error::from_raw_os_error(code).kind();
                Err(io::Error::new(kind, message))
            }
            Answer::Failed { code: None, message } => Err(io::Error::other(message)),
            answer => Ok((answer, socket)),
        }
    }
}

fn unexpected(answer: &Answer) -> io::Error {
    io::Error::other(format!("the parent of the wasm host answered {answer:?}"))
}

async fn converse(wire: Wire, mut asked: mpsc::Receiver<(Ask, Waiting)>) {
    let waiting: Mutex<HashMap<u64, Waiting>> = Mutex::default();
    let asks = async {
        let mut id = 0;
        while let Some((ask, sender)) = asked.recv().await {
            id += 1;
            waiting.lock().insert(id, sender);
            if let Err(error) = wire.send(&Call { id, ask }, None).await
                && let Some(sender) = waiting.lock().remove(&id)
            {
                drop(sender.send(Err(error)));
            }
        }
    };
    let replies = async {
        loop {
            match wire.receive::<Reply>().await {
                Ok(Some((reply, socket))) => {
                    if let Some(sender) = waiting.lock().remove(&reply.id) {
                        drop(sender.send(Ok((reply.answer, socket))));
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "the link to the parent is broken");
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = asks => {}
        () = replies => {}
    }
}

#[async_trait]
impl Sockets for Link {
    async fn listener(&self, key: &str, namespace: Option<&Path>, address: SocketAddr) -> io::Result<OwnedFd> {
        self.socket(Ask::Listen { key: key.to_owned(), namespace: namespace.map(Path::to_owned), address }).await
    }

    async fn close(&self, key: &str) -> io::Result<()> {
        self.ask(Ask::Close { key: key.to_owned() }).await.map(drop)
    }

    async fn outgoing(&self, namespace: &Path, kind: SocketKind, source: Option<IpAddr>) -> io::Result<OwnedFd> {
        self.socket(Ask::Outgoing { namespace: namespace.to_owned(), kind, source }).await
    }
}
