//! ConfigMaps and Secrets, read when they are needed.
//!
//! What was read stays for a while: pods of one namespace share it, and a container can restart while the API does
//! not answer.

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{Api, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

/// Objects kept at most; the oldest make room.
const KEPT_MAX: usize = 2048;
/// A volume that is refreshed takes what was read this recently.
const FRESH: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{kind} \"{name}\" not found")]
    NotFound { kind: &'static str, name: String },
    #[error("cannot read {kind} \"{name}\": {source}")]
    Api { kind: &'static str, name: String, source: Arc<kube::Error> },
}

impl Error {
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound { .. })
    }
}

/// How old an answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// The API is asked; what was read before serves only if it does not answer.
    Now,
    /// Seconds old is good enough.
    Recent,
}

pub(crate) struct Objects {
    client: kube::Client,
    config_maps: Kept<ConfigMap>,
    secrets: Kept<Secret>,
}

type Kept<K> = Mutex<HashMap<(String, String), (Instant, Arc<K>)>>;

impl Objects {
    pub(crate) fn new(client: kube::Client) -> Objects {
        Objects { client, config_maps: Mutex::default(), secrets: Mutex::default() }
    }

    pub(crate) async fn config_map(&self, namespace: &str, name: &str, age: Age) -> Result<Arc<ConfigMap>, Error> {
        read(&self.client, &self.config_maps, "configmap", namespace, name, age).await
    }

    pub(crate) async fn secret(&self, namespace: &str, name: &str, age: Age) -> Result<Arc<Secret>, Error> {
        read(&self.client, &self.secrets, "secret", namespace, name, age).await
    }
}

async fn read<K>(
    client: &kube::Client,
    kept: &Kept<K>,
    kind: &'static str,
    namespace: &str,
    name: &str,
    age: Age,
) -> Result<Arc<K>, Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let key = (namespace.to_owned(), name.to_owned());
    let known = kept.lock().get(&key).cloned();
    if let Some((read_at, object)) = &known
        && age == Age::Recent
        && read_at.elapsed() < FRESH
    {
        return Ok(object.clone());
    }
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    match api.get(name).await {
        Ok(object) => {
            let object = Arc::new(object);
            let mut kept = kept.lock();
            if kept.len() >= KEPT_MAX
                && let Some(oldest) = kept.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| key.clone())
            {
                kept.remove(&oldest);
            }
            kept.insert(key, (Instant::now(), object.clone()));
            Ok(object)
        }
        Err(kube::Error::Api(status)) if status.code == 404 => {
            kept.lock().remove(&key);
            Err(Error::NotFound { kind, name: name.to_owned() })
        }
        Err(source) => match known {
            Some((_, object)) => Ok(object),
            None => Err(Error::Api { kind, name: name.to_owned(), source: Arc::new(source) }),
        },
    }
}
