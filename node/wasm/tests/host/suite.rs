use std::{net::Ipv4Addr, path::Path, sync::Arc};

use async_trait::async_trait;
use tandem_runtime::{
    ContainerId, Network, Runtime,
    conformance::{self, ExecCommands, Fixture, Role, Workload},
};

use crate::{
    bench::{Bench, config},
    guests,
};

struct WasmHost {
    bench: Bench,
    image: String,
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[async_trait]
impl Fixture for WasmHost {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.bench.host.clone()
    }

    async fn reconnect(&self) -> Arc<dyn Runtime> {
        tandem_wasm::start(config(self.bench.folder.path())).await.unwrap()
    }

    fn workload(&self, role: Role) -> Workload {
        let argument = match role {
            Role::Waits => "wait",
            Role::ExitsWithThree => "three",
            Role::Prints => "print",
            Role::Copies => "copy",
            Role::Shows => "show",
            Role::Writes => "file",
        };
        Workload { image: self.image.clone(), command: Vec::new(), args: words(&[argument]) }
    }

    fn missing_image(&self) -> String {
        format!("{}/missing:1", self.bench.registry.address)
    }

    fn directory(&self) -> &Path {
        self.bench.folder.path()
    }

    async fn network(&self) -> Network {
        Network::Host { address: Ipv4Addr::LOCALHOST }
    }

    fn memory_limit(&self, id: &ContainerId) -> Option<u64> {
        let file = self.bench.folder.path().join(format!("host/state/containers/{id}.json"));
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        record["resources"]["memoryBytes"].as_u64().filter(|bytes| *bytes > 0)
    }

    fn exec(&self) -> Option<ExecCommands> {
        Some(ExecCommands {
            hello: words(&["hello"]),
            exits_with_three: words(&["three"]),
            sleeps: Some(words(&["wait"])),
            copies: Some(words(&["copy"])),
        })
    }
}

#[tokio::test]
async fn the_host_passes_the_suite_of_all_runtimes() {
    let bench = Bench::start().await;
    let image = bench.registry.push("command", &guests::command());
    let fixture = WasmHost { bench, image };
    let (passed, failures) = conformance::run(&fixture).await;
    let failures: Vec<String> = failures.iter().map(ToString::to_string).collect();
    assert!(failures.is_empty(), "{passed} passed; failed:\n{}", failures.join("\n"));
    fixture.bench.finish().await;
}
