use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::network::SocketKind;

/// Connections that wait while no worker is there to take them.
const BACKLOG: i32 = 4096;

pub(super) fn listener(namespace: Option<&Path>, address: SocketAddr) -> io::Result<OwnedFd> {
    inside(namespace, || {
        let socket = socket(SocketKind::Stream, address.ip())?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &address)?;
        listen(&socket, BACKLOG)?;
        Ok(socket)
    })
}

pub(super) fn outgoing(namespace: &Path, kind: SocketKind, source: Option<IpAddr>) -> io::Result<OwnedFd> {
    inside(Some(namespace), || {
        let socket = socket(kind, source.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))?;
        if let Some(source) = source {
            bind(&socket, &SocketAddr::new(source, 0))?;
        }
        Ok(socket)
    })
}

fn socket(kind: SocketKind, address: IpAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match kind {
        SocketKind::Stream => SocketType::STREAM,
        SocketKind::Datagram => SocketType::DGRAM,
    };
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

/// Runs something inside a network namespace, on a thread that is thrown away: a socket stays where it was made, and
/// the caller never moves.
fn inside<T: Send>(namespace: Option<&Path>, make: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let Some(path) = namespace else { return make() };
    let open = File::open(path);
    let file =
        open.map_err(|error| io::Error::new(error.kind(), format!("network namespace {}: {error}", path.display())))?;
    let enter = || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        make()
    };
    let joined = std::thread::scope(|scope| scope.spawn(enter).join());
    joined.map_err(|_| io::Error::other("the thread in the namespace panicked"))?
}
