//! The kinds that are served: the built-in ones and those of the CustomResourceDefinitions in the store, as far as this
//! member has applied them.
//!
//! Nothing runs in the background: each request first takes over what has changed. So a kind is served from the moment
//! that its definition is seen to be established, on the member that showed it; a member that does not know a kind asks
//! the store before it says so.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::RwLock;
use tandem_api::{ApiError, Key};
use tandem_registry::{Registry, ResourceDef, custom};
use tandem_store::{Consistency, Stored};
use tokio::sync::Mutex;

use crate::{
    discovery::Documents,
    follow::Changes,
    objects::{self, Objects},
    request,
};

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";

type Rows = BTreeMap<Key, Vec<Arc<ResourceDef>>>;

/// What is served at one time.
pub(crate) struct Served {
    pub(crate) registry: Arc<Registry>,
    pub(crate) documents: Documents,
}

impl Served {
    fn new(registry: Arc<Registry>) -> Arc<Served> {
        let documents = Documents::new(&registry);
        Arc::new(Served { registry, documents })
    }
}

pub(crate) struct Kinds {
    builtin: Arc<Registry>,
    served: RwLock<Arc<Served>>,
    followed: Mutex<Option<Followed>>,
}

struct Followed {
    definition: Arc<ResourceDef>,
    rows: Rows,
    changes: Changes,
}

impl Kinds {
    pub(crate) fn new(builtin: Arc<Registry>) -> Kinds {
        let served = RwLock::new(Served::new(builtin.clone()));
        Kinds { builtin, served, followed: Mutex::default() }
    }

    pub(crate) fn served(&self) -> Arc<Served> {
        self.served.read().clone()
    }

    /// Takes over what has changed since the request before.
    pub(crate) async fn follow(&self, objects: &Objects) -> Result<(), ApiError> {
        let mut followed = self.followed.lock().await;
        let changed = followed.as_mut().and_then(Followed::catch_up);
        let rows = match (changed, &mut *followed) {
            (Some(false), _) => return Ok(()),
            (Some(true), Some(known)) => &known.rows,
            _ => &followed.insert(Followed::begin(&self.builtin, objects).await?).rows,
        };
        let rows: Vec<Arc<ResourceDef>> = rows.values().flatten().cloned().collect();
        let registry = if rows.is_empty() { self.builtin.clone() } else { self.builtin.with_custom(rows).into() };
        *self.served.write() = Served::new(registry);
        Ok(())
    }

    /// As [`Kinds::follow`], with all that any member has acknowledged.
    pub(crate) async fn refresh(&self, objects: &Objects) -> Result<(), ApiError> {
        let definition = definition(&self.builtin)?;
        objects.page(&Objects::prefix(&definition, None), Consistency::Linearizable, None, 1).await?;
        self.follow(objects).await
    }
}

fn definition(builtin: &Registry) -> Result<Arc<ResourceDef>, ApiError> {
    builtin.by_path(GROUP, "v1", PLURAL).ok_or_else(request::not_found)
}

impl Followed {
    async fn begin(builtin: &Registry, objects: &Objects) -> Result<Followed, ApiError> {
        let definition = definition(builtin)?;
        let mut rows = BTreeMap::new();
        let take = |key: &Key, stored: Option<&Stored>| self::take(&definition, &mut rows, key, stored);
        let changes = Changes::begin(objects, &definition, take).await?;
        Ok(Followed { definition, rows, changes })
    }

    fn catch_up(&mut self) -> Option<bool> {
        let Followed { definition, rows, changes } = self;
        changes.catch_up(|key, stored| take(definition, rows, key, stored))
    }
}

fn take(definition: &ResourceDef, rows: &mut Rows, key: &Key, stored: Option<&Stored>) {
    rows.remove(key);
    let Some(stored) = stored else { return };
    match objects::decode(definition, &stored.value, stored.revision) {
        Ok(definition) => {
            let fresh = custom::rows(&definition).into_iter().map(Arc::new).collect();
            rows.insert(key.clone(), fresh);
        }
        Err(error) => {
            tracing::error!(%key, %error, "a CustomResourceDefinition cannot be read: its kind is not served")
        }
    }
}
