use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use tandem_containerd::Config;
use tandem_runtime::State;

use crate::node::{Node, command, until};

fn containerd_pid(node: &Node) -> Pid {
    let text = std::fs::read_to_string(node.containerd_folder().join("containerd.pid")).unwrap();
    Pid::from_raw(text.split(' ').next().unwrap().parse().unwrap()).unwrap()
}

fn alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// The pid, on this machine, of a container's process that has this word in its command line.
fn process_with(word: &str) -> Option<Pid> {
    let found = std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        String::from_utf8_lossy(&command).contains(word).then_some(pid)
    });
    found.and_then(Pid::from_raw)
}

/// As [`process_with`], for a container that was started: runc's own process becomes the container's a moment later.
async fn running(word: &str) -> Pid {
    until("the container's program runs", || async { process_with(word) }).await
}

pub(crate) async fn is_adopted_with_its_pods() {
    let mut node = Node::start().await;
    let (sandbox, container) = node.pod("adopted", "sleep 1000111").await;
    let (daemon, process) = (containerd_pid(&node), running("1000111").await);
    let before = node.sandbox(&sandbox).await;

    node.containerd = None;
    assert!(alive(daemon) && alive(process), "nothing ends with us");
    node.start_containerd(node.config()).await;

    assert_eq!(containerd_pid(&node), daemon);
    assert_eq!(node.sandbox(&sandbox).await, before);
    assert!(matches!(node.container(&container).await.state, State::Running { .. }));
    assert_eq!(process_with("1000111"), Some(process));
    // In a session and a cgroup of its own.
    assert_eq!(rustix::process::getsid(Some(daemon)).unwrap(), daemon);
    let cgroups = std::fs::read_to_string(format!("/proc/{daemon}/cgroup")).unwrap();
    let moved = cgroups.lines().filter(|line| line.contains("/tandem/containerd-")).count();
    assert!(moved >= cgroups.lines().count() - 1, "{cgroups}");

    // Without its pid file it is found by its socket.
    node.containerd = None;
    std::fs::remove_file(node.containerd_folder().join("containerd.pid")).unwrap();
    node.start_containerd(node.config()).await;
    assert_eq!(containerd_pid(&node), daemon);
}

pub(crate) async fn is_started_again_when_it_dies() {
    let node = Node::start().await;
    let (_, stays) = node.pod("stays", "sleep 1000222").await;
    let (_, ends) = node.pod("ends", "while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 7").await;
    let (daemon, process) = (containerd_pid(&node), running("1000222").await);
    node.exec(&ends, "sleep 0.7; true").await.unwrap();

    kill_process(daemon, Signal::KILL).unwrap();
    // What ends while nobody looks is seen afterwards.
    command(&format!("touch /proc/{}/root/tmp/go", running("/tmp/go").await));
    until("containerd is back", || async { node.runtime().list().await.ok() }).await;

    assert_ne!(containerd_pid(&node), daemon);
    assert_eq!(node.exited(&ends).await.0, 7);
    assert!(matches!(node.container(&stays).await.state, State::Running { .. }));
    assert_eq!(process_with("1000222"), Some(process));
    assert_eq!(node.exec(&stays, "echo works").await.unwrap(), "works\n");
    // A new pod works too.
    let (_, container) = node.pod("later", "exit 4").await;
    assert_eq!(node.exited(&container).await.0, 4);
}

pub(crate) async fn is_started_anew_when_its_configuration_changes() {
    let mut node = Node::start().await;
    let (_, container) = node.pod("stays", "sleep 1000333").await;
    let daemon = containerd_pid(&node);
    node.containerd = None;
    let config = node.containerd_folder().join("config.toml");
    let older = std::fs::read_to_string(&config).unwrap().replace("max_conf_num = 1", "max_conf_num = 2");
    std::fs::write(&config, older).unwrap();

    node.start_containerd(node.config()).await;
    assert_ne!(containerd_pid(&node), daemon);
    assert!(!alive(daemon));
    assert!(matches!(node.container(&container).await.state, State::Running { .. }));
}

