use std::{fmt, io, path::Path, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde::Deserialize;

/// Who a client of the registry is.
#[derive(Clone, Default)]
pub enum Credentials {
    #[default]
    Anonymous,
    Token(String),
    /// A client certificate and its key, as PEM.
    Certificate {
        certificate: Vec<u8>,
        key: Vec<u8>,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Credentials::Anonymous => "Anonymous",
            Credentials::Token(_) => "Token(..)",
            Credentials::Certificate { .. } => "Certificate(..)",
        })
    }
}

/// Where the cluster's registry is, and how to be let in.
#[derive(Clone, Debug, Default)]
pub struct Endpoint {
    /// `https://HOST:PORT`.
    pub server: String,
    /// The PEM certificates that the server's must descend from.
    pub authority: Vec<u8>,
    pub credentials: Credentials,
}

/// Why there is no way to the registry.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("cannot read {path}")]
    File { path: String, source: io::Error },
    #[error("{path} is not a kubeconfig: {why}")]
    Kubeconfig { path: String, why: String },
    #[error("the certificates of the kubeconfig cannot be used: {0}")]
    Certificates(String),
    #[error("cannot make an HTTP client")]
    Client(#[from] reqwest::Error),
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    current_context: Option<String>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    token_file: Option<String>,
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<String>,
}

/// Reads the files that a kubeconfig names, relative to it.
struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn wrong(&self, why: impl Into<String>) -> EndpointError {
        EndpointError::Kubeconfig { path: self.path.display().to_string(), why: why.into() }
    }

    fn file(&self, name: &Path) -> Result<Vec<u8>, EndpointError> {
        std::fs::read(name).map_err(|source| EndpointError::File { path: name.display().to_string(), source })
    }

    /// Data that stands in the kubeconfig, or in a file that it names.
    fn data(&self, inline: Option<&str>, file: Option<&str>) -> Result<Option<Vec<u8>>, EndpointError> {
        if let Some(inline) = inline {
            return STANDARD.decode(inline).map(Some).map_err(|error| self.wrong(error.to_string()));
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        file.map(|name| self.file(&folder.join(name))).transpose()
    }

    fn credentials(&self, user: &User) -> Result<Credentials, EndpointError> {
        if let Some(token) = &user.token {
            return Ok(Credentials::Token(token.clone()));
        }
        if let Some(token) = self.data(None, user.token_file.as_deref())? {
            let token = String::from_utf8(token).map_err(|error| self.wrong(error.to_string()))?;
            return Ok(Credentials::Token(token.trim().to_owned()));
        }
        let certificate = self.data(user.client_certificate_data.as_deref(), user.client_certificate.as_deref())?;
        let key = self.data(user.client_key_data.as_deref(), user.client_key.as_deref())?;
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Credentials::Certificate { certificate, key }),
            (None, None) => Ok(Credentials::Anonymous),
            _ => Err(self.wrong("a client certificate and its key go together")),
        }
    }
}

impl Endpoint {
    /// The cluster and user of a kubeconfig's current context.
    pub fn from_kubeconfig(path: &Path) -> Result<Endpoint, EndpointError> {
        let reader = Reader { path };
        let text = String::from_utf8(reader.file(path)?).map_err(|error| reader.wrong(error.to_string()))?;
        let config: Kubeconfig = serde_saphyr::from_str(&text).map_err(|error| reader.wrong(error.to_string()))?;
        let current = config.current_context.ok_or_else(|| reader.wrong("it has no current-context"))?;
        let context = config.contexts.into_iter().find(|context| context.name == current);
        let context = context.ok_or_else(|| reader.wrong(format!("it has no context {current:?}")))?.context;
        let cluster = config.clusters.into_iter().find(|cluster| cluster.name == context.cluster);
        let cluster = cluster.ok_or_else(|| reader.wrong(format!("it has no cluster {:?}", context.cluster)))?.cluster;
        let user = config.users.into_iter().find(|user| user.name == context.user);
        let user = user.map(|user| user.user).unwrap_or_default();
        let authority =
            reader.data(cluster.certificate_authority_data.as_deref(), cluster.certificate_authority.as_deref())?;
        Ok(Endpoint {
            server: cluster.server.trim_end_matches('/').to_owned(),
            authority: authority.unwrap_or_default(),
            credentials: reader.credentials(&user)?,
        })
    }

    /// An HTTP client that trusts this server's authority alone and shows its certificate.
    pub(crate) fn client(&self) -> Result<reqwest::Client, EndpointError> {
        let wrong = |error: &dyn fmt::Display| EndpointError::Certificates(error.to_string());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&self.authority) {
            let certificate = certificate.map_err(|error| wrong(&error))?;
            roots.add(certificate).map_err(|error| wrong(&error))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| wrong(&error))?;
        let builder = builder.with_root_certificates(roots);
        let tls = match &self.credentials {
            Credentials::Certificate { certificate, key } => {
                let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>();
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| wrong(&error))?;
                builder
                    .with_client_auth_cert(chain.map_err(|error| wrong(&error))?, key)
                    .map_err(|error| wrong(&error))?
            }
            Credentials::Anonymous | Credentials::Token(_) => builder.with_no_client_auth(),
        };
        let client = reqwest::Client::builder().tls_backend_preconfigured(tls);
        // A proxy of the environment is for the world outside, not for the cluster.
        Ok(client.no_proxy().connect_timeout(Duration::from_secs(10)).build()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
current-context: tandem
clusters: [{name: c, cluster: {server: 'https://127.0.0.1:6443/', certificate-authority: ca.crt}}]
contexts: [{name: tandem, context: {cluster: c, user: u, namespace: default}}]
users: [{name: u, user: {client-certificate-data: Y2VydA==, client-key-data: a2V5}}]
";

    #[test]
    fn kubeconfigs_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(folder.path().join("ca.crt"), "authority").unwrap();
        std::fs::write(&path, KUBECONFIG).unwrap();
        let endpoint = Endpoint::from_kubeconfig(&path).unwrap();
        assert_eq!(
            (endpoint.server.as_str(), endpoint.authority.as_slice()),
            ("https://127.0.0.1:6443", &b"authority"[..])
        );
        let Credentials::Certificate { certificate, key } = endpoint.credentials else { panic!("a certificate") };
        assert_eq!((certificate.as_slice(), key.as_slice()), (&b"cert"[..], &b"key"[..]));

        std::fs::write(
            &path,
            KUBECONFIG.replace("client-certificate-data: Y2VydA==, client-key-data: a2V5", "token: t"),
        )
        .unwrap();
        assert!(
            matches!(Endpoint::from_kubeconfig(&path).unwrap().credentials, Credentials::Token(token) if token == "t")
        );
        std::fs::write(&path, KUBECONFIG.replace("current-context: tandem", "current-context: other")).unwrap();
        assert!(Endpoint::from_kubeconfig(&path).unwrap_err().to_string().ends_with("it has no context \"other\""));
    }
}
