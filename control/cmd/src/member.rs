//! Who this member is, as its data folder says it: founder of a cluster, newcomer, or member.
//!
//! ```text
//!   empty folder ──┬─ no --join ─> founding ─┐
//!                  └─ --join ────> joining ──┴─ the store has files ─> member
//!                                     ^                                  │ damaged, and others take it in
//!                                     └─────────── replacing <───────────┘
//! ```

use std::{io, net::SocketAddr, path::Path};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tandem_pki::{JoinToken, write_private};
use tandem_store::Begin;

use crate::{
    cli::JoinFlags,
    data::DataFolder,
    enrol::{self, Enrolment},
};

const VERSION: u32 = 1;
/// The one voter of a cluster that starts. Ids are never used twice, so members that join later get others.
const FIRST_MEMBER: u64 = 1;

/// How far this folder has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stage {
    /// It begins a cluster.
    Founding,
    /// It got its id and keys from another member.
    Joining,
    /// Its store was there: should it ever be gone, then that is a loss.
    Member,
    /// It has a new id, and still the damaged files of who it was.
    Replacing,
}

/// The file `D/member`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: u32,
    pub(crate) id: u64,
    stage: Stage,
}

impl Record {
    fn new(id: u64, stage: Stage) -> Record {
        Record { version: VERSION, id, stage }
    }

    fn read(path: &Path) -> anyhow::Result<Option<Record>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let malformed = || format!("{} does not say which member this is", path.display());
        let record: Record = serde_json::from_slice(&text).with_context(malformed)?;
        if record.version != VERSION {
            bail!("{} is of version {}; use the newer version of tandem that wrote it", path.display(), record.version);
        }
        Ok(Some(record))
    }

    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        Ok(write_private(path, &serde_json::to_vec(self)?)?)
    }

    /// What an empty store means for this member.
    pub(crate) fn begin(&self) -> Begin {
        match self.stage {
            Stage::Founding => Begin::Cluster,
            Stage::Joining => Begin::Member,
            Stage::Member | Stage::Replacing => Begin::Never,
        }
    }

    /// A member whose files are damaged, once the others have given it a new id.
    pub(crate) fn replaced_by(&self, id: u64) -> Record {
        Record::new(id, Stage::Replacing)
    }

    pub(crate) fn is_replacing(&self) -> bool {
        self.stage == Stage::Replacing
    }

    /// A new member without files.
    pub(crate) fn joins(&self) -> Record {
        Record::new(self.id, Stage::Joining)
    }

    pub(crate) fn is_joining(&self) -> bool {
        self.stage == Stage::Joining
    }

    /// The store has its files now.
    pub(crate) fn settled(&self, data: &DataFolder) -> anyhow::Result<()> {
        match self.stage {
            Stage::Member | Stage::Replacing => Ok(()),
            Stage::Founding | Stage::Joining => Record::new(self.id, Stage::Member).write(&data.member()),
        }
    }
}

/// What a folder is to become.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Continue(Record),
    /// A folder from before members were recorded.
    Adopt,
    Found,
    Join,
}

/// Decides by what lies in the folder and whether a cluster to join was named.
fn plan(record: Option<Record>, has_store: bool, has_keys: bool, joins: bool, shown: &str) -> anyhow::Result<Plan> {
    match (record, joins) {
        (Some(Record { stage: Stage::Founding, .. }), true) => bail!(
            "{shown} has begun a cluster of its own, which cannot join another: \
             name an empty folder with --data-dir, or empty this one"
        ),
        (Some(record), _) => Ok(Plan::Continue(record)),
        (None, _) if has_store => Ok(Plan::Adopt),
        (None, true) => Ok(Plan::Join),
        (None, false) if has_keys => bail!(
            "{shown} has keys but no store: either its store was lost, or joining was interrupted. \
             Join again with --join URL --token TOKEN, or name an empty folder with --data-dir"
        ),
        (None, false) => Ok(Plan::Found),
    }
}