pub(crate) async fn another_ones_socket_can_be_used() {
    let node = Node::start().await;
    let missing = tandem_containerd::external(&node.folder().join("nothing.sock")).await.err().unwrap().to_string();
    assert!(missing.starts_with("no container runtime answers on /tmp/tc"), "{missing}");

    let external = tandem_containerd::external(&node.containerd_folder().join("containerd.sock")).await.unwrap();
    let (sandbox, container) = node.pod("shared", "exit 9").await;
    assert_eq!(node.exited(&container).await.0, 9);
    assert_eq!(external.runtime.list().await.unwrap(), [node.sandbox(&sandbox).await]);

    // Sandboxes that others made there are none of ours.
    let mut config = tandem_cri::sandbox_config(&node.sandbox_spec("foreign"));
    config.annotations.clear();
    let request = tandem_cri::v1::RunPodSandboxRequest { config: Some(config), ..Default::default() };
    let foreign = external.cri.runtime().run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
    assert_eq!(external.runtime.list().await.unwrap().len(), 1);
    external.runtime.remove_sandbox(&tandem_runtime::SandboxId(foreign)).await.unwrap();
}

pub(crate) async fn strict_refuses_what_is_otherwise_warned_of() {
    let mut node = Node::start().await;
    let warnings = node.containerd.take().unwrap().warnings;
    let strict = tandem_containerd::start(Config { strict: true, ..node.config() }).await;
    match strict {
        Ok(_) => assert!(warnings.is_empty(), "{warnings:?}"),
        Err(error) => {
            let refusal = format!("refused to use containerd: {}", warnings.join("; "));
            assert_eq!(error.to_string(), refusal);
            assert!(!warnings.is_empty());
        }
    }
}

pub(crate) async fn down_leaves_nothing() {
    let mut node = Node::start().await;
    let (_, _) = node.pod("one", "sleep 1000444").await;
    let (_, _) = node.pod("two", "sleep 1000445").await;
    let folder = node.containerd_folder();
    let text = folder.display().to_string();
    let daemon = containerd_pid(&node);
    node.containerd = None;
    // One of the two is beyond what containerd can do: its shim is gone.
    let shim = command(&format!("pgrep -f '[c]ontainerd-shim.*{text}'"));
    let shim = Pid::from_raw(shim.lines().next().unwrap().parse().unwrap()).unwrap();
    kill_process(shim, Signal::KILL).unwrap();

    tandem_containerd::down(&folder).await.unwrap();
    tandem_containerd::down(&folder).await.unwrap();
    assert!(!alive(daemon));
    assert_eq!((process_with("1000444"), process_with("1000445")), (None, None));
    assert_eq!(command(&format!("pgrep -f '[c]ontainerd-shim.*{text}'")), "");
    assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&text));
    assert!(!Path::new(&folder.join("containerd.sock")).exists());
    let links = command("ip -o link show type veth | grep -v tdl");
    assert_eq!(links, "", "the pods' links are gone");
    // What was pulled is still there.
    node.start_containerd(node.config()).await;
    assert!(node.runtime().image(crate::node::BUSYBOX).await.unwrap().is_some());
    assert!(node.runtime().list().await.unwrap().is_empty());
}

pub(crate) async fn down_works_while_nobody_answers_the_plugins() {
    let mut node = Node::start().await;
    let (sandbox, _) = node.pod("one", "sleep 1000555").await;
    let folder = node.containerd_folder();
    node.containerd = None;
    node.give_addresses(false);
    tandem_containerd::down(&folder).await.unwrap();
    assert_eq!(process_with("1000555"), None);
    assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&folder.display().to_string()));
    // The kernel removes links a moment after their namespace.
    until("the pods' links are gone", async || {
        command("ip -o link show type veth | grep -v tdl").is_empty().then_some(())
    })
    .await;

    // What could not be given back then is given back later.
    node.give_addresses(true);
    node.start_containerd(node.config()).await;
    let left = node.runtime().list().await.unwrap();
    assert!(left.iter().all(|seen| seen.id == sandbox && !seen.ready), "{left:?}");
    node.runtime().remove_sandbox(&sandbox).await.unwrap();
    assert!(node.allocator.owners().is_empty(), "{:?}", node.allocator.owners());
}
