//! The members of the control plane over HTTP, behind the API server's layers: who may ask is decided there.
//!
//! ```text
//!   GET    /tandem/v1/members               who belongs to the cluster, and how far is everyone
//!   POST   /tandem/v1/members               a newcomer gets its id and the cluster's keys
//!   POST   /tandem/v1/members/ID/promote    a member that listens is to vote
//!   DELETE /tandem/v1/members/ID            a member is to go
//!   GET    /tandem/v1/status                how the member that answers is
//! ```

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, State, rejection::JsonRejection},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tandem_api::{ApiError, Reason};
use tandem_pki::Secrets;
use tandem_store::{Aim, Change, Error, RaftStore, Role, Storage as _};

use crate::{
    certificates::ServerCertificate,
    enrol::{Enrolled, Enrolment},
};

pub(crate) const PATH: &str = "/tandem/v1/members";
pub(crate) const STATUS_PATH: &str = "/tandem/v1/status";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MemberList {
    pub(crate) items: Vec<Member>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) address: String,
    /// `leader`, `voter` or `learner`.
    pub(crate) role: String,
    /// Entries of the log that it is behind, where the leader could be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lag: Option<u64>,
}

/// How one member is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MemberStatus {
    pub(crate) id: u64,
    pub(crate) version: String,
    pub(crate) term: u64,
    pub(crate) leads: bool,
    pub(crate) has_quorum: bool,
    pub(crate) revision: u64,
    /// When the certificate that it serves clients with ends; it is renewed long before.
    pub(crate) certificate_ends: Option<Timestamp>,
    /// When the cluster's CA ends.
    pub(crate) authority_ends: Option<Timestamp>,
    pub(crate) store_bytes: u64,
    pub(crate) image_bytes: u64,
    pub(crate) free_bytes: u64,
}

/// What the endpoints need of the member that answers.
pub(crate) struct Membership {
    pub(crate) store: Arc<RaftStore>,
    pub(crate) cluster: String,
    /// `D/pki`, `D/store` and `D/images`.
    pub(crate) keys: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) images: PathBuf,
    pub(crate) listens: SocketAddr,
    pub(crate) certificate: Arc<ServerCertificate>,
    pub(crate) authority: String,
}

type Shared = State<Arc<Membership>>;

pub(crate) fn router(membership: Membership) -> Router {
    Router::new()
        .route(PATH, get(list).post(join))
        .route(&format!("{PATH}/{{id}}"), delete(remove))
        .route(&format!("{PATH}/{{id}}/promote"), post(promote))
        .route(STATUS_PATH, get(status))
        .with_state(Arc::new(membership))
}

/// An error as Kubernetes' clients read it.
struct Refused(ApiError);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        tandem_apiserver::status(&self.0)
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused(match error {
            Error::Denied(why) => ApiError::new(Reason::Conflict, why),
            Error::Unavailable(_) => ApiError::new(Reason::ServiceUnavailable, error.to_string()).retry_after(1),
            Error::Unknown(_) => ApiError::new(Reason::Timeout, error.to_string()),
            other => ApiError::internal(other),
        })
    }
}

async fn list(State(membership): Shared) -> Json<MemberList> {
    let members = membership.store.list_members().await;
    let shown = |member: tandem_store::Member| Member {
        id: member.id,
        name: member.name,
        address: member.address,
        role: match member.role {
            Role::Leader => "leader",
            Role::Voter => "voter",
            Role::Learner => "learner",
        }
        .to_owned(),
        lag: member.lag,
    };
    Json(MemberList { items: members.into_iter().map(shown).collect() })
}

async fn join(
    State(membership): Shared,
    body: Result<Json<Enrolment>, JsonRejection>,
) -> Result<Json<Enrolled>, Refused> {
    let Json(enrolment) = body.map_err(|error| Refused(ApiError::bad_request(error.body_text())))?;
    let known = membership.store.members().borrow().iter().map(|member| member.address.clone()).collect::<Vec<_>>();
    check_address(&enrolment, membership.listens, &known)
        .map_err(|why| Refused(ApiError::new(Reason::Conflict, why)))?;
    let keys = membership.keys.clone();
    let secrets = tokio::task::spawn_blocking(move || Secrets::read(&keys)).await;
    let secrets = secrets.map_err(|error| Refused(ApiError::internal(error)))?;
    let secrets = secrets.map_err(|error| Refused(ApiError::internal(error)))?;
    let Enrolment { name, address, replaces } = enrolment;
    let aim = replaces.map_or(Aim::Vote, Aim::Replace);
    let change = Change::Join { name: name.clone(), address: address.to_string(), aim };
    let member = membership.store.change(change).await?;
    tracing::info!(member, name, %address, "a member joins");
    Ok(Json(Enrolled { member, cluster: membership.cluster.clone(), secrets }))
}

