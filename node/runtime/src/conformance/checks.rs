use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::{Bench, Check, Role, ensure, text};
use crate::{AttachRequest, ContainerId, Error, ExecIo, ExecRequest, Limits, Network, SandboxId, State, Stats};

/// More than any well-behaved workload takes to end.
const GRACE: Duration = Duration::from_secs(10);
/// Long enough for what was said to be heard.
const MOMENT: Duration = Duration::from_secs(1);
/// Reserved, so that nobody listens there.
const UNUSED_PORT: u16 = 1023;

macro_rules! checks {
    ($($name:ident),* $(,)?) => {
        pub(super) const ALL: &[(&str, Check)] = &[$((stringify!($name), |bench| Box::pin($name(bench)))),*];
    };
}

checks![
    unknown_image_is_absent,
    pulled_image_is_present,
    missing_image_is_a_pull_error,
    removed_image_is_absent,
    sandbox_is_listed_as_made,
    sandbox_has_its_address,
    sandbox_made_twice_is_one,
    stopped_sandbox_stays_listed,
    removed_sandbox_is_gone,
    stopping_a_sandbox_ends_its_containers,
    created_container_waits_for_start,
    what_the_spec_says_is_listed,
    started_container_runs,
    start_is_idempotent,
    exit_code_is_kept,
    completed_is_told_from_error,
    output_becomes_log_lines,
    a_log_that_was_put_aside_goes_on,
    limits_change_while_it_runs,
    environment_and_arguments_arrive,
    writable_mount_takes_writes,
    read_only_mount_refuses_writes,
    stop_ends_a_container,
    stop_is_idempotent,
    stop_after_the_end_changes_nothing,
    remove_is_idempotent,
    containers_of_a_sandbox_are_independent,
    attempts_stand_side_by_side,
    a_new_handle_sees_the_same,
    create_without_a_sandbox_fails,
    changes_wake,
    stats_of_what_runs,
    exec_gives_output_and_code,
    exec_ends_at_its_timeout,
    exec_streams_both_ways,
    attach_streams_both_ways,
    attach_hears_what_others_cause,
    a_port_without_a_server_is_named,
];

async fn unknown_image_is_absent(bench: &Bench<'_>) -> Result<(), String> {
    let image = bench.runtime.image(&bench.fixture.missing_image()).await.map_err(text)?;
    ensure(image.is_none(), || format!("an image that nobody pulled is there: {image:?}"))
}

async fn pulled_image_is_present(bench: &Bench<'_>) -> Result<(), String> {
    let reference = bench.fixture.workload(Role::Waits).image;
    let pulled = bench.runtime.pull(&reference, None).await.map_err(text)?;
    let again = bench.runtime.pull(&reference, None).await.map_err(text)?;
    ensure(pulled.id == again.id, || format!("two pulls give two ids: {} and {}", pulled.id, again.id))?;
    let present = bench.runtime.image(&reference).await.map_err(text)?;
    ensure(present.as_ref().map(|image| &image.id) == Some(&pulled.id), || {
        format!("pulled {pulled:?}, but image() gives {present:?}")
    })?;
    ensure(pulled.digest.contains("sha256:"), || format!("{:?} is no digest", pulled.digest))
}

async fn missing_image_is_a_pull_error(bench: &Bench<'_>) -> Result<(), String> {
    match bench.runtime.pull(&bench.fixture.missing_image(), None).await {
        Err(Error::Pull(message)) if !message.is_empty() => Ok(()),
        other => Err(format!("should be Error::Pull with the registry's answer, is {other:?}")),
    }
}

