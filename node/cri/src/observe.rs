//! CRI lists to sandboxes with their containers. A list says little about each item; the rest is asked once and kept
//! for as long as it cannot change: a sandbox's network from when it is ready, a container's times and exit code per
//! state. So a poll of a node at rest is two calls however many pods it has.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    path::PathBuf,
};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Deserialize;
use tandem_runtime::{Container, ContainerId, Error, Network, Result, Sandbox, SandboxId, SandboxSpec, State};

use crate::{annotations, convert, runtime::CriRuntime, v1};

/// How many status calls run at the same time after a restart, when nothing is known yet.
const PARALLEL: usize = 16;

/// What does not change any more. Entries go when their sandbox or container is no longer listed.
#[derive(Debug, Default)]
pub(crate) struct Known {
    places: Mutex<HashMap<String, Place>>,
    containers: Mutex<HashMap<String, v1::ContainerStatus>>,
    /// Container to sandbox, from the latest list.
    owners: Mutex<HashMap<String, String>>,
}

/// Where a sandbox is on the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    address: Option<Ipv4Addr>,
    namespace: Option<PathBuf>,
}

impl Known {
    pub(crate) fn owner(&self, container: &str) -> Option<SandboxId> {
        self.owners.lock().get(container).cloned().map(SandboxId)
    }

    pub(crate) fn knows(&self, container: &str) -> bool {
        self.owners.lock().contains_key(container)
    }
}

impl CriRuntime {
    pub(crate) async fn observe(&self) -> Result<Vec<Sandbox>> {
        let (listed, containers) = self.lists().await?;
        let ours: Vec<(v1::PodSandbox, SandboxSpec)> = listed
            .into_iter()
            .filter_map(|item| convert::recalled(&item.labels, &item.annotations).map(|spec| (item, spec)))
            .collect();
        self.learn_places(&ours).await?;
        let statuses = self.learn_containers(&ours, containers).await?;

        let mut by_sandbox: HashMap<String, Vec<Container>> = HashMap::new();
        for (sandbox, status) in statuses {
            by_sandbox.entry(sandbox).or_default().push(container(status));
        }
        let places = self.known.places.lock();
        let mut all: Vec<Sandbox> = ours
            .into_iter()
            .map(|(item, spec)| {
                let mut containers = by_sandbox.remove(&item.id).unwrap_or_default();
                containers.sort_by(|a, b| (&a.name, a.attempt).cmp(&(&b.name, b.attempt)));
                let place = places.get(&item.id).cloned().unwrap_or_default();
                sandbox(item, spec, place, containers)
            })
            .collect();
        all.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        Ok(all)
    }

    pub(crate) async fn lists(&self) -> Result<(Vec<v1::PodSandbox>, Vec<v1::Container>)> {
        let (mut one, mut two) = (self.runtime(), self.runtime());
        let sandboxes = self.within("list", one.list_pod_sandbox(v1::ListPodSandboxRequest::default()));
        let containers = self.within("list", two.list_containers(v1::ListContainersRequest::default()));
        let (sandboxes, containers) = tokio::try_join!(sandboxes, containers)?;
        Ok((sandboxes.items, containers.containers))
    }

    async fn learn_places(&self, ours: &[(v1::PodSandbox, SandboxSpec)]) -> Result<()> {
        let unknown: Vec<String> = {
            let mut places = self.known.places.lock();
            let listed: HashSet<&str> = ours.iter().map(|(item, _)| item.id.as_str()).collect();
            places.retain(|id, _| listed.contains(id.as_str()));
            ours.iter()
                .filter(|(item, spec)| {
                    spec.network == Network::Own
                        && item.state() == v1::PodSandboxState::SandboxReady
                        && !places.contains_key(&item.id)
                })
                .map(|(item, _)| item.id.clone())
                .collect()
        };
        let found: Vec<Result<(String, Option<Place>)>> = stream::iter(unknown)
            .map(|id| async move { Ok((id.clone(), self.place(&id).await?)) })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let mut places = self.known.places.lock();
        for entry in found {
            let (id, place) = entry?;
            if let Some(place) = place.filter(|place| place.address.is_some()) {
                places.insert(id, place);
            }
        }
        Ok(())
    }

