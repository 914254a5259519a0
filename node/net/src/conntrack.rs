//! What the kernel remembers of UDP: a client that goes on sending would go on to an endpoint that is gone, since no
//! packet of it is the first. So what does not fit the Services any more is forgotten.

use std::{collections::BTreeSet, io, net::Ipv4Addr, time::Duration};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
    netlink::{NETFILTER, SocketAddrNetlink},
    recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use crate::rules::Datagrams;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const BUFFER_BYTES: usize = 64 * 1024;
/// Entries that are forgotten at a time; the next change of a Service continues.
const FORGOTTEN_MAX: usize = 65_536;
const UDP: u8 = 17;

// linux/netlink.h, linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
const HEADER_BYTES: usize = 16;
const FAMILY_BYTES: usize = 4;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
const CONNTRACK: u16 = 1 << 8;
const GET: u16 = CONNTRACK | 1;
const DELETE: u16 = CONNTRACK | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const NESTED: u16 = 0x8000;

/// A flow that the kernel remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Flow {
    /// Where its client sends to.
    destination: (Ipv4Addr, u16),
    /// Who answers.
    answers: (Ipv4Addr, u16),
    /// The kernel's own description, by which it is deleted.
    original: Vec<u8>,
}

/// Forgets the flows whose endpoint is none of their Service's.
pub(crate) async fn forget(datagrams: Datagrams) {
    let done = tokio::task::spawn_blocking(move || forget_now(&datagrams)).await;
    match done.map_err(io::Error::other).flatten() {
        Ok(0) => {}
        Ok(count) => tracing::debug!(count, "forgot UDP flows to endpoints that are gone"),
        Err(error) => {
            tracing::warn!(%error, "UDP clients of removed endpoints are not sent to others before they pause")
        }
    }
}

