//! The formats of strings that Kubernetes checks. Others are allowed and say nothing.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::{Timestamp, civil::Date};
use regex::Regex;

use crate::protobuf::parse_duration;

static EMAIL: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^[^@\s<>()\[\],;:]+@[A-Za-z0-9.-]+$").ok());
static UUID: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$").ok());
static HOSTNAME: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\.?$")
        .ok()
});
static MAC: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"(?i)^[0-9a-f]{2}([:-][0-9a-f]{2}){5}$").ok());
static COLOR: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^#?([A-Fa-f0-9]{6}|[A-Fa-f0-9]{3})$").ok());
static URI: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^([A-Za-z][A-Za-z0-9+.-]*:\S+|/\S*)$").ok());

fn is(regex: &LazyLock<Option<Regex>>, text: &str) -> bool {
    regex.as_ref().is_some_and(|regex| regex.is_match(text))
}

pub(crate) fn matches(format: &str, text: &str) -> bool {
    match format {
        "date-time" => text.parse::<Timestamp>().is_ok() || text.is_empty(),
        "date" => text.len() == 10 && text.parse::<Date>().is_ok(),
        "duration" => parse_duration(text).is_some(),
        "byte" => STANDARD.decode(text).is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
        "mac" => is(&MAC, text),
        "uri" => is(&URI, text),
        "email" => is(&EMAIL, text),
        "hostname" => text.len() <= 255 && is(&HOSTNAME, text),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => is(&UUID, text),
        "hexcolor" => is(&COLOR, text),
        _ => true,
    }
}
