//! Requests for workloads that were scaled to zero wait here for a pod.
//!
//! ```text
//!  no endpoints, an autoscaler that wakes ─> a place, or 503 ─> ask to wake ─> a table with endpoints, or 503
//! ```

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use http::StatusCode;
use parking_lot::Mutex;
use tandem_client::wake::{ASKED_EVERY, HELD_MAX, Wake};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};

use crate::{
    answer::Refusal,
    metrics::Metrics,
    routes::{Backend, Name, Table},
};

/// Requests that wait at a time, and for one workload among them.
const HELD_TOTAL_MAX: usize = 4_096;
const HELD_PER_WORKLOAD_MAX: usize = 1_024;

pub(crate) struct Holds {
    wake: Wake,
    total: Arc<Semaphore>,
    /// Of the workloads that somebody waits for.
    workloads: Mutex<HashMap<Name, Weak<Semaphore>>>,
    longest: Duration,
}

/// The right to wait, given back when it is dropped.
struct Place {
    _total: OwnedSemaphorePermit,
    _workload: OwnedSemaphorePermit,
    _places: Arc<Semaphore>,
}

impl Holds {
    pub(crate) fn new(wake: Wake) -> Holds {
        let total = Arc::new(Semaphore::new(HELD_TOTAL_MAX));
        Holds { wake, total, workloads: Mutex::default(), longest: HELD_MAX }
    }

    fn place(&self, workload: &Name) -> Option<Place> {
        let total = self.total.clone().try_acquire_owned().ok()?;
        let mut workloads = self.workloads.lock();
        let places = match workloads.get(workload).and_then(Weak::upgrade) {
            Some(places) => places,
            None => {
                workloads.retain(|_, places| places.strong_count() > 0);
                let places = Arc::new(Semaphore::new(HELD_PER_WORKLOAD_MAX));
                workloads.insert(workload.clone(), Arc::downgrade(&places));
                places
            }
        };
        let permit = places.clone().try_acquire_owned().ok()?;
        Some(Place { _total: total, _workload: permit, _places: places })
    }

    /// Waits for the path's backend to have endpoints.
    pub(crate) async fn awake(
        &self,
        mut table: watch::Receiver<Arc<Table>>,
        (host, path): (&str, &str),
        workload: &Name,
        metrics: &Metrics,
    ) -> Result<Arc<Backend>, Refusal> {
        let unavailable = |why: String| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why);
        let Some(_place) = self.place(workload) else {
            return Err(unavailable("too many requests wait for a workload that is scaled to zero".to_owned()));
        };
        let _held = metrics.held();
        let woken = async {
            loop {
                let backend = table.borrow_and_update().route(host, path).cloned();
                match backend {
                    Some(backend) => match backend.asleep() {
                        Some(workload) => (self.wake)(workload),
                        None => return Ok(backend),
                    },
                    None => return Err(Refusal::new(StatusCode::NOT_FOUND, "no Ingress has this host and path")),
                }
                tokio::select! {
                    changed = table.changed() => if changed.is_err() {
                        return Err(unavailable("the ingress ends".to_owned()));
                    },
                    () = sleep(ASKED_EVERY) => {}
                }
            }
        };
        let late = || {
            let seconds = self.longest.as_secs();
            unavailable(format!("the workload is scaled to zero, and none of its pods became ready within {seconds} s"))
        };
        timeout(self.longest, woken).await.unwrap_or_else(|_| Err(late()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_workload_cannot_take_the_places_of_all() {
        let holds = Holds::new(Arc::new(|_| {}));
        let name = |name: &str| ("ns".to_owned(), name.to_owned());
        let mut taken: Vec<Place> = (0..HELD_PER_WORKLOAD_MAX).map_while(|_| holds.place(&name("a"))).collect();
        assert_eq!(taken.len(), HELD_PER_WORKLOAD_MAX);
        assert!(holds.place(&name("a")).is_none());
        assert!(holds.place(&name("b")).is_some());
        taken.pop();
        assert!(holds.place(&name("a")).is_some());
        taken.clear();
        assert!(holds.place(&name("c")).is_some());
        assert_eq!(holds.workloads.lock().len(), 1, "workloads that nobody waits for are forgotten");
        assert_eq!(holds.total.available_permits(), HELD_TOTAL_MAX);
    }
}
