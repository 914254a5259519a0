//! The roles and bindings of the store: whoever decides takes over what has changed since the decision before.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use tandem_api::{ApiError, Key};
use tandem_registry::ResourceDef;
use tandem_store::Stored;
use tokio::sync::Mutex;

use super::rbac::{Binding, GROUP, Grants, Role};
use crate::{core::Core, follow::Following, objects};

const RESOURCES: [&str; 4] = ["roles", "clusterroles", "rolebindings", "clusterrolebindings"];

#[derive(Default)]
pub(crate) struct Follower(Mutex<Option<Followed>>);

struct Followed {
    grants: Arc<Grants>,
    following: Following,
}

impl Follower {
    /// What is granted now.
    pub(crate) async fn grants(&self, core: &Core) -> Result<Arc<Grants>, ApiError> {
        let mut followed = self.0.lock().await;
        if let Some(Followed { grants, following }) = &mut *followed
            && following.catch_up(|def, key, stored| take(Arc::make_mut(grants), def, key, stored)).is_some()
        {
            return Ok(grants.clone());
        }
        let mut grants = Grants::default();
        let following = Following::begin(core, GROUP, &RESOURCES, |def, key, stored| {
            take(&mut grants, def, key, stored);
        });
        let following = following.await?;
        let fresh = followed.insert(Followed { grants: Arc::new(grants), following });
        Ok(fresh.grants.clone())
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
