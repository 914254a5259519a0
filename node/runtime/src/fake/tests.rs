use std::path::PathBuf;

use tandem_api::SystemClock;

use super::*;
use crate::conformance::{self, ExecCommands, Fixture, Role, Workload};

struct InMemory {
    fake: Arc<Fake>,
    directory: tempfile::TempDir,
    network: Network,
}

#[async_trait]
impl Fixture for InMemory {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.fake.clone()
    }

    async fn reconnect(&self) -> Arc<dyn Runtime> {
        self.fake.clone()
    }

    fn workload(&self, role: Role) -> Workload {
        Workload { image: format!("test/{role:?}"), command: Vec::new(), args: Vec::new() }
    }

    fn missing_image(&self) -> String {
        "test/missing".to_owned()
    }

    fn directory(&self) -> &Path {
        self.directory.path()
    }

    async fn network(&self) -> Network {
        self.network.clone()
    }

    fn memory_limit(&self, id: &ContainerId) -> Option<u64> {
        self.fake.limits(id)?.memory_bytes
    }

    fn exec(&self) -> Option<ExecCommands> {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        Some(ExecCommands {
            hello: words("echo hello"),
            exits_with_three: words("exit 3"),
            sleeps: Some(words("sleep 30")),
            copies: Some(words("cat")),
        })
    }
}

async fn check(network: Network) {
    let fake = Arc::new(Fake::new("fake", Arc::new(SystemClock)));
    let print = |text: &str| Act::Print(text.to_owned());
    let programs = [
        (Role::Waits, Program::waits()),
        (Role::ExitsWithThree, Program::exits(3)),
        (Role::Prints, Program(vec![print("out 1"), Act::PrintError("err 1".to_owned()), print("out 2")])),
        (Role::Copies, Program(vec![Act::Copy])),
        (Role::Shows, Program(vec![Act::PrintEnvironment, Act::PrintArguments])),
        (Role::Writes, Program(vec![Act::Write { path: "/data/out".to_owned(), text: "written".to_owned() }])),
    ];
    for (role, program) in programs {
        fake.offer(&format!("test/{role:?}"), program);
    }
    let fixture = InMemory { fake: fake.clone(), directory: tempfile::tempdir().unwrap(), network };
    let (passed, failures) = conformance::run(&fixture).await;
    assert_eq!(failures, []);
    assert_eq!(passed, 38);
    assert_eq!(fake.sandboxes(), []);
}

#[tokio::test]
async fn the_fake_passes_the_suite_with_a_network_of_its_own() {
    check(Network::Own).await;
}

#[tokio::test]
async fn the_fake_passes_the_suite_on_a_light_address() {
    check(Network::Light { namespace: PathBuf::from("/run/light"), address: Ipv4Addr::new(10, 128, 16, 7) }).await;
}

#[tokio::test]
async fn a_stubborn_program_ends_by_force() {
    let fake = Fake::new("fake", Arc::new(SystemClock));
    fake.offer("stubborn", Program(vec![Act::WaitStubbornly]));
    let directory = tempfile::tempdir().unwrap();
    let fixture = InMemory { fake: Arc::new(fake), directory, network: Network::Own };
    let runtime = fixture.runtime();
    let image = runtime.pull("stubborn", None).await.unwrap();
    let sandbox = runtime.create_sandbox(&sandbox_spec(fixture.directory())).await.unwrap();
    let id = runtime.create(&sandbox, &container_spec(&image)).await.unwrap();
    runtime.start(&id).await.unwrap();
    runtime.stop(&id, Duration::from_millis(5)).await.unwrap();
    let listed = runtime.list().await.unwrap();
    assert!(matches!(listed[0].containers[0].state, State::Exited { code: 137, .. }));
}

fn sandbox_spec(directory: &Path) -> SandboxSpec {
    SandboxSpec {
        pod: crate::PodRef::default(),
        network: Network::Own,
        hostname: "pod".to_owned(),
        dns: crate::Dns::default(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_directory: directory.to_owned(),
        cgroup_parent: String::new(),
        host_ports: Vec::new(),
        host_pid: false,
        host_ipc: false,
        share_processes: false,
        sysctls: BTreeMap::new(),
    }
}

fn container_spec(image: &Image) -> ContainerSpec {
    ContainerSpec {
        name: "main".to_owned(),
        image: image.id.clone(),
        image_reference: image.id.clone(),
        attempt: 0,
        spec_hash: 1,
        command: Vec::new(),
        args: Vec::new(),
        env: Vec::new(),
        working_directory: None,
        mounts: Vec::new(),
        limits: crate::Limits::default(),
        security: crate::Security::default(),
        ports: Vec::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        target: None,
        log_path: PathBuf::from("main/0.log"),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}
