//! Several members: real processes, one network namespace each, kubectl and a load that remembers what was acknowledged.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde::Deserialize;
use tandem_client::{
    from_kubeconfig_at,
    k8s_openapi::api::core::v1::ConfigMap,
    kube::{
        Api,
        api::{ListParams, ObjectMeta, PostParams},
    },
};
use tandem_tests::{allowed, cluster::Daemon, machine::Network, sample, until};

const DEADLINE: Duration = Duration::from_secs(60);
const WRITERS: u64 = 8;
/// One request of the load; an election takes far less.
const REQUEST_MAX: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct MemberList {
    items: Vec<Member>,
}

#[derive(Debug, Deserialize)]
struct Member {
    id: u64,
    name: String,
    role: String,
}

fn members(daemon: &Daemon) -> Result<Vec<Member>, String> {
    let output = daemon.tandem(&["member", "list", "-o", "json", "--data-dir", &daemon.data_dir()]);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    serde_json::from_slice::<MemberList>(&output.stdout).map(|list| list.items).map_err(|error| error.to_string())
}

fn id_of(daemon: &Daemon, name: &str) -> u64 {
    let all = members(daemon).expect("the members are listed");
    all.iter().find(|member| member.name == name).expect("the member is listed").id
}

fn await_voters(daemon: &Daemon, names: &[&str]) {
    until("all members vote", DEADLINE, || {
        let all = members(daemon)?;
        let leaders = all.iter().filter(|member| member.role == "leader").count();
        let voters: BTreeSet<&str> =
            all.iter().filter(|member| member.role != "learner").map(|member| member.name.as_str()).collect();
        let wanted: BTreeSet<&str> = names.iter().copied().collect();
        if voters == wanted && all.len() == names.len() && leaders == 1 { Ok(()) } else { Err(format!("{all:?}")) }
    });
}

/// The index of the member that leads.
fn leader(daemons: &[&Daemon], names: &[&str]) -> usize {
    until("a leader", DEADLINE, || {
        let all = members(daemons[0]).or_else(|_| members(daemons[1]))?;
        let leader = all.iter().find(|member| member.role == "leader").map(|member| member.name.clone());
        names.iter().position(|name| leader.as_deref() == Some(name)).ok_or_else(|| format!("{all:?}"))
    })
}

/// Writers that create ConfigMaps through given members and remember which were acknowledged, and when.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<Vec<Ack>>,
}

struct Ack {
    name: String,
    begun: Instant,
    at: Instant,
}

impl Load {
    fn start(from: &Daemon, through: &[&Daemon], run: &str) -> Load {
        let servers: Vec<String> =
            through.iter().map(|daemon| format!("https://{}:6443", daemon.machine.address)).collect();
        let kubeconfig = from.kubeconfig().to_owned();
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted, run) = (stop.clone(), acknowledged.clone(), run.to_owned());
        let namespace = from.machine.namespace();
        let thread = std::thread::spawn(move || {
            tandem_tests::machine::inside(&namespace, async move {
                let writers = (0..WRITERS).map(|writer| {
                    let server = servers[usize::try_from(writer).unwrap() % servers.len()].clone();
                    write(kubeconfig.clone(), server, format!("{run}-{writer}"), stopped.clone(), counted.clone())
                });
                futures::future::join_all(writers).await.concat()
            })
        });
        Load { stop, acknowledged, thread }
    }

    fn await_acknowledged(&self, more: u64) {
        let wanted = self.acknowledged.load(Ordering::Relaxed) + more;
        until("writes are acknowledged", DEADLINE, || {
            let now = self.acknowledged.load(Ordering::Relaxed);
            if now >= wanted { Ok(()) } else { Err(now) }
        });
    }

    fn end(self) -> Vec<Ack> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the load ends")
    }
}

impl Clone for Ack {
    fn clone(&self) -> Ack {
        Ack { name: self.name.clone(), ..*self }
    }
}

async fn write(
    kubeconfig: PathBuf,
    server: String,
    prefix: String,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
) -> Vec<Ack> {
    let client = from_kubeconfig_at(&kubeconfig, Some(&server)).await.expect("a client");
    let maps = Api::<ConfigMap>::namespaced(client, "default");
    let mut acks = Vec::new();
    for count in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{prefix}-{count}");
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let map = ConfigMap { metadata, ..ConfigMap::default() };
        let begun = Instant::now();
        let created = tokio::time::timeout(REQUEST_MAX, maps.create(&PostParams::default(), &map)).await;
        if let Ok(Ok(_)) = created {
            acknowledged.fetch_add(1, Ordering::Relaxed);
            acks.push(Ack { name, begun, at: Instant::now() });
        }
    }
    acks
}

