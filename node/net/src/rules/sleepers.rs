//! The Services whose workloads may be scaled to zero, by the addresses at which clients reach them.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
};

use tandem_client::wake::Name;

use super::{Snapshot, services};

/// A Service port whose workload an autoscaler can wake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sleeper {
    /// The namespace and name of the Service.
    pub service: Name,
    pub autoscaler: Name,
    /// The endpoints that are ready.
    pub ready: Vec<SocketAddr>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sleepers {
    addresses: HashMap<SocketAddrV4, Arc<Sleeper>>,
    node_ports: HashMap<u16, Arc<Sleeper>>,
}

impl Sleepers {
    /// Who was meant by a connection to this address.
    pub fn find(&self, address: SocketAddrV4) -> Option<&Arc<Sleeper>> {
        self.addresses.get(&address).or_else(|| self.node_ports.get(&address.port()))
    }
}

/// Those of a snapshot.
pub fn sleepers(snapshot: &Snapshot) -> Sleepers {
    let mut sleepers = Sleepers::default();
    // Few Services have one, and each is looked for among all slices.
    let marked = snapshot.slices.iter().filter_map(|slice| Some((slice, services::woken_by(slice)?)));
    for (slice, autoscaler) in marked {
        let Some(service) = snapshot.services.iter().find(|service| services::belongs(slice, service)) else {
            continue;
        };
        let (Some(spec), meta) = (&service.spec, &service.metadata) else { continue };
        let namespace = meta.namespace.clone().unwrap_or_default();
        for port in spec.ports.iter().flatten().filter(|port| services::protocol(port) == "tcp") {
            let Ok(number) = u16::try_from(port.port) else { continue };
            let sleeper = Arc::new(Sleeper {
                service: (namespace.clone(), meta.name.clone().unwrap_or_default()),
                autoscaler: (namespace.clone(), autoscaler.to_owned()),
                ready: services::ready(snapshot, service, port),
            });
            let all = services::own_addresses(snapshot, service, spec);
            let at = |address: Ipv4Addr| (SocketAddrV4::new(address, number), sleeper.clone());
            sleepers.addresses.extend(all.into_iter().flatten().map(at));
            let node_port = port.node_port.and_then(|port| u16::try_from(port).ok());
            sleepers.node_ports.extend(node_port.map(|port| (port, sleeper.clone())));
        }
    }
    sleepers
}
