//! A member whose files are damaged comes back as a new one, when other members take it in.
//!
//! ```text
//!   damaged ──> a new id from the others ──> replacing ──> files kept aside ──> joining
//! ```
//!
//! Nothing is touched before the others have agreed; whatever comes in between, the next start goes on from there.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tandem_api::Clock;
use tandem_pki::{Leaf, write_private};
use tandem_store::Member;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    data::DataFolder,
    enrol::{self, Enrolment},
    member::Record,
};

const VERSION: u32 = 1;

/// The file `D/others`: where the other members were reached when this one last knew.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Others {
    version: u32,
    addresses: Vec<SocketAddr>,
}

fn read(path: &PathBuf) -> anyhow::Result<Vec<SocketAddr>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let malformed = || format!("{} does not say where the other members are", path.display());
    let others: Others = serde_json::from_slice(&text).with_context(malformed)?;
    if others.version != VERSION {
        bail!("{} is of version {}; use the newer version of tandem that wrote it", path.display(), others.version);
    }
    Ok(others.addresses)
}

fn write(path: &Path, addresses: Vec<SocketAddr>) -> anyhow::Result<()> {
    Ok(write_private(path, &serde_json::to_vec(&Others { version: VERSION, addresses })?)?)
}

/// Keeps note of where the other members are: should this one's files be damaged, they do not tell it.
pub(crate) async fn remember(
    mut members: watch::Receiver<Vec<Member>>,
    own: u64,
    path: PathBuf,
    shutdown: CancellationToken,
) {
    let mut known = None;
    loop {
        // As long as nobody is known, what was noted before is all there is.
        let others: Option<Vec<SocketAddr>> = {
            let members = members.borrow_and_update();
            let others = members.iter().filter(|member| member.id != own);
            let addresses = others.filter_map(|member| member.address.parse().ok()).collect();
            (!members.is_empty()).then_some(addresses)
        };
        if others.is_some() && known != others {
            let (path, noted) = (path.clone(), others.clone().unwrap_or_default());
            match tokio::task::spawn_blocking(move || write(&path, noted)).await.map_err(anyhow::Error::from).flatten()
            {
                Ok(()) => known = others,
                Err(error) => tracing::warn!(%error, "where the other members are could not be noted"),
            }
        }
        tokio::select! {
            changed = members.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

/// Who asks to be taken in, and by what the others know it.
pub(crate) struct Damaged<'a> {
    pub(crate) data: &'a DataFolder,
    pub(crate) record: Record,
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) authority: &'a str,
    pub(crate) leaf: Leaf,
    pub(crate) clock: &'a dyn Clock,
}

impl Damaged<'_> {
    /// Gives up who it was, and is a new member that joins.
    pub(crate) async fn become_new(self) -> anyhow::Result<Record> {
        let others = read(&self.data.others())?;
        if others.is_empty() {
            bail!("no other member is known");
        }
        let replaces = Some(self.record.id);
        let enrolment = Enrolment { name: self.name.clone(), address: self.address, replaces };
        let mut failures = Vec::new();
        for other in others {
            match enrol::ask_again(other, self.authority, &self.leaf, &enrolment).await {
                Ok(member) => {
                    tracing::warn!(member, was = self.record.id, "the damaged member comes back as a new one");
                    let record = self.record.replaced_by(member);
                    record.write(&self.data.member())?;
                    return set_aside(self.data, record, self.clock);
                }
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        bail!("no other member takes it in: {}", failures.join("; "))
    }
}

/// Keeps the damaged files aside, once the member has its new id.
pub(crate) fn set_aside(data: &DataFolder, record: Record, clock: &dyn Clock) -> anyhow::Result<Record> {
    let aside =
        tandem_store::quarantine(&data.store(), clock.now()).context("the damaged files cannot be kept aside")?;
    tracing::warn!(path = %aside.display(), "remove the damaged files when nobody wants to look at them");
    let record = record.joins();
    record.write(&data.member())?;
    Ok(record)
}

#[cfg(test)]
mod tests {
    use tandem_store::Role;

    use super::*;

    #[tokio::test]
    async fn the_others_are_noted_as_they_change() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("others");
        assert_eq!(read(&path).unwrap(), []);
        let member = |id: u64| Member {
            id,
            name: String::new(),
            address: format!("192.0.2.{id}:6443"),
            role: Role::Voter,
            matched: None,
            lag: None,
            reachable: None,
        };
        let shutdown = CancellationToken::new();
        write(&path, vec!["192.0.2.9:6443".parse().unwrap()]).unwrap();
        let (nobody, unknown) = watch::channel(Vec::new());
        drop(nobody);
        remember(unknown, 1, path.clone(), shutdown.clone()).await;
        assert_eq!(read(&path).unwrap().len(), 1, "nobody is known yet");
        let (told, members) = watch::channel(vec![member(1), member(2)]);
        let noting = tokio::spawn(remember(members, 1, path.clone(), shutdown));
        told.send_replace(vec![member(1), member(2), member(3)]);
        drop(told);
        noting.await.unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            r#"{"version":1,"addresses":["192.0.2.2:6443","192.0.2.3:6443"]}"#
        );
        std::fs::write(&path, r#"{"version":2,"addresses":[]}"#).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("newer version"));
    }
}
