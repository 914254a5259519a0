//! Cluster settings: flags or a file at first start, the store from then on.

use std::path::Path;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use tandem_api::{Key, Settings};
use tandem_scheduler::Profile;
use tandem_store::{Command, Consistency, Expect, Reply, Storage, Stored};

use crate::cli::SettingsFlags;

const FILE_BYTES_MAX: u64 = 64 * 1024;

fn key() -> Key {
    Key::from_raw("/tandem.dev/settings/cluster")
}

fn text_of(file: &Path) -> anyhow::Result<String> {
    let shown = file.display();
    let length = std::fs::metadata(file).with_context(|| format!("cannot read {shown}"))?.len();
    if length > FILE_BYTES_MAX {
        bail!("{shown} is too large for settings ({length} bytes)");
    }
    std::fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))
}

/// The schedulers that the file of a member describes; without one, the one that every cluster has.
pub(crate) fn schedulers(file: Option<&Path>) -> anyhow::Result<Vec<Profile>> {
    let Some(file) = file else { return Ok(vec![Profile::default()]) };
    tandem_scheduler::read_profiles(&text_of(file)?)
        .with_context(|| format!("{} given with --scheduler-config cannot be used", file.display()))
}

/// The settings of a cluster that starts for the first time: the defaults, the file's or the flags', never both for one value.
pub(crate) fn from_flags(flags: &SettingsFlags) -> anyhow::Result<Settings> {
    let mut settings = Settings::default();
    let mut named = Vec::new();
    if let Some(file) = &flags.config {
        let shown = file.display();
        let text = text_of(file)?;
        settings = serde_saphyr::from_str(&text).with_context(|| format!("{shown} does not hold cluster settings"))?;
        named = text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect();
    }
    let derived_dns = flags.service_cidr.is_some() && flags.dns_address.is_none();
    let twice = |name: &str, given: bool| {
        if given && named.iter().any(|other| other == name) {
            bail!("{name} is set by a flag and in the file given with --config: set it once");
        }
        Ok(given)
    };
    macro_rules! take {
        ($field:ident, $name:literal) => {
            if twice($name, flags.$field.is_some())?
                && let Some(value) = flags.$field.clone()
            {
                settings.$field = value;
            }
        };
    }
    take!(pod_cidr, "podCidr");
    take!(node_mask, "nodeMask");
    take!(service_cidr, "serviceCidr");
    take!(dns_domain, "dnsDomain");
    take!(dns_address, "dnsAddress");
    take!(token_issuer, "tokenIssuer");
    if flags.dns_domain.is_some() && flags.token_issuer.is_none() {
        settings.token_issuer = format!("https://kubernetes.default.svc.{}", settings.dns_domain);
    }
    if derived_dns && let Some(address) = settings.service_cidr.hosts().nth(9) {
        settings.dns_address = address;
    }
    settings.check().context("these cluster settings cannot work")?;
    Ok(settings)
}

/// The settings in the store; those of `flags` are written there when the cluster is new, and compared when it is not.
pub(crate) async fn settle(storage: &dyn Storage, flags: &SettingsFlags) -> anyhow::Result<Settings> {
    let asked = from_flags(flags)?;
    let Some(stored) = stored(storage).await? else {
        let value = Bytes::from(serde_json::to_vec(&asked)?);
        return match storage.write(Command::put(key(), value, Expect::Absent)).await? {
            Reply::Done { .. } => Ok(asked),
            other => bail!("the cluster's settings could not be written: {other:?}"),
        };
    };
    let settings: Settings =
        serde_json::from_slice(&stored.value).context("the cluster's settings in the store cannot be read")?;
    if has_any(flags) && settings != asked {
        bail!(
            "cluster settings are fixed at first start and cannot be changed now.\nThe cluster has: {}\nYou gave:        {}\n\
             Leave the flags out, or start another cluster in another --data-dir.",
            serde_json::to_string(&settings)?,
            serde_json::to_string(&asked)?
        );
    }
    Ok(settings)
}

/// They never change: where this member has them, they are the cluster's.
async fn stored(storage: &dyn Storage) -> anyhow::Result<Option<Stored>> {
    let read = storage.get(&key(), Consistency::Any).await;
    read.context("cannot read the cluster's settings")
}

/// Whether this member has the cluster's settings; a new one does once it has caught up so far.
pub(crate) async fn are_known(storage: &dyn Storage) -> anyhow::Result<bool> {
    Ok(stored(storage).await?.is_some())
}

fn has_any(flags: &SettingsFlags) -> bool {
    flags.config.is_some()
        || flags.pod_cidr.is_some()
        || flags.node_mask.is_some()
        || flags.service_cidr.is_some()
        || flags.dns_domain.is_some()
        || flags.dns_address.is_some()
        || flags.token_issuer.is_some()
}

#[cfg(test)]
mod tests {
    use tandem_store::MemoryStore;

    use super::*;

    #[test]
    fn flags_and_file_never_speak_of_the_same_value() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("settings.yaml");
        std::fs::write(&file, "dnsDomain: example.internal\n").unwrap();
        let mut flags = SettingsFlags { config: Some(file), ..SettingsFlags::default() };
        assert_eq!(from_flags(&flags).unwrap().dns_domain, "example.internal");
        flags.service_cidr = Some("10.50.0.0/16".parse().unwrap());
        assert_eq!(from_flags(&flags).unwrap().dns_address, std::net::Ipv4Addr::new(10, 50, 0, 10));
        flags.dns_domain = Some("other".into());
        assert!(from_flags(&flags).unwrap_err().to_string().contains("set it once"));
    }

    #[tokio::test]
    async fn settings_stay_as_they_began() {
        let store = MemoryStore::new();
        let first = SettingsFlags { node_mask: Some(20), ..SettingsFlags::default() };
        assert_eq!(settle(&store, &first).await.unwrap().node_mask, 20);
        assert_eq!(settle(&store, &SettingsFlags::default()).await.unwrap().node_mask, 20);
        let other = SettingsFlags { node_mask: Some(21), ..SettingsFlags::default() };
        assert!(settle(&store, &other).await.unwrap_err().to_string().contains("fixed at first start"));
    }
}
