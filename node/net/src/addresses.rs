//! The addresses of one node's pods.
//!
//! The node's part of the pod network is divided by what needs an address: the first quarter is for sandboxes that
//! have a network namespace of their own, the rest for light pods, which share one. The division is by prefix, so the
//! light part is two routes. An address is not given again before the whole part has been gone through, so whoever
//! still has an old one in a cache does not reach a stranger.

use std::{
    collections::{BTreeMap, HashSet},
    io::Write,
    net::Ipv4Addr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use ipnet::Ipv4Net;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tandem_runtime::{AddressClass, Addresses, Error as RuntimeError, Result as RuntimeResult};

/// The format of the file. A newer one is not read.
const FORMAT: u32 = 1;

/// A node's part must leave room for a few pods of each class.
const LONGEST_PREFIX: u8 = 27;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the pod network {network} of this node is too small: /{LONGEST_PREFIX} at least")]
    TooSmall { network: Ipv4Net },
    #[error("read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is damaged: {source}", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("{} has format {format}, which this version does not know", path.display())]
    Format { path: PathBuf, format: u32 },
    #[error("write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("all {size} addresses for {class} pods in {network} are in use")]
    Exhausted { size: usize, class: &'static str, network: Ipv4Net },
}

/// How the pod network of a node is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    network: Ipv4Net,
}

impl Ranges {
    pub fn new(network: Ipv4Net) -> Result<Ranges, Error> {
        if network.prefix_len() > LONGEST_PREFIX {
            return Err(Error::TooSmall { network });
        }
        Ok(Ranges { network: network.trunc() })
    }

    pub fn network(&self) -> Ipv4Net {
        self.network
    }

    /// The node's own address in its pod network.
    pub fn gateway(&self) -> Ipv4Addr {
        self.at(1)
    }

    /// Where the node sends what is for light pods: an address of theirs that no pod gets.
    pub fn light_hop(&self) -> Ipv4Addr {
        self.at(self.size() - 1)
    }

    /// The addresses of light pods as routes.
    pub fn light_networks(&self) -> [Ipv4Net; 2] {
        let quarter = self.size() / 4;
        let longer = self.network.prefix_len() + 2;
        [self.part(quarter, longer), self.part(2 * quarter, longer - 1)]
    }

    fn part(&self, offset: u32, prefix: u8) -> Ipv4Net {
        // The prefix is one or two longer than a valid one that is at most LONGEST_PREFIX.
        Ipv4Net::new(self.at(offset), prefix).unwrap_or(self.network)
    }

    fn size(&self) -> u32 {
        1 << (32 - u32::from(self.network.prefix_len())).min(31)
    }

    fn at(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network.network()) + offset)
    }

    fn offset(&self, address: Ipv4Addr) -> Option<u32> {
        self.network.contains(&address).then(|| u32::from(address) - u32::from(self.network.network()))
    }

    fn offsets(&self, class: AddressClass) -> RangeInclusive<u32> {
        let quarter = self.size() / 4;
        match class {
            AddressClass::Own => 2..=quarter - 1,
            AddressClass::Light => quarter..=self.size() - 2,
        }
    }
}

/// Who has which address. No clock, no file.
#[derive(Clone, Debug)]
struct Table {
    ranges: Ranges,
    owners: BTreeMap<String, Ipv4Addr>,
    taken: HashSet<Ipv4Addr>,
    next: Next,
    /// Grows with each change.
    generation: u64,
}

/// The offset at which the search for a free address starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Next {
    own: u32,
    light: u32,
}

