use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record as Resource, RecordType,
        rdata::{A, CNAME, PTR, SOA, SRV, TXT},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Answer, Record, Zone};

/// Answers follow readiness quickly, so resolvers may keep them for a few seconds only.
const TTL_SECONDS: u32 = 5;
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that says nothing for this long is closed.
const CONNECTION_IDLE: Duration = Duration::from_secs(10);
/// Questions that are being answered at once, over all clients; more are dropped and asked again by their resolver.
const QUERIES_MAX: usize = 1024;
const CONNECTIONS_MAX: usize = 256;
/// Aliases that lead to each other within the cluster.
const ALIASES_MAX: usize = 8;
/// What fits into a UDP answer where the client offers no more (RFC 1035, 4.2.1), and what we offer (RFC 9715).
const UDP_BYTES: u16 = 512;
const UDP_BYTES_MAX: u16 = 1232;

/// Answers for the cluster's domain over UDP and TCP.
#[derive(Clone, Debug)]
pub struct Server {
    zone: watch::Receiver<Arc<Zone>>,
    upstreams: Arc<Vec<SocketAddr>>,
}

/// The resolvers that a `resolv.conf` names.
pub fn upstreams(resolv_conf: &str, ourselves: IpAddr) -> Vec<SocketAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse::<IpAddr>().ok())
        .filter(|address| *address != ourselves)
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

impl Server {
    pub fn new(zone: watch::Receiver<Arc<Zone>>, upstreams: Vec<SocketAddr>) -> Server {
        Server { zone, upstreams: Arc::new(upstreams) }
    }

    /// Serves on both sockets until shutdown.
    pub async fn serve(self, udp: UdpSocket, tcp: TcpListener, shutdown: CancellationToken) {
        let udp = Arc::new(udp);
        tokio::select! {
            () = self.clone().serve_udp(udp) => {}
            () = self.serve_tcp(tcp) => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn serve_udp(self, socket: Arc<UdpSocket>) {
        let permits = Arc::new(Semaphore::new(QUERIES_MAX));
        let mut tasks = JoinSet::new();
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            while tasks.try_join_next().is_some() {}
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    // An ICMP answer to an earlier datagram surfaces here; the socket stays good.
                    tracing::debug!(%error, "receive DNS query");
                    continue;
                }
            };
            let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
            let (server, socket, query) = (self.clone(), socket.clone(), buffer[..length].to_vec());
            tasks.spawn(async move {
                let _permit = permit;
                if let Some(answer) = server.answer(&query, false).await
                    && let Err(error) = socket.send_to(&answer, from).await
                {
                    tracing::debug!(%error, %from, "send DNS answer");
                }
            });
        }
    }

    async fn serve_tcp(self, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut tasks = JoinSet::new();
        loop {
            while tasks.try_join_next().is_some() {}
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, from)) => {
                    let server = self.clone();
                    tasks.spawn(async move {
                        let _permit = permit;
                        if let Err(error) = server.converse(stream).await {
                            tracing::debug!(%error, %from, "DNS connection");
                        }
                    });
                }
                Err(error) => tracing::debug!(%error, "accept DNS connection"),
            }
        }
    }

    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let Ok(length) = timeout(CONNECTION_IDLE, stream.read_u16()).await else { return Ok(()) };
            let mut query = vec![0; usize::from(length?)];
            timeout(CONNECTION_IDLE, stream.read_exact(&mut query)).await??;
            let Some(answer) = self.answer(&query, true).await else { return Ok(()) };
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            stream.write_all(&[&length.to_be_bytes(), answer.as_slice()].concat()).await?;
        }
    }

    /// The answer to a packet; none for what is not a question.
    async fn answer(&self, packet: &[u8], stream: bool) -> Option<Vec<u8>> {
        let question = Message::from_vec(packet).ok()?;
        if question.metadata.message_type != MessageType::Query {
            return None;
        }
        let zone = self.zone.borrow().clone();
        let mut response = match local(&zone, &question) {
            Local::Answer(response) => *response,
            Local::Alias(response, target) => self.follow(*response, &question, &target, stream).await,
            Local::Elsewhere => match self.forward(packet, stream).await {
                Some(answer) => return Some(answer),
                None => failure(&question, ResponseCode::ServFail),
            },
        };
        let room = if stream { u16::MAX } else { question.max_payload().clamp(UDP_BYTES, UDP_BYTES_MAX) };
        if question.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_BYTES_MAX);
            response.set_edns(edns);
        }
        let bytes = response.to_vec().ok()?;
        if bytes.len() > usize::from(room) { response.truncate().to_vec().ok() } else { Some(bytes) }
    }

    /// Completes an alias to a name outside the cluster with that name's records, as resolvers expect (RFC 1034, 3.6.2).
    async fn follow(&self, mut response: Message, question: &Message, target: &str, stream: bool) -> Message {
        let Some(query) = question.queries.first() else { return response };
        let Some(name) = absolute(target) else { return response };
        let mut next = Message::new(question.metadata.id, MessageType::Query, OpCode::Query);
        next.metadata.recursion_desired = true;
        next.add_query(Query::query(name, query.query_type));
        let Ok(packet) = next.to_vec() else { return response };
        if let Some(found) = self.forward(&packet, stream).await.and_then(|bytes| Message::from_vec(&bytes).ok()) {
            response.add_answers(found.answers);
        }
        response
    }

    /// Asks the node's resolvers, one after the other.
    async fn forward(&self, packet: &[u8], stream: bool) -> Option<Vec<u8>> {
        for upstream in self.upstreams.iter() {
            let asked = async {
                if stream { ask_by_tcp(*upstream, packet).await } else { ask_by_udp(*upstream, packet).await }
            };
            match timeout(UPSTREAM_TIMEOUT, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%error, %upstream, "forward DNS query"),
                Err(_) => tracing::debug!(%upstream, "DNS resolver does not answer"),
            }
        }
        None
    }
}

