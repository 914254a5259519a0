//! The cluster's certificate authorities, its ServiceAccount key and its join tokens.
//!
//! ```text
//!  Pki::open(dir) ─┬─ cluster      signs clients (administrators, nodes) and servers (API, nodes)
//!                  ├─ front_proxy  signs the certificate by which aggregated API servers know the API server
//!                  ├─ members      signs control-plane members; the raft port takes nothing else
//!                  └─ service_accounts  signs ServiceAccount tokens (ES256)
//! ```
//!
//! Keys are made on first start, readable by their owner only, and never leave the folder.

mod authority;
mod files;
mod join;
mod service_account;

use std::{path::Path, sync::Arc};

use jiff::Timestamp;

pub use authority::{Authority, CertificateRequest, Leaf, RequestedSubject, Usage, fingerprint};
pub use files::{DIRECTORY_MODE, PRIVATE_MODE, write_private};
pub use join::JoinToken;
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
    #[error("the token is refused: {0}")]
    Token(String),
}

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
            cluster: Authority::open(directory, "ca", "tandem-cluster", now)?,
            front_proxy: Authority::open(directory, "front-proxy-ca", "tandem-front-proxy", now)?,
            members: Authority::open(directory, "member-ca", "tandem-members", now)?,
            service_accounts: Arc::new(ServiceAccountKey::open(directory)?),
        })
    }
}
