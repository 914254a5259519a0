//! The few netlink requests that a node needs, each of them repeatable.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
};

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::{
    Handle, IpVersion, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        link::{InfoData, InfoVeth, LinkAttribute, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};
use rustix::io::Errno;
use tokio_util::task::AbortOnDropHandle;

use super::{Change, Error};

/// Marks our routes, so that they are told from everybody else's: `ip route show proto 84`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Node = 84,
    Peers = 85,
}

impl Owner {
    fn protocol(self) -> RouteProtocol {
        RouteProtocol::Other(self as u8)
    }
}

const LOCAL_TABLE: u8 = 255;

/// The table numbers of the two rules of the light namespace, in the order in which they are asked.
const FROM_OUTSIDE: u32 = 1;
const FROM_INSIDE: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) destination: Ipv4Net,
    pub(super) via: Option<Ipv4Addr>,
    pub(super) link: u32,
}

/// A netlink socket. It stays in the namespace in which it was made.
#[derive(Debug)]
pub(super) struct Netlink {
    handle: Handle,
    _driver: AbortOnDropHandle<()>,
}

type Outcome<T = ()> = std::result::Result<T, rtnetlink::Error>;

fn failed(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    let action = action.into();
    move |source| Error::Netlink { action, source }
}

/// True if the kernel's answer was one of these.
fn is(error: &rtnetlink::Error, expected: &[Errno]) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    message.code.is_some_and(|code| expected.iter().any(|errno| errno.raw_os_error() == -code.get()))
}

fn except(outcome: Outcome, expected: &[Errno]) -> Outcome {
    match outcome {
        Err(error) if is(&error, expected) => Ok(()),
        other => other,
    }
}