async fn removed_image_is_absent(bench: &Bench<'_>) -> Result<(), String> {
    let reference = bench.fixture.workload(Role::Shows).image;
    let pulled = bench.runtime.pull(&reference, None).await.map_err(text)?;
    let listed = bench.runtime.images().await.map_err(text)?;
    let stored = listed.iter().find(|image| image.id == pulled.id).ok_or_else(|| format!("not in {listed:?}"))?;
    ensure(stored.names.contains(&pulled.digest) && stored.size_bytes > 0, || format!("{pulled:?} is {stored:?}"))?;
    for _ in 0..2 {
        bench.runtime.remove_image(&pulled.id).await.map_err(text)?;
    }
    let present = bench.runtime.image(&reference).await.map_err(text)?;
    ensure(present.is_none(), || format!("it is still there: {present:?}"))?;
    bench.runtime.pull(&reference, None).await.map(drop).map_err(text)
}

async fn sandbox_is_listed_as_made(bench: &Bench<'_>) -> Result<(), String> {
    let spec = bench.sandbox_spec().await;
    let id = bench.sandbox_of(&spec).await?;
    let seen = bench.seen(&id).await?.ok_or("the new sandbox is not listed")?;
    ensure(seen.ready, || "the new sandbox is not ready".to_owned())?;
    ensure(seen.pod == spec.pod, || format!("pod {:?} became {:?}", spec.pod, seen.pod))?;
    ensure(seen.labels == spec.labels, || format!("labels {:?} became {:?}", spec.labels, seen.labels))?;
    let kept = spec.annotations.iter().all(|(key, value)| seen.annotations.get(key) == Some(value));
    ensure(kept, || format!("annotations {:?} became {:?}", spec.annotations, seen.annotations))
}

async fn sandbox_has_its_address(bench: &Bench<'_>) -> Result<(), String> {
    let spec = bench.sandbox_spec().await;
    let id = bench.sandbox_of(&spec).await?;
    let seen = bench.seen(&id).await?.ok_or("the new sandbox is not listed")?;
    let wanted = match &spec.network {
        Network::Own => {
            ensure(seen.network_namespace.is_some(), || "a sandbox of its own names no network namespace".to_owned())?;
            return ensure(seen.address.is_some(), || "the sandbox has no address".to_owned());
        }
        Network::Host { address } | Network::Join { address, .. } | Network::Light { address, .. } => *address,
    };
    ensure(seen.address == Some(wanted), || format!("address {wanted} became {:?}", seen.address))
}

async fn sandbox_made_twice_is_one(bench: &Bench<'_>) -> Result<(), String> {
    let spec = bench.sandbox_spec().await;
    let first = bench.sandbox_of(&spec).await?;
    let second = bench.sandbox_of(&spec).await?;
    ensure(first == second, || format!("the same spec made {first} and {second}"))?;
    let all = bench.runtime.list().await.map_err(text)?;
    let count = all.iter().filter(|sandbox| sandbox.pod == spec.pod).count();
    ensure(count == 1, || format!("{count} sandboxes for one spec"))
}

async fn stopped_sandbox_stays_listed(bench: &Bench<'_>) -> Result<(), String> {
    let id = bench.sandbox().await?;
    bench.runtime.stop_sandbox(&id).await.map_err(text)?;
    bench.runtime.stop_sandbox(&id).await.map_err(|error| format!("the second stop_sandbox: {error}"))?;
    let seen = bench.seen(&id).await?.ok_or("the stopped sandbox is not listed any more")?;
    ensure(!seen.ready, || "the stopped sandbox is still ready".to_owned())
}

async fn removed_sandbox_is_gone(bench: &Bench<'_>) -> Result<(), String> {
    let id = bench.sandbox().await?;
    bench.start(&id, Role::Waits, "main").await?;
    bench.runtime.stop_sandbox(&id).await.map_err(text)?;
    bench.runtime.remove_sandbox(&id).await.map_err(text)?;
    bench.runtime.remove_sandbox(&id).await.map_err(|error| format!("the second remove_sandbox: {error}"))?;
    let seen = bench.seen(&id).await?;
    ensure(seen.is_none(), || "the removed sandbox is still listed".to_owned())
}

