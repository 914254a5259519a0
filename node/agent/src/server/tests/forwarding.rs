use std::collections::{BTreeMap, BTreeSet};

use super::{super::spdy, *};
use bytes::Bytes;
use futures::stream;
use spdy::{Decoder, Encoder, Frame, Headers};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const PATIENCE: Duration = Duration::from_secs(20);

/// A client of forwarded ports: what it sent and got, by stream.
struct Client {
    socket: WebSocketStream<Tls>,
    encoder: Encoder,
    decoder: Decoder,
    last: u32,
    opened: BTreeSet<u32>,
    refused: BTreeMap<u32, u32>,
    got: BTreeMap<u32, Vec<u8>>,
    ended: BTreeSet<u32>,
    pongs: Vec<u32>,
}

impl Client {
    async fn start(served: &Served) -> Client {
        let socket = websocket(served, "/portForward/default/web", TUNNEL).await;
        Client {
            socket,
            encoder: Encoder::default(),
            decoder: Decoder::default(),
            last: 0,
            opened: BTreeSet::new(),
            refused: BTreeMap::new(),
            got: BTreeMap::new(),
            ended: BTreeSet::new(),
            pongs: Vec::new(),
        }
    }

    async fn send(&mut self, frame: &Frame) {
        let bytes = self.encoder.encode(frame);
        // Cut anywhere, as a tunnel may.
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        let halves = [head, tail].map(|half| Ok(Message::Binary(Bytes::copy_from_slice(half))));
        self.socket.send_all(&mut stream::iter(halves)).await.unwrap();
    }

    async fn open(&mut self, kind: &str, port: u16, request: &str) -> u32 {
        self.last += if self.last == 0 { 1 } else { 2 };
        let pairs = [("streamtype", kind), ("port", &port.to_string()), ("requestid", request)];
        let headers = Headers::from(pairs);
        self.send(&Frame::SynStream { stream: self.last, fin: false, headers }).await;
        self.last
    }

    /// The error and the data stream of a connection.
    async fn connect(&mut self, port: u16, request: &str) -> (u32, u32) {
        (self.open("error", port, request).await, self.open("data", port, request).await)
    }

    async fn data(&mut self, stream: u32, payload: &[u8], fin: bool) {
        self.send(&Frame::Data { stream, fin, payload: Bytes::copy_from_slice(payload) }).await;
    }

    /// Takes what comes until it is enough; false if the connection ends before.
    async fn until(&mut self, enough: impl Fn(&Client) -> bool) -> bool {
        while !enough(self) {
            let message = tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("nothing comes");
            let Some(Ok(message)) = message else { return false };
            self.decoder.push(&message.into_data());
            while let Some(frame) = self.decoder.next().unwrap() {
                match frame {
                    Frame::SynReply { stream, .. } => drop(self.opened.insert(stream)),
                    Frame::RstStream { stream, status } => drop(self.refused.insert(stream, status)),
                    Frame::Ping(id) => self.pongs.push(id),
                    Frame::Data { stream, fin, payload } => {
                        self.got.entry(stream).or_default().extend_from_slice(&payload);
                        if fin {
                            self.ended.insert(stream);
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        true
    }

    fn text(&self, stream: u32) -> String {
        String::from_utf8(self.got.get(&stream).cloned().unwrap_or_default()).unwrap()
    }

    fn is_over(&self, (error, data): (u32, u32)) -> bool {
        self.ended.contains(&error) && self.ended.contains(&data)
    }
}

/// A server that sends back what it gets, and `bye` when its client has said everything.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await.unwrap();
                writer.write_all(b"bye").await.unwrap();
            });
        }
    });
    port
}

async fn served() -> Served {
    let served = Served::start().await;
    served.node.offer("a", Program::waits());
    served.node.api.put_pod(pod(&["a"]));
    served.node.until_pod("a ready pod", is_ready).await;
    served
}

