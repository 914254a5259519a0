//! The part of a stub resolver that outgoing requests need: addresses of names, asked from inside the pod.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};

use crate::network::{Dialer, Dns};

const PORT: u16 = 53;
const ATTEMPTS: usize = 2;
const ANSWER_TIME: Duration = Duration::from_secs(2);
const ANSWER_BYTES: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{name}: no such host")]
    NotFound { name: String },
    #[error("{name}: the name server answered {code}")]
    Refused { name: String, code: String },
    #[error("{name}: no name server answered in time")]
    Timeout { name: String },
    #[error("asking for {name}: {source}")]
    Io { name: String, source: io::Error },
    #[error("{name:?} is not a host name")]
    Name { name: String },
}

/// The addresses of a host as a program inside the pod would see them.
pub(crate) async fn resolve(dialer: &Dialer, dns: &Dns, host: &str) -> Result<Vec<IpAddr>, Error> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(vec![address]);
    }
    if host == "localhost" || host.ends_with(".localhost") {
        return Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    }
    let mut failure = Error::NotFound { name: host.to_owned() };
    for candidate in candidates(host, &dns.searches, dns.ndots) {
        match ask_all(dialer, dns, &candidate).await {
            Ok(addresses) if !addresses.is_empty() => return Ok(addresses),
            Ok(_) => {}
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// The full names that a host name can mean, in the order of resolv.conf(5).
fn candidates(host: &str, searches: &[String], ndots: usize) -> Vec<String> {
    if host.ends_with('.') {
        return vec![host.to_owned()];
    }
    let absolute = format!("{host}.");
    let searched = searches.iter().map(|search| format!("{host}.{}.", search.trim_end_matches('.')));
    if host.matches('.').count() >= ndots.max(1) {
        std::iter::once(absolute).chain(searched).collect()
    } else {
        searched.chain(std::iter::once(absolute)).collect()
    }
}

async fn ask_all(dialer: &Dialer, dns: &Dns, name: &str) -> Result<Vec<IpAddr>, Error> {
    let mut failure = Error::NotFound { name: name.to_owned() };
    for _ in 0..ATTEMPTS {
        for server in &dns.servers {
            match in_time(name, ask(dialer, SocketAddr::new(*server, PORT), name)).await {
                Ok(addresses) => return Ok(addresses),
                // What a server says about a name is final; only silence is worth another question.
                Err(error @ (Error::NotFound { .. } | Error::Name { .. })) => return Err(error),
                Err(error) => failure = error,
            }
        }
    }
    Err(failure)
}

async fn in_time(name: &str, question: impl Future<Output = Result<Vec<IpAddr>, Error>>) -> Result<Vec<IpAddr>, Error> {
    let answered = tokio::time::timeout(ANSWER_TIME, question).await;
    answered.unwrap_or_else(|_| Err(Error::Timeout { name: name.to_owned() }))
}

async fn ask(dialer: &Dialer, server: SocketAddr, name: &str) -> Result<Vec<IpAddr>, Error> {
    let io = |source| Error::Io { name: name.to_owned(), source };
    let mut question = Message::query();
    let parsed = Name::from_str(name).map_err(|_| Error::Name { name: name.to_owned() })?;
    question.add_query(Query::query(parsed, RecordType::A));
    question.metadata.recursion_desired = true;
    let id = question.metadata.id;
    let bytes = question.to_vec().map_err(|error| io(io::Error::other(error)))?;
    let socket = dialer.datagrams(server).await.map_err(io)?;
    socket.send(&bytes).await.map_err(io)?;
    let mut buffer = vec![0; ANSWER_BYTES];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(io)?;
        match Message::from_vec(&buffer[..length]) {
            Ok(answer) if answer.metadata.id == id => return read(name, &answer),
            // Not the answer to this question.
            Ok(_) | Err(_) => {}
        }
    }
}

fn read(name: &str, answer: &Message) -> Result<Vec<IpAddr>, Error> {
    match answer.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Err(Error::NotFound { name: name.to_owned() }),
        code => return Err(Error::Refused { name: name.to_owned(), code: code.to_string() }),
    }
    let addresses = answer.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    });
    Ok(addresses.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_searched_as_resolv_conf_says() {
        let searches = ["default.svc.cluster.local".to_owned(), "svc.cluster.local".to_owned()];
        assert_eq!(
            candidates("web", &searches, 5),
            ["web.default.svc.cluster.local.", "web.svc.cluster.local.", "web."]
        );
        assert_eq!(candidates("a.b.c.d.e.f", &searches, 5)[0], "a.b.c.d.e.f.");
        assert_eq!(candidates("web.", &searches, 5), ["web."]);
        assert_eq!(candidates("example.org", &searches, 1)[0], "example.org.");
    }
}
