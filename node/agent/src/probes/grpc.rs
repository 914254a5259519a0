//! Probes of gRPC's health checking protocol (`grpc.health.v1.Health/Check`), without TLS, as KEP-2727 has them.

use std::{net::Ipv4Addr, time::Duration};

use k8s_openapi::api::core::v1::GRPCAction;
use tonic::{Code, Status, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::attempt::{Problem, root, told, user_agent};

/// An answer is a number; whatever is longer is none.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Asks a service once; connecting and the answer have the time of the probe together.
pub(super) async fn check(action: &GRPCAction, address: Ipv4Addr, timeout: Duration) -> Result<(), Problem> {
    let port = u16::try_from(action.port).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| Problem::Errored(format!("invalid port number: {}", action.port)))?;
    let (server, service) = (format!("{address}:{port}"), action.service.clone().unwrap_or_default());
    let endpoint = Endpoint::from_shared(format!("http://{server}")).and_then(|to| to.user_agent(user_agent()));
    let endpoint = endpoint.map_err(|error| Problem::Errored(error.to_string()))?;
    let asking = async {
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| format!("error: failed to connect service at \"{server}\": {}", root(&error)))?;
        let mut client = HealthClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let answer = client.check(HealthCheckRequest { service }).await.map_err(|status| refused(&status))?;
        match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            other => Err(format!("service unhealthy (responded with \"{}\")", other.as_str_name())),
        }
    };
    let asked = tokio::time::timeout(timeout, asking).await;
    let in_time = asked.unwrap_or_else(|_| Err(format!("timeout: health rpc did not complete within {timeout:?}")));
    in_time.map_err(Problem::Failed)
}

fn refused(status: &Status) -> String {
    let (code, message) = (status.code(), told(status.message().as_bytes()));
    match code {
        Code::Unimplemented => {
            format!("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}")
        }
        _ => format!("error: health rpc probe failed: {code}: {message}"),
    }
}