async fn ask_by_udp(upstream: SocketAddr, packet: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if upstream.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(packet).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything that does not repeat the query's id is not its answer.
        if length >= 2 && buffer[..2] == packet[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_by_tcp(upstream: SocketAddr, packet: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(packet.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), packet].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

enum Local {
    Answer(Box<Message>),
    Alias(Box<Message>, String),
    Elsewhere,
}

/// What the zone says to a question. Pure.
fn local(zone: &Zone, question: &Message) -> Local {
    let [query] = question.queries.as_slice() else {
        return Local::Answer(Box::new(failure(question, ResponseCode::FormErr)));
    };
    if question.metadata.op_code != OpCode::Query || query.query_class != DNSClass::IN {
        return Local::Answer(Box::new(failure(question, ResponseCode::NotImp)));
    }
    let mut response = failure(question, ResponseCode::NoError);
    response.metadata.authoritative = true;
    let mut owner = query.name.clone();
    // An alias is completed with what it leads to, which many resolvers rely on.
    for _ in 0..ALIASES_MAX {
        let name = owner.to_ascii();
        match zone.answer(&name) {
            Answer::Elsewhere if response.answers.is_empty() => return Local::Elsewhere,
            Answer::Elsewhere => return Local::Alias(Box::new(response), name),
            Answer::NoSuchName => response.metadata.response_code = ResponseCode::NXDomain,
            Answer::Pod(address) => {
                if query.query_type == RecordType::A {
                    response.add_answer(resource(&owner, RData::A(A(address))));
                }
            }
            Answer::Records(records) => {
                let alias = records.iter().find(|record| matches!(record, Record::Alias(_)));
                if let Some(RData::CNAME(target)) = alias.and_then(data)
                    && query.query_type != RecordType::CNAME
                {
                    response.add_answer(resource(&owner, RData::CNAME(target.clone())));
                    owner = target.0;
                    continue;
                }
                response.add_answers(matching(&owner, records, query.query_type));
            }
        }
        break;
    }
    if response.answers.is_empty()
        && let Some(authority) = authority(zone)
    {
        if query.query_type == RecordType::SOA && authority.name == query.name {
            response.add_answer(authority);
        } else {
            response.add_authority(authority);
        }
    }
    Local::Answer(Box::new(response))
}

/// The records of a type, in another order each time: many clients take the first.
fn matching(owner: &Name, records: &BTreeSet<Record>, wanted: RecordType) -> Vec<Resource> {
    let all = records.iter().filter_map(data);
    let matching = all.filter(|data| data.record_type() == wanted || wanted == RecordType::ANY);
    let mut matching: Vec<Resource> = matching.map(|data| resource(owner, data)).collect();
    let first = if matching.is_empty() { 0 } else { rand::random_range(0..matching.len()) };
    matching.rotate_left(first);
    matching
}

fn failure(question: &Message, code: ResponseCode) -> Message {
    let mut response = Message::response(question.metadata.id, question.metadata.op_code);
    response.metadata.recursion_desired = question.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.add_queries(question.queries.clone());
    response
}

fn data(record: &Record) -> Option<RData> {
    Some(match record {
        Record::Address(address) => RData::A(A(*address)),
        Record::Alias(target) => RData::CNAME(CNAME(absolute(target)?)),
        Record::Pointer(target) => RData::PTR(PTR(absolute(target)?)),
        Record::Text(text) => RData::TXT(TXT::new(vec![text.clone()])),
        Record::Service { port, target } => RData::SRV(SRV::new(0, 100, *port, absolute(target)?)),
    })
}

/// The zone's start of authority: what tells resolvers how long to remember that a name is not there (RFC 2308).
fn authority(zone: &Zone) -> Option<Resource> {
    let owner = absolute(zone.domain())?;
    let soa = SOA::new(
        absolute(&format!("ns.dns.{}", zone.domain()))?,
        absolute(&format!("hostmaster.{}", zone.domain()))?,
        1,
        7200,
        1800,
        86400,
        TTL_SECONDS,
    );
    Some(resource(&owner, RData::SOA(soa)))
}

fn absolute(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn resource(name: &Name, data: RData) -> Resource {
    Resource::from_rdata(name.clone(), TTL_SECONDS, data)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::{Service, ServiceSpec},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    };

    use super::*;

    fn zone() -> Arc<Zone> {
        let web = Service {
            metadata: ObjectMeta { name: Some("web".into()), namespace: Some("a".into()), ..ObjectMeta::default() },
            spec: Some(ServiceSpec { cluster_ip: Some("10.96.0.5".into()), ..ServiceSpec::default() }),
            ..Service::default()
        };
        let alias = |name: &str, target: &str| {
            let mut service = web.clone();
            service.metadata.name = Some(name.into());
            service.spec = Some(ServiceSpec {
                type_: Some("ExternalName".into()),
                external_name: Some(target.into()),
                ..ServiceSpec::default()
            });
            service
        };
        let near = alias("near", "web.a.svc.cluster.local");
        let round = alias("round", "round.a.svc.cluster.local");
        Arc::new(Zone::new("cluster.local", &[near, round, web], &[]))
    }

    #[test]
    fn aliases_within_the_cluster_are_completed() {
        let ask = |name: &str, kind| match local(&zone(), &question(name, kind)) {
            Local::Answer(response) => response.answers.iter().map(|one| one.data.to_string()).collect::<Vec<_>>(),
            Local::Alias(..) | Local::Elsewhere => panic!("{name} is the cluster's"),
        };
        assert_eq!(ask("near.a.svc.cluster.local", RecordType::A), ["web.a.svc.cluster.local.", "10.96.0.5"]);
        assert_eq!(ask("near.a.svc.cluster.local", RecordType::CNAME), ["web.a.svc.cluster.local."]);
        assert_eq!(ask("round.a.svc.cluster.local", RecordType::A).len(), ALIASES_MAX, "it ends");
        assert_eq!(ask("cluster.local", RecordType::SOA).len(), 1);
        assert_eq!(ask("dns-version.cluster.local", RecordType::TXT), ["1.1.0"]);
    }

    fn question(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(absolute(name).unwrap(), kind));
        message
    }

    async fn server() -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).await.unwrap();
        let (_sender, zone) = watch::channel(zone());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(Server::new(zone, Vec::new()).serve(udp, tcp, shutdown.clone()));
        (address, shutdown, task)
    }

    #[tokio::test]
    async fn answers_over_udp_and_tcp() {
        let (address, shutdown, task) = server().await;
        let query = question("web.a.svc.cluster.local", RecordType::A).to_vec().unwrap();
        for answer in [ask_by_udp(address, &query).await.unwrap(), ask_by_tcp(address, &query).await.unwrap()] {
            let answer = Message::from_vec(&answer).unwrap();
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
            assert_eq!(answer.answers[0].data, RData::A(A("10.96.0.5".parse().unwrap())));
        }
        let query = question("nobody.a.svc.cluster.local", RecordType::A).to_vec().unwrap();
        let answer = Message::from_vec(&ask_by_udp(address, &query).await.unwrap()).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.authorities.len(), 1);
        let query = question("example.org", RecordType::A).to_vec().unwrap();
        let answer = Message::from_vec(&ask_by_udp(address, &query).await.unwrap()).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        shutdown.cancel();
        task.await.unwrap();
    }

    #[test]
    fn a_name_without_a_record_of_the_type_is_not_an_error() {
        let Local::Answer(answer) = local(&zone(), &question("web.a.svc.cluster.local", RecordType::AAAA)) else {
            panic!("the zone answers for its own names");
        };
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert!(answer.answers.is_empty());
    }

    #[test]
    fn resolvers_are_read_from_resolv_conf() {
        let text = "# comment\nnameserver 10.96.0.10\nnameserver 192.0.2.1\nsearch x\nnameserver bad\n";
        assert_eq!(upstreams(text, "10.96.0.10".parse().unwrap()), ["192.0.2.1:53".parse().unwrap()]);
    }
}
