use std::{collections::BTreeMap, fmt, path::Path};

use serde::{Deserialize, Serialize};

use crate::{CLUSTER, Error, FRONT_PROXY, MEMBERS, files, service_account};

/// The keys of a cluster on their way from one member to another. Never shown, not even in part.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secrets(BTreeMap<String, String>);

impl fmt::Debug for Secrets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secrets { .. }")
    }
}

fn names() -> Vec<String> {
    let authorities = [CLUSTER, FRONT_PROXY, MEMBERS];
    let pairs = authorities.iter().flat_map(|name| [format!("{name}.key"), format!("{name}.crt")]);
    pairs.chain([service_account::FILE.to_owned()]).collect()
}

impl Secrets {
    /// What lies in the folder of a member.
    pub fn read(directory: &Path) -> Result<Secrets, Error> {
        let mut secrets = BTreeMap::new();
        for name in names() {
            let path = directory.join(&name);
            let missing = || Error::Malformed { path: path.display().to_string(), why: "it is not there".to_owned() };
            secrets.insert(name, files::read(&path)?.ok_or_else(missing)?);
        }
        Ok(Secrets(secrets))
    }

    /// Writes them into the folder of a new member. Keys first: a certificate without its key stops a start.
    pub fn write(&self, directory: &Path) -> Result<(), Error> {
        files::make_private_directory(directory)?;
        for name in names() {
            let missing =
                || Error::Malformed { path: name.clone(), why: "the other member did not send it".to_owned() };
            let content = self.0.get(&name).ok_or_else(missing)?;
            files::write_private(&directory.join(&name), content.as_bytes())?;
        }
        Ok(())
    }

    /// The certificate of the cluster's CA (PEM), by which the receiver knows whose secrets these are.
    pub fn cluster_certificate(&self) -> Option<&str> {
        self.0.get(&format!("{CLUSTER}.crt")).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pki;

    #[test]
    fn a_second_member_has_the_same_keys_and_nothing_shows_them() {
        let now = "2026-11-22T00:00:00Z".parse().unwrap();
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pki = Pki::open(here.path(), now).unwrap();
        let secrets = Secrets::read(here.path()).unwrap();
        assert_eq!(format!("{secrets:?}"), "Secrets { .. }");
        assert_eq!(secrets.cluster_certificate(), Some(pki.cluster.certificate()));
        secrets.write(&there.path().join("pki")).unwrap();
        let copy = Pki::open(&there.path().join("pki"), now).unwrap();
        assert_eq!(copy.members.certificate(), pki.members.certificate());
        assert_eq!(copy.service_accounts.public(), pki.service_accounts.public());
        assert_eq!(Secrets::read(&there.path().join("pki")).unwrap(), secrets);

        std::fs::remove_file(here.path().join("member-ca.key")).unwrap();
        assert!(Secrets::read(here.path()).unwrap_err().to_string().contains("member-ca.key"));
    }
}
