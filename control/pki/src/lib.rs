//! The cluster's certificate authorities, its ServiceAccount key and its join tokens.
//!
//! ```text
//!  Pki::open(dir) ─┬─ cluster      signs clients (administrators, nodes) and servers (API, nodes)
//!                  ├─ front_proxy  signs the certificate by which aggregated API servers know the API server
//!                  ├─ members      signs control-plane members; the raft port takes nothing else
//!                  └─ service_accounts  signs ServiceAccount tokens (ES256)
//! ```
//!
//! Keys are made on first start, readable by their owner only, and leave the folder for that of another member only
//! ([`Secrets`]).

mod authority;
mod files;
mod join;
mod member;
mod secrets;
mod service_account;

use std::{path::Path, sync::Arc};

use jiff::Timestamp;

pub use authority::{Authority, CertificateRequest, Leaf, RequestedSubject, Usage, fingerprint, not_after};
pub use files::{DIRECTORY_MODE, PRIVATE_MODE, write_private};
pub use join::JoinToken;
pub use member::MemberName;
pub use secrets::Secrets;
pub use service_account::{PublicKey, ServiceAccountKey};

/// Why keys or certificates could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} {path}: {source}")]
    File { operation: &'static str, path: String, source: std::io::Error },
    #[error("{path} is not a usable key or certificate: {why}")]
    Malformed { path: String, why: String },
    #[error("cannot sign the certificate of {subject}: {why}")]
    Sign { subject: String, why: String },
    #[error("the certificate request is refused: {0}")]
    Request(String),
    #[error("the certificate is not a member's: {0}")]
    Member(String),
    #[error("the token is refused: {0}")]
    Token(String),
}

const CLUSTER: &str = "ca";
const FRONT_PROXY: &str = "front-proxy-ca";
const MEMBERS: &str = "member-ca";

/// Everything that proves identity in one cluster.
#[derive(Debug)]
pub struct Pki {
    pub cluster: Authority,
    pub front_proxy: Authority,
    pub members: Authority,
    pub service_accounts: Arc<ServiceAccountKey>,
}

impl Pki {
    /// Opens the keys in `directory`, making those that are not there yet.
    pub fn open(directory: &Path, now: Timestamp) -> Result<Pki, Error> {
        files::make_private_directory(directory)?;
        Ok(Pki {
            cluster: Authority::open(directory, CLUSTER, "tandem-cluster", now)?,
            front_proxy: Authority::open(directory, FRONT_PROXY, "tandem-front-proxy", now)?,
            members: Authority::open(directory, MEMBERS, "tandem-members", now)?,
            service_accounts: Arc::new(ServiceAccountKey::open(directory)?),
        })
    }
}
