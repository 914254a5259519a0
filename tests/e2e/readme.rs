//! The README, typed by somebody who has nothing but a clone.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tandem_tests::{
    machine::{Machine, Network},
    root, tandem, target, until,
};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(60);
/// A block that fails must fail the test before its harness gives up.
const BLOCK_SECONDS: &str = "300";

/// What a block's first line asks for after its backticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// `sh`: typed into the terminal, line by line, each of which has to succeed.
    Typed,
    /// `sh stays`: typed into a terminal of its own, where it runs until Ctrl-C.
    Stays,
    /// `sh stays second`: the same on another machine.
    StaysOnSecond,
}

struct Block {
    line: usize,
    how: How,
    text: String,
}

/// The fenced blocks of a page, all of which have to be such that they can be run.
fn blocks(page: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let Some(info) = line.trim_start().strip_prefix("```") else { continue };
        let how = match info.trim() {
            "sh" => How::Typed,
            "sh stays" => How::Stays,
            "sh stays second" => How::StaysOnSecond,
            other => panic!("README.md:{}: nothing is known of how to run a block of {other:?}", at + 1),
        };
        let body = lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```");
        let text = body.fold(String::new(), |text, line| text + line + "\n");
        found.push(Block { line: at + 1, how, text });
    }
    found
}

/// A machine with a shell in the clone. Its host name is its own, its files are everybody's.
struct Host {
    machine: Machine,
    name: &'static str,
    clone: PathBuf,
    data: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Host {
    fn new(machine: Machine, name: &'static str, clone: &Path, first: &str) -> Host {
        let data = TempDir::with_prefix("tdt").expect("a temporary folder");
        let shared = target();
        let path = format!("{}:{}", std::env::var("PATH").unwrap_or_default(), shared.display());
        let folder = data.path().join("data").display().to_string();
        let environment = vec![
            ("PATH", path),
            ("HOME", data.path().display().to_string()),
            ("DATA_DIR", folder.clone()),
            ("TANDEM_DATA_DIR", folder),
            ("PROFILE", "dev".to_owned()),
            ("BINARY", tandem().display().to_string()),
            ("FIRST", first.to_owned()),
        ];
        Host { machine, name, clone: clone.to_owned(), data, environment }
    }

    fn data_dir(&self) -> PathBuf {
        self.data.path().join("data")
    }

    fn shell(&self, text: &str) -> Command {
        let script = format!("hostname {}; cd '{}'; exec 2>&1; {text}", self.name, self.clone.display());
        let mut command = self.machine.command("unshare");
        command.args(["--uts", "timeout", BLOCK_SECONDS, "bash", "-c", &script]).stdin(Stdio::null());
        // The reader's make is not called by the one that runs the tests, and does not say where it enters and leaves.
        for inherited in ["KUBECONFIG", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"] {
            command.env_remove(inherited);
        }
        command.envs(self.environment.iter().cloned());
        command
    }

    /// Types a text into this host's terminal, which remembers what was exported, and gives back what it shows.
    fn types(&self, text: &str) -> String {
        let kept = self.data.path().join("exported");
        let kept = kept.display();
        let text = format!("[ ! -e {kept} ] || . {kept}\nset -euo pipefail\n{text}\nexport -p > {kept}");
        let output = self.shell(&text).output().expect("bash runs");
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let last = shown.trim_end().lines().next_back().unwrap_or_default();
        assert!(output.status.success(), "{} on {}: {last}\n{shown}\nafter:\n{text}", output.status, self.name);
        shown
    }

    /// Types a text into a new terminal, where it goes on until it is interrupted.
    fn leaves(&self, text: &str, until_shown: &str) -> Foreground {
        let shown = self.data.path().join("shown");
        let file = File::create(&shown).expect("a file");
        let mut command = self.shell(&format!("exec >{}\nset -eu\n{text}", shown.display()));
        let process = command.process_group(0).stdout(file).spawn().expect("bash runs");
        let mut foreground = Foreground(Some(process));
        until(&format!("{until_shown:?} is shown"), DEADLINE, || {
            let text = fs::read_to_string(&shown).unwrap_or_default();
            assert!(!foreground.has_ended(), "{} ended:\n{text}", self.name);
            if text.contains(until_shown) { Ok(()) } else { Err(text) }
        });
        foreground
    }

    /// What `down` has to find nothing of.
    fn assert_empty(&self, footprint: &Footprint) {
        until("what was killed has ended", DEADLINE, || {
            let exiting = footprint.exiting();
            if exiting.is_empty() { Ok(()) } else { Err(exiting) }
        });
        let left = footprint.left();
        assert!(left.is_empty(), "{} has left:\n{}", self.name, left.join("\n"));
        let data = self.data.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts are known");
        let mounts: Vec<&str> = mounts.lines().filter(|line| line.contains(&data)).collect();
        assert!(mounts.is_empty(), "mounts are left: {mounts:#?}");
        let links = self.machine.shell("ls /sys/class/net 2>/dev/null; ip -o link | awk '{print $2}'; nft list tables");
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        let links: Vec<&str> = links.lines().filter(|line| line.contains("tandem") || line.contains("table")).collect();
        assert!(links.is_empty(), "links or tables are left: {links:#?}");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Nothing is there any more, unless the test has failed.
        drop(self.shell(&format!("'{}' down", tandem().display())).output());
    }
}

/// A command that has a terminal to itself.
struct Foreground(Option<Child>);

impl Foreground {
    fn has_ended(&mut self) -> bool {
        self.0.as_mut().is_none_or(|process| process.try_wait().expect("it can be asked").is_some())
    }

    /// Ctrl-C.
    fn interrupt(&mut self) {
        let Some(mut process) = self.0.take() else { return };
        let group = format!("-{}", process.id());
        drop(Command::new("kill").args(["-INT", "--", &group]).status());
        process.wait().expect("it ends");
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        self.interrupt();
    }
}

/// What a cluster has on the machine while it runs.
#[derive(Debug, Default)]
struct Footprint {
    /// Process ids, each with when it started.
    processes: BTreeSet<(u32, String)>,
    cgroups: BTreeSet<PathBuf>,
    /// Inodes of the network namespaces of pods.
    namespaces: BTreeSet<u64>,
}

impl Footprint {
    /// Of the data folder: the processes that name it, all processes that share a cgroup of ours with one of them, and
    /// the namespaces that they are in.
    fn of(data: &Path, own: &Machine) -> Footprint {
        let mut footprint = Footprint::default();
        let data = data.display().to_string();
        let named = processes().filter(|id| read(*id, "cmdline").contains(&data));
        let groups: BTreeSet<String> = named.flat_map(|id| our_groups(&read(id, "cgroup"))).collect();
        let own = fs::metadata(own.namespace()).expect("the machine's namespace").ino();
        for id in processes() {
            let cgroup = read(id, "cgroup");
            if !groups.iter().any(|group| cgroup.contains(group)) {
                continue;
            }
            footprint.processes.insert((id, started(id)));
            let tasks = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
            let inodes = tasks.filter_map(|task| Some(fs::metadata(task.path().join("ns/net")).ok()?.ino()));
            footprint.namespaces.extend(inodes.filter(|inode| *inode != own));
        }
        let hierarchies: Vec<PathBuf> =
            fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        let roots = hierarchies.iter().flat_map(|hierarchy| groups.iter().map(|group| hierarchy.join(&group[1..])));
        footprint.cgroups = roots.filter(|group| group.exists()).collect();
        assert!(!footprint.processes.is_empty() && !footprint.cgroups.is_empty(), "{footprint:?}");
        footprint
    }

    /// Processes that have given up their memory, and that the kernel has not yet taken apart: the first process of a
    /// pid namespace waits there for all others, without a cgroup, for as long as a busy machine needs.
    fn exiting(&self) -> Vec<u32> {
        let exiting =
            self.processes.iter().filter(|(id, since)| read(*id, "cmdline").is_empty() && started(*id) == *since);
        exiting.map(|(id, _)| *id).collect()
    }

    fn left(&self) -> Vec<String> {
        let processes = self.processes.iter().filter(|(id, since)| started(*id) == *since);
        let processes = processes.map(|(id, _)| format!("process {id}: {}", read(*id, "cmdline").replace('\0', " ")));
        let cgroups = self.cgroups.iter().filter(|group| group.exists());
        let cgroups = cgroups.map(|group| format!("cgroup {}", group.display()));
        let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let namespaces = named
            .filter(|file| fs::metadata(file.path()).is_ok_and(|metadata| self.namespaces.contains(&metadata.ino())));
        let namespaces = namespaces.map(|file| format!("namespace {}", file.path().display()));
        processes.chain(cgroups).chain(namespaces).collect()
    }
}

/// The cgroup of a node (`/tandem-ID`) or of its containerd (`/tandem/containerd-ID`), out of `/proc/PID/cgroup`.
fn our_groups(text: &str) -> Vec<String> {
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let ours = paths.filter_map(|path| {
        let mut parts = path.split('/').skip(1);
        match (parts.next()?, parts.next()) {
            ("tandem", Some(containerd)) => Some(format!("/tandem/{containerd}")),
            (node, _) if node.starts_with("tandem-") => Some(format!("/{node}")),
            _ => None,
        }
    });
    ours.collect()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("processes are known").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Empty where the process has gone.
fn read(process: u32, file: &str) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{process}/{file}")).unwrap_or_default()).into_owned()
}

/// The start time of a process; nothing for one that has ended.
fn started(process: u32) -> String {
    let stat = read(process, "stat");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return String::new();
    }
    fields.get(19).map(|since| (*since).to_owned()).unwrap_or_default()
}

/// A clone of what is committed, with what earlier builds made: the samples and the clients.
fn clone(folder: &Path) -> PathBuf {
    let clone = folder.join("tandem");
    let done = Command::new("git").args(["clone", "--quiet"]).arg(root()).arg(&clone).status();
    assert!(done.expect("git runs").success(), "{} is a git repository", root().display());
    fs::create_dir(clone.join("target")).expect("a folder");
    for shared in ["samples", "clients"] {
        let made = root().join("target").join(shared).canonicalize().expect("`make setup-test` has run");
        std::os::unix::fs::symlink(made, clone.join("target").join(shared)).expect("a link");
    }
    clone
}

fn shows(shown: &str, words: &[&str]) {
    let mut rest = shown;
    for word in words {
        let at = rest.find(word);
        rest = &rest[at.unwrap_or_else(|| panic!("{word:?} is not shown in its place: {shown}"))..];
    }
}

/// Every block of README.md, in its order and word for word, in a fresh clone of what is committed; then what the
/// blocks promise is looked at. Nothing is left when the last `make down` has run.
///
/// What a reader waits for and this does not: `BINARY` names the tandem that was built with this test, since a clone is
/// another folder and cargo would build all of the workspace again in it; the samples and kubectl are links to those
/// of `make setup-test`. `DATA_DIR` and `HOME` are the test's own, and each machine is a network namespace.
#[test]
fn the_readme_works_as_it_is_written() {
    let page = fs::read_to_string(root().join("README.md")).expect("the README");
    let folder = TempDir::with_prefix("tdt").expect("a temporary folder");
    let clone = clone(folder.path());
    let network = Network::new();
    let (machine, other) = (network.machine(11), network.machine(12));
    let address = machine.address.to_string();
    let first = Host::new(machine, "first", &clone, &address);
    let second = Host::new(other, "second", &clone, &address);

    let mut typed: Vec<String> = Vec::new();
    let mut foregrounds = Vec::new();
    for block in blocks(&page) {
        println!("README.md:{}", block.line);
        match block.how {
            How::Typed if block.text.contains("make down") => {
                let footprint = Footprint::of(&first.data_dir(), &first.machine);
                typed.push(first.types(&block.text));
                first.assert_empty(&footprint);
            }
            How::Typed => {
                typed.push(first.types(&block.text));
                if typed.len() == 1 {
                    shows(&first.types("tandem status"), &["leader", "ok", "ready"]);
                }
            }
            How::Stays => foregrounds.push(first.leaves(&block.text, "the cluster is ready")),
            How::StaysOnSecond => foregrounds.push(second.leaves(&block.text, "the node is ready")),
        }
    }
    let [start, usage, down, token] = &typed[..] else { panic!("blocks to type: {typed:#?}") };
    shows(start, &["hello-http at ", "Hello from hello-http, version 1", "nginx at ", "Welcome to nginx!", "Running"]);
    shows(usage, &["wasi:http", "registry.tandem/hello:1@sha256:", "Hello from hello-http, version 1", "rolled back"]);
    shows(down, &["components ended", "containers ended", "the data stays"]);
    assert!(!down.contains("WARN"), "{down}");
    assert_eq!(token.trim(), "");

    // Both machines are in the context that was set, and what ran before `make down` runs again.
    let kubectl = "unset KUBECONFIG; kubectl --context tandem";
    let nodes = first.types(&format!("{kubectl} wait --for=condition=Ready node/first node/second --timeout=60s"));
    shows(&nodes, &["first condition met", "second condition met"]);
    first.types(&format!("{kubectl} rollout status deployment/hello --timeout=60s"));
    let port = first.types("kubectl get service hello -o jsonpath='{.spec.ports[0].nodePort}'");
    let hello = format!("curl -sf --max-time 5 --retry 5 --retry-all-errors http://127.0.0.1:{port}");
    shows(&first.types(&hello), &["version 1"]);

    // Ctrl-C stops no workload; down does, for whatever runs.
    let mut footprint = Footprint::of(&first.data_dir(), &first.machine);
    foregrounds.iter_mut().for_each(Foreground::interrupt);
    let processes = footprint.processes.len();
    footprint.processes.retain(|(id, since)| started(*id) == *since);
    assert!(footprint.processes.len() + 1 >= processes, "Ctrl-C ended workloads: {:?}", footprint.left());
    shows(&first.types(&hello), &["version 1"]);
    first.types("make down");
    first.assert_empty(&footprint);
    let footprint = Footprint::of(&second.data_dir(), &second.machine);
    second.types("tandem down");
    second.assert_empty(&footprint);
}

#[test]
#[should_panic(expected = "README.md:3: nothing is known of how to run a block of \"yaml\"")]
fn a_block_that_cannot_run_fails() {
    blocks("# X\n\n```yaml\na: b\n```\n");
}
