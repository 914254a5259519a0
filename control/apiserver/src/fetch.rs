//! A document of another server, over a connection of its own.

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper_util::rt::TokioIo;

use crate::NodeStream;

/// Ends a connection, whatever became of the question.
struct Ends(tokio::task::AbortHandle);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The answer to the request, if its body is no longer than `most`. How long it takes is the caller's to bound.
pub(crate) async fn fetch(stream: NodeStream, request: Request<Body>, most: usize) -> Result<Response<Bytes>, String> {
    let text = |why: hyper::Error| why.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(text)?;
    let _ends = Ends(tokio::spawn(connection).abort_handle());
    let (parts, body) = sender.send_request(request).await.map_err(text)?.into_parts();
    let body = Limited::new(body, most).collect().await.map_err(|why| why.to_string())?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}
