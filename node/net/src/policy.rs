//! The driver of NetworkPolicies: watches them and, while there are any, the pods and namespaces of the cluster, and
//! makes the kernel follow. What it denies, it counts and tells the pod.

mod denied;
mod facts;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream::BoxStream};
use ipnet::Ipv4Net;
use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Resource, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use tandem_client::events::Recorder;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    nft,
    proxy::{RETRY, SETTLE},
    rules::{self, PolicySnapshot, Ruleset},
};
use denied::Denied;
pub use denied::Metrics;

/// How often the kernel is asked what it denied.
const DENIED_EVERY: Duration = Duration::from_secs(10);

/// What does not change while the node runs.
#[derive(Clone, Debug)]
pub struct Fixed {
    pub node: String,
    pub pod_cidr: Ipv4Net,
    pub dns: Ipv4Addr,
    /// Where the node's forwarder to the API server listens.
    pub api: (Ipv4Addr, u16),
    /// Where the node takes connections for workloads at zero.
    pub activator: (Ipv4Addr, u16),
}

type Key = (String, String);

/// What is remembered of the objects of one kind: a fact about each, none for those that do not matter.
struct Followed<K, F> {
    events: BoxStream<'static, watcher::Result<watcher::Event<K>>>,
    fact: fn(K) -> Option<F>,
    known: BTreeMap<Key, F>,
    /// A list that is being read.
    next: Option<BTreeMap<Key, F>>,
    is_complete: bool,
}

impl<K, F: PartialEq> Followed<K, F>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    fn new(client: &kube::Client, fact: fn(K) -> Option<F>) -> Followed<K, F> {
        let events = watcher(Api::<K>::all(client.clone()), watcher::Config::default()).default_backoff().boxed();
        Followed { events, fact, known: BTreeMap::new(), next: None, is_complete: false }
    }

    /// Waits for the next event; whether anything that matters is different now.
    async fn changed(&mut self) -> bool {
        match self.events.next().await {
            Some(Ok(event)) => self.take(event),
            Some(Err(error)) => {
                tracing::debug!(%error, "watch for network policies");
                false
            }
            None => std::future::pending().await,
        }
    }

    fn take(&mut self, event: watcher::Event<K>) -> bool {
        let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
        match event {
            watcher::Event::Init => {
                self.next = Some(BTreeMap::new());
                false
            }
            watcher::Event::InitApply(object) => {
                let key = key(&object);
                self.next.get_or_insert_default().extend((self.fact)(object).map(|fact| (key, fact)));
                false
            }
            watcher::Event::InitDone => {
                let next = self.next.take().unwrap_or_default();
                let changed = !self.is_complete || self.known != next;
                (self.known, self.is_complete) = (next, true);
                changed
            }
            watcher::Event::Apply(object) => {
                let key = key(&object);
                match (self.fact)(object) {
                    Some(fact) if self.known.get(&key) == Some(&fact) => false,
                    Some(fact) => {
                        self.known.insert(key, fact);
                        true
                    }
                    None => self.known.remove(&key).is_some(),
                }
            }
            watcher::Event::Delete(object) => self.known.remove(&key(&object)).is_some(),
        }
    }
}

/// What only policies need to know.
struct Selectable {
    pods: Followed<Pod, Arc<rules::PodFacts>>,
    namespaces: Followed<Namespace, rules::Labels>,
}

pub struct Follower {
    client: kube::Client,
    fixed: Fixed,
    members: watch::Receiver<Vec<SocketAddr>>,
    policies: Followed<NetworkPolicy, Arc<NetworkPolicy>>,
    /// There while there are policies: most clusters, and most of their pods, cost nothing here.
    selectable: Option<Selectable>,
    /// What the kernel has; `None` where that is not known.
    applied: Option<Ruleset>,
    denied: Denied,
    /// The namespaces with policies for what comes in.
    guarded: watch::Sender<Arc<BTreeSet<String>>>,
}

