//! What each node says that it and its pods use: asked when somebody wants to know, kept for a few seconds.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use axum::body::Body;
use futures::{StreamExt as _, stream};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Deserialize;
use tandem_api::ApiError;
use tandem_store::Consistency;
use tokio::time::{Instant, timeout};

use crate::{core::Core, subresources};

const PATH: &str = "/stats/summary";
/// How long an answer is good for, and how long a node that gave none is left alone.
pub const KEPT: Duration = Duration::from_secs(5);
/// A node that was not asked for a while measures for a second before it answers.
const ANSWER_MAX: Duration = Duration::from_secs(8);
/// Thousands of pods with a few containers each.
const SUMMARY_MAX_BYTES: usize = 16 << 20;
const ASKED_AT_ONCE: usize = 64;

/// The parts of the kubelet's summary that matter here.
#[derive(Debug, Deserialize)]
pub(super) struct Summary {
    pub(super) node: Node,
    #[serde(default)]
    pub(super) pods: Vec<Pod>,
    #[serde(default)]
    pub(super) ingresses: Vec<Ingress>,
}

/// What came to a node for an Ingress.
#[derive(Debug, Deserialize)]
pub(super) struct Ingress {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) http: Http,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Http {
    #[serde(default)]
    pub(super) in_flight: u64,
    pub(super) milli_requests_per_second: Option<u64>,
    pub(super) duration_microseconds: Option<u64>,
    pub(super) window_milliseconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Node {
    pub(super) cpu: Cpu,
    pub(super) memory: Memory,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pod {
    pub(super) pod_ref: PodRef,
    #[serde(default)]
    pub(super) containers: Vec<Container>,
    pub(super) cpu: Cpu,
}

#[derive(Debug, Deserialize)]
pub(super) struct PodRef {
    pub(super) uid: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) cpu: Cpu,
    pub(super) memory: Memory,
    pub(super) http: Option<Http>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cpu {
    pub(super) time: Timestamp,
    pub(super) usage_nano_cores: Option<u64>,
    pub(super) window_milliseconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Memory {
    pub(super) working_set_bytes: u64,
}

/// What a node said last, and when it was asked. Whoever asks meanwhile waits for that answer.
type Slot = Arc<tokio::sync::Mutex<Option<(Instant, Option<Arc<Summary>>)>>>;

/// The last answer of each node. There is one slot for each node that exists.
#[derive(Debug)]
pub(crate) struct Nodes {
    slots: Mutex<HashMap<String, Slot>>,
    kept: Duration,
}

impl Nodes {
    pub(crate) fn new(kept: Duration) -> Nodes {
        Nodes { slots: Mutex::default(), kept }
    }

    /// What those of the nodes say that answer.
    pub(super) async fn ask(
        &self,
        core: &Core,
        names: BTreeSet<String>,
    ) -> Result<HashMap<String, Arc<Summary>>, ApiError> {
        let ready = ready(core).await?;
        self.slots.lock().retain(|name, _| ready.contains(name));
        let asked = names.into_iter().filter(|name| ready.contains(name)).map(async |name| {
            let summary = self.one(core, &name).await?;
            Some((name, summary))
        });
        let answers: Vec<_> = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).collect().await;
        Ok(answers.into_iter().flatten().collect())
    }

    async fn one(&self, core: &Core, name: &str) -> Option<Arc<Summary>> {
        let slot = self.slots.lock().entry(name.to_owned()).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some((asked, summary)) = &*slot
            && asked.elapsed() < self.kept
        {
            return summary.clone();
        }
        let answer = match timeout(ANSWER_MAX, fetch(core, name)).await {
            Ok(answer) => answer.map(Arc::new),
            Err(_) => Err(format!("no answer within {ANSWER_MAX:?}")),
        };
        let summary = answer.inspect_err(|error| tracing::warn!(node = name, %error, "what it uses is not known")).ok();
        *slot = Some((Instant::now(), summary.clone()));
        summary
    }
}

/// Others are not worth waiting for.
async fn ready(core: &Core) -> Result<BTreeSet<String>, ApiError> {
    let row = core.row("", "v1", "nodes")?;
    let nodes = core.objects.all(&row, None, Consistency::Any).await?;
    let is_ready = |node: &&tandem_api::Object| {
        let conditions = node.array_at(&["status", "conditions"]);
        conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    Ok(nodes.iter().filter(is_ready).map(|node| node.name().to_owned()).collect())
}

async fn fetch(core: &Core, node: &str) -> Result<Summary, String> {
    let (stream, address) = subresources::dial(core, node).await.map_err(|error| error.message)?;
    let connected = hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(|error| error.to_string())?;
    // The connection ends with its sender.
    core.tasks.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a node ended");
        }
    });
    let request = Request::get(PATH).header(header::HOST, address.to_string()).body(Body::empty());
    let request = request.map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    if response.status() != StatusCode::OK {
        return Err(format!("{PATH} answered {}", response.status()));
    }
    let body =
        Limited::new(response.into_body(), SUMMARY_MAX_BYTES).collect().await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| format!("{PATH} cannot be read: {error}"))
}
