//! The webhooks of the store, ready to be asked.

use std::{collections::BTreeMap, sync::Arc};

use tandem_api::{ApiError, Key};
use tandem_registry::ResourceDef;
use tandem_store::Stored;
use tokio::sync::Mutex;

use super::hook::Hook;
use crate::{admission::webhook::GROUP, core::Core, follow::Following, objects};

const MUTATING: &str = "mutatingwebhookconfigurations";
const VALIDATING: &str = "validatingwebhookconfigurations";

/// In the order in which they are asked: by the names of their configurations, and as they stand in each.
#[derive(Debug, Default)]
pub(super) struct Hooks {
    pub(super) mutating: Vec<Arc<Hook>>,
    pub(super) validating: Vec<Arc<Hook>>,
}

#[derive(Default)]
pub(crate) struct Follower(Mutex<Option<Followed>>);

struct Followed {
    configurations: BTreeMap<Key, Vec<Arc<Hook>>>,
    hooks: Arc<Hooks>,
    following: Following,
}

impl Follower {
    /// The webhooks that there are now.
    pub(super) async fn hooks(&self, core: &Core) -> Result<Arc<Hooks>, ApiError> {
        let mut followed = self.0.lock().await;
        if let Some(followed) = &mut *followed
            && followed.catch_up()
        {
            return Ok(followed.hooks.clone());
        }
        let fresh = followed.insert(Followed::begin(core).await?);
        Ok(fresh.hooks.clone())
    }
}

impl Followed {
    async fn begin(core: &Core) -> Result<Followed, ApiError> {
        let mut configurations = BTreeMap::new();
        let following = Following::begin(core, GROUP, &[MUTATING, VALIDATING], |def, key, stored| {
            take(&mut configurations, def, key, stored);
        });
        let following = following.await?;
        Ok(Followed { hooks: ordered(&configurations), configurations, following })
    }

    fn catch_up(&mut self) -> bool {
        let configurations = &mut self.configurations;
        let caught = self.following.catch_up(|def, key, stored| take(configurations, def, key, stored));
        if caught == Some(true) {
            self.hooks = ordered(&self.configurations);
        }
        caught.is_some()
    }
}

fn take(configurations: &mut BTreeMap<Key, Vec<Arc<Hook>>>, def: &ResourceDef, key: &Key, stored: Option<&Stored>) {
    configurations.remove(key);
    let Some(stored) = stored else { return };
    let read = objects::decode(def, &stored.value, stored.revision).map_err(|error| error.message);
    match read.and_then(|object| Hook::all(&object)) {
        Ok(hooks) => {
            configurations.insert(key.clone(), hooks.into_iter().map(Arc::new).collect());
        }
        Err(error) => tracing::error!(%key, error, "a webhook configuration cannot be read: nobody is asked by it"),
    }
}

fn ordered(configurations: &BTreeMap<Key, Vec<Arc<Hook>>>) -> Arc<Hooks> {
    let of = |plural: &str| {
        let prefix = Key::prefix(GROUP, plural, None);
        let own = configurations.iter().filter(|(key, _)| key.as_str().starts_with(prefix.as_str()));
        own.flat_map(|(_, hooks)| hooks.iter().cloned()).collect()
    };
    Arc::new(Hooks { mutating: of(MUTATING), validating: of(VALIDATING) })
}