#[tokio::test]
async fn connections_are_forwarded_side_by_side() {
    let served = served().await;
    let port = echo().await;
    let mut client = Client::start(&served).await;
    let mut connections = Vec::new();
    for request in 0..40 {
        connections.push(client.connect(port, &request.to_string()).await);
    }
    for (_, data) in &connections {
        client.data(*data, format!("to {data};").as_bytes(), false).await;
    }
    for (_, data) in connections.iter().rev() {
        client.data(*data, b"again;", true).await;
    }
    assert!(client.until(|client| connections.iter().all(|pair| client.is_over(*pair))).await);
    for (error, data) in connections {
        assert!(client.opened.contains(&error) && client.opened.contains(&data));
        assert_eq!((client.text(data), client.text(error)), (format!("to {data};again;bye"), String::new()));
    }
    client.send(&Frame::Ping(1)).await;
    assert!(client.until(|client| client.pongs == [1]).await);
    served.end().await;
}

#[tokio::test]
async fn much_data_passes_both_ways() {
    let served = served().await;
    let port = echo().await;
    let mut client = Client::start(&served).await;
    let pair = client.connect(port, "0").await;
    let chunk: Vec<u8> = (0..u8::MAX).cycle().take(100_000).collect();
    for round in 0..100 {
        client.data(pair.1, &chunk, round == 99).await;
        // So that neither side waits for the other for ever.
        let wanted = round * chunk.len();
        assert!(client.until(|client| client.got.get(&pair.1).map_or(0, Vec::len) >= wanted).await);
    }
    assert!(client.until(|client| client.is_over(pair)).await);
    let got = &client.got[&pair.1];
    assert_eq!(got.len(), 100 * chunk.len() + 3);
    assert!(got.chunks(chunk.len()).take(100).all(|part| part == chunk));
    served.end().await;
}

#[tokio::test]
async fn a_refused_connection_is_told_and_others_go_on() {
    let served = served().await;
    let port = echo().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut client = Client::start(&served).await;
    let good = client.connect(port, "good").await;
    let refused = client.connect(closed, "refused").await;
    assert!(client.until(|client| client.is_over(refused)).await);
    let told = client.text(refused.0);
    assert!(told.contains(&format!("error forwarding port {closed} to pod web, uid uid-1: ")), "{told}");
    assert!(told.contains("refused"), "{told}");
    client.data(good.1, b"still here;", true).await;
    assert!(client.until(|client| client.is_over(good)).await);
    assert_eq!(client.text(good.1), "still here;bye");
    served.end().await;
}

#[tokio::test]
async fn a_reset_ends_its_connection_only() {
    let served = served().await;
    let port = echo().await;
    let mut client = Client::start(&served).await;
    let (reset, other) = (client.connect(port, "0").await, client.connect(port, "1").await);
    client.send(&Frame::RstStream { stream: reset.1, status: 5 }).await;
    // kubectl waits for the end of the error stream.
    assert!(client.until(|client| client.ended.contains(&reset.0)).await);
    client.data(reset.1, b"late", false).await;
    client.data(other.1, b"", true).await;
    assert!(client.until(|client| client.is_over(other)).await);
    served.end().await;
}

#[tokio::test]
async fn streams_that_make_no_sense_are_refused() {
    let served = served().await;
    let mut client = Client::start(&served).await;
    let streams = [
        client.open("data", 0, "a").await,
        client.open("stdin", 80, "b").await,
        client.open("error", 80, "c").await,
        client.open("error", 80, "c").await,
    ];
    assert!(client.until(|client| client.refused.len() == 3).await);
    assert_eq!(client.opened, BTreeSet::from([streams[2]]));
    client.last -= 4;
    let twice = client.open("data", 80, "d").await;
    assert!(client.until(|client| client.refused.get(&twice) == Some(&1)).await);
    client.socket.send(Message::Binary(Bytes::from_static(&[0xff; 64]))).await.unwrap();
    assert!(!client.until(|_| false).await, "what is no SPDY ends the connection");
    served.end().await;
}

#[tokio::test]
async fn forwarding_ends_with_the_pod() {
    let served = served().await;
    let mut client = Client::start(&served).await;
    let sandbox = served.node.sandboxes()[0].id.clone();
    served.node.containers.lose_sandbox(&sandbox);
    assert!(!client.until(|_| false).await);
    served.end().await;
}

