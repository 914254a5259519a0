use std::{collections::BTreeMap, pin::Pin, time::Duration};

use async_trait::async_trait;
use futures::{Stream, StreamExt};
use tandem_cri::{
    requests,
    v1::{self, runtime_service_server::RuntimeService},
};
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status};

use super::{Services, convert, exec_stream::Work};
use crate::{
    host::Running,
    state::{Change, Changed, ContainerRecord},
};

const NAME: &str = "tandem-wasm";
const POOL_CONDITION: &str = "InstancePool";

type Answered<T> = Result<Response<T>, Status>;

fn answer<T>(message: T) -> Answered<T> {
    Ok(Response::new(message))
}

/// What CRI has and components do not need.
fn not_here<T>(what: &str) -> Answered<T> {
    Err(Status::unimplemented(format!("the wasm host has no {what}")))
}

fn has_no_terminal(asked: bool) -> Result<(), Status> {
    let refusal = || Status::invalid_argument("a component has no terminal: ask for its streams without one");
    if asked { Err(refusal()) } else { Ok(()) }
}

/// Negative means at once, as for other runtimes.
fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0))
}

impl Services {
    fn container_stats_of(&self, record: &ContainerRecord) -> Option<v1::ContainerStats> {
        let running = self.host.running(&record.id)?;
        Some(stats(record, &running, self.host.now()))
    }

    fn event(&self, changed: &Changed) -> v1::ContainerEventResponse {
        let kind = match changed.change {
            Change::Created => v1::ContainerEventType::ContainerCreatedEvent,
            Change::Started => v1::ContainerEventType::ContainerStartedEvent,
            Change::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
            Change::Deleted => v1::ContainerEventType::ContainerDeletedEvent,
        };
        let record = self.host.table.container(&changed.container);
        let sandbox = record.as_ref().and_then(|record| self.host.table.sandbox(&record.sandbox));
        v1::ContainerEventResponse {
            container_id: changed.container.clone(),
            container_event_type: kind.into(),
            created_at: self.host.now(),
            pod_sandbox_status: sandbox.as_ref().map(convert::sandbox_status),
            containers_statuses: record
                .iter()
                .map(|record| convert::container_status(record, sandbox.as_ref()))
                .collect(),
        }
    }
}

fn stats(record: &ContainerRecord, running: &Running, now: i64) -> v1::ContainerStats {
    let number = |value: u64| Some(v1::UInt64Value { value });
    let used = running.memory.used();
    let available = running.memory.limit().map(|limit| limit.saturating_sub(used));
    let cpu = u64::try_from(running.cpu.used().as_nanos()).unwrap_or(u64::MAX);
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: record.id.clone(),
            metadata: Some(v1::ContainerMetadata { name: record.name.clone(), attempt: record.attempt }),
            labels: record.labels.clone().into_iter().collect(),
            annotations: record.annotations.clone().into_iter().collect(),
        }),
        cpu: Some(v1::CpuUsage { timestamp: now, usage_core_nano_seconds: number(cpu), usage_nano_cores: None }),
        memory: Some(v1::MemoryUsage {
            timestamp: now,
            working_set_bytes: number(used),
            available_bytes: available.and_then(number),
            usage_bytes: number(used),
            rss_bytes: number(used),
            ..v1::MemoryUsage::default()
        }),
        ..v1::ContainerStats::default()
    }
}