impl Next {
    fn of(&mut self, class: AddressClass) -> &mut u32 {
        match class {
            AddressClass::Own => &mut self.own,
            AddressClass::Light => &mut self.light,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    format: u32,
    network: Ipv4Net,
    next: Next,
    owners: BTreeMap<String, Ipv4Addr>,
}

impl Table {
    fn new(ranges: Ranges) -> Table {
        let next = Next {
            own: *ranges.offsets(AddressClass::Own).start(),
            light: *ranges.offsets(AddressClass::Light).start(),
        };
        Table { ranges, owners: BTreeMap::new(), taken: HashSet::new(), next, generation: 0 }
    }

    /// Owners of addresses in another network, from before the node got this one, keep theirs.
    fn restore(ranges: Ranges, saved: Saved) -> Table {
        let mut table = Table::new(ranges);
        if saved.network == ranges.network() {
            table.next = saved.next;
        }
        table.taken = saved.owners.values().copied().collect();
        table.owners = saved.owners;
        table
    }

    fn save(&self) -> Saved {
        Saved { format: FORMAT, network: self.ranges.network(), next: self.next, owners: self.owners.clone() }
    }

    fn allocate(&mut self, owner: &str, class: AddressClass) -> Result<Ipv4Addr, Error> {
        if let Some(address) = self.owners.get(owner) {
            return Ok(*address);
        }
        let offsets = self.ranges.offsets(class);
        let (first, last) = (*offsets.start(), *offsets.end());
        let start = (*self.next.of(class)).clamp(first, last);
        let free = (start..=last).chain(first..start).find(|offset| !self.taken.contains(&self.ranges.at(*offset)));
        let Some(offset) = free else {
            return Err(Error::Exhausted { size: offsets.count(), class: name(class), network: self.ranges.network() });
        };
        *self.next.of(class) = if offset == last { first } else { offset + 1 };
        let address = self.ranges.at(offset);
        debug_assert!(self.ranges.offset(address).is_some());
        self.taken.insert(address);
        self.owners.insert(owner.to_owned(), address);
        self.generation += 1;
        Ok(address)
    }

    fn release(&mut self, owner: &str) {
        if let Some(address) = self.owners.remove(owner) {
            self.taken.remove(&address);
            self.generation += 1;
        }
    }
}

fn name(class: AddressClass) -> &'static str {
    match class {
        AddressClass::Own => "ordinary",
        AddressClass::Light => "light",
    }
}

/// The allocator of a node. What it gave is on disk before it is given; requests that come together share a write.
#[derive(Clone, Debug)]
pub struct Allocator(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    table: Mutex<Table>,
    /// The generation that is on disk. Holding it is the right to write.
    saved: tokio::sync::Mutex<u64>,
}

impl Allocator {
    /// Takes over what the file at `path` says, if there is one.
    pub fn open(path: &Path, network: Ipv4Net) -> Result<Allocator, Error> {
        let ranges = Ranges::new(network)?;
        let table = match std::fs::read(path) {
            Ok(bytes) => Table::restore(ranges, parse(path, &bytes)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Table::new(ranges),
            Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
        };
        Ok(Allocator(Arc::new(Inner {
            path: path.to_owned(),
            table: Mutex::new(table),
            saved: tokio::sync::Mutex::new(0),
        })))
    }

    pub fn ranges(&self) -> Ranges {
        self.0.table.lock().ranges
    }

    /// The address that `owner` has.
    pub fn find(&self, owner: &str) -> Option<Ipv4Addr> {
        self.0.table.lock().owners.get(owner).copied()
    }

    pub fn owners(&self) -> BTreeMap<String, Ipv4Addr> {
        self.0.table.lock().owners.clone()
    }

    /// Releases whoever `keep` does not know any more.
    pub async fn retain(&self, keep: impl Fn(&str) -> bool) -> RuntimeResult<()> {
        {
            let mut table = self.0.table.lock();
            let gone: Vec<String> = table.owners.keys().filter(|owner| !keep(owner)).cloned().collect();
            gone.iter().for_each(|owner| table.release(owner));
        }
        self.persist().await
    }

    /// Waits until everything up to now is on disk. A caller that goes away does not stop the write.
    async fn persist(&self) -> RuntimeResult<()> {
        let inner = Arc::clone(&self.0);
        let generation = inner.table.lock().generation;
        let write = tokio::spawn(async move {
            let mut saved = inner.saved.lock().await;
            if *saved >= generation {
                return Ok(());
            }
            let (now, contents) = {
                let table = inner.table.lock();
                (table.generation, table.save())
            };
            let path = inner.path.clone();
            tokio::task::spawn_blocking(move || write(&path, &contents)).await.map_err(std::io::Error::other)??;
            *saved = now;
            Ok::<_, std::io::Error>(())
        });
        let written = write.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        written.map_err(|source| failed("remember addresses", &Error::Write { path: self.0.path.clone(), source }))
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Saved, Error> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let damaged = |source| Error::Damaged { path: path.to_owned(), source };
    let Head { format } = serde_json::from_slice(bytes).map_err(damaged)?;
    if format != FORMAT {
        return Err(Error::Format { path: path.to_owned(), format });
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

fn write(path: &Path, contents: &Saved) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(contents)?)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn failed(operation: &'static str, error: &Error) -> RuntimeError {
    RuntimeError::Failed { operation, message: error.to_string() }
}

#[async_trait]
impl Addresses for Allocator {
    async fn allocate(&self, owner: &str, class: AddressClass) -> RuntimeResult<Ipv4Addr> {
        let address = self.0.table.lock().allocate(owner, class);
        let address = address.map_err(|error| failed("allocate an address", &error))?;
        self.persist().await?;
        Ok(address)
    }

    async fn release(&self, owner: &str) -> RuntimeResult<()> {
        self.0.table.lock().release(owner);
        self.persist().await
    }
}

#[cfg(test)]
mod tests;
