use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{Stream, StreamExt as _, stream::BoxStream};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tandem_api::{ApiError, Entropy, Object, Reason, Revision};
use tandem_registry::{
    ResourceDef,
    columns::{self, IncludeObject},
    protobuf,
};
use tandem_store::{Consistency, Error, Event, Stored, WatchItem};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval_at, sleep_until};

use crate::{
    call::Call,
    core::Core,
    negotiate::{Format, Offer, Shape},
    objects::{self, Objects, store_error},
    options::{Freshness, Selection},
    respond,
    server::Endless,
};

/// Clients that name no timeout are cut off between this and twice this, so that they spread over the members.
const TIMEOUT_MIN_SECONDS: u64 = 1800;
/// Clients that ask for longer are cut off after this: a year.
const TIMEOUT_MAX_SECONDS: u64 = 365 * 24 * 3600;
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Events that wait are sent in one chunk of about this size.
const CHUNK_BYTES: usize = 32 * 1024;
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// What happens to an object, as this watcher's selectors see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Added,
    Modified,
    Deleted,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Kind::Added => "ADDED",
            Kind::Modified => "MODIFIED",
            Kind::Deleted => "DELETED",
        }
    }
}

pub(super) async fn watch(core: &Arc<Core>, call: &Call, def: Arc<ResourceDef>) -> Result<Response, ApiError> {
    let as_ = call.representation(Offer::of(&def))?;
    if as_.format == Format::Yaml {
        return Err(ApiError::new(
            Reason::NotAcceptable,
            "only the following media types are accepted: application/json, application/vnd.kubernetes.protobuf",
        ));
    }
    let path = call.path()?;
    let query = &call.info.query;
    let selection = Selection::of(query, &def, path.name.as_deref())?;
    let prefix = Objects::prefix(&def, path.namespace.as_deref());
    let plan = Plan::of(query)?;
    let view = View {
        core: core.clone(),
        def,
        selection,
        format: as_.format,
        shape: as_.shape,
        include: call.include_object()?,
        columns_sent: false,
    };
    let (initial, after) = match plan.initial {
        None => (VecDeque::new(), plan.from),
        Some(at) => {
            let page = core.objects.page(&prefix, at, None, 0).await?;
            (core.objects.in_version(&view.def, page.items).await?.into(), page.revision)
        }
    };
    let events = match core.objects.storage().watch(&prefix, after) {
        Ok(events) => events,
        Err(error) => {
            let mut line = BytesMut::new();
            view.error(&too_old(error), &mut line);
            return Ok(stream_response(as_.format, line.freeze().into()));
        }
    };
    let timeout = plan.timeout.unwrap_or_else(|| default_timeout(core.entropy.as_ref()));
    let deadline = Instant::now() + timeout;
    let mut bookmarks = interval_at(Instant::now() + BOOKMARK_INTERVAL, BOOKMARK_INTERVAL);
    bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let feed = Feed {
        view,
        initial,
        initial_end: (plan.initial.is_some() && plan.send_initial && plan.bookmarks).then_some(after),
        events,
        seen: after,
        bookmarks: plan.bookmarks.then_some(bookmarks),
        deadline: Box::pin(sleep_until(deadline)),
        over: false,
    };
    Ok(stream_response(as_.format, Body::from_stream(feed.into_stream())))
}

