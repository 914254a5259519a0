//! The node's addresses, before and after the control plane has given the node its range.

use std::net::Ipv4Addr;

use async_trait::async_trait;
use tandem_net::Allocator;
use tandem_runtime::{AddressClass, Addresses, Result};
use tokio::sync::watch;

/// Makes whoever wants an address wait until the node has a range.
pub(crate) struct Awaited(pub(crate) watch::Receiver<Option<Allocator>>);

impl Awaited {
    async fn allocator(&self) -> Result<Allocator> {
        let mut ready = self.0.clone();
        let gone = |_| tandem_runtime::Error::Failed {
            operation: "allocate an address",
            message: "the node stops before it has a range of pod addresses".to_owned(),
        };
        let found = ready.wait_for(Option::is_some).await.map_err(gone)?.clone();
        found.ok_or(tandem_runtime::Error::Unsupported("allocating addresses"))
    }
}

#[async_trait]
impl Addresses for Awaited {
    async fn allocate(&self, owner: &str, class: AddressClass) -> Result<Ipv4Addr> {
        self.allocator().await?.allocate(owner, class).await
    }

    async fn release(&self, owner: &str) -> Result<()> {
        self.allocator().await?.release(owner).await
    }
}
