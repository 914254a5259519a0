use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};

/// A body that keeps something for as long as it is being sent: a slot, a count.
pub(crate) struct Held<G> {
    body: Body,
    _guard: G,
}

/// The body, with the guard that is dropped when it has ended or its connection has.
pub(crate) fn held<G: Send + Unpin + 'static>(body: Body, guard: G) -> Body {
    Body::new(Held { body, _guard: guard })
}

impl<G: Unpin> http_body::Body for Held<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
