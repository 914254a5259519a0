//! The name and address of this machine.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use anyhow::{Context as _, bail};

/// The address of the interface that the default route uses. Nothing is sent: connecting a UDP socket only asks for the route.
pub(crate) fn of_default_route() -> Option<Ipv4Addr> {
    // TEST-NET-2 (RFC 5737): outside, and nobody's.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_unspecified() => Some(address),
        _ => None,
    }
}

/// The node's address: the one given, or the default route's.
pub(crate) fn of_node(given: Option<Ipv4Addr>) -> anyhow::Result<Ipv4Addr> {
    given
        .or_else(of_default_route)
        .context("this machine has no default route to take the node's address from: give --node-ip")
}

/// The node's name: the one given, or the host's, in the form that Kubernetes asks for.
pub(crate) fn node_name(given: Option<&str>) -> anyhow::Result<String> {
    let host = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    let name = given.map_or(host, ToOwned::to_owned);
    let problems = tandem_api::names::dns1123_subdomain(&name);
    if let Some(problem) = problems.first() {
        bail!("{name:?} cannot be the node's name: {problem}; give another with --node-name");
    }
    Ok(name)
}
