//! Connections into a sandbox, made from inside its network namespace: a server that listens on the loopback device
//! only is reached, too. CRI's own port forwarding would carry them through two more programs.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tandem_runtime::{Error, Network, Result, SandboxId};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::oneshot,
};

use crate::{convert, error::failed, observe, runtime::CriRuntime, v1};

const OPERATION: &str = "connect";
const CONNECT_MAX: Duration = Duration::from_secs(10);
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// From where, and to which addresses, a sandbox is connected to.
#[derive(Debug, PartialEq, Eq)]
struct Way {
    namespace: Option<PathBuf>,
    addresses: Vec<IpAddr>,
}

fn way(network: Network, own: Option<PathBuf>) -> Option<Way> {
    let inside = |namespace| Way { namespace, addresses: LOOPBACK.to_vec() };
    match network {
        Network::Own => own.map(|namespace| inside(Some(namespace))),
        Network::Join { namespace, .. } => Some(inside(Some(namespace))),
        Network::Host { .. } => Some(inside(None)),
        // The loopback address of the shared namespace is everybody's.
        Network::Light { address, .. } => Some(Way { namespace: None, addresses: vec![IpAddr::V4(address)] }),
    }
}

impl CriRuntime {
    pub(crate) async fn connect_into(&self, sandbox: &SandboxId, port: u16) -> Result<TcpStream> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.0.clone(), verbose: true };
        let mut client = self.runtime();
        let answer = self.within(OPERATION, client.pod_sandbox_status(request)).await?;
        let spec = answer.status.as_ref().and_then(|status| convert::recalled(&status.labels, &status.annotations));
        let way = spec.and_then(|spec| way(spec.network, observe::namespace(&answer)));
        let way = way.ok_or_else(|| failed(OPERATION, format!("sandbox {sandbox} has no network")))?;
        let mut refused = None;
        for address in way.addresses {
            let address = SocketAddr::new(address, port);
            let dialed = tokio::time::timeout(CONNECT_MAX, dial(way.namespace.as_deref(), address)).await;
            match dialed.map_err(io::Error::from).flatten() {
                Ok(stream) => return Ok(stream),
                // The first address is the one that servers usually have.
                Err(error) => drop(refused.get_or_insert(failed(OPERATION, format!("{address}: {error}")))),
            }
        }
        Err(refused.unwrap_or(Error::Unsupported(OPERATION)))
    }
}

async fn dial(namespace: Option<&Path>, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match namespace {
        None => socket(address)?,
        Some(namespace) => socket_inside(namespace.to_owned(), address).await?,
    };
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

/// A socket stays in the namespace where it was made; the thread that went there is thrown away.
async fn socket_inside(namespace: PathBuf, address: SocketAddr) -> io::Result<TcpSocket> {
    let (sender, made) = oneshot::channel();
    let make = move || {
        let file = File::open(&namespace)?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        socket(address)
    };
    std::thread::Builder::new().name("connect".into()).spawn(move || {
        // Nobody waits any more if the caller gave up.
        let _unread = sender.send(make());
    })?;
    made.await.unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace ended early")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_has_its_way() {
        let address = Ipv4Addr::new(10, 128, 16, 2);
        let inside = |namespace: Option<&str>| {
            Some(Way { namespace: namespace.map(PathBuf::from), addresses: LOOPBACK.to_vec() })
        };
        let light = Way { namespace: None, addresses: vec![address.into()] };
        let table = [
            (Network::Own, Some("/own"), inside(Some("/own"))),
            (Network::Own, None, None),
            (Network::Host { address }, None, inside(None)),
            (Network::Join { namespace: "/other".into(), address }, None, inside(Some("/other"))),
            (Network::Light { namespace: "/light".into(), address }, None, Some(light)),
        ];
        for (network, own, wanted) in table {
            assert_eq!(way(network.clone(), own.map(PathBuf::from)), wanted, "{network:?}");
        }
    }
}
