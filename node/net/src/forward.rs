//! The node's way to the API server: a plain TCP forwarder, so that pods, containerd and the image clients of the node
//! reach any control-plane member under one address that never changes. TLS passes through untouched.
//!
//! All connections go to one member for as long as it is ready. When it is not, and another one is, they are cut, so
//! that clients connect again and meet the other one.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use rustix::net::sockopt;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Connections that are forwarded at once; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 4096;
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
/// A member that acknowledges nothing for this long is gone.
const UNACKNOWLEDGED_MAX_MILLIS: u32 = 2_000;
/// How often the member in use is asked whether it is ready, and how long it may take to say so.
const PROBE_EVERY: Duration = Duration::from_secs(1);
const PROBE_MAX: Duration = Duration::from_millis(900);

/// Whether a member is ready.
pub type Probe = Arc<dyn Fn(SocketAddr) -> BoxFuture<'static, bool> + Send + Sync>;

/// The members of the control plane, and the one that is in use.
#[derive(Clone, Debug)]
pub struct Members {
    all: watch::Receiver<Vec<SocketAddr>>,
    current: watch::Sender<Option<SocketAddr>>,
}

impl Members {
    /// `all` has the preferred one first.
    pub fn new(all: watch::Receiver<Vec<SocketAddr>>) -> Members {
        Members { all, current: watch::Sender::new(None) }
    }

    /// The one in use, then all others in their order.
    fn in_order(&self) -> Vec<SocketAddr> {
        let all = self.all.borrow().clone();
        order(*self.current.borrow(), &all)
    }

    fn uses(&self, member: SocketAddr) {
        self.current.send_if_modified(|current| current.replace(member) != Some(member));
    }

    async fn connect(&self) -> Option<(TcpStream, SocketAddr)> {
        for member in self.in_order() {
            if let Ok(Ok(stream)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(member)).await {
                self.uses(member);
                return Some((stream, member));
            }
        }
        None
    }

    /// Ends when connections are to go to another member than this one.
    async fn left(&self, member: SocketAddr) {
        // The sender lives in this.
        drop(self.current.subscribe().wait_for(|current| *current != Some(member)).await);
    }

    /// Looks after the member in use until shutdown.
    pub async fn watch(self, probe: Probe, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(PROBE_EVERY)).await.is_some() {
            let Some((current, others)) = self.in_order().split_first().map(|(first, rest)| (*first, rest.to_vec()))
            else {
                continue;
            };
            if others.is_empty() || is_ready(&probe, current).await {
                continue;
            }
            // Only to one that is ready: where none is, what is there is as good as any.
            for other in others {
                if is_ready(&probe, other).await {
                    tracing::info!(%current, %other, "the member in use is not ready; another one is used from now on");
                    self.uses(other);
                    break;
                }
            }
        }
    }
}

fn order(current: Option<SocketAddr>, all: &[SocketAddr]) -> Vec<SocketAddr> {
    let current = current.filter(|current| all.contains(current));
    current.into_iter().chain(all.iter().copied().filter(|member| Some(*member) != current)).collect()
}

async fn is_ready(probe: &Probe, member: SocketAddr) -> bool {
    timeout(PROBE_MAX, probe(member)).await.unwrap_or(false)
}

/// Forwards what `listener` accepts to a member that takes the connection.
pub async fn forward(listener: TcpListener, members: Members, shutdown: CancellationToken) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = async {
                let permit = permits.clone().acquire_owned().await;
                (permit, listener.accept().await)
            } => accepted,
            () = shutdown.cancelled() => return,
        };
        let (Ok(permit), accepted) = accepted else { return };
        let (mut client, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept a connection for the API server");
                continue;
            }
        };
        let members = members.clone();
        connections.spawn(async move {
            let _permit = permit;
            let Some((mut stream, member)) = members.connect().await else {
                tracing::debug!(%from, "no control-plane member takes connections");
                return;
            };
            if let Err(error) = prepare(&client, &stream) {
                tracing::debug!(%from, %error, "a forwarded connection cannot be set up");
                return;
            }
            let ended = tokio::select! {
                ended = copy_bidirectional(&mut client, &mut stream) => ended.map(drop),
                () = members.left(member) => Err(io::Error::other("another member is used now")),
            };
            if let Err(error) = ended {
                tracing::trace!(%error, %from, "forwarded connection ended");
            }
        });
    }
}

fn prepare(client: &TcpStream, member: &TcpStream) -> io::Result<()> {
    // Small requests and answers must not wait for each other (RFC 896).
    client.set_nodelay(true)?;
    member.set_nodelay(true)?;
    Ok(sockopt::set_tcp_user_timeout(member, UNACKNOWLEDGED_MAX_MILLIS)?)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn bound() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn a_member_that_is_gone_is_passed_over() {
        let gone = bound().await.1;
        let (member, address_of_member) = bound().await;
        let (listener, address) = bound().await;
        let (_sender, members) = watch::channel(vec![gone, address_of_member]);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(forward(listener, Members::new(members), shutdown.clone()));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"ping").await.unwrap();
        let (mut server, _) = member.accept().await.unwrap();
        let mut buffer = [0; 4];
        server.read_exact(&mut buffer).await.unwrap();
        server.write_all(b"pong").await.unwrap();
        client.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"pong");
        shutdown.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn connections_leave_a_member_that_is_not_ready_for_one_that_is() {
        let ((first, a), (second, b), (listener, address)) = (bound().await, bound().await, bound().await);
        let (_sender, all) = watch::channel(vec![a, b]);
        let members = Members::new(all);
        let ready = Arc::new(Mutex::new(vec![a]));
        let shutdown = CancellationToken::new();
        let asked = ready.clone();
        let probe: Probe = Arc::new(move |member| {
            let ready = asked.lock().contains(&member);
            Box::pin(async move { ready })
        });
        let watching = tokio::spawn(members.clone().watch(probe, shutdown.clone()));
        let task = tokio::spawn(forward(listener, members, shutdown.clone()));
        let mut client = TcpStream::connect(address).await.unwrap();
        let (_held, _) = first.accept().await.unwrap();
        // Nobody is ready: the connection stays. Then the second member is.
        ready.lock().clear();
        ready.lock().push(b);
        let ended = timeout(Duration::from_secs(10), client.read(&mut [0; 1])).await.expect("it is cut");
        assert!(!matches!(ended, Ok(1)));
        let _again = TcpStream::connect(address).await.unwrap();
        timeout(Duration::from_secs(10), second.accept()).await.expect("the other member is used").unwrap();
        shutdown.cancel();
        task.await.unwrap();
        watching.await.unwrap();
    }

    #[test]
    fn the_member_in_use_comes_first_while_it_is_one() {
        let [a, b, c] = ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"].map(|text| text.parse::<SocketAddr>().unwrap());
        assert_eq!(order(None, &[a, b]), [a, b]);
        assert_eq!(order(Some(b), &[a, b, c]), [b, a, c]);
        assert_eq!(order(Some(c), &[a, b]), [a, b]);
    }
}