impl Follower {
    pub fn new(
        client: kube::Client,
        fixed: Fixed,
        members: watch::Receiver<Vec<SocketAddr>>,
        guarded: watch::Sender<Arc<BTreeSet<String>>>,
        metrics: Metrics,
        recorder: Recorder,
    ) -> Follower {
        let policies = Followed::new(&client, facts::policy);
        let denied = Denied::new(metrics, recorder);
        Follower { client, fixed, members, policies, selectable: None, applied: None, denied, guarded }
    }

    /// Keeps the rules true until shutdown. They stay then, as the pods do.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut look_at = Instant::now() + DENIED_EVERY;
        // When the rules are to be made again, if they are.
        let mut apply_at: Option<Instant> = None;
        loop {
            tokio::select! {
                changed = self.changed() => if changed {
                    apply_at.get_or_insert_with(|| Instant::now() + SETTLE);
                },
                () = sleep_until(apply_at.unwrap_or(look_at)), if apply_at.is_some() => {
                    apply_at = self.apply().await.err().map(|()| Instant::now() + RETRY);
                }
                () = sleep_until(look_at), if self.selectable.is_some() => {
                    if let Some(selectable) = &self.selectable {
                        self.denied.look(&selectable.pods.known).await;
                    }
                    look_at = Instant::now() + DENIED_EVERY;
                }
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn changed(&mut self) -> bool {
        let changed = match &mut self.selectable {
            None => tokio::select! {
                changed = self.policies.changed() => changed,
                changed = self.members.changed() => changed.is_ok(),
            },
            Some(selectable) => tokio::select! {
                changed = self.policies.changed() => changed,
                changed = selectable.pods.changed() => changed,
                changed = selectable.namespaces.changed() => changed,
                changed = self.members.changed() => changed.is_ok(),
            },
        };
        if self.policies.known.is_empty() {
            self.selectable = None;
        } else if self.selectable.is_none() {
            let pods = Followed::new(&self.client, facts::pod);
            self.selectable = Some(Selectable { pods, namespaces: Followed::new(&self.client, facts::namespace) });
        }
        changed
    }

    fn tell_guarded(&self) {
        let guarding = self.policies.known.iter().filter(|(_, policy)| {
            let types = policy.spec.as_ref().and_then(|spec| spec.policy_types.as_ref());
            types.is_none_or(|types| types.is_empty() || types.iter().any(|one| one == "Ingress"))
        });
        let namespaces: BTreeSet<String> = guarding.map(|((namespace, _), _)| namespace.clone()).collect();
        self.guarded.send_if_modified(|told| {
            let changed = **told != namespaces;
            *told = Arc::new(namespaces);
            changed
        });
    }

    /// Gives the kernel the rules that follow from what is known; nothing before everything is.
    async fn apply(&mut self) -> Result<(), ()> {
        if !self.policies.is_complete {
            return Ok(());
        }
        let (pods, namespaces) = match &self.selectable {
            None => (Vec::new(), BTreeMap::new()),
            Some(Selectable { pods, namespaces }) if pods.is_complete && namespaces.is_complete => {
                let labels = |((_, name), labels): (&Key, &rules::Labels)| (name.clone(), labels.clone());
                (pods.known.values().cloned().collect(), namespaces.known.iter().map(labels).collect())
            }
            Some(_) => return Ok(()),
        };
        self.tell_guarded();
        let snapshot = PolicySnapshot {
            node: self.fixed.node.clone(),
            pod_cidr: self.fixed.pod_cidr,
            dns: Some(self.fixed.dns),
            api: Some(self.fixed.api),
            members: self.members.borrow().clone(),
            activator: Some(self.fixed.activator),
            namespaces,
            pods,
            policies: self.policies.known.values().cloned().collect(),
        };
        let next = rules::policy_rules(&snapshot);
        if let Err(error) = nft::apply(self.applied.as_ref(), &next).await {
            // What the kernel holds is unknown now: the next transaction builds the table anew.
            tracing::error!(%error, "NetworkPolicies could not be changed on this node; those before stay in force");
            self.applied = None;
            return Err(());
        }
        self.applied = Some(next);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
