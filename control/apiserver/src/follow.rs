//! What the store has of some resources, as far as this member has applied it.
//!
//! Nothing runs in the background: whoever asks first takes over what has changed since he asked before. So a change
//! counts from the moment its write is answered, on the member that answered.

use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _, stream::BoxStream};
use tandem_api::{ApiError, Key};
use tandem_registry::ResourceDef;
use tandem_store::{Consistency, Error, Stored, WatchItem};

use crate::{
    core::Core,
    objects::{self, Objects},
};

type Changes = BoxStream<'static, Result<WatchItem, Error>>;

pub(crate) struct Following(Vec<(Arc<ResourceDef>, Changes)>);

impl Following {
    /// Gives all that is there to `take`, and follows it from then on.
    pub(crate) async fn begin(
        core: &Core,
        group: &str,
        resources: &[&str],
        mut take: impl FnMut(&ResourceDef, &Key, Option<&Stored>),
    ) -> Result<Following, ApiError> {
        let mut changes = Vec::new();
        for resource in resources {
            let def = core.row(group, "v1", resource)?;
            let prefix = Objects::prefix(&def, None);
            let page = core.objects.page(&prefix, Consistency::Any, None, 0).await?;
            for stored in &page.items {
                take(&def, &stored.key, Some(stored));
            }
            let stream = core.objects.storage().watch(&prefix, page.revision).map_err(objects::store_error)?;
            changes.push((def, stream));
        }
        Ok(Following(changes))
    }

    /// Gives what has changed to `take`, and says whether anything has; `None` when a change was missed and all must be
    /// read again.
    pub(crate) fn catch_up(&mut self, mut take: impl FnMut(&ResourceDef, &Key, Option<&Stored>)) -> Option<bool> {
        let mut changed = false;
        for (def, stream) in &mut self.0 {
            // Without a budget: a request that has worked much must not overlook what is there.
            while let Some(item) = tokio::task::unconstrained(stream.next()).now_or_never() {
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
                        take(def, &event.key, stored.as_ref());
                    }
                    Some(Err(_)) | None => return None,
                }
            }
        }
        Some(changed)
    }
}
