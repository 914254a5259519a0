//! The roles and bindings of the store, as far as this member has applied them.
//!
//! Nothing runs in the background: whoever decides takes over what has changed since the decision before. So a grant
//! counts from the moment its write is answered, on the member that answered.

use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _, stream::BoxStream};
use serde::de::DeserializeOwned;
use tandem_api::{ApiError, Key};
use tandem_registry::ResourceDef;
use tandem_store::{Consistency, Error, Stored, WatchItem};
use tokio::sync::Mutex;

use super::rbac::{Binding, GROUP, Grants, Role};
use crate::{
    core::Core,
    objects::{self, Objects},
};

const RESOURCES: [&str; 4] = ["roles", "clusterroles", "rolebindings", "clusterrolebindings"];

type Changes = BoxStream<'static, Result<WatchItem, Error>>;

#[derive(Default)]
pub(crate) struct Follower(Mutex<Option<Followed>>);

struct Followed {
    grants: Arc<Grants>,
    changes: Vec<(Arc<ResourceDef>, Changes)>,
}

impl Follower {
    /// What is granted now.
    pub(crate) async fn grants(&self, core: &Core) -> Result<Arc<Grants>, ApiError> {
        let mut followed = self.0.lock().await;
        if let Some(followed) = &mut *followed
            && followed.catch_up()
        {
            return Ok(followed.grants.clone());
        }
        let fresh = followed.insert(Followed::begin(core).await?);
        Ok(fresh.grants.clone())
    }
}

impl Followed {
    async fn begin(core: &Core) -> Result<Followed, ApiError> {
        let mut grants = Grants::default();
        let mut changes = Vec::new();
        for resource in RESOURCES {
            let def = core.row(GROUP, "v1", resource)?;
            let prefix = Objects::prefix(&def, None);
            let page = core.objects.page(&prefix, Consistency::Any, None, 0).await?;
            for stored in &page.items {
                take(&mut grants, &def, &stored.key, Some(stored));
            }
            let stream = core.objects.storage().watch(&prefix, page.revision).map_err(objects::store_error)?;
            changes.push((def, stream));
        }
        Ok(Followed { grants: Arc::new(grants), changes })
    }

    /// Takes over what has changed; `false` when a change was missed and all must be read again.
    fn catch_up(&mut self) -> bool {
        for (def, stream) in &mut self.changes {
            // Without a budget: a request that has worked much must not overlook what is there.
            while let Some(item) = tokio::task::unconstrained(stream.next()).now_or_never() {
                match item {
                    Some(Ok(WatchItem::Progress(_))) => {}
                    Some(Ok(WatchItem::Event(event))) => {
                        let stored = event.value.clone().map(|value| Stored {
                            key: event.key.clone(),
                            value,
                            created: event.revision,
                            revision: event.revision,
                        });
                        take(Arc::make_mut(&mut self.grants), def, &event.key, stored.as_ref());
                    }
                    Some(Err(_)) | None => return false,
                }
            }
        }
        true
    }
}

fn take(grants: &mut Grants, def: &ResourceDef, key: &Key, stored: Option<&Stored>) {
    let is_role = def.plural.ends_with("roles");
    let Some(stored) = stored else {
        grants.roles.remove(key);
        grants.bindings.remove(key);
        return;
    };
    if is_role {
        grants.roles.insert(key.clone(), read::<Role>(def, stored));
    } else {
        grants.bindings.insert(key.clone(), read::<Binding>(def, stored));
    }
}

/// What cannot be read grants nothing.
fn read<T: DeserializeOwned + Default>(def: &ResourceDef, stored: &Stored) -> T {
    let read = objects::json(def, &stored.value, stored.revision)
        .map_err(|error| error.message)
        .and_then(|json| serde_json::from_slice(&json).map_err(|error| error.to_string()));
    read.unwrap_or_else(|error| {
        tracing::error!(key = %stored.key, error, "a role or binding cannot be read and grants nothing");
        T::default()
    })
}
