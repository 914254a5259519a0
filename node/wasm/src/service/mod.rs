//! What the worker says on its socket: the part of CRI v1 that components need, and the host's own service.

mod convert;
mod exec_stream;
mod host;
mod images;
mod runtime;

use std::{io, os::fd::OwnedFd, sync::Arc};

use tandem_cri::v1::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    host::{Host, HostError},
    link::Link,
};

use exec_stream::ExecStreams;

/// The types, client and server generated from `proto/host.proto`.
#[allow(clippy::all, clippy::allow_attributes_without_reason, unreachable_pub, reason = "generated code")]
pub(crate) mod v1 {
    tonic::include_proto!("tandem.wasm.v1");
}

/// The versions of everything on this socket that this host speaks: this one and the one before, where there is one.
pub(crate) const PROTOCOL_MIN: u32 = 1;
pub(crate) const PROTOCOL_MAX: u32 = 1;

/// Ten thousand pods with their annotations.
const MESSAGE_BYTES: usize = 256 << 20;

/// The services over one host.
pub(crate) struct Services {
    host: Arc<Host>,
    streams: Arc<ExecStreams>,
    link: Option<Link>,
}

/// Serves on a listening unix socket until it is told to stop.
pub(crate) async fn serve(
    host: Arc<Host>,
    listener: OwnedFd,
    link: Option<Link>,
    stop: CancellationToken,
) -> io::Result<()> {
    let listener = std::os::unix::net::UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    let incoming = UnixListenerStream::new(UnixListener::from_std(listener)?);
    let streams = ExecStreams::start(host.clone()).await?;
    let services = Arc::new(Services { host, streams, link });
    let runtime = RuntimeServiceServer::from_arc(services.clone()).max_encoding_message_size(MESSAGE_BYTES);
    let images = ImageServiceServer::from_arc(services.clone()).max_encoding_message_size(MESSAGE_BYTES);
    let own = v1::host_server::HostServer::from_arc(services);
    tonic::transport::Server::builder()
        .add_service(runtime)
        .add_service(images)
        .add_service(own)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
        .map_err(io::Error::other)
}

impl From<HostError> for Status {
    fn from(error: HostError) -> Status {
        let text = error.to_string();
        match error {
            HostError::NotFound(_) => Status::not_found(text),
            HostError::Refused(_) => Status::invalid_argument(text),
            HostError::Timeout(_) => Status::deadline_exceeded(text),
            HostError::Failed(_) | HostError::Io(_) => Status::unknown(text),
        }
    }
}