async fn stopping_a_sandbox_ends_its_containers(bench: &Bench<'_>) -> Result<(), String> {
    let id = bench.sandbox().await?;
    let container = bench.start(&id, Role::Waits, "main").await?;
    bench.running(&container).await?;
    bench.runtime.stop_sandbox(&id).await.map_err(text)?;
    bench.exited(&container).await.map(drop)
}

async fn created_container_waits_for_start(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let spec = bench.container_spec(Role::Waits, "main").await?;
    let id = bench.runtime.create(&sandbox, &spec).await.map_err(text)?;
    let seen = bench.container(&id).await?.ok_or("the created container is not listed")?;
    ensure(seen.state == State::Created, || format!("should be created, is {:?}", seen.state))
}

async fn what_the_spec_says_is_listed(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let spec = bench.container_spec(Role::Waits, "main").await?;
    let id = bench.runtime.create(&sandbox, &spec).await.map_err(text)?;
    let seen = bench.container(&id).await?.ok_or("the created container is not listed")?;
    ensure(seen.name == spec.name, || format!("name {} became {}", spec.name, seen.name))?;
    ensure(seen.attempt == spec.attempt, || format!("attempt {} became {}", spec.attempt, seen.attempt))?;
    ensure(seen.spec_hash == spec.spec_hash, || format!("hash {:x} became {:x}", spec.spec_hash, seen.spec_hash))?;
    ensure(seen.labels == spec.labels, || format!("labels {:?} became {:?}", spec.labels, seen.labels))?;
    let kept = spec.annotations.iter().all(|(key, value)| seen.annotations.get(key) == Some(value));
    ensure(kept, || format!("annotations {:?} became {:?}", spec.annotations, seen.annotations))?;
    ensure(!seen.image_digest.is_empty(), || "no image digest".to_owned())
}

async fn started_container_runs(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let id = bench.start(&sandbox, Role::Waits, "main").await?;
    let seen = bench.running(&id).await?;
    let State::Running { started } = seen.state else { return Err("not running".to_owned()) };
    let skew = jiff::SignedDuration::from_secs(60);
    ensure(started >= seen.created - skew, || format!("started {started} long before created {}", seen.created))
}

async fn start_is_idempotent(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let id = bench.start(&sandbox, Role::Waits, "main").await?;
    bench.running(&id).await?;
    bench.runtime.start(&id).await.map_err(|error| format!("the second start: {error}"))?;
    bench.running(&id).await.map(drop)
}

fn outcome(state: &State) -> (i32, &str) {
    match state {
        State::Exited { code, reason, .. } => (*code, reason),
        State::Created | State::Running { .. } | State::Unknown => (i32::MIN, "not exited"),
    }
}

async fn exit_code_is_kept(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let id = bench.start(&sandbox, Role::ExitsWithThree, "main").await?;
    let seen = bench.exited(&id).await?;
    ensure(outcome(&seen.state) == (3, "Error"), || format!("should be (3, Error), is {:?}", seen.state))
}

async fn completed_is_told_from_error(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let id = bench.start(&sandbox, Role::Prints, "main").await?;
    let seen = bench.exited(&id).await?;
    ensure(outcome(&seen.state) == (0, "Completed"), || format!("should be (0, Completed), is {:?}", seen.state))
}

async fn output_becomes_log_lines(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let spec = bench.container_spec(Role::Prints, "main").await?;
    bench.start_spec(&sandbox, &spec).await?;
    let lines = bench.log_lines(&sandbox, &spec.log_path, 3).await?;
    let of = |stream: &str| -> Vec<&str> {
        lines.iter().filter(|(of, _)| of == stream).map(|(_, text)| text.as_str()).collect()
    };
    ensure(of("stdout") == ["out 1", "out 2"], || format!("stdout is {:?}", of("stdout")))?;
    ensure(of("stderr") == ["err 1"], || format!("stderr is {:?}", of("stderr")))
}

