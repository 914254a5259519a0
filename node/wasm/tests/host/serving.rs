use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, future::join_all};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tandem_runtime::{ContainerSpec, Error, Limits, Runtime};
use tandem_wasm::Registry;

use crate::{
    bench::{Bench, config, free_port, get, http, spec, try_get, until},
    guests,
};

#[tokio::test]
async fn a_component_answers_and_logs() {
    let bench = Bench::start().await;
    let image = bench.image("server", &guests::server()).await;
    let (id, port) = bench.serve(&image, Limits::default()).await;
    let answer = get(port, "/").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello\n"));
    assert_eq!(get(port, "/o").await.status, 200);
    assert_eq!(get(port, "/o").await.status, 200);
    until("two lines in the log", async || (bench.log(&id).await == ["stdout served", "stdout served"]).then_some(()))
        .await;
    let metrics = bench.host.metrics().await.unwrap();
    assert!(
        metrics.lines().any(|line| line.starts_with("tandem_wasm_requests_total") && line.ends_with(" 3")),
        "{metrics}"
    );
    bench.host.stop(&id, Duration::from_secs(10)).await.unwrap();
    assert_eq!(bench.exit(&id).await, (0, "Completed".into(), String::new()));
    assert!(try_get(&format!("127.0.0.1:{port}"), "/").await.is_err());
    bench.finish().await;
}

#[tokio::test]
async fn http2_is_spoken_too() {
    let bench = Bench::start().await;
    let image = bench.image("server", &guests::server()).await;
    let (_, port) = bench.serve(&image, Limits::default()).await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Empty<Bytes>>();
    let response = client.get(format!("http://127.0.0.1:{port}/").parse().unwrap()).await.unwrap();
    assert_eq!(response.version(), ::http::Version::HTTP_2);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello\n");
    bench.finish().await;
}

#[tokio::test]
async fn a_trap_fails_its_request_and_is_told() {
    let bench = Bench::start().await;
    let image = bench.image("server", &guests::server()).await;
    let (id, port) = bench.serve(&image, Limits::default()).await;
    let mut notices = bench.host.notices();
    let notice = async {
        // The stream from the host opens a moment after the supervisor has started.
        let retry = async {
            loop {
                assert_eq!(get(port, "/t").await.status, 500);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::select! {
            notice = notices.next() => notice.unwrap(),
            () = retry => unreachable!("the loop never ends"),
        }
    };
    let notice = tokio::time::timeout(Duration::from_secs(30), notice).await.unwrap();
    assert_eq!((notice.container, notice.reason.as_str(), notice.warning), (id, "Trapped", true));
    assert!(notice.message.contains("unreachable"), "{}", notice.message);
    assert_eq!(get(port, "/").await.status, 200);
    bench.finish().await;
}

#[tokio::test]
async fn a_loop_does_not_stop_its_neighbours() {
    let bench = Bench::start().await;
    let image = bench.image("server", &guests::server()).await;
    let (_, port) = bench.serve(&image, Limits::default()).await;
    let (_, neighbour) = bench.serve(&image, Limits::default()).await;
    let loops = join_all((0..4).map(|_| try_get_forever(port)));
    let asked = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..50 {
            let began = Instant::now();
            assert_eq!(get(neighbour, "/").await.status, 200);
            assert_eq!(get(port, "/").await.status, 200);
            slowest = slowest.max(began.elapsed());
        }
        slowest
    };
    tokio::select! {
        _ = loops => unreachable!("a loop never answers"),
        slowest = asked => assert!(slowest < Duration::from_secs(20), "{slowest:?}"),
    }
    bench.finish().await;
}

async fn try_get_forever(port: u16) {
    drop(try_get(&format!("127.0.0.1:{port}"), "/l").await);
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_memory_hog_is_ended_and_its_neighbour_serves() {
    let bench = Bench::start().await;
    let image = bench.image("server", &guests::server()).await;
    let limits = Limits { memory_bytes: Some(32 << 20), ..Limits::default() };
    let (hog, port) = bench.serve(&image, limits).await;
    let (_, neighbour) = bench.serve(&image, Limits::default()).await;
    assert_eq!(get(port, "/").await.status, 200);
    // The answer depends on what is quicker: the failure of the request, or the end of the container.
    drop(try_get(&format!("127.0.0.1:{port}"), "/m").await);
    let (code, reason, _) = bench.exit(&hog).await;
    assert_eq!((code, reason.as_str()), (137, "OOMKilled"));
    assert_eq!(get(neighbour, "/").await.status, 200);
    assert!(try_get(&format!("127.0.0.1:{port}"), "/").await.is_err());
    bench.finish().await;
}

#[tokio::test]
async fn too_many_requests_wait_and_then_are_refused() {
    let bench = Bench::start().await;
    let image = bench.image("server", &guests::server()).await;
    let sandbox = bench
        .sandbox_with(&[("component.tandem.dev/max-instances", "2"), ("component.tandem.dev/max-queue", "3")])
        .await;
    let port = free_port();
    bench.run(&sandbox, &ContainerSpec { ports: vec![http(port)], ..spec(&image) }).await;
    let answers = join_all((0..10).map(|_| get(port, "/s"))).await;
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 503).collect();
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!((served, refused.len()), (5, 5));
    assert!(refused.iter().all(|answer| answer.retry_after.as_deref() == Some("1")));
    assert_eq!(get(port, "/").await.status, 200);
    bench.finish().await;
}

#[tokio::test]
async fn requests_under_way_are_answered_before_a_container_ends() {
    let bench = Bench::start().await;
    let image = bench.image("server", &guests::server()).await;
    let (id, port) = bench.serve(&image, Limits::default()).await;
    let slow = tokio::spawn(async move { get(port, "/s").await });
    until("the slow request", async || {
        let metrics = bench.host.metrics().await.unwrap();
        metrics.lines().any(|line| line.starts_with("tandem_wasm_instances{") && line.ends_with(" 1")).then_some(())
    })
    .await;
    bench.host.stop(&id, Duration::from_secs(10)).await.unwrap();
    assert_eq!(slow.await.unwrap().status, 200);
    assert_eq!(bench.exit(&id).await.0, 0);
    bench.finish().await;
}

#[tokio::test]
async fn wrong_files_are_refused_in_words() {
    let bench = Bench::start().await;
    let image = bench.image("strange", &guests::strange()).await;
    let sandbox = bench.sandbox().await;
    let refused = bench.host.create(&sandbox, &spec(&image)).await;
    assert_eq!(refused, Err(Error::Refused("imports acme:db/store@1.0.0, which nothing on this node provides".into())));

    let layer = bench.registry.blob("text", b"#!/bin/sh\necho no component\n");
    let config = bench.registry.blob("text", b"{}");
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.wasm.config.v0+json","digest":"{config}","size":2}},
            "layers":[{{"mediaType":"application/wasm","digest":"{layer}","size":28}}]}}"#
    );
    let reference = bench.registry.manifest("text", manifest.as_bytes());
    let Err(Error::Refused(text)) = bench.host.pull(&reference, None).await else { panic!("it was pulled") };
    assert!(text.contains("not a WebAssembly component"), "{text}");

    let missing = format!("{}/nothing:1", bench.registry.address);
    assert_eq!(
        bench.host.pull(&missing, None).await,
        Err(Error::Pull(format!("{missing}: not found: MANIFEST_UNKNOWN: manifest unknown")))
    );
    bench.finish().await;
}