impl Netlink {
    /// In the namespace of the calling thread.
    pub(super) fn here() -> io::Result<Netlink> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Netlink { handle, _driver: AbortOnDropHandle::new(tokio::spawn(connection)) })
    }

    pub(super) async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let found = self.handle.link().get().match_name(name.to_owned()).execute().try_next().await;
        match found {
            Ok(found) => Ok(found.map(|message| Link { index: message.header.index })),
            Err(error) if is(&error, &[Errno::NODEV]) => Ok(None),
            Err(error) => Err(failed(format!("find link {name}"))(error)),
        }
    }

    async fn expect(&self, name: &str) -> Result<Link, Error> {
        let missing = || Error::System { action: format!("find link {name}"), source: io::ErrorKind::NotFound.into() };
        self.link(name).await?.ok_or_else(missing)
    }

    pub(super) async fn up(&self, name: &str) -> Result<(), Error> {
        let message = LinkUnspec::new_with_name(name).up().build();
        self.handle.link().change(message).execute().await.map_err(failed(format!("set {name} up")))
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), Error> {
        let Some(link) = self.link(name).await? else { return Ok(()) };
        let outcome = self.handle.link().del(link.index).execute().await;
        except(outcome, &[Errno::NODEV]).map_err(failed(format!("delete {name}")))
    }

    /// A pair of links of which the second is in `namespace`.
    pub(super) async fn add_pair(&self, ends: [(&str, [u8; 6]); 2], namespace: &File, mtu: u32) -> Result<(), Error> {
        let [(name, hardware), (peer_name, peer_hardware)] = ends;
        let peer: LinkMessage = LinkMessageBuilder::<LinkUnspec>::default()
            .name(peer_name)
            .address(peer_hardware.to_vec())
            .mtu(mtu)
            .append_extra_attribute(LinkAttribute::NetNsFd(namespace.as_raw_fd()))
            .build();
        let message = LinkVeth::new(name, peer_name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .address(hardware.to_vec())
            .mtu(mtu)
            .build();
        self.handle.link().add(message).execute().await.map_err(failed(format!("add the pair {name}, {peer_name}")))
    }

    pub(super) async fn add_address(&self, link: &str, address: Ipv4Addr) -> Result<(), Error> {
        let index = self.expect(link).await?.index;
        let request = self.handle.address().add(index, IpAddr::V4(address), 32).replace();
        request.execute().await.map_err(failed(format!("add {address} to {link}")))
    }

    pub(super) async fn remove_address(&self, link: &str, address: Ipv4Addr) -> Result<(), Error> {
        let index = self.expect(link).await?.index;
        let action = || format!("remove {address} from {link}");
        let filter = self.handle.address().get().set_link_index_filter(index).set_address_filter(IpAddr::V4(address));
        let found: Vec<_> = filter.execute().try_collect().await.map_err(failed(action()))?;
        for message in found {
            let outcome = self.handle.address().del(message).execute().await;
            except(outcome, &[Errno::ADDRNOTAVAIL]).map_err(failed(action()))?;
        }
        Ok(())
    }

    pub(super) async fn neighbour(&self, link: &Link, address: Ipv4Addr, hardware: [u8; 6]) -> Result<(), Error> {
        let request = self.handle.neighbours().add(link.index, IpAddr::V4(address)).link_layer_address(&hardware);
        request.replace().execute().await.map_err(failed(format!("set the neighbour {address}")))
    }

    /// Makes the owner's routes in the main table exactly these.
    pub(super) async fn routes(&self, owner: Owner, wanted: &[Route], source: Option<Ipv4Addr>) -> Result<(), Error> {
        for route in wanted {
            let message = route_message(owner, *route, source);
            let request = self.handle.route().add(message).replace();
            request.execute().await.map_err(failed(format!("set the route to {}", route.destination)))?;
        }
        for message in self.dump(RouteHeader::RT_TABLE_MAIN, owner).await? {
            let keep = destination(&message).is_some_and(|one| wanted.iter().any(|route| route.destination == one));
            if !keep {
                self.delete_route(message).await?;
            }
        }
        Ok(())
    }

    /// Makes these networks, and no others of ours, local addresses of the namespace.
    pub(super) async fn local(&self, networks: &[Ipv4Net]) -> Result<(), Error> {
        let lo = self.expect("lo").await?.index;
        for network in networks {
            let message = RouteMessageBuilder::<Ipv4Addr>::new()
                .table_id(LOCAL_TABLE.into())
                .protocol(Owner::Node.protocol())
                .kind(RouteType::Local)
                .scope(RouteScope::Host)
                .destination_prefix(network.network(), network.prefix_len())
                .output_interface(lo)
                .build();
            let request = self.handle.route().add(message).replace();
            request.execute().await.map_err(failed(format!("make {network} local")))?;
        }
        for message in self.dump(LOCAL_TABLE, Owner::Node).await? {
            if !destination(&message).is_some_and(|one| networks.contains(&one)) {
                self.delete_route(message).await?;
            }
        }
        Ok(())
    }

    /// Replaces the rule that looks up everything in the local table by one for what comes in at `link`.
    pub(super) async fn look_up_local_only_from(&self, link: &str) -> Result<(), Error> {
        let failure = |error| failed("set the routing rules of light pods")(error);
        let outside = self.handle.rule().add().v4().input_interface(link).priority(FROM_OUTSIDE);
        let outside = outside.table_id(LOCAL_TABLE.into()).action(RuleAction::ToTable).execute().await;
        except(outside, &[Errno::EXIST]).map_err(failure)?;
        let inside = self.handle.rule().add().v4().priority(FROM_INSIDE);
        let inside = inside.table_id(RouteHeader::RT_TABLE_MAIN.into()).action(RuleAction::ToTable).execute().await;
        except(inside, &[Errno::EXIST]).map_err(failure)?;
        let rules: Vec<RuleMessage> =
            self.handle.rule().get(IpVersion::V4).execute().try_collect().await.map_err(failure)?;
        for rule in rules.into_iter().filter(is_default_local) {
            let outcome = self.handle.rule().del(rule).execute().await;
            except(outcome, &[Errno::NOENT]).map_err(failure)?;
        }
        Ok(())
    }

    async fn dump(&self, table: u8, owner: Owner) -> Result<Vec<RouteMessage>, Error> {
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().table_id(table.into()).build();
        let all: Vec<RouteMessage> =
            self.handle.route().get(filter).execute().try_collect().await.map_err(failed("list routes"))?;
        Ok(all
            .into_iter()
            .filter(|route| route.header.table == table && route.header.protocol == owner.protocol())
            .collect())
    }

    async fn delete_route(&self, message: RouteMessage) -> Result<(), Error> {
        let outcome = self.handle.route().del(message).execute().await;
        except(outcome, &[Errno::SRCH]).map_err(failed("remove a route"))
    }

    /// The routes to other nodes' pods.
    pub(super) async fn peers(&self) -> Result<BTreeMap<Ipv4Net, Ipv4Addr>, Error> {
        let routes = self.dump(RouteHeader::RT_TABLE_MAIN, Owner::Peers).await?;
        Ok(routes.iter().filter_map(|route| Some((destination(route)?, gateway(route)?))).collect())
    }

    pub(super) async fn change_peer(&self, change: Change) -> Result<(), Error> {
        let message = |destination: Ipv4Net, via| {
            RouteMessageBuilder::<Ipv4Addr>::new()
                .protocol(Owner::Peers.protocol())
                .destination_prefix(destination.network(), destination.prefix_len())
                .gateway(via)
                .build()
        };
        match change {
            Change::Set(destination, via) => {
                let request = self.handle.route().add(message(destination, via)).replace();
                request.execute().await.map_err(failed(format!("set the route to {destination} via {via}")))
            }
            Change::Remove(destination, via) => self.delete_route(message(destination, via)).await,
        }
    }
}

fn route_message(owner: Owner, route: Route, source: Option<Ipv4Addr>) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .protocol(owner.protocol())
        .destination_prefix(route.destination.network(), route.destination.prefix_len())
        .output_interface(route.link);
    builder = match route.via {
        Some(via) => builder.gateway(via).onlink(),
        None => builder.scope(RouteScope::Link),
    };
    match source {
        Some(source) => builder.pref_source(source).build(),
        None => builder.build(),
    }
}

fn destination(message: &RouteMessage) -> Option<Ipv4Net> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    });
    Ipv4Net::new(address.unwrap_or(Ipv4Addr::UNSPECIFIED), message.header.destination_prefix_length).ok()
}

fn gateway(message: &RouteMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

/// `0: from all lookup local`, which every namespace is born with.
fn is_default_local(rule: &RuleMessage) -> bool {
    let narrowed = rule.attributes.iter().any(|attribute| {
        matches!(attribute, RuleAttribute::Iifname(_) | RuleAttribute::Oifname(_))
            || matches!(attribute, RuleAttribute::Priority(priority) if *priority != 0)
    });
    rule.header.table == LOCAL_TABLE && !narrowed
}