fn stream_response(format: Format, body: Body) -> Response {
    let content_type = match format {
        Format::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        Format::Json | Format::Yaml => "application/json",
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response.extensions_mut().insert(Endless);
    response
}

/// Where a watch begins.
struct Plan {
    /// `Some` where the objects that are there come first.
    initial: Option<Consistency>,
    from: Revision,
    send_initial: bool,
    bookmarks: bool,
    timeout: Option<Duration>,
}

impl Plan {
    fn of(query: &crate::request::Query) -> Result<Plan, ApiError> {
        let freshness = Freshness::of(query)?;
        let send_initial = if query.has("sendInitialEvents") { Some(query.flag("sendInitialEvents")?) } else { None };
        freshness.for_watch(send_initial)?;
        let revision = freshness.revision.unwrap_or_default();
        let initial = match (send_initial, freshness.revision) {
            (Some(true), None) => Some(Consistency::Linearizable),
            (Some(true), Some(Revision::ZERO)) => Some(Consistency::Any),
            (Some(true), Some(revision)) => Some(Consistency::AtLeast(revision)),
            (None, None) => Some(Consistency::Linearizable),
            (None, Some(Revision::ZERO)) => Some(Consistency::Any),
            (None | Some(false), _) => None,
        };
        let seconds = query.number("timeoutSeconds")?.and_then(|seconds| u64::try_from(seconds).ok());
        Ok(Plan {
            initial,
            from: revision,
            send_initial: send_initial == Some(true),
            bookmarks: query.flag("allowWatchBookmarks")?,
            timeout: seconds
                .filter(|seconds| *seconds > 0)
                .map(|seconds| Duration::from_secs(seconds.min(TIMEOUT_MAX_SECONDS))),
        })
    }
}

fn default_timeout(entropy: &dyn Entropy) -> Duration {
    let mut bytes = [0; 2];
    entropy.fill(&mut bytes);
    let spread = u64::from(u16::from_be_bytes(bytes)) * TIMEOUT_MIN_SECONDS / u64::from(u16::MAX);
    Duration::from_secs(TIMEOUT_MIN_SECONDS + spread)
}

/// How one watcher sees changes.
struct View {
    core: Arc<Core>,
    def: Arc<ResourceDef>,
    selection: Selection,
    format: Format,
    shape: Shape,
    include: IncludeObject,
    columns_sent: bool,
}

impl View {
    fn matches(&self, stored: &Stored) -> Result<bool, ApiError> {
        if self.selection.is_everything() {
            return Ok(true);
        }
        Ok(self.selection.matches(&self.def, &self.core.objects.read(&self.def, stored)?))
    }

    fn initial(&mut self, stored: &Stored, line: &mut BytesMut) -> Result<(), ApiError> {
        if self.matches(stored)? {
            self.write(Kind::Added, stored, line)?;
        }
        Ok(())
    }

    /// The event with its values in the watched version.
    async fn in_version(&self, event: Arc<Event>) -> Result<Arc<Event>, ApiError> {
        if self.def.custom.as_ref().is_none_or(|custom| custom.conversion.is_none()) {
            return Ok(event);
        }
        let mut event = Event::clone(&event);
        let now = event.value.take().map(|value| Stored {
            key: event.key.clone(),
            value,
            created: event.revision,
            revision: event.revision,
        });
        let (is_there, was_there) = (now.is_some(), event.previous.is_some());
        let values = now.into_iter().chain(event.previous.take()).collect();
        let mut values = self.core.objects.in_version(&self.def, values).await?.into_iter();
        event.value = if is_there { values.next().map(|stored| stored.value) } else { None };
        event.previous = if was_there { values.next() } else { None };
        Ok(Arc::new(event))
    }

    fn event(&mut self, event: &Event, line: &mut BytesMut) -> Result<(), ApiError> {
        let now = event.value.clone().map(|value| Stored {
            key: event.key.clone(),
            value,
            created: event.previous.as_ref().map_or(event.revision, |previous| previous.created),
            revision: event.revision,
        });
        // A deletion shows the last state, at the revision of the deletion.
        let before = event.previous.clone().map(|previous| Stored { revision: event.revision, ..previous });
        let is_match = now.as_ref().map_or(Ok(false), |now| self.matches(now))?;
        let was_match = before.as_ref().map_or(Ok(false), |before| self.matches(before))?;
        match (was_match, is_match, &now, &before) {
            (false, true, Some(now), _) => self.write(Kind::Added, now, line),
            (true, true, Some(now), _) => self.write(Kind::Modified, now, line),
            // Leaving the selection is a deletion of what it selected, shown as it became.
            (true, false, Some(now), _) => self.write(Kind::Deleted, now, line),
            (true, false, None, Some(before)) => self.write(Kind::Deleted, before, line),
            _ => Ok(()),
        }
    }

    fn write(&mut self, kind: Kind, stored: &Stored, line: &mut BytesMut) -> Result<(), ApiError> {
        if self.shape == Shape::Whole && self.format == Format::Json {
            let json = objects::json(&self.def, &stored.value, stored.revision)?;
            frame(kind.as_str(), &json, line);
            return Ok(());
        }
        let object = self.core.objects.read(&self.def, stored)?;
        let shaped = self.shaped(object);
        self.frame(kind.as_str(), &shaped, line)
    }

    fn frame(&self, kind: &str, object: &Value, line: &mut BytesMut) -> Result<(), ApiError> {
        if self.format == Format::Protobuf {
            line.extend_from_slice(&protobuf::watch_event(kind, &respond::protobuf_bytes(&self.core, object)?));
        } else {
            frame(kind, object.to_string().as_bytes(), line);
        }
        Ok(())
    }

    fn error(&self, error: &ApiError, line: &mut BytesMut) {
        // The type of a Status is always known.
        let _ = self.frame("ERROR", &error.status(), line);
    }

    fn shaped(&mut self, object: Object) -> Value {
        match self.shape {
            Shape::Whole => Value::Object(object.0),
            Shape::Metadata => respond::partial(&object),
            Shape::Table => {
                let metadata = json!({ "resourceVersion": object.str_at(&["metadata", "resourceVersion"]) });
                let with_columns = !std::mem::replace(&mut self.columns_sent, true);
                columns::table(&self.def, &[&object], metadata, self.include, with_columns, self.core.clock.now())
            }
        }
    }

    /// Word of how far this watch has seen, and that the initial events are all sent.
    fn bookmark(&mut self, revision: Revision, ends_initial: bool, line: &mut BytesMut) -> Result<(), ApiError> {
        let mut metadata = json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
        if ends_initial {
            metadata["annotations"] = json!({ INITIAL_EVENTS_END: "true" });
        }
        let object = match self.shape {
            Shape::Whole => {
                json!({ "kind": self.def.kind, "apiVersion": self.def.api_version(), "metadata": metadata })
            }
            Shape::Metadata => {
                json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata })
            }
            Shape::Table => {
                let bare =
                    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata });
                json!({
                    "kind": "Table", "apiVersion": "meta.k8s.io/v1",
                    "metadata": { "resourceVersion": revision.to_string() }, "columnDefinitions": null,
                    "rows": [{ "cells": [], "object": bare }],
                })
            }
        };
        self.frame("BOOKMARK", &object, line)
    }
}

