//! As much of an API server as the agent's tests need, in memory.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, patch, post},
};
use futures::StreamExt;
use k8s_openapi::{
    List, ListableResource,
    api::{
        authentication::v1::{TokenRequest, TokenRequestStatus},
        coordination::v1::Lease,
        core::v1::{ConfigMap, Event, Node, Pod, PodStatus, Service},
    },
    apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta, Time},
};
use kube::core::{Status, WatchEvent};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tandem_api::Identity;
use tokio::sync::{broadcast, watch};
use tokio_stream::wrappers::BroadcastStream;

use crate::{pod, testing::at};

#[derive(Default)]
struct Objects {
    revision: u64,
    down: bool,
    pods: BTreeMap<(String, String), Pod>,
    config_maps: BTreeMap<String, ConfigMap>,
    services: Vec<Service>,
    events: Vec<Event>,
    nodes: BTreeMap<String, Node>,
    leases: BTreeMap<String, Lease>,
    patches: usize,
}

pub(crate) struct TestApi {
    objects: Mutex<Objects>,
    pods: broadcast::Sender<WatchEvent<Pod>>,
    nodes: broadcast::Sender<WatchEvent<Node>>,
    changed: watch::Sender<()>,
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    watch: Option<String>,
}

#[derive(Deserialize)]
struct StatusBody {
    metadata: ObjectMeta,
    status: PodStatus,
}

#[derive(Deserialize)]
struct DeleteBody {
    #[serde(rename = "gracePeriodSeconds")]
    grace_period_seconds: Option<i64>,
}

type Api = State<Arc<TestApi>>;

impl TestApi {
    pub(crate) fn new() -> Arc<TestApi> {
        Arc::new(TestApi {
            objects: Mutex::default(),
            pods: broadcast::Sender::new(1024),
            nodes: broadcast::Sender::new(64),
            changed: watch::Sender::new(()),
        })
    }

    pub(crate) fn client(self: &Arc<Self>) -> kube::Client {
        tandem_client::in_process(self.router(), Identity::node("n1"))
    }

    fn router(self: &Arc<Self>) -> Router {
        let namespaced = "/api/v1/namespaces/{namespace}";
        let path = |rest: &str| format!("{namespaced}/{rest}");
        Router::new()
            .route("/api/v1/pods", get(list_pods))
            .route("/api/v1/services", get(list_services))
            .route("/api/v1/nodes", get(list_nodes).post(create_node))
            .route("/api/v1/nodes/{name}", get(get_node))
            .route("/api/v1/nodes/{name}/status", patch(patch_node))
            .route(&path("pods/{name}/status"), patch(patch_status))
            .route(&path("pods/{name}"), axum::routing::delete(delete_pod))
            .route(&path("configmaps/{name}"), get(get_config_map))
            .route(&path("secrets/{name}"), get(get_secret))
            .route(&path("serviceaccounts/{name}/token"), post(create_token))
            .route(&path("events"), post(create_event))
            .route(&path("events/{name}"), patch(|| async { Json(Event::default()) }))
            .route("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases", post(create_lease))
            .route("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}", get(get_lease).put(put_lease))
            .layer(axum::middleware::from_fn_with_state(self.clone(), availability))
            .with_state(self.clone())
    }

    /// Makes every request fail, or work again.
    pub(crate) fn set_down(&self, down: bool) {
        self.objects.lock().down = down;
    }

    pub(crate) fn put_pod(&self, mut pod: Pod) {
        let event = {
            let mut objects = self.objects.lock();
            objects.revision += 1;
            pod.metadata.resource_version = Some(objects.revision.to_string());
            let key = (pod::namespace(&pod).to_owned(), pod::name(&pod).to_owned());
            let known = objects.pods.insert(key, pod.clone()).is_some();
            if known { WatchEvent::Modified(pod) } else { WatchEvent::Added(pod) }
        };
        drop(self.pods.send(event));
        self.changed.send_replace(());
    }

