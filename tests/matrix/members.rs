//! The cluster under test: members on machines of their own, a machine for clients, and who leads.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use tandem_tests::{
    cluster::{Daemon, folder},
    https::{Access, Connection, Failure},
    machine::{Machine, Network},
    until,
};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{DEADLINE, load};

const PORT: u16 = 6443;
/// The first number of a member's machine; each further one is used once.
const FIRST: u8 = 21;
const CLIENTS: u8 = 11;
const ASK_MAX: std::time::Duration = std::time::Duration::from_secs(5);

pub(crate) struct Members {
    /// Those that are to vote; a fault may have ended some.
    pub(crate) daemons: Vec<Daemon>,
    pub(crate) clients: Machine,
    pub(crate) network: Network,
    kubeconfig: PathBuf,
    _kept: TempDir,
    next: u8,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) role: String,
}

#[derive(Deserialize)]
struct MemberList {
    items: Vec<Member>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    term: u64,
    leads: bool,
    has_quorum: bool,
}

fn name(number: u8) -> String {
    format!("m{number}")
}

impl Members {
    /// Starts so many members, each in a folder that `folders` makes.
    pub(crate) fn start(count: usize, mut folders: impl FnMut() -> TempDir) -> Members {
        let network = Network::new();
        let clients = network.machine(CLIENTS);
        let first = Daemon::member_in(folders(), network.machine(FIRST), &name(FIRST), &[]);
        let kept = folder();
        let kubeconfig = kept.path().join("kubeconfig");
        std::fs::copy(first.kubeconfig(), &kubeconfig).expect("a kubeconfig");
        let daemons = vec![first];
        let mut members = Members { daemons, clients, network, kubeconfig, _kept: kept, next: FIRST + 1 };
        while members.daemons.len() < count {
            let joined = members.join(folders(), &[]);
            members.daemons.push(joined);
        }
        members.await_whole();
        load::prepare(&members.clients, &members.kubeconfig, members.addresses()[0]);
        members
    }

    /// Starts one more, which joins through the first that runs, and waits until it votes.
    pub(crate) fn join(&mut self, folder: TempDir, flags: &[&str]) -> Daemon {
        let number = self.next;
        self.next += 1;
        let machine = self.network.machine(number);
        let server = self.daemons.iter().find(|daemon| daemon.pid().is_some()).expect("a member runs");
        let (url, token) = (format!("https://{}:{PORT}", server.machine.address), server.token("control"));
        let join = ["--join", &url, "--token", &token];
        Daemon::member_in(folder, machine, &name(number), &[&join[..], flags].concat())
    }

    pub(crate) fn kubeconfig(&self) -> &std::path::Path {
        &self.kubeconfig
    }

