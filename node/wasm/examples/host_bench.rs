//! Measures a host in processes of its own: many light pods, and a neighbour that loops. Needs root.
//! `host_bench SERVER.wasm [PODS]`

#[path = "../tests/host/registry.rs"]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "shared with the tests")]
mod registry;

use std::{
    error::Error,
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use tandem_runtime::{ContainerId, ContainerSpec, Limits, Network, PodRef, Port, Runtime, SandboxSpec, Security};
use tandem_wasm::{Config, Registries, Supervised};

type Anything<T> = Result<T, Box<dyn Error>>;

const PORT: u16 = 8080;

fn main() -> Anything<()> {
    let mut arguments = std::env::args().skip(1);
    let file = PathBuf::from(arguments.next().ok_or("which component?")?);
    let pods = arguments.next().map_or(Ok(1000), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let name = format!("host-bench-{}", std::process::id());
    shell(&format!(
        "ip netns add {name} && ip -n {name} link set lo up && ip -n {name} route add local 10.200.0.0/16 dev lo"
    ))?;
    let measured = runtime.block_on(measure(&file, pods, &PathBuf::from(format!("/var/run/netns/{name}"))));
    shell(&format!("ip netns delete {name}"))?;
    measured
}

fn shell(line: &str) -> Anything<String> {
    let output = Command::new("sh").args(["-c", line]).output()?;
    if !output.status.success() {
        return Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

async fn measure(file: &Path, pods: u32, namespace: &Path) -> Anything<()> {
    let mut out = std::io::stdout();
    let folder = tempfile::tempdir()?;
    let own = std::env::current_exe()?;
    let host = tandem_wasm::start(Config {
        folder: folder.path().join("host"),
        program: Some(own.parent().ok_or("no folder")?.join("wasm_host")),
        registries: Registries::new(),
        cgroup: None,
    })
    .await?;
    let registry = registry::Registry::start().await;
    let image = host.pull(&registry.push("measured", &std::fs::read(file)?), None).await?.id;
    writeln!(out, "idle: {} KiB resident in the worker", resident(&host).await?)?;
    let first = Instant::now();
    run(&host, &image, namespace, 1, folder.path()).await?;
    writeln!(out, "first pod, compiled now: {:?}", first.elapsed())?;
    let before = resident(&host).await?;
    let began = Instant::now();
    for pod in 2..=pods {
        run(&host, &image, namespace, pod, folder.path()).await?;
    }
    let took = began.elapsed();
    let more = resident(&host).await?.saturating_sub(before);
    let each = pods.saturating_sub(1).max(1);
    writeln!(
        out,
        "{pods} pods: {:?} each, {:.1} KiB each in the worker",
        took / each,
        f64::from(more) / f64::from(each)
    )?;
    let last = format!("http://{}:{PORT}/", address(pods));
    writeln!(out, "quiet:     {}", load(namespace, &last)?)?;
    let hog = format!("http://{}:{PORT}/loop", address(1));
    let mut loops = (0..2)
        .map(|_| {
            let net = format!("--net={}", namespace.display());
            Command::new("nsenter").args([&net, "curl", "-s", "-o", "/dev/null", &hog]).spawn()
        })
        .collect::<Result<Vec<_>, _>>()?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    writeln!(out, "with loops: {}", load(namespace, &last)?)?;
    for child in &mut loops {
        child.kill()?;
        child.wait()?;
    }
    let list = Instant::now();
    let listed = host.list().await?.len();
    writeln!(out, "list of {listed}: {:?}", list.elapsed())?;
    host.down().await?;
    Ok(())
}

async fn resident(host: &Supervised) -> Anything<u32> {
    let worker = host.worker().await.ok_or("no worker")?;
    let status = std::fs::read_to_string(format!("/proc/{worker}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS")).ok_or("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).ok_or("no size")?.parse()?)
}

fn load(namespace: &Path, url: &str) -> Anything<String> {
    let net = namespace.display();
    let text = shell(&format!("nsenter --net={net} wrk -t1 -c8 -d4s --latency {url}"))?;
    let wanted = ["50%", "99%", "Requests/sec", "Non-2xx"];
    let lines = text.lines().filter(|line| wanted.iter().any(|word| line.contains(word)));
    Ok(lines.map(str::trim).collect::<Vec<_>>().join("  "))
}

fn address(pod: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 200, 0, 0)) + pod)
}

async fn run(host: &Supervised, image: &str, namespace: &Path, pod: u32, folder: &Path) -> Anything<ContainerId> {
    let uid = format!("u{pod}");
    let network = Network::Light { namespace: namespace.to_owned(), address: address(pod) };
    let sandbox = host
        .create_sandbox(&SandboxSpec {
            pod: PodRef { name: format!("pod-{pod}"), namespace: "bench".into(), uid: uid.clone(), attempt: 0 },
            network,
            hostname: format!("pod-{pod}"),
            dns: tandem_runtime::Dns::default(),
            labels: Default::default(),
            annotations: Default::default(),
            log_directory: folder.join("logs").join(uid),
            cgroup_parent: String::new(),
            host_ports: Vec::new(),
            host_pid: false,
            host_ipc: false,
            share_processes: false,
            sysctls: std::collections::BTreeMap::new(),
        })
        .await?;
    let id = host
        .create(
            &sandbox,
            &ContainerSpec {
                name: "main".into(),
                image: image.into(),
                image_reference: image.into(),
                attempt: 0,
                spec_hash: 1,
                command: Vec::new(),
                args: Vec::new(),
                env: Vec::new(),
                working_directory: None,
                mounts: Vec::new(),
                limits: Limits::default(),
                security: Security::default(),
                ports: vec![Port { name: "http".into(), port: PORT, udp: false }],
                stdin: false,
                stdin_once: false,
                tty: false,
                target: None,
                log_path: "main/0.log".into(),
                labels: Default::default(),
                annotations: Default::default(),
            },
        )
        .await?;
    host.start(&id).await?;
    Ok(id)
}