/// Everything that was acknowledged is there, as this member sees it.
fn check_nothing_lost(daemon: &Daemon, acks: &[Ack]) {
    let (kubeconfig, server) = (daemon.kubeconfig().to_owned(), format!("https://{}:6443", daemon.machine.address));
    let held: BTreeSet<String> = tandem_tests::machine::inside(&daemon.machine.namespace(), async move {
        let client = from_kubeconfig_at(&kubeconfig, Some(&server)).await.expect("a client");
        let maps = Api::<ConfigMap>::namespaced(client, "default");
        let list = maps.list(&ListParams::default()).await.expect("the ConfigMaps are listed");
        list.items.into_iter().filter_map(|map| map.metadata.name).collect()
    });
    let lost: Vec<&str> = acks.iter().map(|ack| ack.name.as_str()).filter(|name| !held.contains(*name)).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged writes are gone: {lost:?}", lost.len(), acks.len());
}

/// kubectl against one member again and again, until it is told to stop; every failure is kept.
struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Clients {
    fn start(through: &[&Daemon]) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = through.iter().map(|daemon| {
            let mut command = daemon.kubectl_command(&["get", "namespaces", "-o", "name"]);
            let stop = stop.clone();
            std::thread::spawn(move || {
                let (mut asked, mut failures) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let output = command.output().expect("kubectl runs");
                    asked += 1;
                    if !output.status.success() {
                        failures.push(String::from_utf8_lossy(&output.stderr).into_owned());
                    }
                }
                (asked, failures)
            })
        });
        Clients { threads: threads.collect(), stop }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let (asked, failures) = thread.join().expect("a client ends");
            assert!(asked > 0, "nothing was asked");
            assert!(failures.is_empty(), "{} of {asked} requests failed: {failures:?}", failures.len());
        }
    }
}

/// Makes a namespace and waits for what a controller has to make in it.
fn await_leader_work(member: &Daemon, namespace: &str) {
    let told = |arguments: &[&str]| {
        let output = member.kubectl(arguments);
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    };
    // A creation that was not answered may have happened.
    until("a namespace is made", DEADLINE, || {
        told(&["create", "namespace", namespace]).or_else(|_| told(&["get", "namespace", namespace]))
    });
    until("it has its ServiceAccount", DEADLINE, || told(&["get", "serviceaccount", "default", "-n", namespace]));
}

