use std::time::Duration;

use tandem_runtime::{ContainerSpec, Error, ExecIo, ExecRequest, Limits, Runtime};
use tokio::sync::mpsc;

use crate::{
    bench::{Bench, command_spec, mount},
    guests,
};

#[tokio::test]
async fn modules_and_components_end_with_their_codes() {
    let bench = Bench::start().await;
    let module = bench.image("module", &guests::command()).await;
    let component = bench.image("component", &guests::command_component()).await;
    let sandbox = bench.sandbox().await;
    // WASI 0.2 as the adapter speaks it knows success and failure only.
    for (image, argument, code, reason) in [
        (&module, "nothing", 0, "Completed"),
        (&module, "three", 3, "Error"),
        (&module, "x", 134, "Error"),
        (&component, "nothing", 0, "Completed"),
        (&component, "three", 1, "Error"),
        (&component, "x", 134, "Error"),
    ] {
        let mut spec = command_spec(image, &[argument]);
        spec.name = format!("c{}", bench.host.list().await.unwrap()[0].containers.len());
        let id = bench.run(&sandbox, &spec).await;
        let (got_code, got_reason, message) = bench.exit(&id).await;
        assert_eq!((got_code, got_reason.as_str()), (code, reason), "{argument}: {message}");
        assert_eq!(message.contains("unreachable"), argument == "x", "{message}");
    }
    bench.finish().await;
}

#[tokio::test]
async fn environment_arguments_and_output() {
    let bench = Bench::start().await;
    for wasm in [guests::command(), guests::command_component()] {
        let image = bench.image("command", &wasm).await;
        let sandbox = bench.sandbox().await;
        let env = vec![("A".into(), "1 2".into()), ("HOSTNAME".into(), "me".into())];
        let spec = ContainerSpec { env, ..command_spec(&image, &["show", "x y"]) };
        let id = bench.run(&sandbox, &spec).await;
        assert_eq!(bench.exit(&id).await.0, 0);
        assert_eq!(bench.log(&id).await, ["stdout A=1 2", "stdout HOSTNAME=me", "stdout arg show", "stdout arg x y"]);

        let sandbox = bench.sandbox().await;
        let id = bench.run(&sandbox, &command_spec(&image, &["print"])).await;
        assert_eq!(bench.exit(&id).await.0, 0);
        assert_eq!(bench.log(&id).await, ["stdout out 1", "stdout out 2", "stderr err 1"]);
    }
    bench.finish().await;
}

#[tokio::test]
async fn mounts_are_as_writable_as_they_say() {
    let bench = Bench::start().await;
    let image = bench.image("command", &guests::command_component()).await;
    let volume = bench.folder.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    for (read_only, code) in [(true, 1), (false, 0)] {
        let sandbox = bench.sandbox().await;
        let spec = ContainerSpec { mounts: vec![mount(&volume, read_only)], ..command_spec(&image, &["file"]) };
        let id = bench.run(&sandbox, &spec).await;
        assert_eq!(bench.exit(&id).await.0, code);
        assert_eq!(volume.join("out").exists(), !read_only);
    }
    assert_eq!(std::fs::read_to_string(volume.join("out")).unwrap(), "written\n");
    bench.finish().await;
}

#[tokio::test]
async fn a_command_is_stopped_and_a_loop_too() {
    let bench = Bench::start().await;
    let image = bench.image("command", &guests::command()).await;
    for (argument, grace, code) in [("wait", 30, 143), ("loop", 30, 143), ("loop", 0, 137)] {
        let sandbox = bench.sandbox().await;
        let id = bench.run(&sandbox, &command_spec(&image, &[argument])).await;
        let began = std::time::Instant::now();
        bench.host.stop(&id, Duration::from_secs(grace)).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(25), "{argument}: {:?}", began.elapsed());
        assert_eq!(bench.exit(&id).await.0, code);
    }
    bench.finish().await;
}

