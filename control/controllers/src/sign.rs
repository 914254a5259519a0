//! The seam to whoever holds the cluster's signing key.

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// A node that talks to the API server.
    Client,
    /// A node that is talked to.
    Server,
}

/// The certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the certificate could not be signed: {0}")]
pub struct SignError(pub String);

/// Signs certificate requests that were approved; decides nothing.
///
/// The certificate takes the subject, and for `Usage::Server` the alternative names, from the request.
pub trait Signer: Send + Sync + 'static {
    fn sign(&self, request_pem: &str, usage: Usage) -> Result<String, SignError>;

    /// What a request asks for. Fails for one that asks for names of other sorts, or whose signature is not its own.
    fn read(&self, request_pem: &str) -> Result<Asked, SignError>;
}

/// The subject and the names of a certificate request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub addresses: Vec<std::net::IpAddr>,
}
