//! The objects of a resource in the store, as far as this member has applied them.
//!
//! Nothing runs in the background: whoever needs them takes over what has changed since the last time. So a change
//! counts from the moment that its write is answered, on the member that answered.

use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _, stream::BoxStream};
use tandem_api::{ApiError, Key};
use tandem_registry::ResourceDef;
use tandem_store::{Consistency, Error, Stored, WatchItem};

use crate::{
    core::Core,
    objects::{self, Objects},
};

/// What happens to the objects of one resource.
pub(crate) struct Changes(BoxStream<'static, Result<WatchItem, Error>>);

impl Changes {
    /// Begins with the objects that are there.
    pub(crate) async fn begin(
        objects: &Objects,
        def: &ResourceDef,
        mut take: impl FnMut(&Key, Option<&Stored>),
    ) -> Result<Changes, ApiError> {
        let prefix = Objects::prefix(def, None);
        let page = objects.page(&prefix, Consistency::Any, None, 0).await?;
        let changes = objects.storage().watch(&prefix, page.revision).map_err(objects::store_error)?;
        page.items.iter().for_each(|stored| take(&stored.key, Some(stored)));
        Ok(Changes(changes))
    }

    /// Whether anything has changed; `None` when a change was missed and all must be read again.
    pub(crate) fn catch_up(&mut self, mut take: impl FnMut(&Key, Option<&Stored>)) -> Option<bool> {
        let mut changed = false;
        // Without a budget: a request that has worked much must not overlook what is there.
        while let Some(item) = tokio::task::unconstrained(self.0.next()).now_or_never() {
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
                    take(&event.key, stored.as_ref());
                }
                Some(Err(_)) | None => return None,
            }
        }
        Some(changed)
    }
}

/// What happens to the objects of some resources of a group.
pub(crate) struct Following(Vec<(Arc<ResourceDef>, Changes)>);

impl Following {
    /// Begins with the objects that are there.
    pub(crate) async fn begin(
        core: &Core,
        group: &str,
        resources: &[&str],
        mut take: impl FnMut(&ResourceDef, &Key, Option<&Stored>),
    ) -> Result<Following, ApiError> {
        let mut all = Vec::new();
        for resource in resources {
            let def = core.row(group, "v1", resource)?;
            let changes = Changes::begin(&core.objects, &def, |key, stored| take(&def, key, stored)).await?;
            all.push((def, changes));
        }
        Ok(Following(all))
    }

    /// Whether anything has changed; `None` when a change was missed and all must be read again.
    pub(crate) fn catch_up(&mut self, mut take: impl FnMut(&ResourceDef, &Key, Option<&Stored>)) -> Option<bool> {
        self.0
            .iter_mut()
            .try_fold(false, |any, (def, changes)| Some(any | changes.catch_up(|key, stored| take(def, key, stored))?))
    }
}
