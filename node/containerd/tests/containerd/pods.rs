use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tandem_runtime::{ContainerId, ExecIo, ExecRequest, Network, Security};
use tokio::sync::mpsc;

use crate::node::{Node, PATIENCE, until};

const WAITS: &str = "trap 'exit 0' TERM; sleep 1000000 & wait";

pub(crate) async fn memory_over_the_limit_is_told() {
    let node = Node::start().await;
    let mut spec = node.container_spec("x=12345678; while :; do x=$x$x; done").await;
    spec.limits.memory_bytes = Some(24 << 20);
    let (_, container) = node.pod_of(&node.sandbox_spec("hungry"), &spec).await;
    assert_eq!(node.exited(&container).await, (137, "OOMKilled".to_owned()));
}

pub(crate) async fn security_settings_arrive() {
    let node = Node::start().await;
    let script = "id -u; id -g; id -G; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; \
                  echo x > /file || echo read only; hostname; exit 0";
    let mut spec = node.container_spec(script).await;
    spec.security = Security {
        user_id: Some(1234),
        group_id: Some(2345),
        supplemental_groups: vec![3456],
        read_only_root: true,
        no_new_privileges: true,
        drop_capabilities: vec!["ALL".to_owned()],
        seccomp_default: true,
        ..Security::default()
    };
    let (_, container) = node.pod_of(&node.sandbox_spec("secured"), &spec).await;
    assert_eq!(node.exited(&container).await, (0, "Completed".to_owned()));
    let said = || node.output("secured").into_iter().filter(|line| !line.contains("can't create"));
    let lines: Vec<String> =
        until("the output is complete", || async { Some(said().collect()).filter(|all: &Vec<String>| all.len() >= 8) })
            .await;
    assert_eq!(
        lines,
        [
            "1234",
            "2345",
            "2345 3456",
            "CapEff:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "read only",
            "secured"
        ]
    );

    // The group alone: the user is the image's.
    let mut spec = node.container_spec("id -u; id -g").await;
    spec.security.group_id = Some(7);
    let (_, container) = node.pod_of(&node.sandbox_spec("grouped"), &spec).await;
    node.exited(&container).await;
    until("the output is complete", || async { (node.output("grouped") == ["0", "7"]).then_some(()) }).await;
}

pub(crate) async fn root_in_a_container_does_not_reach_the_machine() {
    let node = Node::start().await;
    // Nothing is written: that a file can be opened would be enough.
    let script = "for file in /proc/sys/kernel/core_pattern /proc/sysrq-trigger; do (: >> $file) && echo open; done; \
                  for file in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts; do \
                  [ -f $file ] && echo sees $file; done; echo /sys/firmware/*; \
                  busybox cat /proc/sys/net/ipv4/ip_unprivileged_port_start; echo done";
    let spec = node.container_spec(script).await;
    let mut sandbox = node.sandbox_spec("contained");
    sandbox.sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned());
    let (_, container) = node.pod_of(&sandbox, &spec).await;
    node.exited(&container).await;
    // What goes to stderr may come into the log after it.
    let all = |lines: Vec<String>| lines.iter().any(|line| line == "done").then_some(lines);
    let lines = until("all is tried", || async { all(node.output("contained")) }).await;
    let lines: Vec<String> = lines.into_iter().filter(|line| !line.contains("can't create")).collect();
    assert_eq!(lines, ["/sys/firmware/*", "80", "done"]);
}

pub(crate) async fn privileged_containers_need_a_privileged_sandbox() {
    let node = Node::start().await;
    let mut spec = node.container_spec("grep CapEff /proc/self/status").await;
    spec.security.privileged = true;
    let mut sandbox = node.sandbox_spec("privileged");
    sandbox.annotations.insert("tandem.dev/privileged".to_owned(), "true".to_owned());
    let (_, container) = node.pod_of(&sandbox, &spec).await;
    assert_eq!(node.exited(&container).await.0, 0);
    let wide = |node: &Node| node.output("privileged").iter().any(|line| line.starts_with("CapEff:\t000001f"));
    until("all capabilities", || async { wide(&node).then_some(()) }).await;
}

pub(crate) async fn host_network_is_the_nodes() {
    let node = Node::start().await;
    let mut sandbox = node.sandbox_spec("hosted");
    sandbox.network = Network::Host { address: node.gateway() };
    let spec = node.container_spec("busybox ip address show lo; sleep 100000").await;
    let (id, container) = node.pod_of(&sandbox, &spec).await;
    let seen = node.sandbox(&id).await;
    assert_eq!((seen.address, seen.network_namespace), (Some(node.gateway()), None));
    let shown = node.exec(&container, "busybox ip address show lo").await.unwrap();
    assert!(shown.contains("10.96.0.10"), "{shown}");
}

struct Session {
    stdin: Option<mpsc::Sender<Bytes>>,
    stdout: mpsc::Receiver<Bytes>,
    stderr: mpsc::Receiver<Bytes>,
    resize: mpsc::Sender<(u16, u16)>,
    code: tokio::task::JoinHandle<tandem_runtime::Result<i32>>,
}

