//! Connections that are no longer HTTP: bytes are passed both ways until one end is done.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio_util::sync::CancellationToken;

use crate::{answer::Held, metrics::Counted};

/// Runs until an end closes or breaks, or the node stops. A client that is gone is found out by the kernel's probes.
pub(crate) async fn run(
    client: OnUpgrade,
    backend: OnUpgrade,
    counted: Counted,
    held: Held,
    shutdown: CancellationToken,
) {
    let passing = async {
        let (client, backend) = match tokio::try_join!(client, backend) {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "an upgrade was not completed"),
        };
        let ended = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(backend)).await;
        if let Err(error) = ended {
            tracing::debug!(%error, "an upgraded connection broke");
        }
    };
    shutdown.run_until_cancelled(passing).await;
    drop((counted, held));
}