async fn a_log_that_was_put_aside_goes_on(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let id = bench.start(&sandbox, Role::Waits, "main").await?;
    let below = bench.running(&id).await?.log_path;
    let uid = bench.seen(&sandbox).await?.ok_or("the sandbox is not listed")?.pod.uid;
    let log = bench.fixture.directory().join("logs").join(uid).join(below);
    std::fs::rename(&log, log.with_extension("log.aside")).map_err(|error| error.to_string())?;
    bench.runtime.reopen_log(&id).await.map_err(text)?;
    ensure(log.exists(), || format!("{} is not there again", log.display()))
}

async fn limits_change_while_it_runs(bench: &Bench<'_>) -> Result<(), String> {
    const MIB: u64 = 1 << 20;
    let limits = |memory: Option<u64>, cpu: Option<i64>| Limits {
        memory_bytes: memory,
        cpu_quota_us: cpu,
        cpu_period_us: cpu.map(|_| 100_000),
        cpu_shares: Some(256),
        oom_score_adj: 0,
    };
    let sandbox = bench.sandbox().await?;
    let mut spec = bench.container_spec(Role::Waits, "main").await?;
    spec.limits = limits(Some(64 * MIB), Some(50_000));
    let id = bench.start_spec(&sandbox, &spec).await?;
    let before = bench.running(&id).await?;
    let steps =
        [(Some(128 * MIB), Some(100_000)), (Some(32 * MIB), Some(20_000)), (None, None), (Some(64 * MIB), None)];
    for (memory, cpu) in steps {
        for _ in 0..2 {
            bench.runtime.update(&id, &limits(memory, cpu)).await.map_err(text)?;
            let enforced = bench.fixture.memory_limit(&id);
            ensure(enforced == memory, || format!("the memory limit should be {memory:?}, but is {enforced:?}"))?;
        }
    }
    let after = bench.running(&id).await?;
    ensure(after == before, || format!("the container is not as it was: {after:?}"))?;
    let unknown = bench.runtime.update(&ContainerId("f".repeat(64)), &limits(None, None)).await;
    ensure(matches!(unknown, Err(Error::NotFound { .. })), || {
        format!("a container that is not there should not be found: {unknown:?}")
    })
}

async fn environment_and_arguments_arrive(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let mut spec = bench.container_spec(Role::Shows, "main").await?;
    spec.env = vec![("GREETING".to_owned(), "good day, \"all\" = $HOME".to_owned())];
    spec.args.extend(["one".to_owned(), "two words".to_owned()]);
    let id = bench.start_spec(&sandbox, &spec).await?;
    bench.exited(&id).await?;
    let lines = bench.log_lines(&sandbox, &spec.log_path, 3).await?;
    let shown: Vec<&str> = lines.iter().map(|(_, text)| text.as_str()).collect();
    for wanted in ["GREETING=good day, \"all\" = $HOME", "arg one", "arg two words"] {
        ensure(shown.contains(&wanted), || format!("{wanted:?} is not among {shown:?}"))?;
    }
    Ok(())
}

async fn writable_mount_takes_writes(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let mut spec = bench.container_spec(Role::Writes, "main").await?;
    let mount = bench.mount("writable", false)?;
    let file = mount.host.join("out");
    spec.mounts = vec![mount];
    let id = bench.start_spec(&sandbox, &spec).await?;
    let seen = bench.exited(&id).await?;
    ensure(outcome(&seen.state).0 == 0, || format!("the write failed: {:?}", seen.state))?;
    let content = std::fs::read_to_string(&file).unwrap_or_default();
    ensure(content.trim_end() == "written", || format!("{} holds {content:?}", file.display()))
}

async fn read_only_mount_refuses_writes(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let mut spec = bench.container_spec(Role::Writes, "main").await?;
    let mount = bench.mount("read-only", true)?;
    let file = mount.host.join("out");
    spec.mounts = vec![mount];
    let id = bench.start_spec(&sandbox, &spec).await?;
    let seen = bench.exited(&id).await?;
    ensure(outcome(&seen.state).0 != 0, || "the write was not refused".to_owned())?;
    ensure(!file.exists(), || format!("{} was written", file.display()))
}

