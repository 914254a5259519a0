//! What tells load balancers whether this node has endpoints of a Service (`spec.healthCheckNodePort`).

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Clients of one port that are answered at a time; more wait.
const CONNECTIONS_MAX: usize = 32;
const REQUEST_BYTES: usize = 2048;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long until a port that another program has is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// A Service, and how many endpoints it has on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) local_endpoints: usize,
}

pub(crate) type Ports = BTreeMap<u16, Health>;

/// Answers on the ports of `wanted` until shutdown.
pub(crate) async fn serve(mut wanted: watch::Receiver<Ports>, shutdown: CancellationToken) {
    let mut tasks = JoinSet::new();
    let mut open: BTreeMap<u16, AbortHandle> = BTreeMap::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let ports: Vec<u16> = wanted.borrow_and_update().keys().copied().collect();
        open.retain(|port, task| {
            let stays = ports.contains(port);
            if !stays {
                task.abort();
            }
            stays
        });
        for port in ports {
            open.entry(port).or_insert_with(|| tasks.spawn(answer_on(port, wanted.clone())));
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

async fn answer_on(port: u16, ports: watch::Receiver<Ports>) {
    let listener = loop {
        match TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await {
            Ok(listener) => break listener,
            Err(error) => tracing::warn!(%error, port, "load balancers cannot ask for the health of a Service"),
        }
        sleep(RETRY).await;
    };
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let health = ports.borrow().get(&port).cloned();
                tasks.spawn(async move {
                    let _permit = permit;
                    if let Some(health) = health
                        && let Err(error) = timeout(REQUEST_TIMEOUT, answer(stream, &health)).await
                    {
                        tracing::debug!(%error, "a question for the health of a Service");
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, port, "accept a question for the health of a Service");
                sleep(REQUEST_TIMEOUT).await;
            }
        }
    }
}

/// The same answer to every request, as soon as its head has ended.
async fn answer(mut stream: TcpStream, health: &Health) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut buffer = [0; 512];
        let length = stream.read(&mut buffer).await?;
        if length == 0 || request.len() > REQUEST_BYTES {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..length]);
    }
    stream.write_all(response(health).as_bytes()).await?;
    stream.shutdown().await
}

fn response(health: &Health) -> String {
    let Health { namespace, name, local_endpoints } = health;
    let status = if *local_endpoints > 0 { "200 OK" } else { "503 Service Unavailable" };
    // Both names are labels: nothing in them needs to be escaped.
    let body = format!(
        r#"{{"service":{{"namespace":"{namespace}","name":"{name}"}},"localEndpoints":{local_endpoints},"serviceProxyHealthy":true}}"#
    );
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Load-Balancing-Endpoint-Weight: {local_endpoints}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_without_endpoints_is_not_healthy() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let health = |local_endpoints| Health { namespace: "a".into(), name: "web".into(), local_endpoints };
        let (sender, wanted) = watch::channel(Ports::from([(free, health(1))]));
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(wanted, shutdown.clone()));
        let ask = || async move {
            loop {
                let Ok(mut stream) = TcpStream::connect(("127.0.0.1", free)).await else {
                    tokio::task::yield_now().await;
                    continue;
                };
                stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).await.unwrap();
                return text;
            }
        };
        assert!(ask().await.starts_with("HTTP/1.1 200"));
        sender.send_replace(Ports::from([(free, health(0))]));
        let answer = ask().await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains(r#""localEndpoints":0"#), "{answer}");
        shutdown.cancel();
        task.await.unwrap();
    }
}