/// Finds out who this member is; joins the cluster that the flags name where the folder is new.
pub(crate) async fn ensure(
    data: &DataFolder,
    name: String,
    flags: &JoinFlags,
    address: SocketAddr,
) -> anyhow::Result<Record> {
    let shown = data.path().display().to_string();
    let (has_store, has_keys) = (data.store().join("log.sqlite").exists(), data.pki().join("ca.key").exists());
    let planned = plan(Record::read(&data.member())?, has_store, has_keys, flags.join.is_some(), &shown)?;
    if !matches!(planned, Plan::Join)
        && let Some(token) = flags.token.as_deref()
    {
        same_cluster(data, &token.parse()?)?;
    }
    let record = match planned {
        Plan::Continue(record) => return Ok(record),
        Plan::Adopt => Record::new(FIRST_MEMBER, Stage::Member),
        Plan::Found => Record::new(FIRST_MEMBER, Stage::Founding),
        Plan::Join => {
            let (Some(server), Some(token)) = (&flags.join, &flags.token) else {
                bail!("joining takes a token: `tandem token create --role control` on a member prints one");
            };
            let enrolment = Enrolment { name, address, replaces: flags.replace };
            let answer = enrol::ask(server, &token.parse()?, &enrolment).await?;
            answer.secrets.write(&data.pki())?;
            data.set_cluster_id(&answer.cluster)?;
            Record::new(answer.member, Stage::Joining)
        }
    };
    // Last: a folder without it is not a member's yet.
    record.write(&data.member())?;
    Ok(record)
}

fn same_cluster(data: &DataFolder, token: &JoinToken) -> anyhow::Result<()> {
    let path = data.pki().join("ca.crt");
    let known = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if tandem_pki::fingerprint(&known)? != token.fingerprint {
        bail!(
            "{} belongs to a member of another cluster than the token: name an empty folder with --data-dir",
            data.path().display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(stage: Option<Stage>, has_store: bool, has_keys: bool, joins: bool, expected: Expect) {
        let record = stage.map(|stage| Record::new(7, stage));
        let shown = match plan(record, has_store, has_keys, joins, "D") {
            Ok(Plan::Continue(record)) => format!("continue as {} with {:?}", record.id, record.begin()),
            Ok(other) => format!("{other:?}"),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn what_a_folder_becomes() {
        check(None, false, false, false, expect!["Found"]);
        check(None, false, false, true, expect!["Join"]);
        check(None, true, true, false, expect!["Adopt"]);
        check(None, true, true, true, expect!["Adopt"]);
        check(None, false, true, true, expect!["Join"]);
        check(
            None,
            false,
            true,
            false,
            expect![
                "D has keys but no store: either its store was lost, or joining was interrupted. Join again with --join URL --token TOKEN, or name an empty folder with --data-dir"
            ],
        );
        check(Some(Stage::Founding), false, true, false, expect!["continue as 7 with Cluster"]);
        check(
            Some(Stage::Founding),
            false,
            true,
            true,
            expect![
                "D has begun a cluster of its own, which cannot join another: name an empty folder with --data-dir, or empty this one"
            ],
        );
        check(Some(Stage::Joining), false, true, false, expect!["continue as 7 with Member"]);
        check(Some(Stage::Member), true, true, true, expect!["continue as 7 with Never"]);
        check(Some(Stage::Member), false, true, false, expect!["continue as 7 with Never"]);
        check(Some(Stage::Replacing), true, true, true, expect!["continue as 7 with Never"]);
    }

    #[test]
    fn the_record_is_frozen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("member");
        assert_eq!(Record::read(&path).unwrap(), None);
        Record::new(12, Stage::Joining).write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), r#"{"version":1,"id":12,"stage":"joining"}"#);
        assert_eq!(Record::read(&path).unwrap(), Some(Record::new(12, Stage::Joining)));
        let replacing = Record::new(12, Stage::Member).replaced_by(31);
        replacing.write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), r#"{"version":1,"id":31,"stage":"replacing"}"#);
        assert!(Record::read(&path).unwrap().unwrap().is_replacing());
        assert!(replacing.joins().is_joining());
        std::fs::write(&path, r#"{"version":2,"id":12,"stage":"member"}"#).unwrap();
        assert!(Record::read(&path).unwrap_err().to_string().contains("newer version"));
    }
}
