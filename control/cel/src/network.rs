//! Kubernetes' libraries for addresses, ranges and URLs.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{Error, Value, eval::no_overload};

pub(crate) const KNOWN: &[&str] = &[
    "ip",
    "isIP",
    "ip.isCanonical",
    "family",
    "isLoopback",
    "isUnspecified",
    "isLinkLocalMulticast",
    "isLinkLocalUnicast",
    "isGlobalUnicast",
    "cidr",
    "isCIDR",
    "containsIP",
    "containsCIDR",
    "prefixLength",
    "masked",
    "url",
    "isURL",
    "getScheme",
    "getHost",
    "getHostname",
    "getPort",
    "getEscapedPath",
    "getQuery",
];

pub(crate) fn call<'a>(name: &str, values: &[Value<'a>]) -> Option<Result<Value<'a>, Error>> {
    if !KNOWN.contains(&name) {
        return None;
    }
    let answer = match values {
        [value] => one(name, value),
        [first, second] => two(name, first, second),
        _ => None,
    };
    Some(answer.ok_or_else(|| match (name, values.first().and_then(Value::as_text)) {
        ("ip", Some(text)) => Error::of(format!("IP Address {text:?} parse error during conversion from string")),
        ("cidr", Some(text)) => Error::of(format!("CIDR {text:?} parse error during conversion from string")),
        ("url", Some(text)) => Error::of(format!("URL parse error during conversion from string: {text:?}")),
        _ => no_overload(name, &values.iter().collect::<Vec<_>>()),
    }))
}

fn one<'a>(name: &str, value: &Value<'a>) -> Option<Value<'a>> {
    Some(match (name, value) {
        ("isIP", value) => Value::Bool(value.as_text()?.parse::<IpAddr>().is_ok()),
        ("ip", Value::Cidr(range)) => Value::Ip(range.addr()),
        ("ip", value) => Value::Ip(value.as_text()?.parse().ok()?),
        ("ip.isCanonical", value) => {
            let text = value.as_text()?;
            Value::Bool(text.parse::<IpAddr>().ok()?.to_string() == text)
        }
        ("family", Value::Ip(address)) => Value::Int(if address.is_ipv4() { 4 } else { 6 }),
        ("isLoopback", Value::Ip(address)) => Value::Bool(address.is_loopback()),
        ("isUnspecified", Value::Ip(address)) => Value::Bool(address.is_unspecified()),
        ("isLinkLocalUnicast", Value::Ip(address)) => Value::Bool(is_link_local(address)),
        ("isLinkLocalMulticast", Value::Ip(address)) => Value::Bool(match address {
            IpAddr::V4(address) => address.octets()[..3] == [224, 0, 0],
            IpAddr::V6(address) => address.segments()[0] & 0xff0f == 0xff02,
        }),
        ("isGlobalUnicast", Value::Ip(address)) => Value::Bool(
            !address.is_loopback() && !address.is_unspecified() && !address.is_multicast() && !is_link_local(address),
        ),
        ("isCIDR", value) => Value::Bool(value.as_text()?.parse::<IpNet>().is_ok()),
        ("cidr", value) => Value::Cidr(value.as_text()?.parse().ok()?),
        ("prefixLength", Value::Cidr(range)) => Value::Int(i64::from(range.prefix_len())),
        ("masked", Value::Cidr(range)) => Value::Cidr(range.trunc()),
        ("isURL", value) => Value::Bool(is_url(value.as_text()?)),
        ("url", value) => Value::Url(Some(value.as_text()?).filter(|text| is_url(text))?.into()),
        ("getQuery", Value::Url(url)) => query(url),
        (_, Value::Url(url)) => Value::text(part(name, url)?),
        _ => return None,
    })
}

/// The parameters of a URL, each with all its values.
fn query<'a>(url: &str) -> Value<'a> {
    let text = url.split('#').next().and_then(|url| url.split_once('?')).map_or("", |(_, query)| query);
    let mut found: Vec<(String, Vec<Value<'a>>)> = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()).take(PARAMETERS_MAX) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decoded(name), Value::text(decoded(value)));
        match found.iter_mut().find(|(mine, _)| *mine == name) {
            Some((_, values)) => values.push(value),
            None => found.push((name, vec![value])),
        }
    }
    let entry = |(name, values): (String, Vec<Value<'a>>)| (Value::text(name), Value::list(values));
    Value::Map(std::rc::Rc::new(found.into_iter().map(entry).collect()))
}

/// How many parameters of one URL are read.
const PARAMETERS_MAX: usize = 200;

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn two<'a>(name: &str, first: &Value<'a>, second: &Value<'a>) -> Option<Value<'a>> {
    let Value::Cidr(range) = first else { return None };
    Some(Value::Bool(match (name, second) {
        ("containsIP", Value::Ip(address)) => range.contains(address),
        ("containsIP", text) => range.contains(&text.as_text()?.parse::<IpAddr>().ok()?),
        ("containsCIDR", Value::Cidr(inner)) => range.contains(inner),
        ("containsCIDR", text) => range.contains(&text.as_text()?.parse::<IpNet>().ok()?),
        _ => return None,
    }))
}

/// An absolute URL, or an absolute path.
pub(crate) fn is_url(text: &str) -> bool {
    let sound = !text.chars().any(|letter| letter.is_control() || letter == ' ');
    sound && (text.starts_with('/') || scheme(text).is_some())
}

fn scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let sound = scheme.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && scheme.chars().all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter));
    sound.then_some((scheme, rest))
}

fn part(name: &str, url: &str) -> Option<String> {
    let (scheme, rest) = scheme(url).unwrap_or(("", url));
    let (authority, path) = match rest.strip_prefix("//") {
        Some(rest) => rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len())),
        None => ("", rest),
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let port = host.rsplit_once(':').filter(|(before, _)| !before.starts_with('[') || before.ends_with(']'));
    Some(match name {
        "getScheme" => scheme.to_owned(),
        "getHost" => host.to_owned(),
        "getHostname" => port.map_or(host, |(host, _)| host).trim_matches(['[', ']']).to_owned(),
        "getPort" => port.map(|(_, port)| port.to_owned()).unwrap_or_default(),
        "getEscapedPath" => path[..path.find(['?', '#']).unwrap_or(path.len())].to_owned(),
        _ => return None,
    })
}
