//! What a request asks for, and how it is passed on. Pure.
//!
//! Requests are read by one strict parser and written anew: nothing of how a client framed its message reaches a backend
//! (RFC 9112, section 11.2).

use std::{borrow::Cow, net::IpAddr};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version,
    header::{self, Entry},
    request::Parts,
    uri::Authority,
};

use crate::{
    answer::Refusal,
    routes::{Protocol, normal_host},
};

/// Our name in `Via`.
const VIA: &str = "1.1 tandem-ingress";
/// Times that a request may have passed proxies of this name: ingresses of several clusters may stand in a row, more is
/// a loop.
const PASSES_MAX: usize = 4;

/// Headers that concern one connection only (RFC 9110, section 7.6.1), and what only we may say.
const NOT_PASSED: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];
const OURS: &[&str] = &[
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-forwarded-scheme",
    "x-forwarded-ssl",
    "x-original-forwarded-for",
    "x-real-ip",
    "x-scheme",
];
/// Protocols that a connection is not upgraded to: they would carry requests that nobody checks.
const NOT_UPGRADED_TO: &[&str] = &["h2c", "h2", "http", "tls"];

/// The host and path of a request, as tables hold them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) host: String,
    pub(crate) path: String,
    /// As the client wrote it, with the port.
    pub(crate) authority: Option<Authority>,
}

/// Reads what is asked, or says why nobody should be asked for that.
pub(crate) fn asked(parts: &Parts) -> Result<Asked, Refusal> {
    if parts.method == Method::CONNECT {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not supported"));
    }
    if passes(&parts.headers) > PASSES_MAX {
        return Err(Refusal::new(StatusCode::LOOP_DETECTED, "the request goes in a circle"));
    }
    let authority = authority(parts)?;
    let host = authority.as_ref().map(|authority| normal_host(authority.host())).unwrap_or_default();
    let path = parts.uri.path();
    if !path.starts_with('/') {
        return Err(bad("the path of the request is not absolute"));
    }
    if climbs(path) {
        return Err(bad("the path of the request has . or .. in it"));
    }
    Ok(Asked { host, path: normal_path(path).into_owned(), authority })
}

fn bad(why: &'static str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, why)
}

fn authority(parts: &Parts) -> Result<Option<Authority>, Refusal> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let named = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(bad("the request has more than one Host")),
        (Some(host), None) if !host.is_empty() => {
            let host = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
            Some(host.ok_or_else(|| bad("the Host of the request is malformed"))?)
        }
        _ => None,
    };
    let target = parts.uri.authority().cloned();
    if let (Some(named), Some(target)) = (&named, &target)
        && !named.as_str().eq_ignore_ascii_case(target.as_str())
    {
        return Err(bad("the request names two hosts"));
    }
    let authority = target.or(named);
    if authority.as_ref().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(bad("the Host of the request is malformed"));
    }
    if authority.is_none() && parts.version != Version::HTTP_10 {
        return Err(bad("the request has no Host"));
    }
    Ok(authority)
}

fn passes(headers: &HeaderMap) -> usize {
    let all = headers.get_all(header::VIA).iter().filter_map(|via| via.to_str().ok());
    all.flat_map(|via| via.split(',')).filter(|hop| hop.trim() == VIA).count()
}

/// Whether some server might take the path for one outside of the prefix that it begins with.
fn climbs(path: &str) -> bool {
    let mut plain = path.to_ascii_lowercase();
    for (escaped, character) in [("%2e", "."), ("%2f", "/"), ("%5c", "/"), ("\\", "/")] {
        if plain.contains(escaped) {
            plain = plain.replace(escaped, character);
        }
    }
    // What follows a semicolon are parameters of the segment to some servers.
    plain.split('/').any(|segment| matches!(segment.split(';').next(), Some("." | "..")))
}

/// A path in which characters that need no escape have none (RFC 3986, section 6.2.2).
pub(crate) fn normal_path(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut normal = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        normal.push_str(&rest[..at]);
        let escape = rest.get(at..at + 3);
        let byte = escape.and_then(|escape| u8::from_str_radix(&escape[1..], 16).ok());
        match (byte.map(char::from), escape) {
            (Some(plain), _) if plain.is_ascii_alphanumeric() || "-._~".contains(plain) => normal.push(plain),
            (Some(_), Some(escape)) => normal.push_str(&escape.to_ascii_uppercase()),
            _ => {
                normal.push('%');
                rest = &rest[at + 1..];
                continue;
            }
        }
        rest = &rest[at + 3..];
    }
    normal.push_str(rest);
    Cow::Owned(normal)
}

