use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use tandem_runtime::{
    ContainerId, Network, Runtime,
    conformance::{self, ExecCommands, Fixture, Role, Workload},
};

use crate::node::{BUSYBOX, Node};

struct Containers(Node);

fn shell(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).into()
}

#[async_trait]
impl Fixture for Containers {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.0.runtime()
    }

    async fn reconnect(&self) -> Arc<dyn Runtime> {
        tandem_containerd::start(self.0.config()).await.unwrap().runtime
    }

    fn workload(&self, role: Role) -> Workload {
        let script = match role {
            Role::Waits => "trap 'exit 0' TERM; sleep 1000000 & wait",
            Role::ExitsWithThree => "exit 3",
            Role::Prints => "echo out 1; echo out 2; echo err 1 >&2",
            Role::Copies => "exec cat",
            Role::Shows => "echo \"GREETING=$GREETING\"; for arg in \"$@\"; do echo \"arg $arg\"; done",
            Role::Writes => "echo written > /data/out",
        };
        let mut command = shell(script);
        command.push("sh".to_owned());
        Workload { image: BUSYBOX.to_owned(), command, args: Vec::new() }
    }

    fn missing_image(&self) -> String {
        "tools/absent:1".to_owned()
    }

    fn directory(&self) -> &Path {
        self.0.directory()
    }

    async fn network(&self) -> Network {
        Network::Own
    }

    fn cgroup_parent(&self) -> String {
        format!("{}/conformance", self.0.cgroup())
    }

    fn memory_limit(&self, id: &ContainerId) -> Option<u64> {
        let below = format!("{}/{id}", self.cgroup_parent().trim_start_matches('/'));
        let files = [format!("memory/{below}/memory.limit_in_bytes"), format!("{below}/memory.max")];
        let read = |file: &String| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(file)).ok();
        let bytes = files.iter().find_map(read)?.trim().parse::<u64>().ok()?;
        // Version 1 has a very large number for none.
        Some(bytes).filter(|bytes| *bytes < 1 << 60)
    }

    fn exec(&self) -> Option<ExecCommands> {
        Some(ExecCommands {
            hello: shell("echo hello"),
            exits_with_three: shell("exit 3"),
            sleeps: Some(shell("sleep 100")),
            copies: Some(vec!["/bin/cat".to_owned()]),
        })
    }
}

pub(crate) async fn passes_the_suite() {
    let fixture = Containers(Node::start().await);
    let (passed, failures) = conformance::run(&fixture).await;
    let failures: Vec<String> = failures.iter().map(ToString::to_string).collect();
    assert!(failures.is_empty(), "{passed} checks passed, these did not:\n{}", failures.join("\n"));
    assert!(passed > 20, "{passed} checks");
}
