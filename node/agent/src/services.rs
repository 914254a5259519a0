//! The Services of the cluster, for the environment of containers.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::disk;

/// How long the first start of a container waits for the first list.
const FIRST_LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// A burst of changes is written to disk once.
const WRITE_PAUSE: Duration = Duration::from_secs(5);

type List = Arc<Vec<Arc<Service>>>;

#[derive(Clone)]
pub(crate) struct Services {
    list: watch::Receiver<Option<List>>,
}

impl Services {
    /// Begins with what the disk remembers, so that containers can start before the API answers.
    pub(crate) fn new(cache: PathBuf) -> (Services, Follower) {
        let remembered: Option<Vec<Arc<Service>>> = disk::read_json(&cache);
        let (sender, list) = watch::channel(remembered.map(Arc::new));
        (Services { list }, Follower { sender, cache })
    }

    /// `None` where no list was ever read.
    pub(crate) async fn list(&self) -> Option<List> {
        let mut list = self.list.clone();
        let first = list.wait_for(Option::is_some);
        match tokio::time::timeout(FIRST_LIST_TIMEOUT, first).await {
            Ok(Ok(list)) => list.clone(),
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

/// Keeps the list up to date.
pub(crate) struct Follower {
    sender: watch::Sender<Option<List>>,
    cache: PathBuf,
}

impl Follower {
    pub(crate) async fn run(self, client: kube::Client, shutdown: CancellationToken) {
        let mut known: BTreeMap<(Option<String>, Option<String>), Arc<Service>> = BTreeMap::new();
        let mut complete = false;
        let stream = watcher(Api::<Service>::all(client), watcher::Config::default()).default_backoff();
        futures::pin_mut!(stream);
        let mut write_at = None;
        let mut wrote = false;
        loop {
            let written = async {
                match write_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                () = written => {
                    write_at = None;
                    wrote = true;
                    if let Some(list) = self.sender.borrow().clone()
                        && let Err(error) = disk::write_json(&self.cache, &*list)
                    {
                        tracing::warn!(%error, "cannot remember the services");
                    }
                    continue;
                }
                event = stream.next() => event,
            };
            let key = |service: &Service| (service.metadata.namespace.clone(), service.metadata.name.clone());
            match event {
                None => return,
                Some(Err(error)) => {
                    tracing::debug!(%error, "watching services");
                    continue;
                }
                Some(Ok(watcher::Event::Init)) => known.clear(),
                Some(Ok(watcher::Event::InitDone)) => complete = true,
                Some(Ok(watcher::Event::Apply(mut service) | watcher::Event::InitApply(mut service))) => {
                    service.metadata.managed_fields = None;
                    known.insert(key(&service), Arc::new(service));
                }
                Some(Ok(watcher::Event::Delete(service))) => drop(known.remove(&key(&service))),
            }
            if complete {
                self.sender.send_replace(Some(Arc::new(known.values().cloned().collect())));
                let pause = if wrote { WRITE_PAUSE } else { Duration::ZERO };
                write_at = write_at.or(Some(tokio::time::Instant::now() + pause));
            }
        }
    }
}
