//! Machines made of network namespaces, and the network that connects them.

use std::{
    net::Ipv4Addr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A link that machines share: a bridge in a namespace of its own.
#[derive(Debug)]
pub struct Network {
    switch: String,
    id: u32,
}

/// A network namespace with one address on a [`Network`].
#[derive(Debug)]
pub struct Machine {
    pub name: String,
    pub address: Ipv4Addr,
}

fn run(line: &str) {
    let output = Command::new("sh").args(["-ec", line]).output().expect("sh runs");
    assert!(
        output.status.success(),
        "{line}: {} (end-to-end tests need root)",
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Network {
    #[allow(clippy::new_without_default, reason = "making a network changes the machine, which a default should not")]
    pub fn new() -> Network {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let switch = format!("tdt{}s{id}", std::process::id());
        run(&format!(
            "ip netns add {switch} && ip -n {switch} link add br0 type bridge && ip -n {switch} link set br0 up"
        ));
        Network { switch, id }
    }

    /// A machine with the address `10.250.0.NUMBER`.
    pub fn machine(&self, number: u8) -> Machine {
        let name = format!("tdt{}n{}x{number}", std::process::id(), self.id);
        let address = Ipv4Addr::new(10, 250, 0, number);
        let switch = &self.switch;
        run(&format!(
            "ip netns add {name}\n\
             ip -n {switch} link add p{number} type veth peer name eth0 netns {name}\n\
             ip -n {switch} link set p{number} master br0 up\n\
             ip -n {name} link set lo up\n\
             ip -n {name} addr add {address}/24 dev eth0\n\
             ip -n {name} link set eth0 up\n\
             ip -n {name} route add default via 10.250.0.254"
        ));
        Machine { name, address }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        run(&format!("ip netns del {}", self.switch));
    }
}

impl Machine {
    /// The path by which the namespace is entered.
    pub fn namespace(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command that will run on this machine.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace().display())).arg("--").arg(program);
        command
    }

    /// Runs a future on a thread that is on this machine's network.
    pub fn inside<T, F>(&self, future: F) -> T
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        inside(&self.namespace(), future)
    }

    /// Runs a line of shell on this machine.
    pub fn shell(&self, line: &str) -> Output {
        self.command("bash").args(["-c", line]).output().expect("bash runs")
    }
}

/// Runs a future on a thread that is in a network namespace.
pub fn inside<T, F>(namespace: &Path, future: F) -> T
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let namespace = std::fs::File::open(namespace).expect("the namespace is there");
    let thread = std::thread::spawn(move || {
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).expect("entering a namespace needs root");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(future)
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Drop for Machine {
    fn drop(&mut self) {
        run(&format!("ip netns del {}", self.name));
    }
}
