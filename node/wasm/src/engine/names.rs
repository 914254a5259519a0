//! `wasi:sockets/ip-name-lookup` with the name servers of the pod: wasmtime's own asks the node's.

use std::{net::IpAddr, sync::Arc, vec};

use futures::FutureExt;
use wasmtime::component::{Accessor, HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::{
    WasiView, async_trait,
    p2::{
        DynPollable, Pollable, SocketError,
        bindings::sockets::{
            ip_name_lookup::{self as p2, ResolveAddressStream},
            network::{self as p2_network, ErrorCode as P2Code, IpAddress as P2Address, Network},
        },
        subscribe,
    },
    p3::bindings::sockets::{ip_name_lookup as p3, types as p3_types},
    runtime::AbortOnDropJoinHandle,
};

use super::Guest;
use crate::{network::Dialer, resolver};

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> Result<(), wasmtime::Error> {
    linker.allow_shadowing(true);
    p2::add_to_linker::<_, Lookups>(linker, lookups)?;
    p3::add_to_linker::<_, Lookups>(linker, lookups)?;
    linker.allow_shadowing(false);
    Ok(())
}

struct Lookups;

impl HasData for Lookups {
    type Data<'a> = LookupView<'a>;
}

/// What a lookup needs of a guest's store.
pub(super) struct LookupView<'a> {
    table: &'a mut ResourceTable,
    /// `None`: this guest may not.
    dialer: Option<Arc<Dialer>>,
}

fn lookups(guest: &mut Guest) -> LookupView<'_> {
    let dialer = guest.name_lookups();
    LookupView { dialer, table: guest.ctx().table }
}

type Found = Result<Vec<IpAddr>, resolver::Error>;

/// An answer that is awaited, and then read one address at a time.
enum Lookup {
    Awaited(AbortOnDropJoinHandle<Found>),
    Answered(Result<vec::IntoIter<IpAddr>, P2Code>),
}

impl Lookup {
    fn take(&mut self, found: Found) {
        *self = Lookup::Answered(found.map(Vec::into_iter).map_err(|error| match error {
            resolver::Error::Name { .. } => P2Code::InvalidArgument,
            resolver::Error::NotFound { .. } => P2Code::NameUnresolvable,
            resolver::Error::Timeout { .. } | resolver::Error::Io { .. } => P2Code::TemporaryResolverFailure,
            resolver::Error::Refused { .. } => P2Code::PermanentResolverFailure,
        }));
    }
}

#[async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        if let Lookup::Awaited(handle) = self {
            let found = handle.await;
            self.take(found);
        }
    }
}

/// The same entry of the table under the type that this module keeps there.
fn own(stream: &Resource<ResolveAddressStream>) -> Resource<Lookup> {
    Resource::new_own(stream.rep())
}

/// The bindings want the errors of the network with the lookups; nothing of this is linked.
impl p2_network::Host for LookupView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> Result<P2Code, wasmtime::Error> {
        error.downcast()
    }

    fn network_error_code(&mut self, _error: Resource<wasmtime::Error>) -> Result<Option<P2Code>, wasmtime::Error> {
        Ok(None)
    }
}

impl p2_network::HostNetwork for LookupView<'_> {
    fn drop(&mut self, network: Resource<Network>) -> Result<(), wasmtime::Error> {
        self.table.delete(network)?;
        Ok(())
    }
}

impl p2::Host for LookupView<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<Network>,
        name: String,
    ) -> Result<Resource<ResolveAddressStream>, SocketError> {
        // The network is the right to look names up.
        self.table.get(&network)?;
        let dialer = self.dialer.clone().ok_or(P2Code::AccessDenied)?;
        let asked = wasmtime_wasi::runtime::spawn(async move { dialer.resolve(&name).await });
        let lookup = self.table.push(Lookup::Awaited(asked))?;
        Ok(Resource::new_own(lookup.rep()))
    }
}

impl p2::HostResolveAddressStream for LookupView<'_> {
    fn resolve_next_address(
        &mut self,
        stream: Resource<ResolveAddressStream>,
    ) -> Result<Option<P2Address>, SocketError> {
        let lookup = self.table.get_mut(&own(&stream))?;
        if let Lookup::Awaited(handle) = lookup {
            let found = handle.now_or_never().ok_or(P2Code::WouldBlock)?;
            lookup.take(found);
        }
        match lookup {
            Lookup::Answered(Ok(addresses)) => Ok(addresses.next().map(P2Address::from)),
            Lookup::Answered(Err(code)) => Err((*code).into()),
            Lookup::Awaited(_) => Err(P2Code::WouldBlock.into()),
        }
    }

    fn subscribe(&mut self, stream: Resource<ResolveAddressStream>) -> Result<Resource<DynPollable>, wasmtime::Error> {
        subscribe(self.table, own(&stream))
    }

    fn drop(&mut self, stream: Resource<ResolveAddressStream>) -> Result<(), wasmtime::Error> {
        self.table.delete(own(&stream))?;
        Ok(())
    }
}

impl p3::Host for LookupView<'_> {}

impl<T> p3::HostWithStore<T> for Lookups {
    async fn resolve_addresses(
        accessor: &Accessor<T, Self>,
        name: String,
    ) -> Result<Result<Vec<p3_types::IpAddress>, p3::ErrorCode>, wasmtime::Error> {
        let Some(dialer) = accessor.with(|mut access| access.get().dialer) else {
            return Ok(Err(p3::ErrorCode::AccessDenied));
        };
        Ok(match dialer.resolve(&name).await {
            Ok(addresses) => Ok(addresses.into_iter().map(p3_types::IpAddress::from).collect()),
            Err(resolver::Error::Name { .. }) => Err(p3::ErrorCode::InvalidArgument),
            Err(resolver::Error::NotFound { .. }) => Err(p3::ErrorCode::NameUnresolvable),
            Err(resolver::Error::Timeout { .. } | resolver::Error::Io { .. }) => {
                Err(p3::ErrorCode::TemporaryResolverFailure)
            }
            Err(resolver::Error::Refused { .. }) => Err(p3::ErrorCode::PermanentResolverFailure),
        })
    }
}
