//! The transport over real sockets, with an answerer that stands in for the store.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, future::join_all};
use rustls::server::Acceptor;
use tandem_pki::{CertificateRequest, Leaf, MemberName, Pki, Usage};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{
    Answerer, Error, Identity, Network, Server, Thread, dialer,
    frame::{FRAME_BYTES_MAX, Frame, Lane},
};

const DEADLINE: Duration = Duration::from_secs(60);

/// Gives back what it is asked, after the member's number; some words make it do other things.
#[derive(Default)]
struct Echo {
    waiting: AtomicUsize,
}

#[async_trait]
impl Answerer for Echo {
    async fn answer(&self, member: u64, call: Bytes) -> Result<Bytes, String> {
        match &call[..] {
            b"fail" => Err("told to".to_owned()),
            b"wait" => {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                std::future::pending().await
            }
            _ => Ok(Bytes::from([&[u8::try_from(member).unwrap()], &call[..]].concat())),
        }
    }

    async fn receive(&self, _: u64, header: Bytes, file: &mut (dyn AsyncRead + Send + Unpin)) -> Result<Bytes, String> {
        if header == "wait" {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            return std::future::pending().await;
        }
        let mut content = Vec::new();
        file.read_to_end(&mut content).await.map_err(|error| error.to_string())?;
        Ok(Bytes::from(format!("{} {}", String::from_utf8_lossy(&header), content.len())))
    }
}

struct World {
    directory: tempfile::TempDir,
    pki: Pki,
    thread: Thread,
    answerer: Arc<Echo>,
    shutdown: CancellationToken,
}

fn name(id: u64, cluster: &str) -> MemberName {
    MemberName { id, cluster: cluster.to_owned() }
}

impl World {
    fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(&directory.path().join("pki"), now()).unwrap();
        let (thread, answerer) = (Thread::start().unwrap(), Arc::default());
        World { directory, pki, thread, answerer, shutdown: CancellationToken::new() }
    }

    fn identity(&self, id: u64) -> Arc<Identity> {
        let leaf = name(id, "test").issue(&self.pki.members, now()).unwrap();
        Arc::new(Identity::new(name(id, "test"), &leaf, self.pki.members.certificate()).unwrap())
    }

    fn network(&self, id: u64) -> Arc<Network> {
        Network::new(self.identity(id), self.thread.handle())
    }

    /// Member 1, behind an accept loop as the API server has one.
    async fn serve(&self) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (address, self.serve_on(listener))
    }

    fn serve_on(&self, listener: TcpListener) -> JoinHandle<()> {
        let server = Server::new(self.identity(1), self.answerer.clone(), self.thread.handle(), self.shutdown.clone());
        tokio::spawn(async move {
            loop {
                let (stream, from) = listener.accept().await.unwrap();
                let server = server.clone();
                tokio::spawn(async move {
                    if let Ok(start) = LazyConfigAcceptor::new(Acceptor::default(), stream).await {
                        server.take(start, from);
                    }
                });
            }
        })
    }
}

fn now() -> jiff::Timestamp {
    use tandem_api::Clock as _;
    tandem_api::SystemClock.now()
}