    /// `None` if the sandbox went away since it was listed.
    async fn place(&self, id: &str) -> Result<Option<Place>> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let mut client = self.runtime();
        match self.within("sandbox status", client.pod_sandbox_status(request)).await {
            Ok(answer) => Ok(Some(place(&answer))),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    async fn learn_containers(
        &self,
        ours: &[(v1::PodSandbox, SandboxSpec)],
        listed: Vec<v1::Container>,
    ) -> Result<Vec<(String, v1::ContainerStatus)>> {
        let sandboxes: HashSet<&str> = ours.iter().map(|(item, _)| item.id.as_str()).collect();
        let listed: Vec<v1::Container> =
            listed.into_iter().filter(|item| sandboxes.contains(item.pod_sandbox_id.as_str())).collect();
        *self.known.owners.lock() = listed.iter().map(|item| (item.id.clone(), item.pod_sandbox_id.clone())).collect();
        let unknown: Vec<String> = {
            let mut known = self.known.containers.lock();
            let states: HashMap<&str, i32> = listed.iter().map(|item| (item.id.as_str(), item.state)).collect();
            known.retain(|id, status| states.get(id.as_str()) == Some(&status.state));
            listed.iter().filter(|item| !known.contains_key(&item.id)).map(|item| item.id.clone()).collect()
        };
        let found: Vec<Result<Option<v1::ContainerStatus>>> =
            stream::iter(unknown).map(|id| self.container_status(id)).buffer_unordered(PARALLEL).collect().await;
        let mut known = self.known.containers.lock();
        for status in found {
            if let Some(status) = status? {
                known.insert(status.id.clone(), status);
            }
        }
        Ok(listed.into_iter().filter_map(|item| Some((item.pod_sandbox_id, known.get(&item.id)?.clone()))).collect())
    }

    /// `None` if the container went away since it was listed.
    pub(crate) async fn container_status(&self, id: String) -> Result<Option<v1::ContainerStatus>> {
        let request = v1::ContainerStatusRequest { container_id: id, verbose: false };
        let mut client = self.runtime();
        match self.within("container status", client.container_status(request)).await {
            Ok(answer) => Ok(answer.status),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }
}

fn sandbox(item: v1::PodSandbox, spec: SandboxSpec, place: Place, containers: Vec<Container>) -> Sandbox {
    let ready = item.state() == v1::PodSandboxState::SandboxReady;
    let address = match spec.network {
        Network::Own => place.address,
        Network::Host { address } | Network::Join { address, .. } | Network::Light { address, .. } => Some(address),
    };
    Sandbox {
        id: SandboxId(item.id),
        pod: spec.pod,
        ready,
        address,
        network_namespace: place.namespace.filter(|_| ready),
        created: nanoseconds(item.created_at),
        labels: spec.labels,
        annotations: spec.annotations,
        containers,
    }
}

fn container(status: v1::ContainerStatus) -> Container {
    let state = state(&status);
    let annotation = |key: &str| status.annotations.get(key).cloned();
    let metadata = status.metadata.clone().unwrap_or_default();
    Container {
        id: ContainerId(status.id.clone()),
        name: metadata.name,
        attempt: metadata.attempt,
        spec_hash: annotation(annotations::HASH)
            .and_then(|text| u64::from_str_radix(&text, 16).ok())
            .unwrap_or_default(),
        image: annotation(annotations::IMAGE)
            .or_else(|| status.image.as_ref().map(|image| image.image.clone()))
            .unwrap_or_default(),
        image_digest: status.image_ref.clone(),
        state,
        created: nanoseconds(status.created_at),
        log_path: annotation(annotations::LOG_PATH).unwrap_or_else(|| status.log_path.clone()).into(),
        labels: convert::sorted(&status.labels, &[]),
        annotations: convert::sorted(&status.annotations, &annotations::OWN_ON_CONTAINER),
    }
}

fn state(status: &v1::ContainerStatus) -> State {
    match status.state() {
        v1::ContainerState::ContainerCreated => State::Created,
        v1::ContainerState::ContainerRunning => State::Running { started: nanoseconds(status.started_at) },
        v1::ContainerState::ContainerExited => State::Exited {
            started: (status.started_at > 0).then(|| nanoseconds(status.started_at)),
            finished: nanoseconds(status.finished_at),
            code: status.exit_code,
            reason: status.reason.clone(),
            message: status.message.clone(),
        },
        v1::ContainerState::ContainerUnknown => State::Unknown,
    }
}

pub(crate) fn nanoseconds(since_epoch: i64) -> Timestamp {
    Timestamp::from_nanosecond(since_epoch.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn place(answer: &v1::PodSandboxStatusResponse) -> Place {
    let network = answer.status.as_ref().and_then(|status| status.network.as_ref());
    Place { address: network.and_then(|network| network.ip.parse().ok()), namespace: namespace(answer) }
}

/// The sandbox's own network namespace, from a verbose status.
pub(crate) fn namespace(answer: &v1::PodSandboxStatusResponse) -> Option<PathBuf> {
    answer.info.get("info").and_then(|text| network_namespace(text))
}

/// The part of the verbose status of containerd and CRI-O that names the sandbox's namespaces.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VerboseInfo {
    runtime_spec: RuntimeSpec,
}

#[derive(Deserialize)]
struct RuntimeSpec {
    linux: LinuxSpec,
}

#[derive(Deserialize)]
struct LinuxSpec {
    namespaces: Vec<NamespaceSpec>,
}

#[derive(Deserialize)]
struct NamespaceSpec {
    #[serde(rename = "type")]
    kind: String,
    path: Option<PathBuf>,
}

fn network_namespace(text: &str) -> Option<PathBuf> {
    let info: VerboseInfo = serde_json::from_str(text).ok()?;
    info.runtime_spec.linux.namespaces.into_iter().find(|namespace| namespace.kind == "network")?.path
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_namespace_is_in_the_verbose_status() {
        let text = r#"{"pid":1,"runtimeSpec":{"ociVersion":"1.0.2","linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/d/netns/cni-1"}]}}}"#;
        assert_eq!(network_namespace(text), Some("/d/netns/cni-1".into()));
        assert_eq!(network_namespace("{}"), None);
    }

    fn status(state: v1::ContainerState) -> v1::ContainerStatus {
        v1::ContainerStatus {
            id: "c1".into(),
            metadata: Some(v1::ContainerMetadata { name: "main".into(), attempt: 4 }),
            state: state.into(),
            started_at: 1_000_000_000,
            finished_at: 2_000_000_000,
            exit_code: 137,
            reason: "OOMKilled".into(),
            image_ref: "registry.tandem/a@sha256:1".into(),
            annotations: HashMap::from([
                (annotations::HASH.into(), "ff".into()),
                (annotations::IMAGE.into(), "a:1".into()),
                (annotations::LOG_PATH.into(), "main/4.log".into()),
                ("note".into(), "kept".into()),
            ]),
            ..Default::default()
        }
    }

    #[test]
    fn states_carry_what_a_pod_status_needs() {
        let show = |state| format!("{:?}", container(status(state)).state);
        expect!["Created"].assert_eq(&show(v1::ContainerState::ContainerCreated));
        expect!["Running { started: 1970-01-01T00:00:01Z }"].assert_eq(&show(v1::ContainerState::ContainerRunning));
        expect![[r#"Exited { started: Some(1970-01-01T00:00:01Z), finished: 1970-01-01T00:00:02Z, code: 137, reason: "OOMKilled", message: "" }"#]]
            .assert_eq(&show(v1::ContainerState::ContainerExited));
    }

    #[test]
    fn containers_get_their_identity_back() {
        let container = container(status(v1::ContainerState::ContainerCreated));
        assert_eq!((container.name.as_str(), container.attempt, container.spec_hash), ("main", 4, 255));
        assert_eq!((container.image.as_str(), container.log_path.to_str()), ("a:1", Some("main/4.log")));
        assert_eq!(container.annotations.get("note").map(String::as_str), Some("kept"));
        assert!(!container.annotations.contains_key(annotations::IMAGE));
    }
}
