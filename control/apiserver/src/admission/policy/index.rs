//! The policies of the store, compiled, as far as this member has applied them.

use std::{collections::BTreeMap, sync::Arc};

use tandem_api::{ApiError, Key, Object};
use tandem_registry::ResourceDef;
use tandem_store::Stored;
use tokio::sync::Mutex;

use super::{
    GROUP,
    compile::{Binding, Hook, Policy},
};
use crate::{core::Core, follow::Following, objects};

const VALIDATING: &str = "validatingadmissionpolicies";
const VALIDATING_BINDINGS: &str = "validatingadmissionpolicybindings";
const MUTATING: &str = "mutatingadmissionpolicies";
const MUTATING_BINDINGS: &str = "mutatingadmissionpolicybindings";

/// The policies that are bound, by name.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(super) validating: Vec<Hook>,
    pub(super) mutating: Vec<Hook>,
}

#[derive(Default)]
pub(crate) struct Follower(Mutex<Option<Followed>>);

struct Followed {
    index: Arc<Index>,
    parts: Parts,
    following: Following,
}

#[derive(Default)]
struct Parts {
    validating: Sort,
    mutating: Sort,
}

/// Policies of one sort, with their bindings.
#[derive(Default)]
struct Sort {
    policies: BTreeMap<Key, Arc<Policy>>,
    bindings: BTreeMap<Key, Arc<Binding>>,
}

impl Follower {
    /// What is in force now.
    pub(super) async fn index(&self, core: &Core) -> Result<Arc<Index>, ApiError> {
        let mut followed = self.0.lock().await;
        if let Some(Followed { index, parts, following }) = &mut *followed
            && let Some(changed) = following.catch_up(|def, key, stored| parts.take(def, key, stored))
        {
            if changed {
                *index = Arc::new(parts.index());
            }
            return Ok(index.clone());
        }
        let mut parts = Parts::default();
        let resources = [VALIDATING, VALIDATING_BINDINGS, MUTATING, MUTATING_BINDINGS];
        let begun = Following::begin(core, GROUP, &resources, |def, key, stored| parts.take(def, key, stored));
        let following = begun.await?;
        let fresh = followed.insert(Followed { index: Arc::new(parts.index()), parts, following });
        Ok(fresh.index.clone())
    }
}

impl Parts {
    fn take(&mut self, def: &ResourceDef, key: &Key, stored: Option<&Stored>) {
        let sort = if def.plural.starts_with("validating") { &mut self.validating } else { &mut self.mutating };
        if def.plural == VALIDATING_BINDINGS || def.plural == MUTATING_BINDINGS {
            put(&mut sort.bindings, key, stored.map(|stored| read(def, stored, Binding::read)));
        } else {
            put(&mut sort.policies, key, stored.map(|stored| read(def, stored, Policy::read)));
        }
    }

    fn index(&self) -> Index {
        Index { validating: self.validating.hooks(), mutating: self.mutating.hooks() }
    }
}

impl Sort {
    fn hooks(&self) -> Vec<Hook> {
        let hook = |policy: &Arc<Policy>| {
            let mine = self.bindings.values().filter(|binding| binding.policy == policy.name);
            let bindings: Vec<Arc<Binding>> = mine.cloned().collect();
            (!bindings.is_empty()).then(|| Hook { policy: policy.clone(), bindings })
        };
        self.policies.values().filter_map(hook).collect()
    }
}

fn put<T>(map: &mut BTreeMap<Key, Arc<T>>, key: &Key, value: Option<Result<T, String>>) {
    match value {
        Some(Ok(value)) => {
            map.insert(key.clone(), Arc::new(value));
        }
        Some(Err(error)) => {
            tracing::error!(%key, error, "an admission policy or binding cannot be read and has no effect");
            map.remove(key);
        }
        None => {
            map.remove(key);
        }
    }
}

fn read<T>(def: &ResourceDef, stored: &Stored, read: fn(&Object) -> Result<T, String>) -> Result<T, String> {
    let object = objects::decode(def, &stored.value, stored.revision).map_err(|error| error.message)?;
    read(&object)
}
