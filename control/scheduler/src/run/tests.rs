use std::convert::Infallible;

use futures::{FutureExt, stream};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::client::Body;
use tandem_api::FixedClock;
use tokio::{sync::mpsc, task::JoinHandle};

use super::*;

const NODES: &str = r#"{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"5"},"items":[
    {"metadata":{"name":"n1","uid":"n1","resourceVersion":"1"},"status":{"allocatable":{"cpu":"2","memory":"1Gi","pods":"10"}}}]}"#;
const PODS: &str = r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"5"},"items":[
    {"metadata":{"name":"fits","namespace":"a","uid":"1","resourceVersion":"2"},
     "spec":{"schedulerName":"default-scheduler","containers":[{"name":"c","resources":{"requests":{"cpu":"1500m"}}}]}},
    {"metadata":{"name":"too-big","namespace":"a","uid":"2","resourceVersion":"3"},
     "spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"1"}}}]}},
    {"metadata":{"name":"foreign","namespace":"a","uid":"3","resourceVersion":"3"},
     "spec":{"schedulerName":"other","containers":[{"name":"c"}]}},
    {"metadata":{"name":"gated","namespace":"a","uid":"4","resourceVersion":"3"},
     "spec":{"schedulingGates":[{"name":"g"}],"containers":[{"name":"c"}]}}]}"#;

const NAMESPACES: &str = r#"{"kind":"NamespaceList","apiVersion":"v1","metadata":{"resourceVersion":"5"},"items":[
    {"metadata":{"name":"a","uid":"a","resourceVersion":"1"}}]}"#;

const EMPTY: &str = r#"{"metadata":{"resourceVersion":"5"},"items":[]}"#;

/// Answers lists with the constants, keeps watches open, and hands on what is written.
fn client(written: mpsc::Sender<String>) -> kube::Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let written = written.clone();
        async move {
            let (parts, body) = request.into_parts();
            let query = parts.uri.query().unwrap_or_default();
            let answer = match (parts.method.as_str(), parts.uri.path()) {
                ("GET", _) if query.contains("watch=true") => {
                    let silence = stream::pending::<Result<http_body::Frame<bytes::Bytes>, std::io::Error>>();
                    return Ok::<_, Infallible>(Response::new(StreamBody::new(silence).boxed_unsync()));
                }
                ("GET", "/api/v1/nodes") => NODES.to_owned(),
                ("GET", "/api/v1/pods") => PODS.to_owned(),
                ("GET", "/api/v1/namespaces") => NAMESPACES.to_owned(),
                ("GET", "/api/v1/persistentvolumeclaims" | "/api/v1/persistentvolumes") => EMPTY.to_owned(),
                ("GET", "/apis/storage.k8s.io/v1/storageclasses") => EMPTY.to_owned(),
                ("GET", "/apis/policy/v1/poddisruptionbudgets" | "/api/v1/services") => EMPTY.to_owned(),
                ("GET", "/apis/apps/v1/replicasets" | "/apis/apps/v1/statefulsets") => EMPTY.to_owned(),
                ("GET", "/api/v1/replicationcontrollers") => EMPTY.to_owned(),
                (_, path) if path.ends_with("/events") => {
                    String::from_utf8(body.collect_bytes().await.unwrap().to_vec()).unwrap()
                }
                (method, path) => {
                    let body = String::from_utf8(body.collect_bytes().await.unwrap().to_vec()).unwrap();
                    written.try_send(format!("{method} {path} {body}")).unwrap();
                    r#"{"kind":"Pod","apiVersion":"v1","metadata":{}}"#.to_owned()
                }
            };
            let whole = Full::from(answer).map_err(|never: Infallible| match never {});
            Ok(Response::new(whole.boxed_unsync()))
        }
    });
    kube::Client::new(service, "default")
}

fn start(leads: bool) -> (watch::Sender<bool>, mpsc::Receiver<String>, CancellationToken, JoinHandle<()>) {
    let (lead, leadership) = watch::channel(leads);
    let (sender, written) = mpsc::channel(64);
    let clock = Arc::new(FixedClock::new(jiff::Timestamp::UNIX_EPOCH));
    let context = Context {
        client: client(sender),
        leadership,
        clock,
        metrics: Metrics::default(),
        profiles: vec![Profile::default()],
    };
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(run(context, shutdown.clone()));
    (lead, written, shutdown, running)
}

async fn next(written: &mut mpsc::Receiver<String>) -> String {
    timeout(Duration::from_secs(20), written.recv()).await.expect("a write in time").unwrap()
}

#[tokio::test]
async fn the_leader_binds_what_fits_and_explains_what_does_not() {
    let (_lead, mut written, shutdown, running) = start(true);
    let mut writes = [next(&mut written).await, next(&mut written).await];
    writes.sort();
    assert!(writes[0].starts_with("PATCH /api/v1/namespaces/a/pods/too-big/status "), "{writes:?}");
    assert!(writes[0].contains("0/1 nodes are available: 1 Insufficient cpu."), "{writes:?}");
    assert!(writes[1].starts_with("POST /api/v1/namespaces/a/pods/fits/binding "), "{writes:?}");
    assert!(writes[1].contains(r#""target":{"apiVersion":"v1","kind":"Node","name":"n1"}"#), "{writes:?}");
    shutdown.cancel();
    running.await.unwrap();
    assert!(written.recv().now_or_never().flatten().is_none(), "neither foreign nor gated pods are touched");
}

#[tokio::test]
async fn a_follower_waits_for_its_turn() {
    let (lead, mut written, _shutdown, _running) = start(false);
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    assert!(written.recv().now_or_never().is_none());
    lead.send(true).unwrap();
    next(&mut written).await;
}
