//! Answers: those of backends, as they come, and our own, short ones.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    metrics::Ended,
    patience::Running,
    places::Place,
    pool::{Lent, Pool},
};

/// An answer of our own instead of a backend's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) why: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, why: impl Into<String>) -> Refusal {
        Refusal { status, why: why.into() }
    }

    /// A client that was not understood, or is late with a body, is not listened to any more: what it sends next might
    /// not be what it means as a request.
    pub(crate) fn response(self, version: Version) -> Response<Body> {
        let text = format!("{} {}\n", self.status.as_u16(), self.why);
        let mut response = Response::new(Body::of(Kind::Text(Some(Bytes::from(text)))));
        *response.status_mut() = self.status;
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        let ends = matches!(self.status, StatusCode::BAD_REQUEST | StatusCode::REQUEST_TIMEOUT);
        if ends && version != Version::HTTP_2 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[derive(Debug)]
enum Kind {
    Text(Option<Bytes>),
    Relayed(Incoming),
}

/// What lasts as long as an answer does.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) running: Option<Running>,
    pub(crate) permit: Option<OwnedSemaphorePermit>,
    pub(crate) place: Option<Place>,
    pub(crate) ended: Option<Ended>,
}

/// The body of an answer.
#[derive(Debug)]
pub(crate) struct Body {
    kind: Kind,
    lent: Option<(Lent, Arc<Pool>)>,
    held: Held,
}

impl Body {
    fn of(kind: Kind) -> Body {
        Body { kind, lent: None, held: Held::default() }
    }

    pub(crate) fn empty() -> Body {
        Body::of(Kind::Text(None))
    }

    /// The body of a backend's answer; its connection goes back to the pool when the body has ended.
    pub(crate) fn relayed(inner: Incoming, lent: Lent, pool: &Arc<Pool>) -> Body {
        let ended = inner.is_end_stream();
        let mut body = Body { kind: Kind::Relayed(inner), lent: Some((lent, pool.clone())), held: Held::default() };
        if ended {
            body.give_back();
        }
        body
    }

    pub(crate) fn hold(&mut self, held: Held) {
        self.held = held;
    }

    fn give_back(&mut self) {
        if let Some((lent, pool)) = self.lent.take() {
            Pool::give_back(&pool, lent);
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(running) = &mut self.held.running {
            running.set_blocked(false);
        }
        let polled = match &mut self.kind {
            Kind::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Kind::Relayed(inner) => Pin::new(inner).poll_frame(context),
        };
        match &polled {
            Poll::Ready(None) => self.give_back(),
            Poll::Ready(Some(Ok(frame))) => {
                let sent = frame.data_ref().map_or(0, Bytes::len);
                if let Some(ended) = &mut self.held.ended {
                    ended.sent(sent);
                }
                if let Some(running) = &mut self.held.running {
                    running.set_blocked(true);
                }
                if self.is_end_stream() {
                    self.give_back();
                }
            }
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Text(text) => text.is_none(),
            Kind::Relayed(inner) => inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Kind::Relayed(inner) => inner.size_hint(),
        }
    }
}
