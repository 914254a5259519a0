//! The audit log: who asked for what, and what came of it.
//!
//! ```text
//!  record ─ Trail ─> authenticate says who ─> Policy: level ─> body() leaves what was sent ─> the answer, as it goes out
//!                          └─ RequestReceived      └─ ResponseStarted (of what goes on), ResponseComplete, Panic ─> Log
//! ```

mod log;
mod policy;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use bytes::{Bytes, BytesMut};
use http::{StatusCode, header};
use http_body::{Frame, SizeHint};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tandem_api::{Clock, Identity};
use tandem_registry::protobuf;

use log::Log;
pub use log::LogOptions;
use policy::{Level, Policy, Stage, Verdict};

use crate::{
    core::Core,
    decode,
    layers::Audit,
    request::{RequestInfo, Verb},
    server::Peer,
};

/// Bodies that are larger are left out of events: an event is one line.
const BODY_MAX_BYTES: usize = 1 << 20;
const AGENT_MAX_BYTES: usize = 1024;

/// What is written down, and where.
pub struct AuditLog {
    policy: Policy,
    log: Log,
}

impl AuditLog {
    /// Reads the policy and begins to write.
    pub fn open(
        policy: &str,
        options: LogOptions,
        clock: Arc<dyn Clock>,
        metrics: &mut prometheus_client::registry::Registry,
    ) -> Result<AuditLog, String> {
        let policy = Policy::parse(policy).map_err(|why| format!("the audit policy cannot be used: {why}"))?;
        let path = options.path.display().to_string();
        let log = Log::open(options, clock, metrics).map_err(|why| format!("open the audit log {path}: {why}"))?;
        Ok(AuditLog { policy, log })
    }
}

/// One request on its way.
pub(crate) struct Trail {
    core: Arc<Core>,
    info: Arc<RequestInfo>,
    received: Timestamp,
    /// What every event of the request says.
    base: Map<String, Value>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    verdict: Option<Verdict>,
    who: Map<String, Value>,
    /// The body, with its type.
    sent: Option<(String, Bytes)>,
}

pub(crate) async fn record(State(core): State<Arc<Core>>, mut request: Request, next: Next) -> Response {
    let info = request.extensions().get::<Arc<RequestInfo>>().cloned();
    let (Some(_), Some(info)) = (&core.audit, info) else { return next.run(request).await };
    let trail = Arc::new(Trail::of(core.clone(), info, &request));
    request.extensions_mut().insert(trail.clone());
    let mut ending = Ending { trail, code: None, answered: BytesMut::new(), kind: String::new(), keeps: 0 };
    let response = next.run(request).await;
    ending.answered(&response);
    response.map(|body| Body::new(Told { body, ending }))
}

impl Trail {
    fn of(core: Arc<Core>, info: Arc<RequestInfo>, request: &Request) -> Trail {
        let text = |name: header::HeaderName| {
            let text = request.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            text.unwrap_or_default().chars().take(AGENT_MAX_BYTES).collect::<String>()
        };
        let mut base = Map::new();
        let mut put = |key: &str, value: Value| base.insert(key.to_owned(), value);
        put("kind", "Event".into());
        put("apiVersion", "audit.k8s.io/v1".into());
        put("auditID", request.extensions().get::<Audit>().map_or("", |audit| audit.id.as_str()).into());
        put("requestURI", request.uri().path_and_query().map_or("/", |path| path.as_str()).into());
        put("verb", info.verb.as_str().into());
        put("userAgent", text(header::USER_AGENT).into());
        if let Some(Peer(peer)) = request.extensions().get::<Peer>() {
            put("sourceIPs", json!([peer.ip().to_string()]));
        }
        let received = core.clock.now();
        Trail { core, info, received, base, known: Mutex::default() }
    }

