use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::network::{Attachment, Dns};

/// The version of both kinds of file.
pub(crate) const RECORD_VERSION: u32 = 1;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodRecord {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) attempt: u32,
}

/// Times are nanoseconds since 1970, as in CRI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SandboxRecord {
    pub(crate) version: u32,
    pub(crate) id: String,
    pub(crate) pod: PodRecord,
    pub(crate) attachment: Attachment,
    pub(crate) dns: Dns,
    pub(crate) log_directory: PathBuf,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) created_at: i64,
    pub(crate) ready: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerRecord {
    pub(crate) version: u32,
    pub(crate) id: String,
    pub(crate) sandbox: String,
    pub(crate) name: String,
    pub(crate) attempt: u32,
    pub(crate) image: ImageRecord,
    pub(crate) kind: Kind,
    pub(crate) command: Vec<String>,
    pub(crate) args: Vec<String>,
    pub(crate) working_directory: Option<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) mounts: Vec<MountRecord>,
    pub(crate) resources: ResourceRecord,
    /// Whoever attaches may send to the standard input, which otherwise is at its end.
    #[serde(default)]
    pub(crate) stdin: bool,
    /// The standard input ends with the first client.
    #[serde(default)]
    pub(crate) stdin_once: bool,
    /// Where an HTTP component is served.
    pub(crate) port: u16,
    /// Below the sandbox's log directory; empty for none.
    pub(crate) log_path: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) created_at: i64,
    pub(crate) state: ContainerState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageRecord {
    /// As the caller named it.
    pub(crate) reference: String,
    /// The image's id in this host: the digest of its manifest.
    pub(crate) id: String,
    /// `REPOSITORY@DIGEST`.
    pub(crate) digest: String,
    /// The digest of the wasm file.
    pub(crate) file: String,
}

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Kind {
    Http,
    Command,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MountRecord {
    pub(crate) host: PathBuf,
    pub(crate) guest: String,
    pub(crate) read_only: bool,
}

/// Zero is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ResourceRecord {
    pub(crate) memory_bytes: i64,
    pub(crate) cpu_quota_us: i64,
    pub(crate) cpu_period_us: i64,
    pub(crate) cpu_shares: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub(crate) enum ContainerState {
    Created,
    #[serde(rename_all = "camelCase")]
    Running {
        started_at: i64,
    },
    #[serde(rename_all = "camelCase")]
    Exited {
        started_at: i64,
        finished_at: i64,
        #[serde(flatten)]
        exit: Exit,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Exit {
    pub(crate) code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl ContainerState {
    pub(crate) fn started_at(&self) -> i64 {
        match self {
            ContainerState::Created => 0,
            ContainerState::Running { started_at } | ContainerState::Exited { started_at, .. } => *started_at,
        }
    }
}

#[cfg(test)]
pub(crate) mod examples {
    use super::*;

    pub(crate) fn sandbox() -> SandboxRecord {
        SandboxRecord {
            version: RECORD_VERSION,
            id: "a1".into(),
            pod: PodRecord { name: "web-1".into(), namespace: "shop".into(), uid: "u1".into(), attempt: 0 },
            attachment: Attachment::Shared { namespace: "/run/light".into(), address: [10, 128, 16, 1].into() },
            dns: Dns { servers: vec![[10, 96, 0, 10].into()], searches: vec!["svc.cluster.local".into()], ndots: 5 },
            log_directory: "/logs/shop_web-1_u1".into(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            annotations: BTreeMap::new(),
            created_at: 1_700_000_000_000_000_000,
            ready: true,
        }
    }

    pub(crate) fn container(state: ContainerState) -> ContainerRecord {
        ContainerRecord {
            version: RECORD_VERSION,
            id: "c1".into(),
            sandbox: "a1".into(),
            name: "web".into(),
            attempt: 2,
            image: ImageRecord {
                reference: "registry.tandem/web:1".into(),
                id: "sha256:11".into(),
                digest: "registry.tandem/web@sha256:11".into(),
                file: "sha256:22".into(),
            },
            kind: Kind::Http,
            command: Vec::new(),
            args: vec!["--verbose".into()],
            working_directory: None,
            env: vec![("GREETING".into(), "hello".into())],
            mounts: vec![MountRecord { host: "/vol".into(), guest: "/data".into(), read_only: true }],
            resources: ResourceRecord {
                memory_bytes: 64 << 20,
                cpu_quota_us: 50_000,
                cpu_period_us: 100_000,
                cpu_shares: 512,
            },
            stdin: true,
            stdin_once: false,
            port: 8080,
            log_path: "web/2.log".into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            created_at: 1_700_000_000_000_000_001,
            state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_frozen() {
        let exited = ContainerState::Exited {
            started_at: 1,
            finished_at: 2,
            exit: Exit { code: 137, reason: "OOMKilled".into(), message: "memory limit exceeded".into() },
        };
        let mut text = serde_json::to_string_pretty(&examples::sandbox()).unwrap() + "\n";
        for state in [ContainerState::Created, ContainerState::Running { started_at: 1 }, exited] {
            let record = examples::container(state);
            let line = serde_json::to_string_pretty(&record).unwrap();
            assert_eq!(serde_json::from_str::<ContainerRecord>(&line).unwrap(), record);
            text += &line;
            text += "\n";
        }
        expect_test::expect_file!["../../golden/state.json"].assert_eq(&text);
    }
}