/// Takes out what concerns one connection only, and what that connection's `Connection` names.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        tokens(headers, &header::CONNECTION).filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect();
    named.iter().for_each(|name| drop(headers.remove(name)));
    NOT_PASSED.iter().for_each(|name| drop(headers.remove(*name)));
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// The protocol that a request wants its connection to become.
pub(crate) fn upgrade(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let wants = tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    if version != Version::HTTP_11 || !wants {
        return None;
    }
    let refused = |token: &str| {
        let name = token.split('/').next().unwrap_or_default();
        NOT_UPGRADED_TO.iter().any(|refused| name.eq_ignore_ascii_case(refused))
    };
    let first = tokens(headers, &header::UPGRADE).find(|token| !refused(token))?;
    HeaderValue::from_str(first).ok()
}

/// Who asks, for the backend to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub(crate) address: IpAddr,
    pub(crate) scheme: &'static str,
}

/// Makes of a client's request the one that a backend gets. `upgrade` is what its connection shall become.
pub(crate) fn prepare<B: http_body::Body>(
    request: Request<B>,
    asked: &Asked,
    client: Client,
    protocol: Protocol,
    upgrade: Option<&HeaderValue>,
) -> Result<Request<B>, Refusal> {
    let (mut parts, body) = request.into_parts();
    let trailers = tokens(&parts.headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    let headers = &mut parts.headers;
    strip(headers);
    forget_ours(headers);
    // The proxy itself tells the client to go on, when the backend takes the body.
    headers.remove(header::EXPECT);
    join_cookies(headers);
    headers.remove(header::HOST);
    say(headers, "x-forwarded-for", &client.address.to_canonical().to_string());
    say(headers, "x-forwarded-proto", client.scheme);
    headers.append(header::VIA, HeaderValue::from_static(VIA));
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(authority) = &asked.authority {
        say(headers, "x-forwarded-host", authority.as_str());
    }
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let host = asked.authority.as_ref().map_or("", |authority| authority.as_str());
    let uri = Uri::builder().path_and_query(path);
    let uri = match protocol {
        Protocol::Http1 => {
            let host = HeaderValue::from_str(host).map_err(|_| bad("the Host of the request is malformed"))?;
            parts.headers.insert(header::HOST, host);
            uri.build()
        }
        Protocol::Http2 => uri.scheme("http").authority(host).build(),
    };
    parts.uri = uri.map_err(|_| bad("the target of the request is malformed"))?;
    parts.version = match protocol {
        Protocol::Http1 => Version::HTTP_11,
        Protocol::Http2 => Version::HTTP_2,
    };
    // Without this, hyper takes a GET whose body has no known length for one without a body.
    if protocol == Protocol::Http1 && !body.is_end_stream() && body.size_hint().exact().is_none() {
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if let Some(to) = upgrade {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, to.clone());
    }
    parts.extensions.clear();
    Ok(Request::from_parts(parts, body))
}

/// Nobody outside says where a request came from, in whatever spelling: many frameworks read `_` as `-`.
fn forget_ours(headers: &mut HeaderMap) {
    OURS.iter().for_each(|name| drop(headers.remove(*name)));
    let spelt: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().contains('_') && OURS.contains(&name.as_str().replace('_', "-").as_str()))
        .cloned()
        .collect();
    spelt.iter().for_each(|name| drop(headers.remove(name)));
}

/// HTTP/2 may bring cookies in pieces, HTTP/1.1 must not (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if let Entry::Occupied(cookies) = headers.entry(header::COOKIE)
        && cookies.iter().nth(1).is_some()
    {
        let joined = cookies.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
        cookies.remove_entry_mult();
        if let Ok(joined) = HeaderValue::from_bytes(&joined) {
            headers.insert(header::COOKIE, joined);
        }
    }
}