impl Session {
    fn start(node: &Node, id: &ContainerId, script: &str, stdin: bool, tty: bool) -> Session {
        let (to_stdin, stdin_end) = mpsc::channel(4);
        let (stdout_end, stdout) = mpsc::channel(64);
        let (stderr_end, stderr) = mpsc::channel(64);
        let (resize, resized) = mpsc::channel(4);
        let command = ["/bin/sh", "-c", script].map(str::to_owned).into();
        let request = ExecRequest { command, stdin, stdout: true, stderr: true, tty };
        let io = ExecIo { stdin: stdin_end, stdout: stdout_end, stderr: stderr_end, resize: resized };
        let (runtime, id) = (node.runtime(), id.clone());
        let code = tokio::spawn(async move { runtime.exec_stream(&id, request, io).await });
        Session { stdin: Some(to_stdin), stdout, stderr, resize, code }
    }

    async fn send(&self, text: &str) {
        self.stdin.as_ref().unwrap().send(Bytes::from(text.to_owned())).await.unwrap();
    }

    async fn read_until(&mut self, word: &str) -> String {
        let mut text = String::new();
        while !text.contains(word) {
            let more = tokio::time::timeout(PATIENCE, self.stdout.recv()).await;
            let more = more.unwrap_or_else(|_| panic!("{word} does not come after {text:?}"));
            text.push_str(&String::from_utf8_lossy(&more.unwrap_or_else(|| panic!("{word} should be in {text:?}"))));
        }
        text
    }

    async fn finish(mut self) -> (String, String, tandem_runtime::Result<i32>) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let read = async {
            while let Some(bytes) = self.stdout.recv().await {
                out.extend_from_slice(&bytes);
            }
            while let Some(bytes) = self.stderr.recv().await {
                err.extend_from_slice(&bytes);
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("the command ends in time");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (text(out), text(err), self.code.await.unwrap())
    }
}

pub(crate) async fn exec_carries_streams_and_terminals() {
    let node = Node::start().await;
    let (_, container) = node.pod("target", WAITS).await;

    let plain = Session::start(&node, &container, "echo out; echo err >&2; exit 5", false, false).finish().await;
    assert_eq!(plain, ("out\n".to_owned(), "err\n".to_owned(), Ok(5)));

    // Twice: the second one knows which protocol the server speaks.
    for _ in 0..2 {
        let mut session = Session::start(&node, &container, "cat; echo done", true, false);
        session.send("ping\n").await;
        assert_eq!(session.read_until("\n").await, "ping\n");
        session.stdin = None;
        assert_eq!(session.finish().await, ("done\n".to_owned(), String::new(), Ok(0)));
    }

    let session = Session::start(&node, &container, "busybox head -c 3000000 /dev/zero", true, false);
    let (out, _, code) = session.finish().await;
    assert_eq!((out.len(), code), (3_000_000, Ok(0)), "much output, and input that nobody reads");

    let script = "until stty size 2>/dev/null | grep 43; do sleep 0.1; done; read line; echo \"got $line\"; exit 6";
    let mut session = Session::start(&node, &container, script, true, true);
    session.resize.send((132, 43)).await.unwrap();
    session.read_until("43 132").await;
    session.send("word\n").await;
    let (out, err, code) = session.finish().await;
    assert!(out.contains("got word"), "{out}");
    assert_eq!((err.as_str(), code), ("", Ok(6)));

    let missing = Session::start(&node, &container, "exec /bin/missing", false, false).finish().await;
    assert_eq!(missing.2, Ok(127));
    let gone = ContainerId("0000".to_owned());
    let error = Session::start(&node, &gone, "true", false, false).finish().await.2.unwrap_err();
    assert!(matches!(error, tandem_runtime::Error::NotFound { .. }), "{error}");
}

pub(crate) async fn statistics_grow() {
    let node = Node::start().await;
    let (sandbox, container) = node.pod("busy", "while :; do :; done").await;
    let mine = || async {
        let all = node.runtime().stats().await.unwrap();
        all.into_iter().find(|stats| stats.container.as_ref() == Some(&container))
    };
    let first = until("there are statistics", mine).await;
    assert_eq!((first.sandbox.as_ref(), first.name.as_str()), (Some(&sandbox), "main"));
    let later =
        until("processor time was used", || async { mine().await.filter(|now| now.cpu_ns > first.cpu_ns) }).await;
    assert!(later.memory_working_set_bytes > 0 && later.at > first.at);
}

pub(crate) async fn the_end_of_a_container_wakes() {
    let node = Node::start().await;
    let mut changes = node.runtime().changes();
    // The first one says that something may have been missed.
    changes.next().await.unwrap();
    let (_, container) = node.pod("short", "read line < /tmp/never; exit 0").await;
    node.exited(&container).await;
    tokio::time::timeout(Duration::from_secs(30), changes.next()).await.expect("a wake-up").unwrap();
}