async fn ask(network: &Network, address: SocketAddr, body: &'static [u8]) -> Result<Bytes, Error> {
    let address = address.to_string();
    let asked = network.ask(1, &address, Lane::Control, Bytes::from_static(body));
    timeout(DEADLINE, asked).await.expect("an answer in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_answered_side_by_side_and_failures_reach_the_asker() {
    let world = World::new();
    let (address, _serving) = world.serve().await;
    let network = world.network(2);
    let address_text = address.to_string();
    let many = (0..500u32).map(|number| {
        let body = Bytes::from(number.to_string());
        network.ask(1, &address_text, Lane::Log, body)
    });
    for (number, answer) in join_all(many).await.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), Bytes::from([b"\x02", number.to_string().as_bytes()].concat()));
    }
    assert_eq!(ask(&network, address, b"fail").await, Err(Error::Failed("told to".to_owned())));
    // A call that is not answered holds up no other one.
    let waiting = {
        let network = network.clone();
        tokio::spawn(async move { ask(&network, address, b"wait").await })
    };
    assert_eq!(ask(&network, address, b"x").await.unwrap(), Bytes::from_static(b"\x02x"));
    waiting.abort();
    let large = Bytes::from(vec![7; FRAME_BYTES_MAX / 2]);
    let answered = network.ask(1, &address_text, Lane::Forward, large.clone()).await.unwrap();
    assert_eq!(answered[1..], large);
    let too_large = Bytes::from(vec![7; FRAME_BYTES_MAX]);
    assert!(matches!(network.ask(1, &address_text, Lane::Forward, too_large).await, Err(Error::Lost(_))));
    assert!(network.ask(1, &address_text, Lane::Forward, Bytes::from_static(b"again")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_member_that_was_meant_is_asked_and_only_members_are_answered() {
    let world = World::new();
    let (address, _serving) = world.serve().await;
    let refused = world.network(2).ask(7, &address.to_string(), Lane::Control, Bytes::new()).await;
    assert!(matches!(refused, Err(Error::Identity(_))), "asked member 7, which member 1 is not: {refused:?}");

    let other = World::new();
    let refused = ask(&other.network(2), address, b"x").await;
    assert!(matches!(refused, Err(Error::Identity(_))), "a member of a cluster with another CA: {refused:?}");

    // Certificates that the right CA signed, for something else.
    let authority = world.pki.members.certificate();
    let of = |id, cluster: &str, leaf: &Leaf| {
        Network::new(Arc::new(Identity::new(name(id, cluster), leaf, authority).unwrap()), world.thread.handle())
    };
    let restored = name(2, "other").issue(&world.pki.members, now()).unwrap();
    let refused = ask(&of(2, "test", &restored), address, b"x").await.unwrap_err().to_string();
    assert!(refused.contains("another cluster"), "{refused}");
    for (dns_name, usage) in [("member-2.test.members.tandem", Usage::Server), ("node-1", Usage::Both)] {
        let request = CertificateRequest {
            common_name: "system:member:2",
            organizations: &[],
            dns_names: &[dns_name.to_owned()],
            addresses: &[],
            usage,
        };
        let leaf = world.pki.members.issue(&request, now()).unwrap();
        assert!(ask(&of(2, "test", &leaf), address, b"x").await.is_err(), "{dns_name} {usage:?}");
    }
    // A node's certificate: of the cluster's CA, not of the members'.
    let request = CertificateRequest {
        common_name: "system:member:2",
        organizations: &["system:masters"],
        dns_names: &["member-2.test.members.tandem".to_owned()],
        addresses: &[],
        usage: Usage::Both,
    };
    let leaf = world.pki.cluster.issue(&request, now()).unwrap();
    assert!(ask(&of(2, "test", &leaf), address, b"x").await.is_err(), "the cluster's CA signs no members");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_comes_back_is_found_again() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let network = world.network(2);
    let refused = ask(&network, address, b"x").await;
    assert!(matches!(refused, Err(Error::Connect(_))), "{refused:?}");
    let _serving = world.serve_on(TcpListener::bind(address).await.unwrap());
    let deadline = Instant::now() + DEADLINE;
    while ask(&network, address, b"x").await.is_err() {
        assert!(Instant::now() < deadline);
    }
}

/// A wire that can be held: what was accepted stays open, and nothing passes any more.
async fn wire_to(address: SocketAddr) -> (SocketAddr, tokio::sync::watch::Sender<bool>, JoinHandle<()>) {
    let wire = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = wire.local_addr().unwrap();
    let (hold, held) = tokio::sync::watch::channel(false);
    let passing = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut near, _)) = wire.accept().await {
            let mut held = held.clone();
            connections.spawn(async move {
                let mut far = TcpStream::connect(address).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    () = async { drop(held.wait_for(|held| *held).await) } => {}
                }
                std::future::pending::<()>().await;
            });
        }
    });
    (through, hold, passing)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_falls_silent_is_given_up() {
    let world = World::new();
    let (address, _serving) = world.serve().await;
    let (through, hold, _wire) = wire_to(address).await;
    let network = world.network(2);
    assert!(ask(&network, through, b"x").await.is_ok());
    // An answer may take as long as it takes while the connection lives.
    let asked = Instant::now();
    let waiting = {
        let network = network.clone();
        tokio::spawn(async move { ask(&network, through, b"wait").await })
    };
    let lives = timeout(Duration::from_millis(2500), async {
        while !waiting.is_finished() {
            tokio::task::yield_now().await
        }
    });
    assert!(lives.await.is_err(), "given up after {:?}", asked.elapsed());
    hold.send_replace(true);
    let lost = timeout(DEADLINE, waiting).await.unwrap().unwrap();
    assert!(matches!(lost, Err(Error::Lost(_))), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_arrive_whole_or_not_at_all() {
    let world = World::new();
    let (address, _serving) = world.serve().await;
    let (network, address) = (world.network(2), address.to_string());
    let file = world.directory.path().join("snapshot");
    std::fs::write(&file, vec![9; 3_000_000]).unwrap();
    let answered = network.transfer(1, &address, Bytes::from_static(b"head"), &file).await.unwrap();
    assert_eq!(answered, "head 3000000");

    // One that announces more than it sends, and one that sends more than it announces.
    for (length, chunks) in [(10, 1), (3, 2)] {
        let mut connection = dialer::dial(&world.identity(2), 1, &address, Lane::Transfer).await.unwrap();
        connection.send(Frame::Begin { length, header: Bytes::new() }).await.unwrap();
        for _ in 0..chunks {
            connection.send(Frame::Chunk(Bytes::from_static(b"abc"))).await.unwrap();
        }
        connection.send(Frame::End).await.unwrap();
        let answer = timeout(DEADLINE, connection.next()).await.unwrap();
        assert!(matches!(answer, Some(Ok(Frame::Failure { .. }))), "{answer:?}");
    }
}

/// However long a file may take, somebody who takes no more of it, and somebody who is gone after the last byte of it,
/// are noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_waits_for_no_member_that_falls_silent() {
    let world = World::new();
    for bytes in [64 << 20, 1000] {
        let (address, serving) = world.serve().await;
        let (through, hold, _wire) = wire_to(address).await;
        let file = world.directory.path().join("snapshot");
        std::fs::write(&file, vec![9; bytes]).unwrap();
        let before = world.answerer.waiting.load(Ordering::SeqCst);
        let sending = {
            let (network, through) = (world.network(2), through.to_string());
            tokio::spawn(async move { network.transfer(1, &through, Bytes::from_static(b"wait"), &file).await })
        };
        let begun = timeout(DEADLINE, async {
            while world.answerer.waiting.load(Ordering::SeqCst) == before {
                tokio::task::yield_now().await;
            }
        });
        begun.await.unwrap();
        hold.send_replace(true);
        let lost = timeout(DEADLINE, sending).await.unwrap().unwrap();
        assert!(matches!(lost, Err(Error::Lost(_))), "{lost:?}");
        serving.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_bytes_end_their_own_connection_only() {
    let world = World::new();
    let (address, _serving) = world.serve().await;
    let network = world.network(3);
    assert!(ask(&network, address, b"x").await.is_ok());
    // No TLS at all.
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&[0xff; 4096]).await.unwrap();
    let mut rest = Vec::new();
    let _reset = timeout(DEADLINE, stream.read_to_end(&mut rest)).await.unwrap();
    // A member's certificate, and frames that have no place.
    let address_text = address.to_string();
    for frame in [Frame::Hello { version: 1, lane: Lane::Log }, Frame::Answer { id: 1, body: Bytes::new() }, Frame::End]
    {
        let mut connection = dialer::dial(&world.identity(2), 1, &address_text, Lane::Log).await.unwrap();
        connection.send(frame).await.unwrap();
        let answer = timeout(DEADLINE, connection.next()).await.unwrap();
        assert!(!matches!(answer, Some(Ok(_))), "{answer:?}");
    }
    // A giant frame.
    let mut connection = dialer::dial(&world.identity(2), 1, &address_text, Lane::Log).await.unwrap();
    connection.get_mut().write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    connection.get_mut().flush().await.unwrap();
    assert!(!matches!(timeout(DEADLINE, connection.next()).await.unwrap(), Some(Ok(_))));
    // More calls at once than are allowed.
    let mut connection = dialer::dial(&world.identity(2), 1, &address_text, Lane::Log).await.unwrap();
    for id in 0..2000 {
        if connection.send(Frame::Call { id, body: Bytes::from_static(b"wait") }).await.is_err() {
            break;
        }
    }
    assert!(!matches!(timeout(DEADLINE, connection.next()).await.unwrap(), Some(Ok(_))));
    assert!(ask(&network, address, b"x").await.is_ok(), "others go on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_may_not_take_all_connections() {
    let world = World::new();
    let (address, _serving) = world.serve().await;
    let address_text = address.to_string();
    let mut held = Vec::new();
    let refused = loop {
        match dialer::dial(&world.identity(2), 1, &address_text, Lane::Forward).await {
            Ok(connection) => held.push(connection),
            Err(error) => break error,
        }
        assert!(held.len() < 100);
    };
    assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
    assert!(ask(&world.network(3), address, b"x").await.is_ok(), "another member still connects");
}