#[async_trait]
impl RuntimeService for Services {
    async fn version(&self, _request: Request<v1::VersionRequest>) -> Answered<v1::VersionResponse> {
        answer(v1::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: NAME.to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        })
    }

    async fn status(&self, _request: Request<v1::StatusRequest>) -> Answered<v1::StatusResponse> {
        let condition = |kind: &str, status, message: &str| v1::RuntimeCondition {
            r#type: kind.to_owned(),
            status,
            reason: if status { String::new() } else { "Unavailable".to_owned() },
            message: message.to_owned(),
        };
        let no_pool = self.host.engine.no_pool();
        let conditions = vec![
            condition("RuntimeReady", true, ""),
            condition("NetworkReady", true, ""),
            condition(POOL_CONDITION, no_pool.is_none(), no_pool.unwrap_or_default()),
        ];
        answer(v1::StatusResponse { status: Some(v1::RuntimeStatus { conditions }), ..v1::StatusResponse::default() })
    }

    async fn run_pod_sandbox(&self, request: Request<v1::RunPodSandboxRequest>) -> Answered<v1::RunPodSandboxResponse> {
        let config = request.into_inner().config.ok_or_else(|| Status::invalid_argument("no configuration"))?;
        let record = convert::sandbox(self.host.new_id(), self.host.now(), config).map_err(Status::invalid_argument)?;
        answer(v1::RunPodSandboxResponse { pod_sandbox_id: self.host.create_sandbox(record)? })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answered<v1::StopPodSandboxResponse> {
        self.host.stop_sandbox(&request.into_inner().pod_sandbox_id).await?;
        answer(v1::StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answered<v1::RemovePodSandboxResponse> {
        self.host.remove_sandbox(&request.into_inner().pod_sandbox_id).await?;
        answer(v1::RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answered<v1::PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let found = self.host.table.sandbox(&id);
        let record = found.ok_or_else(|| Status::not_found(format!("sandbox {id} is not known here")))?;
        let containers = self.host.table.containers_of(&id);
        answer(v1::PodSandboxStatusResponse {
            status: Some(convert::sandbox_status(&record)),
            containers_statuses: containers
                .iter()
                .map(|container| convert::container_status(container, Some(&record)))
                .collect(),
            timestamp: self.host.now(),
            ..v1::PodSandboxStatusResponse::default()
        })
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answered<v1::ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let items = self.host.table.sandboxes().into_iter().filter(|record| {
            (filter.id.is_empty() || record.id == filter.id) && convert::matches(&record.labels, &filter.label_selector)
        });
        let items = items.map(|record| convert::listed_sandbox(&record));
        let items = items.filter(|item| filter.state.as_ref().is_none_or(|wanted| wanted.state == item.state));
        answer(v1::ListPodSandboxResponse { items: items.collect() })
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answered<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| Status::invalid_argument("no configuration"))?;
        let mut wanted = convert::container(request.pod_sandbox_id, config).map_err(Status::invalid_argument)?;
        convert::name_host(&mut wanted, request.sandbox_config.as_ref());
        answer(v1::CreateContainerResponse { container_id: self.host.create(wanted).await? })
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answered<v1::StartContainerResponse> {
        self.host.start(&request.into_inner().container_id).await?;
        answer(v1::StartContainerResponse {})
    }

    async fn stop_container(&self, request: Request<v1::StopContainerRequest>) -> Answered<v1::StopContainerResponse> {
        let request = request.into_inner();
        self.host.stop(&request.container_id, seconds(request.timeout)).await?;
        answer(v1::StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answered<v1::RemoveContainerResponse> {
        self.host.remove(&request.into_inner().container_id).await?;
        answer(v1::RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answered<v1::ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let all = self.host.table.containers();
        let containers = all.iter().filter(|record| {
            (filter.id.is_empty() || record.id == filter.id)
                && (filter.pod_sandbox_id.is_empty() || record.sandbox == filter.pod_sandbox_id)
                && filter.state.as_ref().is_none_or(|wanted| wanted.state == i32::from(convert::state(record)))
                && convert::matches(&record.labels, &filter.label_selector)
        });
        answer(v1::ListContainersResponse { containers: containers.map(convert::listed_container).collect() })
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answered<v1::ContainerStatusResponse> {
        let record = self.host.container(&request.into_inner().container_id)?;
        let sandbox = self.host.table.sandbox(&record.sandbox);
        let status = convert::container_status(&record, sandbox.as_ref());
        answer(v1::ContainerStatusResponse { status: Some(status), ..v1::ContainerStatusResponse::default() })
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answered<v1::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        self.host.update_resources(&request.container_id, convert::resources(request.linux.as_ref()))?;
        answer(v1::UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answered<v1::ReopenContainerLogResponse> {
        let id = request.into_inner().container_id;
        let running = self.host.running(&id);
        let running = running.ok_or_else(|| Status::failed_precondition(format!("container {id} does not run")))?;
        running.log.reopen().map_err(|error| Status::internal(format!("the log of {id}: {error}")))?;
        answer(v1::ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answered<v1::ExecSyncResponse> {
        let request = request.into_inner();
        let result = self.host.exec(&request.container_id, &request.cmd, seconds(request.timeout)).await?;
        answer(v1::ExecSyncResponse { stdout: result.stdout, stderr: result.stderr, exit_code: result.code })
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answered<v1::ExecResponse> {
        let request = request.into_inner();
        self.host.container(&request.container_id)?;
        has_no_terminal(request.tty)?;
        let work = Work::Exec { command: request.cmd };
        answer(v1::ExecResponse { url: self.streams.offer(request.container_id, work, request.stdin) })
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answered<v1::AttachResponse> {
        let request = request.into_inner();
        self.host.container(&request.container_id)?;
        has_no_terminal(request.tty)?;
        let work = Work::Attach { stdout: request.stdout, stderr: request.stderr };
        answer(v1::AttachResponse { url: self.streams.offer(request.container_id, work, request.stdin) })
    }

    async fn port_forward(&self, _request: Request<v1::PortForwardRequest>) -> Answered<v1::PortForwardResponse> {
        not_here("port forwarding: the node connects to the pod's address")
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Answered<v1::ContainerStatsResponse> {
        let record = self.host.container(&request.into_inner().container_id)?;
        answer(v1::ContainerStatsResponse { stats: self.container_stats_of(&record) })
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answered<v1::ListContainerStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let all = self.host.table.containers();
        let wanted = all.iter().filter(|record| {
            (filter.id.is_empty() || record.id == filter.id)
                && (filter.pod_sandbox_id.is_empty() || record.sandbox == filter.pod_sandbox_id)
                && convert::matches(&record.labels, &filter.label_selector)
        });
        let stats = wanted.filter_map(|record| self.container_stats_of(record)).collect();
        answer(v1::ListContainerStatsResponse { stats })
    }

    type GetContainerEventsStream = Pin<Box<dyn Stream<Item = Result<v1::ContainerEventResponse, Status>> + Send>>;

    async fn get_container_events(
        &self,
        _request: Request<v1::GetEventsRequest>,
    ) -> Answered<Self::GetContainerEventsStream> {
        let services = Services { host: self.host.clone(), streams: self.streams.clone(), link: None };
        let events = BroadcastStream::new(self.host.table.changes()).map(move |changed| match changed {
            Ok(changed) => Ok(services.event(&changed)),
            // The listener was too slow; a new stream and a look at the lists put it right.
            Err(lost) => Err(Status::data_loss(lost.to_string())),
        });
        answer(Box::pin(events))
    }

    async fn pod_sandbox_stats(
        &self,
        _request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answered<v1::PodSandboxStatsResponse> {
        not_here("statistics of whole sandboxes")
    }

    async fn list_pod_sandbox_stats(
        &self,
        _request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answered<v1::ListPodSandboxStatsResponse> {
        not_here("statistics of whole sandboxes")
    }

    async fn update_runtime_config(
        &self,
        _request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answered<v1::UpdateRuntimeConfigResponse> {
        not_here("pod network to configure")
    }

    async fn checkpoint_container(
        &self,
        _request: Request<v1::CheckpointContainerRequest>,
    ) -> Answered<v1::CheckpointContainerResponse> {
        not_here("checkpoints")
    }

    async fn list_metric_descriptors(
        &self,
        _request: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answered<v1::ListMetricDescriptorsResponse> {
        answer(v1::ListMetricDescriptorsResponse { descriptors: requests::descriptors() })
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _request: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answered<v1::ListPodSandboxMetricsResponse> {
        let mut sandboxes: BTreeMap<String, Vec<v1::ContainerMetrics>> = BTreeMap::new();
        for record in self.host.table.containers() {
            let running = self.host.running(&record.id);
            if let Some(counts) = running.as_ref().and_then(|running| running.requests()) {
                let metrics =
                    v1::ContainerMetrics { container_id: record.id.clone(), metrics: requests::metrics(counts) };
                sandboxes.entry(record.sandbox.clone()).or_default().push(metrics);
            }
        }
        let pod_metrics = sandboxes.into_iter().map(|(pod_sandbox_id, container_metrics)| v1::PodSandboxMetrics {
            pod_sandbox_id,
            metrics: Vec::new(),
            container_metrics,
        });
        answer(v1::ListPodSandboxMetricsResponse { pod_metrics: pod_metrics.collect() })
    }

    async fn runtime_config(&self, _request: Request<v1::RuntimeConfigRequest>) -> Answered<v1::RuntimeConfigResponse> {
        not_here("cgroup driver")
    }
}
