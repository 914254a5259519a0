//! How a pod's containers reach the network, and be reached: sockets that belong to the pod's namespace.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::resolver;

const CONNECT_TIME: Duration = Duration::from_secs(10);

/// Where a pod's sockets live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub(crate) enum Attachment {
    /// The node's own network.
    Host { address: IpAddr },
    /// A namespace that only this pod has.
    Own { namespace: PathBuf, address: IpAddr },
    /// A namespace that the pod shares with others, each with an address of its own.
    Shared { namespace: PathBuf, address: IpAddr },
}

impl Attachment {
    pub(crate) fn namespace(&self) -> Option<&Path> {
        match self {
            Attachment::Host { .. } => None,
            Attachment::Own { namespace, .. } | Attachment::Shared { namespace, .. } => Some(namespace),
        }
    }

    pub(crate) fn address(&self) -> IpAddr {
        match self {
            Attachment::Host { address } | Attachment::Own { address, .. } | Attachment::Shared { address, .. } => {
                *address
            }
        }
    }

    /// The address that servers of the pod listen on.
    pub(crate) fn listen_address(&self) -> IpAddr {
        match self {
            // Also for the pod's other containers, which come by the loopback device.
            Attachment::Host { .. } | Attachment::Own { .. } => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Attachment::Shared { address, .. } => *address,
        }
    }

    fn source(&self) -> Option<IpAddr> {
        match self {
            Attachment::Host { .. } | Attachment::Own { .. } => None,
            Attachment::Shared { address, .. } => Some(*address),
        }
    }

    /// Where a connection to `destination` really goes: the loopback address of a shared namespace is everybody's,
    /// so a pod's own servers are meant.
    fn route(&self, destination: SocketAddr) -> SocketAddr {
        match self {
            Attachment::Shared { address, .. } if destination.ip().is_loopback() => {
                SocketAddr::new(*address, destination.port())
            }
            _ => destination,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum SocketKind {
    Stream,
    Datagram,
}

/// Makes sockets inside namespaces, where the caller need not be allowed to go.
#[async_trait]
pub(crate) trait Sockets: Send + Sync + 'static {
    /// A listener, kept by whoever made it until it is closed: the same one for the same key.
    async fn listener(&self, key: &str, namespace: Option<&Path>, address: SocketAddr) -> io::Result<OwnedFd>;

    async fn close(&self, key: &str) -> io::Result<()>;

    /// A socket that is not connected yet.
    async fn outgoing(&self, namespace: &Path, kind: SocketKind, source: Option<IpAddr>) -> io::Result<OwnedFd>;
}

/// What names mean to a pod, as in its resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dns {
    pub(crate) servers: Vec<IpAddr>,
    pub(crate) searches: Vec<String>,
    pub(crate) ndots: usize,
}

/// Connects from inside a pod.
pub(crate) struct Dialer {
    attachment: Attachment,
    dns: Dns,
    sockets: Arc<dyn Sockets>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error(transparent)]
    Resolve(#[from] resolver::Error),
    #[error("connecting to {address}: {source}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("connecting took too long")]
    Timeout,
}

impl Dialer {
    pub(crate) fn new(attachment: Attachment, dns: Dns, sockets: Arc<dyn Sockets>) -> Dialer {
        Dialer { attachment, dns, sockets }
    }

    /// The addresses of a host as a program inside the pod would see them.
    pub(crate) async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, resolver::Error> {
        resolver::resolve(self, &self.dns, host).await
    }

    pub(crate) async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, DialError> {
        let addresses = self.resolve(host).await?;
        let mut failure = None;
        for address in addresses {
            let address = self.attachment.route(SocketAddr::new(address, port));
            match tokio::time::timeout(CONNECT_TIME, self.connect_to(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(source)) => failure = Some(DialError::Connect { address, source }),
                Err(_) => failure = Some(DialError::Timeout),
            }
        }
        Err(failure.unwrap_or(DialError::Resolve(resolver::Error::NotFound { name: host.to_owned() })))
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = match self.attachment.namespace() {
            None if address.is_ipv4() => TcpSocket::new_v4()?,
            None => TcpSocket::new_v6()?,
            Some(namespace) => {
                let made = self.sockets.outgoing(namespace, SocketKind::Stream, self.attachment.source()).await?;
                TcpSocket::from_std_stream(std::net::TcpStream::from(made))
            }
        };
        socket.set_nodelay(true)?;
        socket.connect(address).await
    }

    pub(crate) async fn datagrams(&self, destination: SocketAddr) -> io::Result<UdpSocket> {
        let socket = match self.attachment.namespace() {
            None => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?,
            Some(namespace) => {
                let made = self.sockets.outgoing(namespace, SocketKind::Datagram, self.attachment.source()).await?;
                UdpSocket::from_std(std::net::UdpSocket::from(made))?
            }
        };
        socket.connect(self.attachment.route(destination)).await?;
        Ok(socket)
    }
}