/// A cluster grows from one to three, any member serves any client, and the death of the leader loses nothing.
#[test]
fn three_members_serve_as_one_and_outlive_their_leader() {
    let network = Network::new();
    let mut one = Daemon::control(network.machine(21), "one");
    let load = Load::start(&one, &[&one], "grow");
    load.await_acknowledged(5);
    let mut two = Daemon::member(network.machine(22), &one, "two", &[]);
    let mut three = Daemon::member(network.machine(23), &two, "three", &[]);
    await_voters(&one, &["one", "two", "three"]);
    load.await_acknowledged(20);
    check_nothing_lost(&three, &load.end());

    // What one member acknowledged, every other one shows at once; and the API's Service leads to all.
    for (writer, reader) in [(&one, &two), (&two, &three), (&three, &one)] {
        let name = format!("from-{}", writer.machine.address.octets()[3]);
        writer.read(&["create", "configmap", &name]);
        reader.read(&["get", "configmap", &name]);
    }
    until("the API's Service leads to all members", DEADLINE, || {
        let shown = two.read(&["get", "endpoints", "kubernetes", "-o", "jsonpath={.subsets[*].addresses[*].ip}"]);
        if shown.split(' ').count() == 3 { Ok(()) } else { Err(shown) }
    });
    let status = three.tandem(&["status", "--data-dir", &three.data_dir()]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert_eq!(status.matches(" ok ").count(), 3, "{status}");

    let names = ["one", "two", "three"];
    for round in 0..3 {
        let leading = leader(&[&one, &two, &three], &names);
        let mut daemons = [&mut one, &mut two, &mut three];
        let (rest, killed) = {
            daemons.swap(leading, 2);
            let [a, b, killed] = daemons;
            ([&*a, &*b], killed)
        };
        let load = Load::start(rest[0], &rest, &format!("kill{round}"));
        load.await_acknowledged(30);
        let at = Instant::now();
        killed.kill();
        await_leader_work(rest[0], &format!("after-{round}"));
        println!("the next leader's controllers have answered a new object {:?} after the kill", at.elapsed());
        load.await_acknowledged(30);
        let acks = load.end();
        let next = acks.iter().filter(|ack| ack.at > at).map(|ack| ack.at).min().expect("a write after the kill");
        let begun = acks.iter().filter(|ack| ack.begun > at).map(|ack| ack.at).min().expect("a write after the kill");
        let (next, begun) = (next.duration_since(at), begun.duration_since(at));
        println!("next acknowledged write {next:?} after the kill; of those begun after it {begun:?}");
        check_nothing_lost(rest[0], &acks);
        check_nothing_lost(rest[1], &acks);
        killed.start();
        await_voters(killed, &names);
        check_nothing_lost(killed, &acks);
    }
}

/// All members are restarted one after another, one is replaced for good, and no client notices.
#[test]
fn members_are_restarted_removed_and_replaced_under_clients() {
    let network = Network::new();
    let mut one = Daemon::control(network.machine(24), "one");
    let mut two = Daemon::member(network.machine(25), &one, "two", &[]);
    let mut three = Daemon::member(network.machine(26), &one, "three", &[]);
    let names = ["one", "two", "three"];
    await_voters(&one, &names);

    // An image that was uploaded to one member is had from every other one.
    let image = "registry.tandem/members/hello:1";
    let file = sample("hello-http-1.wasm").display().to_string();
    let pushed = one.tandem(&["push", &file, image]);
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    for other in [&two, &three] {
        let shown = other.tandem(&["inspect", image]);
        assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    }

    for index in 0..3 {
        let mut daemons = [&mut one, &mut two, &mut three];
        daemons.swap(index, 2);
        let [a, b, restarted] = daemons;
        let clients = Clients::start(&[&*a, &*b]);
        let took = restarted.stop();
        assert!(took < allowed(Duration::from_secs(3)), "{took:?}");
        restarted.start();
        await_voters(a, &names);
        clients.end();
    }

    // A machine that is gone for good: its member is removed, and another takes its place.
    let gone = id_of(&one, "three");
    three.kill();
    let removed = one.tandem(&["member", "remove", &gone.to_string(), "--data-dir", &one.data_dir()]);
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    let four = Daemon::member(network.machine(27), &two, "four", &[]);
    await_voters(&one, &["one", "two", "four"]);
    four.read(&["get", "namespaces"]);

    // It comes back: it is told that it is none any more, and what to do.
    three.restart();
    assert_eq!(three.ended(DEADLINE), Some(1));
    let log = std::fs::read_to_string(three.log()).expect("a log");
    assert!(log.contains("was removed from its cluster"), "{log}");

    // A folder that began a cluster of its own joins no other.
    let output = one.tandem(&[
        "control",
        "--data-dir",
        &one.data_dir(),
        "--listen",
        "127.0.0.1:7999",
        "--join",
        "https://192.0.2.1:6443",
        "--token",
        "x",
    ]);
    assert_eq!(output.status.code(), Some(1));
}

/// A member without the others refuses at once, and a node goes on through another member.
#[test]
fn a_node_goes_on_through_another_member_and_a_lonely_member_refuses() {
    let network = Network::new();
    let mut one = Daemon::control(network.machine(28), "one");
    let mut two = Daemon::member(network.machine(29), &one, "two", &[]);
    let mut three = Daemon::member(network.machine(30), &one, "three", &[]);
    await_voters(&one, &["one", "two", "three"]);
    let node = Daemon::join(network.machine(31), &one, "worker", &["--containerd", "off"]);
    two.read(&["wait", "--for=create", "node/worker", "--timeout=60s"]);
    two.read(&["wait", "--for=condition=Ready", "node/worker", "--timeout=60s"]);
    let known = std::path::Path::new(&node.data_dir()).join("node/members.json");
    until("the node knows all members", DEADLINE, || {
        let text = std::fs::read_to_string(&known).unwrap_or_default();
        if text.matches(":6443").count() == 3 { Ok(()) } else { Err(text) }
    });

    // The node joined through the first member, and uses it.
    let at = Instant::now();
    one.kill();
    until("the node answers through another member", DEADLINE, || {
        let line = "curl -s -o /dev/null -w '%{http_code}' -k --max-time 1 https://127.0.0.1:6444/readyz/store";
        let output = node.machine.shell(line);
        if output.stdout == b"200" { Ok(()) } else { Err(output) }
    });
    let took = at.elapsed();
    println!("the node's way to the API leads to another member after {took:?}");
    assert!(took < allowed(Duration::from_secs(3)), "{took:?}");
    two.read(&["label", "node", "worker", "seen=yes"]);
    two.read(&["wait", "--for=condition=Ready", "node/worker", "--timeout=30s"]);

    three.kill();
    until("the lonely member says that it is not ready", DEADLINE, || {
        let ready = two.kubectl(&["get", "--raw", "/readyz"]);
        if ready.status.success() { Err("ready".to_owned()) } else { Ok(()) }
    });
    let line = format!("curl -s -i -k --max-time 30 https://{}:6443/api/v1/nodes", two.machine.address);
    let asked = Instant::now();
    let answer = String::from_utf8_lossy(&two.machine.shell(&line).stdout).to_ascii_lowercase();
    assert!(asked.elapsed() < allowed(Duration::from_secs(2)), "{:?}", asked.elapsed());
    assert!(answer.contains(" 503") && answer.contains("retry-after: 1"), "{answer}");
    assert!(answer.contains("\"reason\":\"serviceunavailable\""), "{answer}");
    one.start();
    three.start();
    until("the member is ready again", DEADLINE, || {
        let ready = two.kubectl(&["get", "--raw", "/readyz"]);
        if ready.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&ready.stdout).into_owned()) }
    });
    two.stop();
}
