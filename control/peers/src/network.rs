//! The ways to all other members.

use std::{collections::HashMap, path::Path, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use tandem_pki::MemberName;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};

use crate::{
    Error, Identity, dialer,
    frame::Lane,
    lane::{self, Ask, CALLS_MAX, Route},
    transfer,
};

/// Asks other members. A lane begins with the first call that needs it and ends with this.
pub struct Network {
    identity: Arc<Identity>,
    threads: Handle,
    /// One entry for each member that was ever asked and each lane: members are few, and ids are not used again.
    lanes: Mutex<HashMap<(u64, Lane), Way>>,
}

struct Way {
    address: String,
    asks: mpsc::Sender<Ask>,
}

impl Network {
    pub fn new(identity: Arc<Identity>, threads: Handle) -> Arc<Network> {
        Arc::new(Network { identity, threads, lanes: Mutex::default() })
    }

    pub(crate) fn name(&self) -> &MemberName {
        self.identity.name()
    }

    fn way(&self, member: u64, address: &str, lane: Lane) -> mpsc::Sender<Ask> {
        let mut lanes = self.lanes.lock();
        if let Some(way) = lanes.get(&(member, lane))
            && way.address == address
        {
            return way.asks.clone();
        }
        let (asks, asked) = mpsc::channel(CALLS_MAX);
        let route = Route { identity: self.identity.clone(), member, address: address.to_owned(), lane };
        // It ends when the sender is gone: with this, or when the member has another address.
        drop(self.threads.spawn(lane::run(route, asked)));
        lanes.insert((member, lane), Way { address: address.to_owned(), asks: asks.clone() });
        asks
    }

    /// Asks a member, and waits for its answer for as long as the connection shows signs of life.
    pub(crate) async fn ask(&self, member: u64, address: &str, lane: Lane, body: Bytes) -> Result<Bytes, Error> {
        let (answer, answered) = oneshot::channel();
        let asks = self.way(member, address, lane);
        asks.try_send(Ask { body, answer }).map_err(|_| Error::Full(CALLS_MAX))?;
        answered.await.unwrap_or_else(|_| Err(Error::Lost("this member shuts down".to_owned())))
    }

    /// Gives a member a file.
    pub(crate) async fn transfer(
        &self,
        member: u64,
        address: &str,
        header: Bytes,
        file: &Path,
    ) -> Result<Bytes, Error> {
        let connection = dialer::dial(&self.identity, member, address, Lane::Transfer).await?;
        transfer::send(connection, header, file).await
    }
}