/// Members must reach each other: all on one machine by its loopback address, or none.
fn check_address(enrolment: &Enrolment, listens: SocketAddr, known: &[String]) -> Result<(), String> {
    let address = enrolment.address;
    if address.ip().is_unspecified() || address.port() == 0 {
        return Err(format!("{address} is no address that other members can reach: give --advertise"));
    }
    let loopback = |address: &SocketAddr| address.ip().is_loopback();
    if listens.ip().is_loopback() && !loopback(&address) {
        return Err(format!(
            "the member that was asked listens on {listens} only, where {address} cannot reach it: \
             start it again with --listen 0.0.0.0:{} --advertise ADDRESS",
            listens.port()
        ));
    }
    let known: Vec<SocketAddr> = known.iter().filter_map(|known| known.parse().ok()).collect();
    match known.iter().find(|known| loopback(known) != loopback(&address)) {
        Some(other) if loopback(&address) => {
            Err(format!("{address} is a loopback address, which the member at {other} cannot reach: give --advertise"))
        }
        Some(other) => Err(format!(
            "a member has the loopback address {other}, where {address} cannot reach it: \
             start it again with --listen 0.0.0.0:{} --advertise ADDRESS",
            other.port()
        )),
        None => Ok(()),
    }
}

async fn promote(State(membership): Shared, Path(id): Path<u64>) -> Result<Json<MemberList>, Refused> {
    membership.store.change(Change::Promote { member: id }).await?;
    Ok(list(State(membership)).await)
}

async fn remove(State(membership): Shared, Path(id): Path<u64>) -> Result<Json<MemberList>, Refused> {
    membership.store.change(Change::Remove { member: id }).await?;
    tracing::info!(member = id, "a member was removed");
    Ok(list(State(membership)).await)
}

async fn status(State(membership): Shared) -> Result<Json<MemberStatus>, Refused> {
    let (store, images) = (membership.data.clone(), membership.images.clone());
    let disk = tokio::task::spawn_blocking(move || (bytes_below(&store), bytes_below(&images), free_bytes(&store)));
    let (store_bytes, image_bytes, free_bytes) = disk.await.map_err(|error| Refused(ApiError::internal(error)))?;
    let leadership = *membership.store.leadership().borrow();
    Ok(Json(MemberStatus {
        id: membership.store.id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        term: leadership.term,
        leads: leadership.leader,
        has_quorum: membership.store.has_quorum(),
        revision: membership.store.revision().0,
        certificate_ends: membership.certificate.not_after(),
        authority_ends: tandem_pki::not_after(&membership.authority).ok(),
        store_bytes,
        image_bytes,
        free_bytes,
    }))
}

/// What files take on disk. Those that go while they are counted do not count.
fn bytes_below(folder: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(size).sum()
}

fn free_bytes(folder: &std::path::Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(0, |found| found.f_bavail * found.f_frsize)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(address: &str, listens: &str, known: &[&str], expected: Expect) {
        let enrolment = Enrolment { name: "b".to_owned(), address: address.parse().unwrap(), replaces: None };
        let known: Vec<String> = known.iter().map(ToString::to_string).collect();
        let shown = check_address(&enrolment, listens.parse().unwrap(), &known).err().unwrap_or_default();
        expected.assert_eq(&shown);
    }

    #[test]
    fn newcomers_and_members_must_reach_each_other() {
        check("192.0.2.2:6443", "0.0.0.0:6443", &["192.0.2.1:6443"], expect![""]);
        check("127.0.0.1:7443", "127.0.0.1:6443", &["127.0.0.1:6443"], expect![""]);
        check(
            "0.0.0.0:6443",
            "0.0.0.0:6443",
            &[],
            expect!["0.0.0.0:6443 is no address that other members can reach: give --advertise"],
        );
        check(
            "192.0.2.2:6443",
            "127.0.0.1:6443",
            &["192.0.2.1:6443"],
            expect![
                "the member that was asked listens on 127.0.0.1:6443 only, where 192.0.2.2:6443 cannot reach it: start it again with --listen 0.0.0.0:6443 --advertise ADDRESS"
            ],
        );
        check(
            "127.0.0.1:7443",
            "0.0.0.0:6443",
            &["192.0.2.1:6443"],
            expect![
                "127.0.0.1:7443 is a loopback address, which the member at 192.0.2.1:6443 cannot reach: give --advertise"
            ],
        );
        check(
            "192.0.2.2:6443",
            "0.0.0.0:6443",
            &["127.0.0.1:6443"],
            expect![
                "a member has the loopback address 127.0.0.1:6443, where 192.0.2.2:6443 cannot reach it: start it again with --listen 0.0.0.0:6443 --advertise ADDRESS"
            ],
        );
    }
}
