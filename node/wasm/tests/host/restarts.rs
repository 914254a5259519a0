use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tandem_runtime::{Limits, Runtime, State};

use crate::{
    bench::{Bench, command_spec, config, get, try_get, until},
    guests,
};

async fn kill_worker(bench: &Bench) -> u32 {
    let worker = bench.host.worker().await.unwrap();
    kill_process(Pid::from_raw(i32::try_from(worker).unwrap()).unwrap(), Signal::KILL).unwrap();
    worker
}

#[tokio::test]
async fn connections_wait_while_the_worker_restarts() {
    let bench = Bench::start().await;
    let server = bench.image("server", &guests::server()).await;
    let command = bench.image("command", &guests::command()).await;
    let (id, port) = bench.serve(&server, Limits::default()).await;
    let sandbox = bench.sandbox().await;
    let waiting = bench.run(&sandbox, &command_spec(&command, &["wait"])).await;
    assert_eq!(get(port, "/").await.status, 200);
    let before = kill_worker(&bench).await;
    // Every connection from here on is taken by the listening socket, worker or not.
    for _ in 0..20 {
        assert_eq!(get(port, "/").await.status, 200);
    }
    let after = until("the next worker", async || bench.host.worker().await).await;
    assert_ne!(before, after);
    let state = bench.container(&id).await.unwrap().state;
    assert!(matches!(state, State::Running { .. }), "{state:?}");
    assert_eq!(bench.exit(&waiting).await, (137, "Error".into(), "the wasm host restarted".into()));
    bench.finish().await;
}

#[tokio::test]
async fn a_second_supervisor_adopts_the_host() {
    let bench = Bench::start().await;
    let server = bench.image("server", &guests::server()).await;
    let (id, port) = bench.serve(&server, Limits::default()).await;
    let worker = bench.host.worker().await;
    let second = tandem_wasm::start(config(bench.folder.path())).await.unwrap();
    assert_eq!(second.worker().await, worker);
    assert_eq!(second.list().await.unwrap(), bench.host.list().await.unwrap());
    drop(second);
    assert_eq!(get(port, "/").await.status, 200);
    let state = bench.container(&id).await.unwrap().state;
    assert!(matches!(state, State::Running { .. }), "{state:?}");
    bench.finish().await;
}

#[tokio::test]
async fn a_host_that_died_is_started_again() {
    let bench = Bench::start().await;
    let server = bench.image("server", &guests::server()).await;
    let (_, port) = bench.serve(&server, Limits::default()).await;
    let lock = std::fs::read_to_string(bench.folder.path().join("host/host.lock")).unwrap();
    kill_process(Pid::from_raw(lock.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    let address = format!("127.0.0.1:{port}");
    until("an answer of the new host", async || {
        try_get(&address, "/").await.ok().filter(|answer| answer.status == 200)
    })
    .await;
    bench.finish().await;
}

#[tokio::test]
async fn down_ends_everything() {
    let bench = Bench::start().await;
    let server = bench.image("server", &guests::server()).await;
    let (_, port) = bench.serve(&server, Limits::default()).await;
    bench.host.down().await.unwrap();
    assert!(try_get(&format!("127.0.0.1:{port}"), "/").await.is_err());
    tokio::time::timeout(Duration::from_secs(5), bench.host.down()).await.unwrap().unwrap();
}