fn forget_now(datagrams: &Datagrams) -> io::Result<usize> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(NETFILTER))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    let ask = |kind: u16, flags: u16, attributes: &[u8]| -> io::Result<Vec<Flow>> {
        send(&socket, &message(kind, flags, attributes), SendFlags::empty())?;
        let mut flows = Vec::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let (length, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
            if read(&buffer[..length], &mut flows)? {
                return Ok(flows);
            }
        }
    };
    let mut count = 0;
    for flow in ask(GET, REQUEST | DUMP, &[])?.iter().filter(|flow| is_stale(flow, datagrams)).take(FORGOTTEN_MAX) {
        match ask(DELETE, REQUEST | ACKNOWLEDGE, &attribute(TUPLE_ORIGINAL | NESTED, &flow.original)) {
            Ok(_) => count += 1,
            // It has ended by itself.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

fn is_stale(flow: &Flow, datagrams: &Datagrams) -> bool {
    let (address, port) = flow.destination;
    let missing = |targets: &BTreeSet<(Ipv4Addr, u16)>| !targets.contains(&flow.answers);
    match datagrams.addresses.get(&flow.destination) {
        Some(targets) => missing(targets),
        // A flow to such a port of another machine is none of ours: it is not translated.
        None => flow.answers.0 != address && datagrams.node_ports.get(&port).is_some_and(missing),
    }
}

fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + FAMILY_BYTES + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port: one question at a time.
    bytes.extend([0; 8]);
    let ipv4 = 2;
    bytes.extend([ipv4, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Reads the flows of an answer; true where it is the last one.
fn read(mut bytes: &[u8], flows: &mut Vec<Flow>) -> io::Result<bool> {
    while let Some((head, _)) = bytes.split_at_checked(HEADER_BYTES) {
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let body = bytes.get(HEADER_BYTES..length).ok_or_else(|| io::Error::other("a broken answer of the kernel"))?;
        match u16::from_ne_bytes([head[4], head[5]]) {
            DONE => return Ok(true),
            ERROR => {
                let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            _ => flows.extend(flow(body)),
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn flow(body: &[u8]) -> Option<Flow> {
    let attributes = body.get(FAMILY_BYTES..)?;
    let original = find(attributes, TUPLE_ORIGINAL)?;
    let (_, destination) = tuple(original)?;
    let (answers, _) = tuple(find(attributes, TUPLE_REPLY)?)?;
    Some(Flow { destination, answers, original: original.to_vec() })
}

type Ends = ((Ipv4Addr, u16), (Ipv4Addr, u16));

/// Source and destination, if it is UDP.
fn tuple(bytes: &[u8]) -> Option<Ends> {
    let (addresses, protocol) = (find(bytes, 1)?, find(bytes, 2)?);
    if find(protocol, 1)? != [UDP] {
        return None;
    }
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(find(addresses, kind)?).ok()?));
    let port = |kind| Some(u16::from_be_bytes(find(protocol, kind)?.try_into().ok()?));
    Some(((address(1)?, port(2)?), (address(2)?, port(3)?)))
}

fn find(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let head: &[u8; 4] = bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = bytes.get(4..length)?;
        if u16::from_ne_bytes([head[2], head[3]]) & !NESTED == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(protocol: u8, source: (&str, u16), destination: (&str, u16)) -> Vec<u8> {
        let address = |kind, text: &str| attribute(kind, &text.parse::<Ipv4Addr>().unwrap().octets());
        let addresses = [address(1, source.0), address(2, destination.0)].concat();
        let ports = [attribute(2, &source.1.to_be_bytes()), attribute(3, &destination.1.to_be_bytes())].concat();
        let protocol = [attribute(1, &[protocol]), ports].concat();
        [attribute(1 | NESTED, &addresses), attribute(2 | NESTED, &protocol)].concat()
    }

    fn remembered(protocol: u8, to: (&str, u16), answers: (&str, u16)) -> Vec<u8> {
        let client = ("10.128.0.9", 5000);
        let original = attribute(TUPLE_ORIGINAL | NESTED, &described(protocol, client, to));
        let reply = attribute(TUPLE_REPLY | NESTED, &described(protocol, answers, client));
        message(CONNTRACK, 0, &[original, reply].concat())
    }

    #[test]
    fn flows_to_endpoints_that_are_gone_are_stale() {
        let end = |address: &str, port: u16| (address.parse::<Ipv4Addr>().unwrap(), port);
        let targets = BTreeSet::from([end("10.128.0.2", 53)]);
        let datagrams = Datagrams {
            addresses: [(end("10.96.0.5", 53), targets.clone()), (end("10.96.0.6", 53), BTreeSet::new())].into(),
            node_ports: [(30053, targets)].into(),
        };
        let check = |protocol, to, answers, expected: Option<bool>| {
            let mut flows = Vec::new();
            assert!(!read(&remembered(protocol, to, answers), &mut flows).unwrap());
            assert_eq!(flows.first().map(|flow| is_stale(flow, &datagrams)), expected, "{to:?} {answers:?}");
        };
        check(UDP, ("10.96.0.5", 53), ("10.128.0.2", 53), Some(false));
        check(UDP, ("10.96.0.5", 53), ("10.128.0.3", 53), Some(true));
        // Begun when the Service had no endpoint.
        check(UDP, ("10.96.0.5", 53), ("10.96.0.5", 53), Some(true));
        check(UDP, ("10.96.0.6", 53), ("10.128.0.2", 53), Some(true));
        check(UDP, ("192.0.2.1", 30053), ("10.128.0.2", 53), Some(false));
        check(UDP, ("192.0.2.1", 30053), ("10.128.0.3", 53), Some(true));
        check(UDP, ("192.0.2.1", 30053), ("192.0.2.1", 30053), Some(false));
        check(UDP, ("192.0.2.1", 53), ("192.0.2.1", 53), Some(false));
        check(6, ("10.96.0.5", 53), ("10.128.0.3", 53), None);
    }

    #[test]
    fn the_end_of_an_answer_and_broken_ones_are_seen() {
        assert!(read(&message(DONE, 0, &[]), &mut Vec::new()).unwrap());
        let mut short = message(CONNTRACK, 0, &[]);
        short[0] = 200;
        assert!(read(&short, &mut Vec::new()).is_err());
        assert_eq!(find(&[3, 0, 1, 0], 1), None);
        assert_eq!(find(&[0; 4], 1), None);
    }

    /// The kernel understands the question.
    #[test]
    fn the_kernel_is_asked() {
        forget_now(&Datagrams::default()).unwrap();
    }
}