    pub(crate) fn change_pod(&self, name: &str, change: impl FnOnce(&mut Pod)) {
        let mut pod = self.pod(name).unwrap();
        change(&mut pod);
        self.put_pod(pod);
    }

    /// As `kubectl delete`: the node is asked to end it.
    pub(crate) fn ask_to_delete(&self, name: &str, grace_seconds: i64) {
        self.change_pod(name, |pod| {
            pod.metadata.deletion_timestamp = Some(Time(at(0)));
            pod.metadata.deletion_grace_period_seconds = Some(grace_seconds);
        });
    }

    /// As a forced deletion: the object is gone at once.
    pub(crate) fn remove_pod(&self, name: &str) {
        let pod = self.objects.lock().pods.remove(&("default".to_owned(), name.to_owned()));
        if let Some(pod) = pod {
            drop(self.pods.send(WatchEvent::Deleted(pod)));
        }
        self.changed.send_replace(());
    }

    pub(crate) fn pod(&self, name: &str) -> Option<Pod> {
        self.objects.lock().pods.get(&("default".to_owned(), name.to_owned())).cloned()
    }

    pub(crate) fn put_config_map(&self, name: &str, pairs: &[(&str, &str)]) {
        let data = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.objects.lock().config_maps.insert(name.to_owned(), ConfigMap { data: Some(data), ..ConfigMap::default() });
    }

    pub(crate) fn node(&self, name: &str) -> Option<Node> {
        self.objects.lock().nodes.get(name).cloned()
    }

    pub(crate) fn put_node(&self, node: Node) {
        self.objects.lock().nodes.insert(node.metadata.name.clone().unwrap(), node.clone());
        drop(self.nodes.send(WatchEvent::Modified(node)));
        self.changed.send_replace(());
    }

    pub(crate) fn lease(&self, name: &str) -> Option<Lease> {
        self.objects.lock().leases.get(name).cloned()
    }

    /// Events as `reason: message`, in the order in which they came.
    pub(crate) fn events(&self) -> Vec<String> {
        let objects = self.objects.lock();
        let text = |event: &Event| {
            format!("{}: {}", event.reason.as_deref().unwrap_or_default(), event.message.as_deref().unwrap_or_default())
        };
        objects.events.iter().map(text).collect()
    }

    pub(crate) fn patches(&self) -> usize {
        self.objects.lock().patches
    }

    /// Told of every change of an object.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

async fn availability(State(api): Api, request: axum::extract::Request, next: axum::middleware::Next) -> Response {
    if api.objects.lock().down {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    next.run(request).await
}

fn not_found(name: &str) -> Response {
    let status =
        Status { code: 404, reason: "NotFound".to_owned(), message: format!("{name} not found"), ..Status::default() };
    (StatusCode::NOT_FOUND, Json(status)).into_response()
}

fn listed<K>(items: Vec<K>, revision: u64) -> Response
where
    K: ListableResource + Serialize,
{
    let metadata = ListMeta { resource_version: Some(revision.max(1).to_string()), ..ListMeta::default() };
    Json(List { items, metadata }).into_response()
}

fn watched<K: Clone + Serialize + Send + 'static>(events: broadcast::Receiver<WatchEvent<K>>) -> Response {
    let lines = BroadcastStream::new(events).filter_map(|event| async move {
        let mut line = serde_json::to_vec(&event.ok()?).ok()?;
        line.push(b'\n');
        Some(Ok::<_, std::io::Error>(Bytes::from(line)))
    });
    Body::from_stream(lines).into_response()
}

async fn list_pods(State(api): Api, Query(query): Query<ListQuery>) -> Response {
    let objects = api.objects.lock();
    match query.watch {
        Some(_) => watched(api.pods.subscribe()),
        None => listed(objects.pods.values().cloned().collect(), objects.revision),
    }
}

async fn list_services(State(api): Api, Query(query): Query<ListQuery>) -> Response {
    match query.watch {
        Some(_) => Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>()).into_response(),
        None => listed(api.objects.lock().services.clone(), 1),
    }
}