    pub(crate) fn address(&self, member: usize) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.daemons[member].machine.address), PORT)
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        (0..self.daemons.len()).map(|member| self.address(member)).collect()
    }

    /// Reads a path from one member.
    pub(crate) fn ask(&self, member: usize, path: &str) -> Result<(u16, Bytes), String> {
        self.request(member, Method::GET, path, "")
    }

    /// Asks one member, and no other.
    pub(crate) fn request(
        &self,
        member: usize,
        method: Method,
        path: &str,
        body: &str,
    ) -> Result<(u16, Bytes), String> {
        let (access, server) = (Access::of(&self.kubeconfig), self.address(member));
        let (path, body) = (path.to_owned(), Bytes::copy_from_slice(body.as_bytes()));
        let asking = async move {
            let mut connection = Connection::open(&access, server).await?;
            let answer = connection.ask(server, method, &path, body).await?;
            Ok::<_, Failure>((answer.status.as_u16(), answer.body))
        };
        let asked = self.clients.inside(async move { timeout(ASK_MAX, asking).await });
        asked.map_err(|error| format!("{server}: {error}"))?.map_err(|failure| format!("{failure:?}"))
    }

    pub(crate) fn listed(&self, member: usize) -> Result<Vec<Member>, String> {
        let (code, body) = self.ask(member, "/tandem/v1/members")?;
        let list = serde_json::from_slice::<MemberList>(&body);
        list.map(|list| list.items).map_err(|error| format!("{code}: {error}"))
    }

    /// The id of a member, as another one knows it.
    pub(crate) fn id_of(&self, member: usize) -> u64 {
        let name = format!("m{}", self.daemons[member].machine.address.octets()[3]);
        until("the member is listed", DEADLINE, || {
            let lists = (0..self.daemons.len()).filter_map(|other| self.listed(other).ok());
            let all: Vec<Member> = lists.flatten().collect();
            all.iter().find(|known| known.name == name).map(|known| known.id).ok_or_else(|| format!("{all:?}"))
        })
    }

    /// Waits until all members vote, agree on who leads, and answer clients.
    pub(crate) fn await_whole(&self) {
        let names: BTreeSet<String> = self.daemons.iter().map(|it| name(it.machine.address.octets()[3])).collect();
        until("all members vote and agree", DEADLINE, || {
            let mut leaders = BTreeSet::new();
            for member in 0..self.daemons.len() {
                let all = self.listed(member)?;
                let voters: BTreeSet<String> =
                    all.iter().filter(|one| one.role != "learner").map(|one| one.name.clone()).collect();
                if voters != names || all.len() != names.len() {
                    return Err(format!("member {member}: {all:?}"));
                }
                leaders.extend(all.into_iter().filter(|one| one.role == "leader").map(|one| one.name));
                let (ready, _) = self.ask(member, "/readyz")?;
                if ready != 200 {
                    return Err(format!("member {member} is not ready"));
                }
            }
            if leaders.len() == 1 { Ok(()) } else { Err(format!("leaders: {leaders:?}")) }
        });
    }

    /// The member that leads, by its own word, and can commit.
    pub(crate) fn leader(&self) -> usize {
        let all: Vec<usize> = (0..self.daemons.len()).collect();
        self.leader_of(&all)
    }

    /// As [`Members::leader`], of some members only.
    pub(crate) fn leader_of(&self, members: &[usize]) -> usize {
        until("a leader", DEADLINE, || {
            let mut said = Vec::new();
            for member in members.iter().copied() {
                let status =
                    self.ask(member, "/tandem/v1/status").map(|(_, body)| serde_json::from_slice::<Status>(&body));
                if let Ok(Ok(Status { leads: true, has_quorum: true, .. })) = status {
                    return Ok(member);
                }
                said.push(format!("{status:?}"));
            }
            Err(said)
        })
    }

    /// The term of whoever leads.
    pub(crate) fn term(&self) -> u64 {
        let (leader, asked) = (self.leader(), "the leader tells its term");
        until(asked, DEADLINE, || {
            let (_, body) = self.ask(leader, "/tandem/v1/status")?;
            serde_json::from_slice::<Status>(&body).map(|status| status.term).map_err(|error| error.to_string())
        })
    }

    /// A member that does not lead.
    pub(crate) fn follower(&self) -> usize {
        (self.leader() + 1) % self.daemons.len()
    }

    pub(crate) fn others(&self, than: usize) -> Vec<usize> {
        (0..self.daemons.len()).filter(|member| *member != than).collect()
    }

    /// What comes from `from` no longer reaches `to`.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        self.filter(to, &format!("ip saddr {} drop", self.daemons[from].machine.address));
    }

    /// Adds a rule for what reaches a member.
    pub(crate) fn filter(&self, member: usize, rule: &str) {
        let line = format!(
            "nft add table inet matrix && \
             nft 'add chain inet matrix input {{ type filter hook input priority -300; }}' && \
             nft 'add rule inet matrix input {rule}'"
        );
        let output = self.daemons[member].machine.shell(&line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Takes back all rules.
    pub(crate) fn mend(&self) {
        for daemon in &self.daemons {
            let output = daemon.machine.shell("nft delete table inet matrix 2>/dev/null; nft list tables");
            let left = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && !left.contains("matrix"), "{left}");
        }
    }
}