async fn stop_ends_a_container(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let id = bench.start(&sandbox, Role::Waits, "main").await?;
    bench.running(&id).await?;
    let begun = tokio::time::Instant::now();
    bench.runtime.stop(&id, GRACE).await.map_err(text)?;
    let seen = bench.exited(&id).await?;
    ensure(begun.elapsed() < GRACE, || "the workload did not end when it was asked".to_owned())?;
    let State::Exited { started, finished, .. } = seen.state else { return Err("not exited".to_owned()) };
    ensure(started.is_some_and(|started| started <= finished), || format!("started {started:?}, finished {finished}"))
}

async fn stop_is_idempotent(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let id = bench.start(&sandbox, Role::Waits, "main").await?;
    bench.runtime.stop(&id, GRACE).await.map_err(text)?;
    bench.runtime.stop(&id, GRACE).await.map_err(|error| format!("the second stop: {error}"))?;
    bench.runtime.remove(&id).await.map_err(text)?;
    bench.runtime.stop(&id, GRACE).await.map_err(|error| format!("stop after remove: {error}"))
}

async fn stop_after_the_end_changes_nothing(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let id = bench.start(&sandbox, Role::ExitsWithThree, "main").await?;
    let before = bench.exited(&id).await?;
    bench.runtime.stop(&id, GRACE).await.map_err(text)?;
    let after = bench.container(&id).await?.ok_or("the container is not listed any more")?;
    ensure(before.state == after.state, || format!("{:?} became {:?}", before.state, after.state))
}

async fn remove_is_idempotent(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let id = bench.start(&sandbox, Role::ExitsWithThree, "main").await?;
    bench.exited(&id).await?;
    bench.runtime.remove(&id).await.map_err(text)?;
    bench.runtime.remove(&id).await.map_err(|error| format!("the second remove: {error}"))?;
    let seen = bench.container(&id).await?;
    ensure(seen.is_none(), || "the removed container is still listed".to_owned())?;
    let sandbox = bench.seen(&sandbox).await?;
    ensure(sandbox.is_some_and(|sandbox| sandbox.ready), || "removing a container took its sandbox along".to_owned())
}

async fn containers_of_a_sandbox_are_independent(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let first = bench.start(&sandbox, Role::Waits, "first").await?;
    let second = bench.start(&sandbox, Role::Waits, "second").await?;
    bench.running(&first).await?;
    bench.running(&second).await?;
    bench.runtime.stop(&first, GRACE).await.map_err(text)?;
    bench.exited(&first).await?;
    bench.running(&second).await.map(drop)
}

async fn start_attempt(bench: &Bench<'_>, sandbox: &SandboxId, attempt: u32) -> Result<ContainerId, String> {
    let mut spec = bench.container_spec(Role::ExitsWithThree, "main").await?;
    spec.attempt = attempt;
    spec.log_path = format!("main/{attempt}.log").into();
    bench.start_spec(sandbox, &spec).await
}

async fn attempts_stand_side_by_side(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    for attempt in 0..2 {
        let id = start_attempt(bench, &sandbox, attempt).await?;
        bench.exited(&id).await?;
    }
    let seen = bench.seen(&sandbox).await?.ok_or("the sandbox is not listed")?;
    let mut attempts: Vec<u32> = seen.containers.iter().map(|container| container.attempt).collect();
    attempts.sort_unstable();
    ensure(attempts == [0, 1], || format!("attempts 0 and 1 are listed as {attempts:?}"))
}

async fn a_new_handle_sees_the_same(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let running = bench.start(&sandbox, Role::Waits, "runs").await?;
    let ended = bench.start(&sandbox, Role::ExitsWithThree, "ended").await?;
    bench.running(&running).await?;
    bench.exited(&ended).await?;
    let before = bench.seen(&sandbox).await?;
    let again = bench.fixture.reconnect().await;
    let after = again.list().await.map_err(text)?.into_iter().find(|seen| seen.id == sandbox);
    let sorted = |sandbox: Option<crate::Sandbox>| {
        sandbox.map(|mut sandbox| {
            sandbox.containers.sort_by(|a, b| a.id.cmp(&b.id));
            sandbox
        })
    };
    let (before, after) = (sorted(before), sorted(after));
    ensure(before == after, || format!("{before:#?}\nbecame\n{after:#?}"))
}