fn say(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `METHOD TARGET`, then a header a line.
    fn request(text: &str) -> Request<()> {
        let mut lines = text.lines().map(str::trim);
        let (method, target) = lines.next().unwrap().split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(target);
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            request = request.header(name, value);
        }
        request.body(()).unwrap()
    }

    fn check(text: &str, expected: &str) {
        let (parts, ()) = request(text).into_parts();
        let found = match asked(&parts) {
            Ok(asked) => format!("{} {}", asked.host, asked.path),
            Err(refusal) => refusal.status.as_str().to_owned(),
        };
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn what_is_asked_is_read_strictly() {
        check("GET /a?b=..\nHost: A.test.:8080", "a.test /a");
        check("GET http://a.test/x\nHost: a.test", "a.test /x");
        check("GET http://a.test/x\nHost: b.test", "400");
        check("GET /\nHost: a\nHost: b", "400");
        check("GET /\nHost: user@a", "400");
        check("GET /\nHost: a b", "400");
        check("GET /", "400");
        check("OPTIONS *\nHost: a", "400");
        check("CONNECT a:443\nHost: a:443", "405");
        check("GET /%61%2Db%2fc%zz\nHost: a", "a /a-b%2Fc%zz");
        for path in ["/a/../b", "/a/..", "/./a", "/a/%2e%2E/b", "/a%2f..%2fb", "/a/..;x/b", "/a%5c..%5cb"] {
            check(&format!("GET {path}\nHost: a"), "400");
        }
        check("GET /a/...b/.well-known\nHost: a", "a /a/...b/.well-known");
        let circle = "Via: 1.1 tandem-ingress, 1.1 tandem-ingress, 1.1 tandem-ingress\nVia: 1.1 x, 1.1 tandem-ingress";
        check(&format!("GET /\nHost: a\n{circle}"), "a /");
        check(&format!("GET /\nHost: a\n{circle}, 1.1 tandem-ingress"), "508");
    }

    fn passed(text: &str, protocol: Protocol) -> String {
        let request = request(text);
        let upgrade = upgrade(Version::HTTP_11, request.headers());
        let (parts, ()) = request.into_parts();
        let asked = asked(&parts).unwrap_or_else(|refusal| panic!("{}", refusal.status));
        let client = Client { address: "192.0.2.7".parse().unwrap(), scheme: "https" };
        let body = http_body_util::Empty::<bytes::Bytes>::new();
        let sent = prepare(Request::from_parts(parts, body), &asked, client, protocol, upgrade.as_ref());
        let sent = sent.unwrap_or_else(|refusal| panic!("{}", refusal.status));
        let mut lines: Vec<String> =
            sent.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        format!("{} {}\n{}", sent.method(), sent.uri(), lines.join("\n"))
    }

    #[test]
    fn headers_of_a_connection_end_with_it_and_claims_from_outside_are_dropped() {
        let text = "GET /x?y=1\nHost: a.test:8443\nConnection: close, X-Secret\nX-Secret: 1\nKeep-Alive: 5\nTE: trailers\n\
                    X-Forwarded-For: 10.0.0.1\nX_Forwarded_Proto: https\nForwarded: for=x\nX-Real-IP: 1\nCookie: a=1\nCookie: b=2\n\
                    Upgrade: h2c\nAccept: */*\nExpect: 100-continue";
        expect_test::expect![[r"
            GET /x?y=1
            accept: */*
            cookie: a=1; b=2
            host: a.test:8443
            te: trailers
            via: 1.1 tandem-ingress
            x-forwarded-for: 192.0.2.7
            x-forwarded-host: a.test:8443
            x-forwarded-proto: https"]]
        .assert_eq(&passed(text, Protocol::Http1));
    }

    #[test]
    fn an_upgrade_is_passed_on_except_to_more_http() {
        let sent = passed("GET /\nHost: a\nConnection: Upgrade\nUpgrade: h2c, websocket", Protocol::Http1);
        assert!(sent.contains("connection: upgrade\n") && sent.contains("upgrade: websocket\n"), "{sent}");
        let sent = passed("GET /\nHost: a\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c", Protocol::Http1);
        assert!(!sent.contains("upgrade"), "{sent}");
        let sent = passed("POST /p\nHost: a.test", Protocol::Http2);
        assert!(sent.starts_with("POST http://a.test/p\n") && !sent.contains("\nhost:"), "{sent}");
    }
}
