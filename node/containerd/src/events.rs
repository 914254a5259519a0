//! containerd's own events: the end of a container is known when it happens, not at the next comparison of lists.

use std::time::Duration;

use futures::{StreamExt, stream};
use http::uri::PathAndQuery;
use tandem_cri::Source;
use tonic::{Request, Status, Streaming, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

const SUBSCRIBE: PathAndQuery = PathAndQuery::from_static("/containerd.services.events.v1.Events/Subscribe");

/// containerd is away for as long as it takes to start it again.
const RECONNECT: Duration = Duration::from_millis(500);

// The fields that matter of the messages in containerd's api/services/events/v1/events.proto and api/events/task.proto.

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct SubscribeRequest {
    #[prost(string, repeated, tag = "1")]
    filters: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Envelope {
    #[prost(message, optional, tag = "4")]
    event: Option<Any>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Any {
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct TaskExit {
    #[prost(string, tag = "1")]
    container: String,
    /// The container's own process has the container's name; a command that was run in it has another.
    #[prost(string, tag = "2")]
    process: String,
}

/// A wake-up for each container that ends, and one for each time that events may have been missed.
pub(crate) fn exits(channel: Channel) -> Source<()> {
    Source::new(move || {
        let channel = channel.clone();
        stream::unfold(None::<Streaming<Envelope>>, move |mut events| {
            let channel = channel.clone();
            async move {
                loop {
                    let Some(current) = &mut events else {
                        match subscribe(channel.clone()).await {
                            Ok(new) => return Some(((), Some(new))),
                            Err(_) => tokio::time::sleep(RECONNECT).await,
                        }
                        continue;
                    };
                    match current.message().await {
                        Ok(Some(envelope)) if is_container_exit(&envelope) => return Some(((), events)),
                        Ok(Some(_)) => {}
                        Ok(None) | Err(_) => events = None,
                    }
                }
            }
        })
        .boxed()
    })
}

async fn subscribe(channel: Channel) -> Result<Streaming<Envelope>, Status> {
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let filters = vec!["namespace==k8s.io,topic==\"/tasks/exit\"".to_owned()];
    let codec: ProstCodec<SubscribeRequest, Envelope> = ProstCodec::default();
    let answer = client.server_streaming(Request::new(SubscribeRequest { filters }), SUBSCRIBE, codec).await?;
    Ok(answer.into_inner())
}

fn is_container_exit(envelope: &Envelope) -> bool {
    let exit =
        envelope.event.as_ref().and_then(|event| <TaskExit as prost::Message>::decode(event.value.as_slice()).ok());
    // What cannot be read may be the end of a container.
    exit.is_none_or(|exit| exit.container == exit.process)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn the_end_of_a_command_in_a_container_is_not_its_end() {
        let envelope = |container: &str, process: &str| {
            let exit = TaskExit { container: container.into(), process: process.into() };
            Envelope { event: Some(Any { value: exit.encode_to_vec() }) }
        };
        assert!(is_container_exit(&envelope("c1", "c1")));
        assert!(!is_container_exit(&envelope("c1", "exec-7")));
        assert!(is_container_exit(&Envelope { event: None }));
    }
}
