//! How much of a bounded thing one client has, so that none has all.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};

/// A bound in proportion to the files that this process may have open: connections take them from the rest of the node.
pub(crate) fn share_of_files(max: usize) -> usize {
    let files = getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok());
    files.map_or(max, |files| max.min(files / 4))
}

/// How many places each address has.
#[derive(Debug)]
pub(crate) struct Places {
    each_max: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// A place, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    pub(crate) fn new(each_max: usize) -> Places {
        Places { each_max, taken: Mutex::default() }
    }

    /// A place for an address; `None` where it has as many as it may.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock();
        let count = taken.entry(address).or_default();
        if *count >= self.each_max {
            return None;
        }
        *count += 1;
        Some(Place { places: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_so_many_places_and_gives_them_back() {
        let places = Arc::new(Places::new(3));
        let [one, other]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        let taken: Vec<Place> = (0..3).map(|_| places.take(one).unwrap()).collect();
        assert!(places.take(one).is_none() && places.take(other).is_some());
        drop(taken);
        assert!(places.taken.lock().is_empty() && places.take(one).is_some());
    }
}
