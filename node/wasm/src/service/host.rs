use std::pin::Pin;

use async_trait::async_trait;
use futures::{Stream, StreamExt};
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status};

use super::{PROTOCOL_MAX, PROTOCOL_MIN, Services, v1};
use crate::metrics::{Sample, exposition};

/// The newest version that both sides speak.
pub(super) fn agree(min: u32, max: u32) -> Result<u32, String> {
    let newest = max.min(PROTOCOL_MAX);
    if newest >= min.max(PROTOCOL_MIN) {
        return Ok(newest);
    }
    Err(format!(
        "this wasm host speaks versions {PROTOCOL_MIN} to {PROTOCOL_MAX} of its protocol, the client {min} to {max}: \
         they are too far apart; end the host (its components stop) or use a version of tandem between the two"
    ))
}

#[async_trait]
impl v1::host_server::Host for Services {
    async fn handshake(
        &self,
        request: Request<v1::HandshakeRequest>,
    ) -> Result<Response<v1::HandshakeResponse>, Status> {
        let v1::HandshakeRequest { min, max, client } = request.into_inner();
        let protocol = agree(min, max).map_err(Status::failed_precondition)?;
        tracing::info!(client, protocol, "a client greets");
        let pool = self.host.engine.no_pool().map(|why| format!("instances don't come from a pool: {why}"));
        Ok(Response::new(v1::HandshakeResponse {
            protocol,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            worker: std::process::id(),
            warnings: pool.into_iter().collect(),
        }))
    }

    type NoticesStream = Pin<Box<dyn Stream<Item = Result<v1::Notice, Status>> + Send>>;

    async fn notices(&self, _request: Request<v1::NoticesRequest>) -> Result<Response<Self::NoticesStream>, Status> {
        let notices = BroadcastStream::new(self.host.notices.listen()).filter_map(|notice| async {
            // What a slow listener missed is gone; notices are a courtesy.
            let notice = notice.ok()?;
            Some(Ok(v1::Notice {
                container: notice.container,
                reason: notice.reason.to_owned(),
                message: notice.message,
                warning: notice.warning,
            }))
        });
        Ok(Response::new(Box::pin(notices)))
    }

    async fn metrics(&self, _request: Request<v1::MetricsRequest>) -> Result<Response<v1::MetricsResponse>, Status> {
        let containers = self.host.table.containers();
        let running = containers.iter().filter_map(|record| {
            let sandbox = self.host.table.sandbox(&record.sandbox)?;
            Some((record, sandbox, self.host.running(&record.id)?))
        });
        let running: Vec<_> = running.collect();
        let samples: Vec<Sample<'_>> = running
            .iter()
            .map(|(record, sandbox, running)| {
                let (live_instances, queued) = running.load();
                Sample {
                    namespace: &sandbox.pod.namespace,
                    pod: &sandbox.pod.name,
                    container: &record.name,
                    metrics: running.metrics(),
                    live_instances,
                    queued,
                    memory_bytes: running.memory.used(),
                    cpu: running.cpu.used(),
                }
            })
            .collect();
        Ok(Response::new(v1::MetricsResponse { text: exposition(&samples) }))
    }

    async fn stop(&self, _request: Request<v1::StopRequest>) -> Result<Response<v1::StopResponse>, Status> {
        let Some(link) = &self.link else { return Err(Status::unimplemented("this host has no parent to end")) };
        link.shutdown().await.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(v1::StopResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn versions_meet_or_part_politely() {
        assert_eq!(agree(1, 1), Ok(1));
        assert_eq!(agree(1, 5), Ok(1));
        assert_eq!(agree(0, 1), Ok(1));
        for (min, max) in [(2, 3), (0, 0)] {
            let text = agree(min, max).unwrap_err();
            assert!(text.contains("versions 1 to 1") && text.contains(&format!("the client {min} to {max}")), "{text}");
        }
    }

    #[test]
    fn the_handshake_is_frozen() {
        let request = v1::HandshakeRequest { min: 1, max: 2, client: "0.1.0".into() };
        let response = v1::HandshakeResponse {
            protocol: 1,
            version: "0.1.0".into(),
            worker: 4711,
            warnings: vec!["no pool".into()],
        };
        let text = format!(
            "request  {}\nresponse {}\n",
            hex::encode(request.encode_to_vec()),
            hex::encode(response.encode_to_vec())
        );
        expect_test::expect_file!["../../golden/handshake.txt"].assert_eq(&text);
    }
}
