use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ObjectMeta;
use tandem_api::FixedClock;
use tandem_client::events::Recorder;
use tokio::{sync::mpsc, task::JoinHandle};

use super::*;
use crate::{
    Action, Metrics,
    testing::{Answer, Server, refuse_all_signing},
};

/// One run of the planner: which key, whether the last plan failed, and the way to let it go on.
struct Run {
    key: Key,
    failed: bool,
    go: tokio::sync::oneshot::Sender<Plan>,
}

struct Scripted {
    keys: Vec<Key>,
    runs: mpsc::Sender<Run>,
    active: Arc<AtomicUsize>,
}

/// Counts itself while it lives, so that work that was dropped is noticed.
struct Active(Arc<AtomicUsize>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Reconcile for Scripted {
    type Key = Key;

    const NAME: &'static str = "scripted";
    const WORKERS: usize = 2;

    async fn ready(&self, _cache: &Cache) {}

    fn keys(&self, _cache: &Cache) -> Vec<Key> {
        self.keys.clone()
    }

    fn wakes(&self, _cache: &Cache, change: &Change) -> Vec<Key> {
        match change {
            Change::ConfigMap(_) => self.keys.clone(),
            _ => Vec::new(),
        }
    }

    async fn plan(&self, input: &Input<'_>, key: &Key) -> Result<Plan, Error> {
        self.active.fetch_add(1, Ordering::SeqCst);
        let _active = Active(self.active.clone());
        let (go, gone) = tokio::sync::oneshot::channel();
        self.runs.try_send(Run { key: key.clone(), failed: input.failure.is_some(), go }).unwrap();
        Ok(gone.await.unwrap())
    }
}

struct Bench {
    cache: Arc<Cache>,
    queue: Arc<Queue<Key>>,
    lead: watch::Sender<bool>,
    runs: mpsc::Receiver<Run>,
    active: Arc<AtomicUsize>,
    shutdown: CancellationToken,
    driver: JoinHandle<()>,
}

fn bench(keys: &[&str], server: Server) -> Bench {
    bench_with(keys, server, Duration::from_secs(60))
}

fn bench_with(keys: &[&str], server: Server, perform_max: Duration) -> Bench {
    let (lead, leadership) = watch::channel(false);
    let (sender, runs) = mpsc::channel(64);
    let active = Arc::new(AtomicUsize::new(0));
    let keys = keys.iter().map(|name| Key::new("ns", *name)).collect();
    let reconcile = Arc::new(Scripted { keys, runs: sender, active: active.clone() });
    let (cache, queue) = (Arc::new(Cache::default()), Arc::new(Queue::new(Metrics::default().queue("scripted"))));
    subscribe(&cache, reconcile.clone(), queue.clone());
    let (recorder, _notes) = Recorder::detached();
    let driver = Arc::new(Driver {
        reconcile,
        cache: cache.clone(),
        queue: queue.clone(),
        executor: Executor { client: server.client(), recorder, signer: refuse_all_signing() },
        leadership,
        clock: Arc::new(FixedClock::new(jiff::Timestamp::UNIX_EPOCH)),
        failures: Mutex::new(HashMap::new()),
        perform_max,
    });
    let shutdown = CancellationToken::new();
    let driver = tokio::spawn(driver.run(shutdown.clone()));
    Bench { cache, queue, lead, runs, active, shutdown, driver }
}

impl Bench {
    async fn run(&mut self) -> Run {
        timeout(Duration::from_secs(20), self.runs.recv()).await.expect("a run in time").unwrap()
    }

    /// Lets everything happen that can happen without time passing, then says that nothing is planned.
    async fn expect_quiet(&mut self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(self.runs.recv().now_or_never().is_none(), "nothing is planned");
    }
}

fn config_map(revision: u64) -> ConfigMap {
    let metadata = ObjectMeta {
        name: Some("x".into()),
        namespace: Some("ns".into()),
        resource_version: Some(revision.to_string()),
        ..ObjectMeta::default()
    };
    ConfigMap { metadata, ..ConfigMap::default() }
}

#[tokio::test]
async fn only_the_leader_plans_and_stops_at_once() {
    let mut bench = bench(&["a"], Server::new(|_| Answer::NotFound));
    bench.queue.add(Key::new("ns", "b"));
    bench.expect_quiet().await;
    bench.lead.send(true).unwrap();
    let (first, second) = (bench.run().await, bench.run().await);
    assert_eq!([first.key.name.as_str(), second.key.name.as_str()], ["b", "a"], "what came up while following waits");
    bench.lead.send(false).unwrap();
    while bench.active.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
    bench.queue.add(Key::new("ns", "a"));
    bench.expect_quiet().await;
    bench.lead.send(true).unwrap();
    assert_eq!(bench.run().await.key.name, "a", "a new term plans everything");
    bench.shutdown.cancel();
    bench.driver.await.unwrap();
}

#[tokio::test]
async fn a_key_has_one_worker_and_others_go_on() {
    let mut bench = bench(&["a", "b"], Server::new(|_| Answer::NotFound));
    bench.lead.send(true).unwrap();
    let (first, second) = (bench.run().await, bench.run().await);
    bench.queue.add(first.key.clone());
    bench.expect_quiet().await;
    second.go.send(Plan::default()).unwrap();
    bench.expect_quiet().await;
    first.go.send(Plan::default()).unwrap();
    assert_eq!(bench.run().await.key, Key::new("ns", "a"));
}

#[tokio::test]
async fn a_key_waits_until_the_cache_shows_its_writes() {
    let mut bench = bench(&["a"], Server::new(|_| Answer::Written(7)));
    bench.lead.send(true).unwrap();
    let run = bench.run().await;
    run.go.send(Plan::of(vec![Action::create(config_map(0))])).unwrap();
    bench.queue.add(Key::new("ns", "a"));
    bench.expect_quiet().await;
    let delta = bench.cache.root_certificates.apply(config_map(6));
    bench.cache.notify(&Change::ConfigMap(delta));
    bench.expect_quiet().await;
    let delta = bench.cache.root_certificates.apply(config_map(7));
    bench.cache.notify(&Change::ConfigMap(delta));
    assert_eq!(bench.run().await.key.name, "a");
}

#[tokio::test]
async fn a_failure_is_tried_again_and_told_to_the_next_plan() {
    let mut bench = bench(&["a"], Server::new(|_| Answer::Forbidden("no")));
    bench.lead.send(true).unwrap();
    let run = bench.run().await;
    assert!(!run.failed);
    run.go.send(Plan::of(vec![Action::create(config_map(0))])).unwrap();
    let run = bench.run().await;
    assert!(run.failed);
    run.go.send(Plan::default()).unwrap();
    let run = bench.run().await;
    assert!(!run.failed, "planned once more to take the failure back");
    run.go.send(Plan::default()).unwrap();
    bench.expect_quiet().await;
}

#[tokio::test]
async fn a_plan_that_gets_no_answer_is_made_again() {
    let mut bench = bench_with(&["a"], Server::new(|_| Answer::Never), Duration::from_millis(50));
    bench.lead.send(true).unwrap();
    for _ in 0..3 {
        let run = bench.run().await;
        run.go.send(Plan::of(vec![Action::create(config_map(0))])).unwrap();
    }
}

#[tokio::test]
async fn a_plan_may_ask_for_another_look() {
    let mut bench = bench(&["a"], Server::new(|_| Answer::NotFound));
    bench.lead.send(true).unwrap();
    let again = Plan { actions: Vec::new(), requeue: Some(Duration::from_millis(1)) };
    bench.run().await.go.send(again).unwrap();
    bench.run().await;
}
