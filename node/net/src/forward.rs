//! The node's way to the API server: a plain TCP forwarder, so that pods, containerd and the image clients of the node
//! reach any control-plane member under one address that never changes. TLS passes through untouched.

use std::{net::SocketAddr, sync::Arc, time::Duration};

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
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Forwards what `listener` accepts to the first member that takes the connection.
pub async fn forward(listener: TcpListener, members: watch::Receiver<Vec<SocketAddr>>, shutdown: CancellationToken) {
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
        let members = members.borrow().clone();
        connections.spawn(async move {
            let _permit = permit;
            let Some(mut member) = connect(&members).await else {
                tracing::debug!(%from, ?members, "no control-plane member takes connections");
                return;
            };
            // Small requests and answers must not wait for each other (RFC 896); failing to say so costs speed only.
            let _slower = client.set_nodelay(true).and(member.set_nodelay(true));
            if let Err(error) = copy_bidirectional(&mut client, &mut member).await {
                tracing::trace!(%error, %from, "forwarded connection ended");
            }
        });
    }
}

async fn connect(members: &[SocketAddr]) -> Option<TcpStream> {
    for member in members {
        if let Ok(Ok(stream)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(member)).await {
            return Some(stream);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_member_that_is_gone_is_passed_over() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let member = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_sender, members) = watch::channel(vec![gone, member.local_addr().unwrap()]);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(forward(listener, members, shutdown.clone()));
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
}
