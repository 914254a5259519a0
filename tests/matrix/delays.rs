//! Links that deliver late. What a member sends to another one goes through a relay on its own machine, which holds every
//! piece back for a while: the kernel's own delay (`netem`) is not everywhere. Nothing is lost or put out of order.

use std::{
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::Path,
    sync::Arc,
    sync::atomic::{AtomicU16, Ordering},
    thread::JoinHandle,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tandem_tests::machine::inside;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::members::Members;

/// How much later a piece arrives; its answer is as late again.
const MILLISECONDS: RangeInclusive<u64> = 25..=75;
/// Local ports of the relays' own connections, above those that the kernel gives to others.
const OWN_PORTS: RangeInclusive<u16> = 61_000..=65_535;
/// A relay listens on this port, and the last number of the address that it is for.
const RELAY_PORTS: u16 = 20_000;
/// Pieces that are on their way on one connection.
const PIECES_MAX: usize = 1_024;
const PIECE_BYTES: usize = 64 << 10;

/// The relays of all members; they end with this.
pub(crate) struct Relays {
    stop: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

impl Relays {
    /// Sends everything that members say to each other through relays. Connections that are open are reset.
    pub(crate) fn between(members: &Members) -> Relays {
        let mut relays = Relays { stop: CancellationToken::new(), threads: Vec::new() };
        for member in 0..members.daemons.len() {
            let others: Vec<SocketAddr> = members.others(member).iter().map(|other| members.address(*other)).collect();
            relays.begin(&members.daemons[member].machine.namespace(), &others);
            for other in others {
                redirect(members, member, other);
            }
        }
        relays
    }

    fn begin(&mut self, namespace: &Path, others: &[SocketAddr]) {
        let (listening, ready) = std::sync::mpsc::channel();
        let (namespace, others, stop) = (namespace.to_owned(), others.to_vec(), self.stop.clone());
        self.threads.push(std::thread::spawn(move || {
            inside(&namespace, async move {
                let (mut relays, own_port) = (JoinSet::new(), Arc::new(AtomicU16::new(*OWN_PORTS.start())));
                for other in others {
                    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, relay_port(other))).await;
                    relays.spawn(relay(listener.expect("the port is free"), other, own_port.clone()));
                }
                listening.send(()).expect("somebody waits");
                stop.cancelled().await;
            });
        }));
        ready.recv().expect("the relays listen");
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            // What went wrong in it is on the terminal already.
            let _ended = thread.join();
        }
    }
}

fn relay_port(other: SocketAddr) -> u16 {
    let SocketAddr::V4(other) = other else { panic!("machines have IPv4 addresses") };
    RELAY_PORTS + u16::from(other.ip().octets()[3])
}

fn redirect(members: &Members, member: usize, other: SocketAddr) {
    let (address, port, relay, own) = (other.ip(), other.port(), relay_port(other), OWN_PORTS.start());
    let direct = format!("ip daddr {address} tcp dport {port} tcp sport < {own}");
    let line = format!(
        "nft add table inet matrix && \
         nft 'add chain inet matrix late {{ type nat hook output priority -100; }}' && \
         nft 'add rule inet matrix late {direct} redirect to :{relay}' && \
         nft 'add chain inet matrix direct {{ type filter hook output priority 0; }}' && \
         nft 'add rule inet matrix direct {direct} reject with tcp reset'"
    );
    let output = members.daemons[member].machine.shell(&line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn relay(listener: TcpListener, other: SocketAddr, own_port: Arc<AtomicU16>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        while connections.try_join_next().is_some() {}
        let own_port = own_port.clone();
        connections.spawn(async move {
            // A member that does not answer is seen as one that hangs up.
            let Ok(onward) = connect(other, &own_port).await else { return };
            let ((from, back), (answers, to)) = (stream.into_split(), onward.into_split());
            tokio::join!(carry(from, to), carry(answers, back));
        });
    }
}

async fn connect(other: SocketAddr, own_port: &AtomicU16) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    let count = OWN_PORTS.end() - OWN_PORTS.start() + 1;
    let next = own_port.fetch_add(1, Ordering::Relaxed) - OWN_PORTS.start();
    socket.bind((Ipv4Addr::UNSPECIFIED, OWN_PORTS.start() + next % count).into())?;
    let stream = socket.connect(other).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Carries one direction until its sender ends.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(PIECES_MAX);
    let reading = async move {
        let mut due = Instant::now();
        loop {
            let mut piece = BytesMut::with_capacity(PIECE_BYTES);
            let Ok(1..) = from.read_buf(&mut piece).await else { return };
            let later = Duration::from_millis(rand::random_range(MILLISECONDS));
            due = due.max(Instant::now() + later);
            if sender.send((due, piece.freeze())).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, piece)) = receiver.recv().await {
            sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}