async fn create_without_a_sandbox_fails(bench: &Bench<'_>) -> Result<(), String> {
    let spec = bench.container_spec(Role::Waits, "main").await?;
    let made = bench.runtime.create(&SandboxId("no-such-sandbox".to_owned()), &spec).await;
    ensure(made.is_err(), || format!("made {made:?}"))
}

async fn changes_wake(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let mut changes = bench.runtime.changes();
    let id = bench.start(&sandbox, Role::Waits, "main").await?;
    bench.running(&id).await?;
    bench.runtime.stop(&id, GRACE).await.map_err(text)?;
    match tokio::time::timeout(bench.fixture.patience(), changes.next()).await {
        Ok(Some(())) => Ok(()),
        Ok(None) => Err("the stream of changes ended".to_owned()),
        Err(_) => Err("a container started and stopped, and nobody was woken".to_owned()),
    }
}

async fn stats_of_what_runs(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    let id = bench.start(&sandbox, Role::Waits, "main").await?;
    bench.running(&id).await?;
    let first = stats_until(bench, &id, Option::is_some).await?.ok_or("no statistics of a running container")?;
    ensure(first.name == "main" && first.sandbox.as_ref() == Some(&sandbox), || format!("of what is {first:?}?"))?;
    ensure(first.at.is_some(), || "statistics do not say when they were read".to_owned())?;
    ensure(first.memory_working_set_bytes <= first.memory_usage_bytes, || {
        format!("the working set is a part of what is used: {first:?}")
    })?;
    let is_later = |later: &Option<Stats>| later.as_ref().is_none_or(|later| later.at > first.at);
    let later = stats_until(bench, &id, is_later).await?.ok_or("the statistics of a running container went away")?;
    ensure(later.cpu_ns >= first.cpu_ns, || format!("CPU time fell from {} to {}", first.cpu_ns, later.cpu_ns))?;
    bench.runtime.stop(&id, GRACE).await.map_err(text)?;
    match stats_until(bench, &id, Option::is_none).await? {
        None => Ok(()),
        Some(stats) => Err(format!("a stopped container still has statistics: {stats:?}")),
    }
}

