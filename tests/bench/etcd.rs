use std::{
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use serde::Deserialize;
use tandem_tests::{
    machine::{Machine, Network},
    until,
};

const DEADLINE: Duration = Duration::from_secs(60);

/// A cluster of etcd, each member on a machine of its own.
pub(crate) struct Etcds {
    pub(crate) members: Vec<Etcd>,
    _folder: tempfile::TempDir,
}

impl Etcds {
    pub(crate) fn start(network: &Network, first: u8, count: u8) -> anyhow::Result<Etcds> {
        let folder = tempfile::tempdir()?;
        let machines: Vec<Machine> = (first..first + count).map(|number| network.machine(number)).collect();
        let peers: Vec<String> =
            machines.iter().enumerate().map(|(at, machine)| format!("m{at}=http://{}:2380", machine.address)).collect();
        let peers = peers.join(",");
        let mut members = Vec::new();
        for (at, machine) in machines.into_iter().enumerate() {
            let url = |port: u16| format!("http://{}:{port}", machine.address);
            let (client, peer) = (url(2379), url(2380));
            let data = folder.path().join(at.to_string()).display().to_string();
            let name = format!("m{at}");
            let arguments = [
                ["--name", &name],
                ["--data-dir", &data],
                ["--listen-client-urls", &client],
                ["--advertise-client-urls", &client],
                ["--listen-peer-urls", &peer],
                ["--initial-advertise-peer-urls", &peer],
                ["--initial-cluster", &peers],
            ];
            let arguments = arguments.iter().flatten().map(ToString::to_string).collect();
            members.push(Etcd { machine, arguments, process: None });
        }
        for member in &mut members {
            member.start()?;
        }
        let etcds = Etcds { members, _folder: folder };
        etcds.leader();
        Ok(etcds)
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.members.iter().map(Etcd::url).collect()
    }

    pub(crate) fn namespace(&self) -> PathBuf {
        self.members[0].machine.namespace()
    }

    /// Waits until all answer and one leads: which.
    pub(crate) fn leader(&self) -> usize {
        until("all of etcd to answer and one to lead", DEADLINE, || {
            let leading: Vec<bool> = self.members.iter().map(Etcd::leads).collect::<Result<_, _>>()?;
            leading.iter().position(|leads| *leads).ok_or_else(|| format!("{leading:?}"))
        })
    }
}

/// One member of etcd on a machine of its own.
pub(crate) struct Etcd {
    pub(crate) machine: Machine,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Etcd {
    pub(crate) fn start(&mut self) -> anyhow::Result<()> {
        let mut command = self.machine.command("etcd");
        command.args(&self.arguments).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(command.spawn().context("etcd is not installed: run `scripts/setup bench`")?);
        Ok(())
    }

    pub(crate) fn kill(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ended = self.process.take().map(|mut process| process.kill().and_then(|()| process.wait().map(drop)));
    }

    fn url(&self) -> String {
        format!("http://{}:2379", self.machine.address)
    }

    fn leads(&self) -> Result<bool, String> {
        #[derive(Deserialize)]
        struct Header {
            member_id: String,
        }
        #[derive(Deserialize)]
        struct Status {
            header: Header,
            #[serde(default)]
            leader: String,
        }
        let line = format!("curl -s --max-time 1 -X POST -d '{{}}' {}/v3/maintenance/status", self.url());
        let output = self.machine.shell(&line);
        let status: Status = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        Ok(status.leader == status.header.member_id)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