#[tokio::test]
async fn old_clients_upgrade_to_spdy() {
    let served = served().await;
    let port = echo().await;
    let mut stream = dial(&served).await;
    let request = "POST /portForward/default/web/uid-1 HTTP/1.1\r\nHost: n1\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(
        head.starts_with("http/1.1 101 ") && head.contains("x-stream-protocol-version: portforward.k8s.io"),
        "{head}"
    );
    let mut encoder = Encoder::default();
    // Without a name of the request, as clients of long ago.
    for (number, kind) in [(1, "error"), (3, "data")] {
        let headers = Headers::from([("streamtype", kind), ("port", &port.to_string())]);
        let frame = encoder.encode(&Frame::SynStream { stream: number, fin: false, headers });
        stream.write_all(&frame).await.unwrap();
    }
    let frame = Frame::Data { stream: 3, fin: true, payload: Bytes::from_static(b"plain;") };
    stream.write_all(&encoder.encode(&frame)).await.unwrap();
    let (mut decoder, mut got, mut ends) = (Decoder::default(), Vec::new(), 0);
    while ends < 2 {
        let mut buffer = [0; 1024];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
        decoder.push(&buffer[..read]);
        while let Some(frame) = decoder.next().unwrap() {
            if let Frame::Data { fin, payload, .. } = frame {
                got.extend_from_slice(&payload);
                ends += usize::from(fin);
            }
        }
    }
    assert_eq!(got, b"plain;bye");
    served.end().await;
}

#[tokio::test]
async fn what_cannot_be_forwarded_is_said() {
    let served = served().await;
    assert_eq!(served.get("/portForward/default/web").await.0, 400);
    assert_eq!(served.get("/portForward/default/nope").await.0, 404);
    served.end().await;
}

/// What comes on each channel until the other side closes, or until it is enough.
async fn heard(
    socket: &mut WebSocketStream<Tls>,
    enough: impl Fn(&BTreeMap<u8, Vec<u8>>) -> bool,
) -> BTreeMap<u8, Vec<u8>> {
    let mut heard = BTreeMap::<u8, Vec<u8>>::new();
    while !enough(&heard) {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await.expect("nothing comes");
        match message {
            Some(Ok(Message::Binary(bytes))) => heard.entry(bytes[0]).or_default().extend_from_slice(&bytes[1..]),
            Some(Ok(Message::Text(text))) => {
                let payload = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, &text[1..]).unwrap();
                heard.entry(text.as_bytes()[0] - b'0').or_default().extend_from_slice(&payload);
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => break,
            Some(Ok(_)) => {}
        }
    }
    heard
}

#[tokio::test]
async fn clients_without_spdy_have_two_channels_for_each_port() {
    let served = served().await;
    let port = echo().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let path = format!("/portForward/default/web?port={port}&port={closed}");
    // As kube-rs offers them.
    let mut socket = websocket(&served, &path, "v5.channel.k8s.io, v4.channel.k8s.io").await;
    socket.send(Message::Binary(b"\0hello".to_vec().into())).await.unwrap();
    let got = heard(&mut socket, |heard| {
        let length = |channel: u8| heard.get(&channel).map_or(0, Vec::len);
        length(0) >= 7 && length(1) >= 2 && length(3) > 2
    });
    let got = got.await;
    assert_eq!(got[&0], [port.to_le_bytes().as_slice(), b"hello"].concat());
    assert_eq!(got[&1], port.to_le_bytes());
    assert_eq!(got[&2], closed.to_le_bytes());
    assert_eq!(got[&3][..2], closed.to_le_bytes());
    let told = String::from_utf8_lossy(&got[&3][2..]).into_owned();
    assert!(told.contains(&format!("error forwarding port {closed} to pod web, uid uid-1: ")), "{told}");
    drop(socket);

    // When no connection is left, the server closes.
    let path = format!("/portForward/default/web?port={closed}");
    let mut socket = websocket(&served, &path, "v4.base64.channel.k8s.io").await;
    let got = heard(&mut socket, |_| false).await;
    assert_eq!(got[&0], closed.to_le_bytes());
    assert!(String::from_utf8_lossy(&got[&1][2..]).contains("refused"), "{got:?}");
    served.end().await;
}
