//! API servers beside this one: requests for the groups that an APIService gives to a Service are authenticated and
//! authorized here and passed on.
//!
//! ```text
//!  APIServices ─ follow ─> Routes ─┬─ proxy      requests, watches, upgrades: with X-Remote-* headers, as front-proxy-client
//!                                  └─ documents  what each server says that it has, kept for a while ─ merge ─> discovery
//! ```
//! Whether a server is there is decided by a controller, which asks [`Aggregation::probe`]; its word stands in the status
//! of the APIService. Nothing that another server sends is trusted beyond its own group and version.

mod documents;
mod merge;
mod proxy;
mod tls;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tandem_api::{ApiError, Clock, Key, Object};
use tandem_pki::Pki;
use tandem_registry::ResourceDef;
use tandem_store::Stored;
use tokio_rustls::TlsConnector;

use crate::{core::Core, follow::Changes, objects, services};

use documents::Slot;
pub(crate) use documents::probe;
pub(crate) use merge::serve as discover;
pub(crate) use proxy::serve;
use tls::FrontProxy;
pub(crate) use tls::{CLIENT_NAME, unverified};

pub(crate) const GROUP: &str = "apiregistration.k8s.io";
const HTTPS: u16 = 443;

/// A group and version that another server has.
pub(crate) struct Route {
    name: String,
    group: String,
    version: String,
    /// Of the group, and of the version in it.
    priority: (i64, i64),
    namespace: String,
    service: String,
    port: u16,
    bundle: String,
    insecure: bool,
    available: bool,
    connector: OnceLock<Result<TlsConnector, String>>,
    slot: Arc<Slot>,
}

impl Route {
    /// `None` for what this server has itself.
    fn of(api: &Object, slot: impl FnOnce(&str) -> Arc<Slot>) -> Option<Route> {
        let service = api.at(&["spec", "service"]).and_then(Value::as_object)?;
        let text = |path: &[&str]| api.str_at(path).unwrap_or_default().to_owned();
        let named = |key: &str| service.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let number = |key: &str| api.i64_at(&["spec", key]).unwrap_or_default();
        let conditions = api.array_at(&["status", "conditions"]);
        let is = |condition: &&Value, key: &str, text: &str| condition.get(key).and_then(Value::as_str) == Some(text);
        let available = conditions.iter().find(|condition| is(condition, "type", "Available"));
        Some(Route {
            name: api.name().to_owned(),
            group: text(&["spec", "group"]),
            version: text(&["spec", "version"]),
            priority: (number("groupPriorityMinimum"), number("versionPriority")),
            namespace: named("namespace"),
            service: named("name"),
            port: services::number(service.get("port")).unwrap_or(HTTPS),
            bundle: text(&["spec", "caBundle"]),
            insecure: api.at(&["spec", "insecureSkipTLSVerify"]).and_then(Value::as_bool).unwrap_or_default(),
            available: available.is_some_and(|condition| is(&condition, "status", "True")),
            connector: OnceLock::new(),
            slot: slot(api.name()),
        })
    }

    fn path(&self) -> String {
        format!("/apis/{}/{}", self.group, self.version)
    }

    /// The name that the server's certificate must be for.
    fn host(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }

    /// Whether requests go where they went by the other route.
    fn leads_as(&self, other: &Route) -> bool {
        let place = |route: &Route| (route.host(), route.port, route.bundle.clone(), route.insecure);
        place(self) == place(other)
    }
}

type Routes = BTreeMap<(String, String), Arc<Route>>;

pub(crate) struct Aggregation {
    front: Option<Arc<FrontProxy>>,
    routes: RwLock<Arc<Routes>>,
    followed: tokio::sync::Mutex<Option<Followed>>,
    /// Raised by whatever changes what is discovered.
    epoch: Arc<AtomicU64>,
    merged: Mutex<HashMap<&'static str, merge::Merged>>,
}

struct Followed {
    def: Arc<ResourceDef>,
    routes: BTreeMap<Key, Arc<Route>>,
    changes: Changes,
}

impl Aggregation {
    /// Without keys no request is passed on.
    pub(crate) fn new(pki: Option<Arc<Pki>>, clock: Arc<dyn Clock>) -> Aggregation {
        Aggregation {
            front: pki.map(|pki| Arc::new(FrontProxy::new(pki, clock))),
            routes: RwLock::default(),
            followed: tokio::sync::Mutex::default(),
            epoch: Arc::default(),
            merged: Mutex::default(),
        }
    }

    /// Takes over what has changed since the request before.
    pub(crate) async fn follow(&self, core: &Core) -> Result<(), ApiError> {
        let mut followed = self.followed.lock().await;
        let changed = followed.as_mut().and_then(|followed| followed.catch_up(&self.epoch));
        let known = match (changed, &mut *followed) {
            (Some(false), _) => return Ok(()),
            (Some(true), Some(known)) => known,
            (_, place) => place.insert(Followed::begin(core, &self.epoch).await?),
        };
        let key = |route: &Arc<Route>| (route.group.clone(), route.version.clone());
        let routes: Routes = known.routes.values().map(|route| (key(route), route.clone())).collect();
        *self.routes.write() = Arc::new(routes);
        self.epoch.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The server of a group and version, if it is another one.
    pub(crate) async fn route(&self, core: &Core, group: &str, version: &str) -> Result<Option<Arc<Route>>, ApiError> {
        if group.is_empty() || group == GROUP {
            return Ok(None);
        }
        self.follow(core).await?;
        Ok(self.routes().get(&(group.to_owned(), version.to_owned())).cloned())
    }

    fn routes(&self) -> Arc<Routes> {
        self.routes.read().clone()
    }
}

impl Followed {
    async fn begin(core: &Core, epoch: &Arc<AtomicU64>) -> Result<Followed, ApiError> {
        let def = core.row(GROUP, "v1", "apiservices")?;
        let mut routes = BTreeMap::new();
        let take = |key: &Key, stored: Option<&Stored>| self::take(&def, &mut routes, epoch, key, stored);
        let changes = Changes::begin(&core.objects, &def, take).await?;
        Ok(Followed { def, routes, changes })
    }

    fn catch_up(&mut self, epoch: &Arc<AtomicU64>) -> Option<bool> {
        let Followed { def, routes, changes } = self;
        changes.catch_up(|key, stored| take(def, routes, epoch, key, stored))
    }
}

fn take(
    def: &ResourceDef,
    routes: &mut BTreeMap<Key, Arc<Route>>,
    epoch: &Arc<AtomicU64>,
    key: &Key,
    stored: Option<&Stored>,
) {
    let before = routes.remove(key);
    let Some(stored) = stored else { return };
    let route = match objects::decode(def, &stored.value, stored.revision) {
        Ok(api) => Route::of(&api, |_| Arc::new(Slot::new(epoch.clone()))),
        Err(error) => {
            tracing::error!(%key, %error, "an APIService cannot be read: its group is not served");
            None
        }
    };
    if let Some(mut route) = route {
        // What a server said stays, as long as it is the same one.
        if let Some(before) = before.filter(|before| before.leads_as(&route)) {
            route.slot = before.slot.clone();
            if let Some(connector) = before.connector.get() {
                let _empty = route.connector.set(connector.clone());
            }
        }
        routes.insert(key.clone(), Arc::new(route));
    }
}
