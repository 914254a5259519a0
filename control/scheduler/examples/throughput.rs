//! How many pods a second the scheduler decides on, without an API: `cargo run --release -p tandem-scheduler --example throughput`.

use std::{io::Write as _, time::Instant};

use tandem_scheduler::{NodeInfo, PodInfo, Profile, Resources, Snapshot, schedule};

const PODS: usize = 5000;

fn main() -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    for nodes in [100, 1000, 5000] {
        let mut snapshot = Snapshot::default();
        for index in 0..nodes {
            snapshot.add_node(NodeInfo {
                name: format!("n{index}"),
                allocatable: Resources { milli_cpu: 64_000, memory: 256 << 30, pods: 250, ..Resources::default() },
                ..NodeInfo::default()
            });
        }
        let requests = Resources { milli_cpu: 100, memory: 128 << 20, pods: 1, ..Resources::default() };
        let started = Instant::now();
        let mut placed = 0;
        for turn in 0..PODS {
            let uid = format!("p{turn}");
            let pod = PodInfo { uid, requests: requests.clone(), presumed: requests.clone(), ..PodInfo::default() };
            if let Ok(node) = schedule(&pod, &snapshot, &Profile::default(), turn) {
                snapshot.assume(&pod, &node);
                placed += 1;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let rate = f64::from(placed) / seconds;
        writeln!(output, "{nodes} nodes: {placed} of {PODS} pods in {seconds:.2} s, {rate:.0} pods/s")?;
    }
    Ok(())
}