    /// Who asks, and as whom.
    pub(crate) fn identified(&self, user: &Identity, acts_as: &Identity) {
        let mut who = Map::from_iter([("user".to_owned(), person(user))]);
        if user != acts_as {
            who.insert("impersonatedUser".to_owned(), person(acts_as));
        }
        self.known.lock().who = who;
        self.judge(Some(acts_as));
        self.write(Stage::RequestReceived, |_, _| ());
    }

    fn judge(&self, user: Option<&Identity>) {
        let verdict = self.core.audit.as_ref().map(|audit| audit.policy.judge(&self.info, user));
        self.known.lock().verdict = verdict;
    }

    /// What was sent, as far as anybody wants to know.
    pub(crate) fn sent(&self, content_type: Option<&str>, body: &Bytes) {
        let mut known = self.known.lock();
        let level = known.verdict.as_ref().map_or(Level::None, |verdict| verdict.level);
        let names = level == Level::Metadata && self.info.verb == Verb::Create;
        if (level >= Level::Request || names) && body.len() <= BODY_MAX_BYTES {
            known.sent = Some((decode::media_type(content_type), body.clone()));
        }
    }

    fn level(&self) -> Level {
        self.known.lock().verdict.as_ref().map_or(Level::None, |verdict| verdict.level)
    }

    /// An event of this stage, if there is to be one.
    fn write(&self, stage: Stage, add: impl FnOnce(&mut Map<String, Value>, &Verdict)) {
        let Some(audit) = &self.core.audit else { return };
        let (verdict, who, sent) = {
            let known = self.known.lock();
            let Some(verdict) = known.verdict.clone() else { return };
            (verdict, known.who.clone(), known.sent.clone())
        };
        if verdict.level == Level::None || verdict.omit_stages.contains(&stage) {
            return;
        }
        let mut event = self.base.clone();
        event.insert("level".to_owned(), json!(verdict.level));
        event.insert("stage".to_owned(), json!(stage));
        event.extend(who);
        let sent = sent.and_then(|(kind, body)| self.object(&kind, &body));
        if let Some(reference) = self.reference(sent.as_ref()) {
            event.insert("objectRef".to_owned(), reference);
        }
        if let Some(sent) = sent.filter(|_| verdict.level >= Level::Request) {
            event.insert("requestObject".to_owned(), shown(sent, &verdict));
        }
        add(&mut event, &verdict);
        event.insert("requestReceivedTimestamp".to_owned(), time(self.received));
        event.insert("stageTimestamp".to_owned(), time(self.core.clock.now()));
        audit.log.add(Value::Object(event).to_string());
    }

    /// A body as JSON; `None` where it is of no type that is known.
    fn object(&self, kind: &str, body: &[u8]) -> Option<Value> {
        if kind == "application/vnd.kubernetes.protobuf" {
            let decoded = protobuf::decode(&self.core.schema(), &self.core.registry(), body).ok()?;
            return Some(Value::Object(decoded.0));
        }
        if kind.ends_with("yaml") {
            return decode::yaml(body).ok().map(|(object, _)| Value::Object(object.0));
        }
        serde_json::from_slice(body).ok()
    }

    fn reference(&self, sent: Option<&Value>) -> Option<Value> {
        let path = self.info.resource()?;
        let meta = |key: &str| sent?.pointer(&format!("/metadata/{key}"))?.as_str().map(str::to_owned);
        let is_object = !matches!(self.info.verb, Verb::Patch | Verb::Delete | Verb::DeleteCollection);
        let of_sent = |key: &str| meta(key).filter(|_| is_object);
        let mut reference = Map::new();
        for (key, value) in [
            ("resource", Some(path.resource.clone())),
            ("namespace", path.namespace.clone()),
            ("name", path.name.clone().or_else(|| of_sent("name"))),
            ("uid", of_sent("uid")),
            ("apiGroup", Some(path.group.clone())),
            ("apiVersion", Some(path.version.clone())),
            ("resourceVersion", of_sent("resourceVersion")),
            ("subresource", path.subresource.clone()),
        ] {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                reference.insert(key.to_owned(), value.into());
            }
        }
        Some(Value::Object(reference))
    }
}