async fn list_nodes(State(api): Api, Query(query): Query<ListQuery>) -> Response {
    match query.watch {
        Some(_) => watched(api.nodes.subscribe()),
        None => listed(api.objects.lock().nodes.values().cloned().collect(), 1),
    }
}

async fn create_node(State(api): Api, Json(node): Json<Node>) -> Response {
    api.put_node(node.clone());
    (StatusCode::CREATED, Json(node)).into_response()
}

async fn get_node(State(api): Api, Path(name): Path<String>) -> Response {
    api.node(&name).map_or_else(|| not_found(&name), |node| Json(node).into_response())
}

async fn patch_node(State(api): Api, Path(name): Path<String>, body: Bytes) -> Response {
    let Some(mut node) = api.node(&name) else { return not_found(&name) };
    let patch: Node = serde_json::from_slice(&body).unwrap();
    node.status = patch.status;
    api.put_node(node.clone());
    Json(node).into_response()
}

async fn patch_status(State(api): Api, Path((_, name)): Path<(String, String)>, body: Bytes) -> Response {
    let Some(mut pod) = api.pod(&name) else { return not_found(&name) };
    let mut body: StatusBody = serde_json::from_slice(&body).unwrap();
    // What is to go is named without a status.
    body.status.conditions.get_or_insert_default().retain(|condition| !condition.status.is_empty());
    if body.metadata.uid != pod.metadata.uid {
        return StatusCode::CONFLICT.into_response();
    }
    api.objects.lock().patches += 1;
    pod.status = Some(body.status);
    api.put_pod(pod);
    Json(api.pod(&name)).into_response()
}

async fn delete_pod(
    State(api): Api,
    Path((_, name)): Path<(String, String)>,
    Json(body): Json<DeleteBody>,
) -> Response {
    assert_eq!(body.grace_period_seconds, Some(0));
    let Some(pod) = api.pod(&name) else { return not_found(&name) };
    api.remove_pod(&name);
    Json(pod).into_response()
}

async fn get_config_map(State(api): Api, Path((_, name)): Path<(String, String)>) -> Response {
    let found = api.objects.lock().config_maps.get(&name).cloned();
    found.map_or_else(|| not_found(&name), |object| Json(object).into_response())
}

async fn get_secret(Path((_, name)): Path<(String, String)>) -> Response {
    not_found(&name)
}

async fn create_token(Json(mut request): Json<TokenRequest>) -> Response {
    let pod = request.spec.clone().unwrap_or_default().bound_object_ref.unwrap_or_default().name.unwrap_or_default();
    request.status = Some(TokenRequestStatus {
        expiration_timestamp: Some(Time("2100-01-01T00:00:00Z".parse().unwrap())),
        token: Some(format!("token-of-{pod}")),
    });
    (StatusCode::CREATED, Json(request)).into_response()
}

async fn create_event(State(api): Api, Json(event): Json<Event>) -> Response {
    api.objects.lock().events.push(event.clone());
    api.changed.send_replace(());
    (StatusCode::CREATED, Json(event)).into_response()
}

async fn create_lease(State(api): Api, Json(lease): Json<Lease>) -> Response {
    api.objects.lock().leases.insert(lease.metadata.name.clone().unwrap(), lease.clone());
    api.changed.send_replace(());
    (StatusCode::CREATED, Json(lease)).into_response()
}

async fn get_lease(State(api): Api, Path((_, name)): Path<(String, String)>) -> Response {
    api.lease(&name).map_or_else(|| not_found(&name), |lease| Json(lease).into_response())
}

async fn put_lease(State(api): Api, Path((_, name)): Path<(String, String)>, Json(lease): Json<Lease>) -> Response {
    api.objects.lock().leases.insert(name, lease.clone());
    api.changed.send_replace(());
    Json(lease).into_response()
}
