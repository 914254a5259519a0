//! How a machine becomes a node: it pins the cluster's CA by the token's fingerprint, then has its certificates signed.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sha2::{Digest as _, Sha256};
use tandem_client::{
    Credentials,
    k8s_openapi::{
        ByteString,
        api::{
            certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
            core::v1::{Node, NodeAddress, NodeStatus},
        },
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    kube::{
        self, Api,
        api::{Patch, PatchParams, PostParams},
        runtime::wait,
    },
};
use tandem_pki::{Authority, JoinToken, write_private};
use tokio::{net::TcpStream, time::timeout};

/// How long each step of a join may take.
const STEP: Duration = Duration::from_secs(30);

/// The files by which a node proves who it is.
#[derive(Clone, Debug)]
pub(crate) struct NodeFiles {
    pub(crate) authority: PathBuf,
    pub(crate) client_certificate: PathBuf,
    pub(crate) client_key: PathBuf,
    pub(crate) server_certificate: PathBuf,
    pub(crate) server_key: PathBuf,
}

impl NodeFiles {
    pub(crate) fn below(folder: &Path) -> NodeFiles {
        NodeFiles {
            authority: folder.join("ca.crt"),
            client_certificate: folder.join("client.crt"),
            client_key: folder.join("client.key"),
            server_certificate: folder.join("server.crt"),
            server_key: folder.join("server.key"),
        }
    }

    pub(crate) fn credentials(&self) -> Credentials {
        Credentials {
            authority: self.authority.clone(),
            certificate: self.client_certificate.clone(),
            key: self.client_key.clone(),
        }
    }

    fn is_complete(&self) -> bool {
        [&self.authority, &self.client_certificate, &self.client_key, &self.server_certificate, &self.server_key]
            .iter()
            .all(|file| file.exists())
    }
}

/// Makes sure that the node has its certificates. The token is needed the first time only.
pub(crate) async fn ensure(
    files: &NodeFiles,
    server: &str,
    token: Option<&str>,
    node: &str,
    address: IpAddr,
) -> anyhow::Result<()> {
    let token = token.map(str::parse::<JoinToken>).transpose()?;
    if files.is_complete() {
        return match &token {
            Some(token) => same_cluster(files, token),
            None => Ok(()),
        };
    }
    let Some(token) = token else {
        bail!(
            "this machine has not joined yet: give --token (`tandem token create --role node` on a member prints one)"
        );
    };
    let authority = timeout(STEP, fetch_authority(server, &token.fingerprint))
        .await
        .with_context(|| format!("{server} does not answer"))??;
    let newcomer = tandem_client::with_token(server, &authority, &token.bearer())?;
    let common_name = format!("system:node:{node}");
    let (request, key) = Authority::request(&common_name, &["system:nodes"], &[], &[])?;
    let signer = "kubernetes.io/kube-apiserver-client-kubelet";
    let certificate = signed(&newcomer, &format!("node-{node}"), signer, "client auth", &request).await?;
    write_private(&files.authority, authority.as_bytes())?;
    write_private(&files.client_key, key.as_bytes())?;
    write_private(&files.client_certificate, certificate.as_bytes())?;

    let client = tandem_client::with_credentials(server, &files.credentials())?;
    announce(&client, node, address).await?;
    let (request, key) = Authority::request(&common_name, &["system:nodes"], &[node.to_owned()], &[address])?;
    let signer = "kubernetes.io/kubelet-serving";
    let certificate = signed(&client, &format!("node-{node}-server"), signer, "server auth", &request).await?;
    write_private(&files.server_key, key.as_bytes())?;
    write_private(&files.server_certificate, certificate.as_bytes())?;
    Ok(())
}

/// Says which addresses the node has: its server's certificate is signed for these only. The agent adds the rest.
async fn announce(client: &kube::Client, name: &str, address: IpAddr) -> anyhow::Result<()> {
    let nodes = Api::<Node>::all(client.clone());
    let hostname = [("kubernetes.io/hostname".to_owned(), name.to_owned())];
    let metadata = ObjectMeta { name: Some(name.to_owned()), labels: Some(hostname.into()), ..ObjectMeta::default() };
    match nodes.create(&PostParams::default(), &Node { metadata, ..Node::default() }).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(error).context("the node cannot be registered"),
    }
    let typed = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
    let addresses = vec![typed("InternalIP", address.to_string()), typed("Hostname", name.to_owned())];
    let status = NodeStatus { addresses: Some(addresses), ..NodeStatus::default() };
    let node = Node { status: Some(status), ..Node::default() };
    let patched = nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(&node)).await;
    patched.context("the node's addresses cannot be registered")?;
    Ok(())
}

