//! `tandem member` and `tandem status`: what the members say of themselves, as text or as JSON.

use std::{fmt::Write as _, path::Path, time::Duration};

use anyhow::Context as _;
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tandem_api::{Clock as _, SystemClock};
use tandem_client::{
    k8s_openapi::api::core::v1::Node,
    kube::{self, Api, api::ListParams},
};
use tokio::time::timeout;

use crate::{
    cli::Output,
    members::{Member, MemberList, MemberStatus, PATH, STATUS_PATH},
    terminal,
};

/// How long one member may take to say how it is.
const ANSWER_MAX: Duration = Duration::from_secs(3);

async fn asked<T: DeserializeOwned>(client: &kube::Client, method: &str, path: &str) -> Result<T, kube::Error> {
    let request = http::Request::builder().method(method).uri(path).body(Vec::new());
    client.request(request.map_err(kube::Error::HttpError)?).await
}

pub(crate) async fn members(kubeconfig: &Path, output: Output) -> anyhow::Result<()> {
    let client = tandem_client::from_kubeconfig(kubeconfig).await?;
    let list: MemberList = asked(&client, "GET", PATH).await.context("the members cannot be listed")?;
    print(&list, output, || member_table(&list.items))
}

pub(crate) async fn promote(id: u64, kubeconfig: &Path) -> anyhow::Result<()> {
    let client = tandem_client::from_kubeconfig(kubeconfig).await?;
    let path = format!("{PATH}/{id}/promote");
    let _: MemberList = asked(&client, "POST", &path).await.context("the member cannot be promoted")?;
    Ok(terminal::answer(&format!("member {id} votes"))?)
}

pub(crate) async fn remove(id: u64, kubeconfig: &Path) -> anyhow::Result<()> {
    let client = tandem_client::from_kubeconfig(kubeconfig).await?;
    let path = format!("{PATH}/{id}");
    let _: MemberList = asked(&client, "DELETE", &path).await.context("the member cannot be removed")?;
    Ok(terminal::answer(&format!("member {id} removed"))?)
}

