//! The kinds that are served: the built-in ones and those of the CustomResourceDefinitions in the store, as far as this
//! member has applied them.
//!
//! Nothing runs in the background: each request first takes over what has changed. So a kind is served from the moment
//! that its definition is seen to be established, on the member that showed it; a member that does not know a kind asks
//! the store before it says so.

use std::{collections::BTreeMap, sync::Arc};

use futures::{FutureExt as _, StreamExt as _, stream::BoxStream};
use parking_lot::RwLock;
use tandem_api::{ApiError, Key};
use tandem_registry::{Registry, ResourceDef, custom};
use tandem_store::{Consistency, Error, Stored, WatchItem};
use tokio::sync::Mutex;

use crate::{
    discovery::Documents,
    objects::{self, Objects},
    request,
};

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";

type Changes = BoxStream<'static, Result<WatchItem, Error>>;

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
    rows: BTreeMap<Key, Vec<Arc<ResourceDef>>>,
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
        let changed = match &mut *followed {
            Some(followed) => followed.catch_up(),
            None => None,
        };
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
        let prefix = Objects::prefix(&definition, None);
        let page = objects.page(&prefix, Consistency::Any, None, 0).await?;
        let changes = objects.storage().watch(&prefix, page.revision).map_err(objects::store_error)?;
        let mut followed = Followed { definition, rows: BTreeMap::new(), changes };
        for stored in &page.items {
            followed.take(&stored.key, Some(stored));
        }
        Ok(followed)
    }

    /// Whether anything has changed; `None` when a change was missed and all must be read again.
    fn catch_up(&mut self) -> Option<bool> {
        let mut changed = false;
        // Without a budget: a request that has worked much must not overlook what is there.
        while let Some(item) = tokio::task::unconstrained(self.changes.next()).now_or_never() {
            match item {
                Some(Ok(WatchItem::Progress(_))) => {}
                Some(Ok(WatchItem::Event(event))) => {
                    changed = true;
                    let stored = event.value.clone().map(|value| Stored {
                        key: event.key.clone(),
                        value,
                        created: event.revision,
                        revision: event.revision,
                    });
                    self.take(&event.key, stored.as_ref());
                }
                Some(Err(_)) | None => return None,
            }
        }
        Some(changed)
    }

    fn take(&mut self, key: &Key, stored: Option<&Stored>) {
        self.rows.remove(key);
        let Some(stored) = stored else { return };
        match objects::decode(&self.definition, &stored.value, stored.revision) {
            Ok(definition) => {
                let rows = custom::rows(&definition).into_iter().map(Arc::new).collect();
                self.rows.insert(key.clone(), rows);
            }
            Err(error) => {
                tracing::error!(%key, %error, "a CustomResourceDefinition cannot be read: its kind is not served")
            }
        }
    }
}