/// The statistics of a container once they are as wanted, or as they are when patience ends.
async fn stats_until(
    bench: &Bench<'_>,
    id: &ContainerId,
    wanted: impl Fn(&Option<Stats>) -> bool,
) -> Result<Option<Stats>, String> {
    let deadline = tokio::time::Instant::now() + bench.fixture.patience();
    loop {
        let all = bench.runtime.stats().await.map_err(text)?;
        let mine = all.into_iter().find(|stats| stats.container.as_ref() == Some(id));
        if wanted(&mine) || tokio::time::Instant::now() > deadline {
            return Ok(mine);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn exec_gives_output_and_code(bench: &Bench<'_>) -> Result<(), String> {
    let Some(commands) = bench.fixture.exec() else { return Ok(()) };
    let sandbox = bench.sandbox().await?;
    let id = bench.start(&sandbox, Role::Waits, "main").await?;
    bench.running(&id).await?;
    let hello = bench.runtime.exec(&id, &commands.hello, GRACE).await.map_err(text)?;
    ensure(hello.code == 0 && hello.stdout == b"hello\n", || format!("hello gave {hello:?}"))?;
    let three = bench.runtime.exec(&id, &commands.exits_with_three, GRACE).await.map_err(text)?;
    ensure(three.code == 3, || format!("code 3 became {}", three.code))
}

async fn exec_ends_at_its_timeout(bench: &Bench<'_>) -> Result<(), String> {
    let Some(sleeps) = bench.fixture.exec().and_then(|commands| commands.sleeps) else { return Ok(()) };
    let sandbox = bench.sandbox().await?;
    let id = bench.start(&sandbox, Role::Waits, "main").await?;
    bench.running(&id).await?;
    match bench.runtime.exec(&id, &sleeps, Duration::from_secs(1)).await {
        Err(Error::Timeout { .. }) => Ok(()),
        other => Err(format!("should time out, gave {other:?}")),
    }
}

async fn exec_streams_both_ways(bench: &Bench<'_>) -> Result<(), String> {
    let Some(copies) = bench.fixture.exec().and_then(|commands| commands.copies) else { return Ok(()) };
    let sandbox = bench.sandbox().await?;
    let id = bench.start(&sandbox, Role::Waits, "main").await?;
    bench.running(&id).await?;
    let (to_stdin, stdin) = mpsc::channel(4);
    let (stdout, mut from_stdout) = mpsc::channel(4);
    let (stderr, _from_stderr) = mpsc::channel(4);
    let (_resize, resized) = mpsc::channel(1);
    let request = ExecRequest { command: copies, stdin: true, stdout: true, stderr: true, tty: false };
    let io = ExecIo { stdin, stdout, stderr, resize: resized };
    let talk = async move {
        drop(to_stdin.send(Bytes::from_static(b"ping\n")).await);
        drop(to_stdin);
        let mut heard = Vec::new();
        while let Some(bytes) = from_stdout.recv().await {
            heard.extend_from_slice(&bytes);
        }
        heard
    };
    let both = futures::future::join(bench.runtime.exec_stream(&id, request, io), talk);
    let (code, heard) = tokio::time::timeout(bench.fixture.patience(), both)
        .await
        .map_err(|_| "a command whose stdin ended did not end".to_owned())?;
    let code = code.map_err(text)?;
    ensure(code == 0 && heard == b"ping\n", || format!("code {code}, stdout {:?}", String::from_utf8_lossy(&heard)))
}

/// A client that is attached: its ends of the streams.
struct Attached {
    stdin: mpsc::Sender<Bytes>,
    stdout: mpsc::Receiver<Bytes>,
    _stderr: mpsc::Receiver<Bytes>,
    _resize: mpsc::Sender<(u16, u16)>,
}

fn attached() -> (ExecIo, Attached) {
    let (to_stdin, stdin) = mpsc::channel(4);
    let (stdout, from_stdout) = mpsc::channel(4);
    let (stderr, from_stderr) = mpsc::channel(4);
    let (to_resize, resize) = mpsc::channel(1);
    let client = Attached { stdin: to_stdin, stdout: from_stdout, _stderr: from_stderr, _resize: to_resize };
    (ExecIo { stdin, stdout, stderr, resize }, client)
}

impl Attached {
    async fn say(&self, text: &'static [u8]) -> Result<(), String> {
        self.stdin.send(Bytes::from_static(text)).await.map_err(|_| "the container takes no input".to_owned())
    }

    /// Waits for this much output, and checks that it is this.
    async fn hears(&mut self, wanted: &str, patience: Duration) -> Result<(), String> {
        let mut heard = Vec::new();
        while heard.len() < wanted.len() {
            match tokio::time::timeout(patience, self.stdout.recv()).await {
                Ok(Some(bytes)) => heard.extend_from_slice(&bytes),
                Ok(None) => break,
                Err(_) => return Err(format!("of {wanted:?} came {:?}", String::from_utf8_lossy(&heard))),
            }
        }
        let heard = String::from_utf8_lossy(&heard);
        ensure(heard == wanted, || format!("should hear {wanted:?}, heard {heard:?}"))
    }
}

/// A container that copies its input.
async fn copier(bench: &Bench<'_>, stdin_once: bool) -> Result<ContainerId, String> {
    let sandbox = bench.sandbox().await?;
    let mut spec = bench.container_spec(Role::Copies, "main").await?;
    (spec.stdin, spec.stdin_once) = (true, stdin_once);
    let id = bench.start_spec(&sandbox, &spec).await?;
    bench.running(&id).await?;
    Ok(id)
}

const BOTH_WAYS: AttachRequest = AttachRequest { stdin: true, stdout: true, stderr: true, tty: false };

async fn attach_streams_both_ways(bench: &Bench<'_>) -> Result<(), String> {
    let id = copier(bench, true).await?;
    let (io, mut client) = attached();
    let talk = async move {
        client.say(b"ping\n").await?;
        client.hears("ping\n", bench.fixture.patience()).await?;
        client.say(b"pong\n").await?;
        client.hears("pong\n", bench.fixture.patience()).await
    };
    let both = futures::future::join(bench.runtime.attach(&id, BOTH_WAYS, io), talk);
    let (ended, talked) = tokio::time::timeout(bench.fixture.patience(), both)
        .await
        .map_err(|_| "a container whose only stdin ended did not end".to_owned())?;
    talked?;
    ended.map_err(text)?;
    let seen = bench.exited(&id).await?;
    ensure(outcome(&seen.state).0 == 0, || format!("should have ended with 0, is {:?}", seen.state))?;
    let (io, _client) = attached();
    let again = tokio::time::timeout(bench.fixture.patience(), bench.runtime.attach(&id, BOTH_WAYS, io)).await;
    ensure(matches!(again, Ok(Err(_))), || format!("attached to a container that has ended: {again:?}"))
}

async fn attach_hears_what_others_cause(bench: &Bench<'_>) -> Result<(), String> {
    let id = copier(bench, false).await?;
    let (listening, mut listener) = attached();
    let listen = bench.runtime.attach(&id, AttachRequest { stdin: false, ..BOTH_WAYS }, listening);
    let patience = bench.fixture.patience();
    let talk = async {
        let deadline = tokio::time::Instant::now() + patience;
        let mut rounds = 0;
        // Attaching takes its time, and what was said before is not heard. Whoever leaves a container whose stdin stays
        // open leaves it running.
        loop {
            speak_once(bench, &id).await?;
            rounds += 1;
            let heard = listener.hears("ping\n", MOMENT).await;
            match heard {
                Ok(()) if rounds > 1 => break,
                Err(why) if tokio::time::Instant::now() > deadline => return Err(why),
                Ok(()) | Err(_) => {}
            }
        }
        bench.running(&id).await?;
        let stop = bench.runtime.stop(&id, MOMENT);
        let stopped = tokio::time::timeout(patience, stop).await;
        stopped.map_err(|_| "a container that somebody listens to cannot be stopped".to_owned())?.map_err(text)
    };
    let listen = async { Ok(listen.await) };
    let (ended, ()) = tokio::time::timeout(patience * 2, futures::future::try_join(listen, talk))
        .await
        .map_err(|_| "attaching did not end with its container".to_owned())??;
    ended.map_err(text)
}

/// Attaches, says something, hears it come back, and leaves.
async fn speak_once(bench: &Bench<'_>, id: &ContainerId) -> Result<(), String> {
    let (io, mut client) = attached();
    let attach = bench.runtime.attach(id, BOTH_WAYS, io);
    let speak = async {
        client.say(b"ping\n").await?;
        client.hears("ping\n", bench.fixture.patience()).await
    };
    tokio::select! {
        ended = attach => Err(format!("attaching ended before its container: {ended:?}")),
        spoken = speak => spoken,
    }
}

async fn a_port_without_a_server_is_named(bench: &Bench<'_>) -> Result<(), String> {
    let sandbox = bench.sandbox().await?;
    match bench.runtime.connect(&sandbox, UNUSED_PORT).await {
        Err(error) if error.to_string().contains(&UNUSED_PORT.to_string()) => Ok(()),
        other => Err(format!("should be an error that names the port, is {other:?}")),
    }
}
