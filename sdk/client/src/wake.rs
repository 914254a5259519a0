//! Asks that a workload which was scaled to zero is woken: a mark on its autoscaler, which the control plane sees at once.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use parking_lot::Mutex;
use serde::Serialize;
use tandem_api::{Clock, WAKE_ANNOTATION};
use tokio::time::{Instant, timeout};

/// However many wait for a workload, it is asked for once in this time.
pub const ASKED_EVERY: Duration = Duration::from_secs(2);
/// How long requests and connections wait for a pod.
pub const HELD_MAX: Duration = Duration::from_secs(60);
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The namespace and name of an autoscaler.
pub type Name = (String, String);

/// Called for each autoscaler whose workload somebody waits for, as often as one likes.
pub type Wake = Arc<dyn Fn(&Name) + Send + Sync>;

#[derive(Debug, Serialize)]
struct Marked {
    metadata: Marks,
}

#[derive(Debug, Serialize)]
struct Marks {
    annotations: BTreeMap<&'static str, String>,
}

/// When each autoscaler was asked last, of those that were lately.
#[derive(Debug, Default)]
struct Asked(HashMap<Name, Instant>);

impl Asked {
    /// Whether it is to be asked now.
    fn begins(&mut self, autoscaler: &Name, now: Instant) -> bool {
        self.0.retain(|_, at| now.duration_since(*at) < ASKED_EVERY);
        if self.0.contains_key(autoscaler) {
            return false;
        }
        self.0.insert(autoscaler.clone(), now);
        true
    }
}

/// Wakes with this client's identity.
pub fn waker(client: kube::Client, clock: Arc<dyn Clock>) -> Wake {
    let asked = Mutex::new(Asked::default());
    Arc::new(move |autoscaler| {
        if !asked.lock().begins(autoscaler, Instant::now()) {
            return;
        }
        let (client, at, (namespace, name)) = (client.clone(), clock.now().to_string(), autoscaler.clone());
        // Whoever waits asks again: nobody needs the end of this.
        drop(tokio::spawn(async move {
            match timeout(ANSWER_MAX, mark(client, &namespace, &name, at)).await {
                Ok(Ok(())) => tracing::debug!(namespace, autoscaler = name, "a workload is to be woken"),
                Ok(Err(error)) => tracing::warn!(namespace, autoscaler = name, %error, "a workload cannot be woken"),
                Err(_) => tracing::warn!(namespace, autoscaler = name, "the API does not answer: a workload sleeps on"),
            }
        }));
    })
}

async fn mark(client: kube::Client, namespace: &str, name: &str, at: String) -> Result<(), kube::Error> {
    let annotations = [(WAKE_ANNOTATION, at)].into();
    let patch = Patch::Merge(Marked { metadata: Marks { annotations } });
    let api = Api::<HorizontalPodAutoscaler>::namespaced(client, namespace);
    api.patch(name, &PatchParams::default(), &patch).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_requests_asks_once_in_a_while() {
        let (mut asked, start) = (Asked::default(), Instant::now());
        let name = |name: &str| ("default".to_owned(), name.to_owned());
        assert!(asked.begins(&name("a"), start));
        for _ in 0..1000 {
            assert!(!asked.begins(&name("a"), start + ASKED_EVERY / 2));
        }
        assert!(asked.begins(&name("b"), start + ASKED_EVERY / 2));
        assert!(asked.begins(&name("a"), start + ASKED_EVERY));
        assert_eq!(asked.0.len(), 2);
        assert!(asked.begins(&name("c"), start + ASKED_EVERY * 3));
        assert_eq!(asked.0.len(), 1, "what was long ago is forgotten");
    }
}