/// Everything that `tandem status` shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClusterStatus {
    members: Vec<SeenMember>,
    nodes: Vec<SeenNode>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SeenMember {
    #[serde(flatten)]
    member: Member,
    /// What it says of itself, if it answers.
    status: Option<MemberStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SeenNode {
    name: String,
    ready: bool,
    version: String,
}

pub(crate) async fn show(kubeconfig: &Path, output: Output) -> anyhow::Result<()> {
    let client = tandem_client::from_kubeconfig(kubeconfig).await?;
    let list: MemberList = asked(&client, "GET", PATH).await.context("the members cannot be listed")?;
    // Who listens on the loopback interface only is reached as it was just now, and not at its address.
    let answering: Option<MemberStatus> = asked(&client, "GET", STATUS_PATH).await.ok();
    let asked = list.items.into_iter().map(|member| {
        let known = answering.clone().filter(|status| status.id == member.id);
        async move {
            let status = match known {
                Some(status) => Some(status),
                None => timeout(ANSWER_MAX, status_of(kubeconfig, &member.address)).await.ok().flatten(),
            };
            SeenMember { status, member }
        }
    });
    let members = join_all(asked).await;
    let nodes = Api::<Node>::all(client).list(&ListParams::default()).await.context("the nodes cannot be listed")?;
    let status = ClusterStatus { members, nodes: nodes.items.into_iter().map(seen).collect() };
    print(&status, output, || table(&status, SystemClock.now()))
}

async fn status_of(kubeconfig: &Path, address: &str) -> Option<MemberStatus> {
    let server = format!("https://{address}");
    let client = tandem_client::from_kubeconfig_at(kubeconfig, Some(&server)).await.ok()?;
    asked(&client, "GET", STATUS_PATH).await.ok()
}

fn seen(node: Node) -> SeenNode {
    let status = node.status.unwrap_or_default();
    let ready = status.conditions.iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True");
    let version = status.node_info.map(|info| info.kubelet_version).unwrap_or_default();
    SeenNode { name: node.metadata.name.unwrap_or_default(), ready, version }
}

fn print(value: &impl Serialize, output: Output, table: impl FnOnce() -> String) -> anyhow::Result<()> {
    let text = match output {
        Output::Json => serde_json::to_string_pretty(value)?,
        Output::Table => table().trim_end().to_owned(),
    };
    Ok(terminal::answer(&text)?)
}

fn member_table(members: &[Member]) -> String {
    let mut rows = vec![["ID", "NAME", "ADDRESS", "ROLE", "LAG"].map(ToOwned::to_owned).to_vec()];
    rows.extend(members.iter().map(member_row));
    columns(&rows)
}

fn member_row(member: &Member) -> Vec<String> {
    let Member { id, name, address, role, lag } = member;
    vec![id.to_string(), name.clone(), address.clone(), role.clone(), lag.map_or("?".to_owned(), |lag| lag.to_string())]
}

fn table(status: &ClusterStatus, now: Timestamp) -> String {
    let head = ["ID", "NAME", "ADDRESS", "ROLE", "LAG", "STATE", "VERSION", "CERTIFICATE", "STORE", "IMAGES", "FREE"];
    let mut rows = vec![head.map(ToOwned::to_owned).to_vec()];
    for SeenMember { member, status } in &status.members {
        let mut row = member_row(member);
        match status {
            None => row.push("no answer".to_owned()),
            Some(status) => row.extend([
                if status.has_quorum { "ok" } else { "no quorum" }.to_owned(),
                status.version.clone(),
                status.certificate_ends.map_or("?".to_owned(), |end| days(end.duration_since(now))),
                bytes(status.store_bytes),
                bytes(status.image_bytes),
                bytes(status.free_bytes),
            ]),
        }
        rows.push(row);
    }
    let mut text = columns(&rows);
    let mut rows = vec![["NODE", "STATE", "VERSION"].map(ToOwned::to_owned).to_vec()];
    rows.extend(status.nodes.iter().map(|node| {
        vec![node.name.clone(), if node.ready { "ready" } else { "not ready" }.to_owned(), node.version.clone()]
    }));
    let _infallible = write!(text, "\n{}", columns(&rows));
    text
}

fn days(left: SignedDuration) -> String {
    if left.is_negative() { "expired".to_owned() } else { format!("{}d", left.as_hours() / 24) }
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{}Ki", bytes >> 10),
        1_048_576..10_737_418_240 => format!("{}Mi", bytes >> 20),
        _ => format!("{}Gi", bytes >> 30),
    }
}

/// Rows with their cells below each other, three spaces apart, as kubectl has them.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or_default()).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("   ");
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_cluster_at_a_glance() {
        let member = |id: u64, name: &str, role: &str, lag| Member {
            id,
            name: name.to_owned(),
            address: format!("192.0.2.{id}:6443"),
            role: role.to_owned(),
            lag,
        };
        let now: Timestamp = "2026-11-22T00:00:00Z".parse().unwrap();
        let says = MemberStatus {
            id: 1,
            version: "0.1.0".to_owned(),
            term: 3,
            leads: true,
            has_quorum: true,
            revision: 77,
            certificate_ends: "2027-11-21T12:00:00Z".parse().ok(),
            authority_ends: None,
            store_bytes: 5 << 20,
            image_bytes: 900 << 10,
            free_bytes: 40 << 30,
        };
        let status = ClusterStatus {
            members: vec![
                SeenMember { member: member(1, "one", "leader", Some(0)), status: Some(says) },
                SeenMember { member: member(12, "twelve", "voter", None), status: None },
            ],
            nodes: vec![SeenNode { name: "n1".to_owned(), ready: false, version: "v1.36.0".to_owned() }],
        };
        expect![[r#"
            ID   NAME     ADDRESS           ROLE     LAG   STATE       VERSION   CERTIFICATE   STORE   IMAGES   FREE
            1    one      192.0.2.1:6443    leader   0     ok          0.1.0     364d          5Mi     900Ki    40Gi
            12   twelve   192.0.2.12:6443   voter    ?     no answer

            NODE   STATE       VERSION
            n1     not ready   v1.36.0
        "#]]
        .assert_eq(&table(&status, now));
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<ClusterStatus>(&json).unwrap(), status);
    }
}