fn frame(kind: &str, object: &[u8], line: &mut BytesMut) {
    line.reserve(object.len() + 48);
    line.put_slice(b"{\"type\":\"");
    line.put_slice(kind.as_bytes());
    line.put_slice(b"\",\"object\":");
    line.put_slice(object);
    line.put_slice(b"}\n");
}

fn too_old(error: Error) -> ApiError {
    match error {
        Error::Compacted { requested, compacted } => {
            ApiError::new(Reason::Expired, format!("too old resource version: {requested} ({compacted})"))
        }
        other => store_error(other),
    }
}

/// One watch being delivered. It makes the next chunk only when the connection asks for it, so a slow client fills the
/// store's bounded buffer for it and is cut off there.
struct Feed {
    view: View,
    initial: VecDeque<Stored>,
    initial_end: Option<Revision>,
    events: BoxStream<'static, Result<WatchItem, Error>>,
    seen: Revision,
    bookmarks: Option<Interval>,
    deadline: Pin<Box<Sleep>>,
    over: bool,
}

impl Feed {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
        futures::stream::unfold(self, |mut feed| async move {
            let chunk = feed.chunk().await?;
            Some((Ok(chunk), feed))
        })
    }

    async fn chunk(&mut self) -> Option<Bytes> {
        let mut chunk = BytesMut::new();
        while chunk.is_empty() && !self.over {
            if let Err(error) = self.fill(&mut chunk).await {
                self.view.error(&error, &mut chunk);
                self.over = true;
            }
        }
        (!chunk.is_empty()).then(|| chunk.freeze())
    }

    async fn fill(&mut self, chunk: &mut BytesMut) -> Result<(), ApiError> {
        while let Some(stored) = self.initial.pop_front() {
            self.view.initial(&stored, chunk)?;
            if chunk.len() >= CHUNK_BYTES {
                return Ok(());
            }
        }
        if let Some(revision) = self.initial_end.take() {
            self.view.bookmark(revision, true, chunk)?;
        }
        if !chunk.is_empty() {
            return Ok(());
        }
        tokio::select! {
            item = self.events.next() => self.item(item, chunk).await?,
            () = self.deadline.as_mut() => {
                self.over = true;
                if self.bookmarks.is_some() {
                    self.view.bookmark(self.seen, false, chunk)?;
                }
                return Ok(());
            }
            () = tick(self.bookmarks.as_mut()) => self.view.bookmark(self.seen, false, chunk)?,
        }
        self.drain(chunk).await
    }

    /// What is there already goes into the same chunk.
    async fn drain(&mut self, chunk: &mut BytesMut) -> Result<(), ApiError> {
        use futures::FutureExt as _;
        while chunk.len() < CHUNK_BYTES && !self.over {
            let Some(item) = self.events.next().now_or_never() else { return Ok(()) };
            self.item(item, chunk).await?;
        }
        Ok(())
    }

    async fn item(&mut self, item: Option<Result<WatchItem, Error>>, chunk: &mut BytesMut) -> Result<(), ApiError> {
        match item {
            None => {
                self.over = true;
                Ok(())
            }
            Some(Err(error)) => Err(too_old(error)),
            Some(Ok(WatchItem::Progress(revision))) => {
                self.seen = self.seen.max(revision);
                Ok(())
            }
            Some(Ok(WatchItem::Event(event))) => {
                let event = self.view.in_version(event).await?;
                self.view.event(&event, chunk)?;
                self.seen = event.revision;
                Ok(())
            }
        }
    }
}

async fn tick(bookmarks: Option<&mut Interval>) {
    match bookmarks {
        Some(bookmarks) => {
            bookmarks.tick().await;
        }
        None => futures::future::pending().await,
    }
}