#[tokio::test]
async fn a_command_that_takes_too_much_memory_is_ended() {
    let bench = Bench::start().await;
    let image = bench.image("command", &guests::command()).await;
    let sandbox = bench.sandbox().await;
    let limits = Limits { memory_bytes: Some(16 << 20), ..Limits::default() };
    let id = bench.run(&sandbox, &ContainerSpec { limits, ..command_spec(&image, &["memory"]) }).await;
    let (code, reason, message) = bench.exit(&id).await;
    assert_eq!((code, reason.as_str()), (137, "OOMKilled"));
    assert!(message.contains("its memory limit is exceeded"), "{message}");
    bench.finish().await;
}

#[tokio::test]
async fn a_cpu_limit_holds() {
    let bench = Bench::start().await;
    let image = bench.image("command", &guests::command()).await;
    let sandbox = bench.sandbox().await;
    let limits = Limits { cpu_quota_us: Some(10_000), cpu_period_us: Some(100_000), ..Limits::default() };
    let id = bench.run(&sandbox, &ContainerSpec { limits, ..command_spec(&image, &["loop"]) }).await;
    let began = std::time::Instant::now();
    let used = loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if began.elapsed() > Duration::from_secs(2) {
            let stats = bench.host.stats().await.unwrap();
            break stats.into_iter().find(|stats| stats.container.as_ref() == Some(&id)).unwrap().cpu_ns;
        }
    };
    let share = Duration::from_nanos(used).as_secs_f64() / began.elapsed().as_secs_f64();
    assert!((0.005..0.15).contains(&share), "a tenth of a core was allowed, {share} was used");
    bench.finish().await;
}

#[tokio::test]
async fn exec_sends_its_output_while_it_runs() {
    let bench = Bench::start().await;
    let image = bench.image("command", &guests::command()).await;
    let sandbox = bench.sandbox().await;
    let id = bench.run(&sandbox, &command_spec(&image, &["wait"])).await;
    for (word, code, out, err) in [("print", 0, "out 1\nout 2\n", "err 1\n"), ("three", 3, "", "")] {
        let (stdout, mut from_stdout) = mpsc::channel(8);
        let (stderr, mut from_stderr) = mpsc::channel(8);
        let io = ExecIo { stdin: mpsc::channel(1).1, stdout, stderr, resize: mpsc::channel(1).1 };
        let command = vec![word.to_owned()];
        let request = ExecRequest { command, stdin: false, stdout: true, stderr: true, tty: false };
        assert_eq!(bench.host.exec_stream(&id, request, io).await, Ok(code));
        assert_eq!(all(&mut from_stdout).await, out);
        assert_eq!(all(&mut from_stderr).await, err);
    }
    bench.finish().await;
}

async fn all(receiver: &mut mpsc::Receiver<bytes::Bytes>) -> String {
    let mut text = Vec::new();
    while let Some(bytes) = receiver.recv().await {
        text.extend_from_slice(&bytes);
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn exec_runs_the_component_anew() {
    let bench = Bench::start().await;
    let image = bench.image("command", &guests::command()).await;
    let sandbox = bench.sandbox().await;
    let id = bench.run(&sandbox, &command_spec(&image, &["wait"])).await;
    let exec = async |words: &[&str], seconds| {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        bench.host.exec(&id, &words, Duration::from_secs(seconds)).await
    };
    let hello = exec(&["hello"], 10).await.unwrap();
    assert_eq!((hello.code, hello.stdout.as_slice()), (0, b"hello\n".as_slice()));
    // Its own name may come first.
    assert_eq!(exec(&["main", "three"], 10).await.unwrap().code, 3);
    assert_eq!(exec(&["loop"], 1).await, Err(Error::Timeout { operation: "exec" }));

    let server = bench.image("server", &guests::server()).await;
    let (id, _) = bench.serve(&server, Limits::default()).await;
    let refused = bench.host.exec(&id, &["x".to_owned()], Duration::from_secs(1)).await;
    let text = "this component exports no wasi:cli/run, so there is nothing that exec could run";
    assert_eq!(refused, Err(Error::Refused(text.into())));
    bench.finish().await;
}
