//! The paths of one host.

use std::{collections::HashMap, sync::Arc};

use super::Backend;

/// Paths and their backends. Who was first keeps a path.
#[derive(Debug, Default)]
pub(super) struct Paths {
    exact: HashMap<String, Arc<Backend>>,
    /// Without the slash at the end: the root is empty.
    prefixes: HashMap<String, Arc<Backend>>,
    /// The bytes of the longest prefix: no longer part of a path needs to be looked up.
    longest: usize,
    pub(super) default: Option<Arc<Backend>>,
}

impl Paths {
    pub(super) fn add_exact(&mut self, path: &str, backend: &Arc<Backend>) {
        self.exact.entry(path.to_owned()).or_insert_with(|| backend.clone());
    }

    pub(super) fn add_prefix(&mut self, path: &str, backend: &Arc<Backend>) {
        let prefix = path.strip_suffix('/').unwrap_or(path);
        self.longest = self.longest.max(prefix.len());
        self.prefixes.entry(prefix.to_owned()).or_insert_with(|| backend.clone());
    }

    /// An exact path, else the longest prefix that ends where an element of the path does.
    pub(super) fn find(&self, path: &str) -> Option<&Arc<Backend>> {
        if let Some(found) = self.exact.get(path) {
            return Some(found);
        }
        let mut rest = path.strip_suffix('/').unwrap_or(path);
        loop {
            if rest.len() <= self.longest
                && let Some(found) = self.prefixes.get(rest)
            {
                return Some(found);
            }
            rest = &rest[..rest.rfind('/')?];
        }
    }

    pub(super) fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.exact.values().chain(self.prefixes.values()).chain(&self.default)
    }
}