fn same_cluster(files: &NodeFiles, token: &JoinToken) -> anyhow::Result<()> {
    let known = std::fs::read_to_string(&files.authority)
        .with_context(|| format!("cannot read {}", files.authority.display()))?;
    if tandem_pki::fingerprint(&known)? != token.fingerprint {
        bail!(
            "this data folder belongs to a node of another cluster than the token: use another --data-dir, or remove {}",
            files.authority.parent().unwrap_or(&files.authority).display()
        );
    }
    Ok(())
}

async fn signed(client: &kube::Client, name: &str, signer: &str, usage: &str, request: &str) -> anyhow::Result<String> {
    let requests = Api::<CertificateSigningRequest>::all(client.clone());
    let object = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some(format!("{name}-")), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.as_bytes().to_vec()),
            signer_name: signer.to_owned(),
            usages: Some(vec!["digital signature".to_owned(), "key encipherment".to_owned(), usage.to_owned()]),
            ..CertificateSigningRequestSpec::default()
        },
        ..CertificateSigningRequest::default()
    };
    let created = requests.create(&PostParams::default(), &object).await.context("the cluster refused the join")?;
    let name = created.metadata.name.unwrap_or_default();
    let decided = |request: Option<&CertificateSigningRequest>| {
        let status = request.and_then(|request| request.status.as_ref());
        status.is_some_and(|status| {
            let refused = status.conditions.iter().flatten().any(|condition| condition.type_ != "Approved");
            status.certificate.is_some() || refused
        })
    };
    let waited = timeout(STEP, wait::await_condition(requests, &name, decided)).await;
    let answered = waited.with_context(|| format!("nobody signed the certificate request {name} in time"))??;
    let status = answered.and_then(|request| request.status).unwrap_or_default();
    match status.certificate {
        Some(ByteString(certificate)) => Ok(String::from_utf8(certificate)?),
        None => {
            let why = status.conditions.into_iter().flatten().find_map(|condition| condition.message);
            bail!("the certificate request {name} was refused: {}", why.unwrap_or_default())
        }
    }
}

/// The CA certificate (PEM) that `server` shows, if it is the one with this fingerprint and the server's own is from it.
pub(crate) async fn fetch_authority(server: &str, fingerprint: &str) -> anyhow::Result<String> {
    let (host, port) = host_and_port(server)?;
    let pinned = Arc::new(Pinned { fingerprint: fingerprint.to_ascii_lowercase(), provider: provider() });
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(pinned)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect((host.as_str(), port)).await.with_context(|| format!("cannot reach {server}"))?;
    let name = ServerName::try_from(host)?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .with_context(|| format!("{server} is not the cluster that the token is for"))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let authority = chain.iter().find(|certificate| hex::encode(Sha256::digest(certificate)) == fingerprint);
    let Some(authority) = authority else { bail!("{server} does not show its CA") };
    Ok(to_pem(authority))
}

pub(crate) fn to_pem(certificate: &CertificateDer<'_>) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let body = STANDARD.encode(certificate);
    let lines: Vec<String> =
        body.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// `https://HOST:PORT`, taken apart.
pub(crate) fn host_and_port(server: &str) -> anyhow::Result<(String, u16)> {
    let rest = server.strip_prefix("https://").with_context(|| format!("{server} must begin with https://"))?;
    let rest = rest.trim_end_matches('/');
    if let Ok(address) = rest.parse::<SocketAddr>() {
        return Ok((address.ip().to_string(), address.port()));
    }
    let (host, port) = rest.rsplit_once(':').unwrap_or((rest, "6443"));
    Ok((host.to_owned(), port.parse().with_context(|| format!("{server} does not end in a port"))?))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Trusts a chain that contains the certificate with one fingerprint, and is issued by it.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl Pinned {
    fn verifier(&self, chain: &[CertificateDer<'_>]) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
        let unknown = || rustls::Error::General("the server's CA is not the one that the token names".to_owned());
        let authority = chain.iter().find(|certificate| hex::encode(Sha256::digest(certificate)) == self.fingerprint);
        let mut roots = RootCertStore::empty();
        roots.add(authority.ok_or_else(unknown)?.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verifier = self.verifier(intermediates)?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_taken_apart() {
        assert_eq!(host_and_port("https://192.0.2.1:6443").unwrap(), ("192.0.2.1".to_owned(), 6443));
        assert_eq!(host_and_port("https://tandem.example/").unwrap(), ("tandem.example".to_owned(), 6443));
        assert!(host_and_port("http://192.0.2.1:6443").is_err());
        assert!(host_and_port("https://a:b").is_err());
    }
}