#[tokio::test]
async fn only_so_many_layers_are_looked_into() {
    let bench = Bench::start().await;
    let empty = bench.registry.blob("layers", &[0; 1024]);
    let config = bench.registry.blob("layers", b"{}");
    let layer = format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{empty}","size":1024}}"#);
    for (count, expected) in [(32, "no layer holds"), (33, "of its 33 layers only 32 are looked into")] {
        let layers = vec![layer.as_str(); count].join(",");
        let manifest = format!(
            r#"{{"schemaVersion":2,"annotations":{{"module.wasm.image/variant":"compat"}},"layers":[{layers}],
                "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}}}}"#
        );
        let reference = bench.registry.manifest("layers", manifest.as_bytes());
        let Err(Error::Refused(text)) = bench.host.pull(&reference, None).await else { panic!("it was pulled") };
        assert!(text.contains(expected), "{text}");
    }
    bench.finish().await;
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let bench = Bench::start().await;
    let image = bench.image("server", &guests::server()).await;
    let (first, port) = bench.serve(&image, Limits::default()).await;
    let sandbox = bench.sandbox().await;
    let spec = ContainerSpec { ports: vec![http(port)], ..spec(&image) };
    let id = bench.host.create(&sandbox, &spec).await.unwrap();
    let refused = bench.host.start(&id).await.unwrap_err().to_string();
    assert_eq!(refused, format!("start: port {port} of the pod is already in use"));
    bench.host.stop(&first, Duration::from_secs(5)).await.unwrap();
    bench.host.start(&id).await.unwrap();
    assert_eq!(get(port, "/").await.status, 200);
    bench.finish().await;
}

#[tokio::test]
async fn requests_go_out_from_the_pod() {
    let bench = Bench::start().await;
    let image = bench.image("server", &guests::server()).await;
    let (_, port) = bench.serve(&image, Limits::default()).await;
    let (_, other) = bench.serve(&image, Limits::default()).await;
    assert_eq!(get(port, &format!("/a127.0.0.1:{other}")).await.status, 200);
    assert_eq!(get(port, &format!("/alocalhost:{other}")).await.status, 200);
    assert_eq!(get(port, "/a127.0.0.1:1").await.status, 502);
    bench.finish().await;
}

#[tokio::test]
async fn a_mirror_stands_in_for_a_host() {
    let bench = Bench::start().await;
    bench.registry.push("library/hello", &guests::server());
    assert!(bench.host.image("hello").await.unwrap().is_none());
    // The table can change while the host runs: whoever starts it next writes it.
    let mut config = config(bench.folder.path());
    let endpoint = format!("http://{}", bench.registry.address);
    config.registries.insert("docker.io".into(), Registry { endpoint, ..Registry::default() });
    let host = tandem_wasm::start(config).await.unwrap();
    let pulled = host.pull("hello", None).await.unwrap();
    assert_eq!(pulled.digest, format!("docker.io/library/hello@{}", pulled.id));
    assert_eq!(host.image("docker.io/library/hello:latest").await.unwrap().unwrap().id, pulled.id);
    bench.finish().await;
}