fn person(identity: &Identity) -> Value {
    let mut person = json!({ "username": identity.name, "groups": identity.groups });
    if !identity.uid.is_empty() {
        person["uid"] = identity.uid.as_str().into();
    }
    if !identity.extra.is_empty() {
        person["extra"] = json!(identity.extra);
    }
    person
}

fn time(at: Timestamp) -> Value {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string().into()
}

fn shown(mut object: Value, verdict: &Verdict) -> Value {
    if verdict.omit_managed_fields {
        let omit = |object: &mut Value| {
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.shift_remove("managedFields");
            }
        };
        omit(&mut object);
        object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(omit);
    }
    object
}

/// Tells of the end of a request, whichever it is.
struct Ending {
    trail: Arc<Trail>,
    /// `None` until there is an answer.
    code: Option<StatusCode>,
    kind: String,
    answered: BytesMut,
    /// How much of the answer is kept.
    keeps: usize,
}

impl Ending {
    fn answered(&mut self, response: &Response) {
        let code = response.status();
        self.code = Some(code);
        self.kind =
            decode::media_type(response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()));
        if self.trail.known.lock().verdict.is_none() {
            // Nobody was recognized.
            self.trail.judge(None);
        }
        let streams = self.trail.info.is_long_running();
        let is_failure = code.is_client_error() || code.is_server_error();
        let wanted = match self.trail.level() {
            Level::RequestResponse => true,
            Level::Metadata | Level::Request => is_failure,
            Level::None => false,
        };
        self.keeps = if wanted && !streams && self.trail.info.resource().is_some() { BODY_MAX_BYTES } else { 0 };
        if streams {
            self.trail.write(Stage::ResponseStarted, |event, _| {
                event.insert("responseStatus".to_owned(), json!({ "metadata": {}, "code": code.as_u16() }));
            });
        }
    }

    fn keep(&mut self, data: &Bytes) {
        if self.answered.len() + data.len() > self.keeps {
            self.keeps = 0;
            self.answered.clear();
        } else {
            self.answered.extend_from_slice(data);
        }
    }

    fn complete(&self, code: StatusCode) {
        let object = (!self.answered.is_empty()).then(|| self.trail.object(&self.kind, &self.answered)).flatten();
        self.trail.write(Stage::ResponseComplete, |event, verdict| {
            let mut status = json!({ "metadata": {}, "code": code.as_u16() });
            let failure = object.as_ref().filter(|object| object["kind"] == "Status" && object["status"] == "Failure");
            for key in ["status", "message", "reason"] {
                if let Some(text) = failure.and_then(|failure| failure.get(key)) {
                    status[key] = text.clone();
                }
            }
            event.insert("responseStatus".to_owned(), status);
            if let Some(object) = object.filter(|_| verdict.level == Level::RequestResponse) {
                event.insert("responseObject".to_owned(), shown(object, verdict));
            }
            let decision = if code == StatusCode::FORBIDDEN { "forbid" } else { "allow" };
            event.insert("annotations".to_owned(), json!({ "authorization.k8s.io/decision": decision }));
        });
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        match self.code {
            Some(code) => self.complete(code),
            None if std::thread::panicking() => self.trail.write(Stage::Panic, |event, _| {
                let code = StatusCode::INTERNAL_SERVER_ERROR.as_u16();
                event.insert("responseStatus".to_owned(), json!({ "metadata": {}, "status": "Failure", "code": code }));
            }),
            // The client went before there was an answer.
            None => self.trail.write(Stage::ResponseComplete, |event, _| {
                let message = "the client closed the connection before it was answered";
                event.insert("responseStatus".to_owned(), json!({ "metadata": {}, "message": message }));
            }),
        }
    }
}

/// A body that is told of when it has gone out.
struct Told {
    body: Body,
    ending: Ending,
}

impl http_body::Body for Told {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
            && self.ending.keeps > 0
        {
            self.ending.keep(data);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
