//! How a new member gets its id and the cluster's keys: over TLS that the token's fingerprint vouches for.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tandem_pki::{JoinToken, Leaf, Secrets};
use tokio::time::timeout;

use crate::{join, members::PATH};

const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The list of members changes by two entries of the log, after an election perhaps.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Keys and certificates are a few kilobytes.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// What a newcomer says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Enrolment {
    pub(crate) name: String,
    /// Where others will reach it.
    pub(crate) address: SocketAddr,
    /// The member whose place it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replaces: Option<u64>,
}

/// What it gets. Its secrets are never shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Enrolled {
    pub(crate) member: u64,
    pub(crate) cluster: String,
    pub(crate) secrets: Secrets,
}

/// The part of a Status that people read.
#[derive(Deserialize)]
struct Failure {
    message: String,
}

/// Asks a member of the cluster to take this machine in.
pub(crate) async fn ask(server: &str, token: &JoinToken, enrolment: &Enrolment) -> anyhow::Result<Enrolled> {
    let authority = timeout(CONNECT_MAX, join::fetch_authority(server, &token.fingerprint))
        .await
        .with_context(|| format!("{server} does not answer"))??;
    let client = client(&authority)?.build()?;
    let url = server.trim_end_matches('/');
    let enrolled = send(client.post(format!("{url}{PATH}")).bearer_auth(token.bearer()), server, enrolment).await?;
    match enrolled.secrets.cluster_certificate().map(tandem_pki::fingerprint).transpose()? {
        Some(fingerprint) if fingerprint == token.fingerprint => Ok(enrolled),
        _ => bail!("{server} answers with the keys of another cluster than the token names"),
    }
}

/// Asks for a new id for a member that has the cluster's keys already.
pub(crate) async fn ask_again(
    server: SocketAddr,
    authority: &str,
    leaf: &Leaf,
    enrolment: &Enrolment,
) -> anyhow::Result<u64> {
    let identity = [leaf.certificate.as_bytes(), leaf.key.as_bytes()].concat();
    let client = client(authority)?.identity(reqwest::Identity::from_pem(&identity)?).build()?;
    let enrolled = send(client.post(format!("https://{server}{PATH}")), &server.to_string(), enrolment).await?;
    Ok(enrolled.member)
}

fn client(authority: &str) -> anyhow::Result<reqwest::ClientBuilder> {
    Ok(reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(authority.as_bytes())?])
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_MAX)
        .timeout(ANSWER_MAX))
}

async fn send(request: reqwest::RequestBuilder, server: &str, enrolment: &Enrolment) -> anyhow::Result<Enrolled> {
    let response = request.json(enrolment).send().await;
    let response = response.with_context(|| format!("{server} does not take the request to join"))?;
    let code = response.status();
    let body = response.bytes().await.with_context(|| format!("{server} does not finish its answer"))?;
    if code == reqwest::StatusCode::UNAUTHORIZED {
        bail!(
            "{server} does not know the token, or it has expired: `tandem token create --role control` on a member \
             prints another"
        );
    }
    if !code.is_success() {
        let failure = serde_json::from_slice::<Failure>(&body);
        let message = failure.map_or_else(|_| code.to_string(), |failure| failure.message);
        bail!("{server} does not let this machine join: {message}");
    }
    if body.len() > ANSWER_BYTES_MAX {
        bail!("{server} answers with more than keys");
    }
    // The parser's error could show what it was reading.
    let Ok(enrolled) = serde_json::from_slice::<Enrolled>(&body) else {
        bail!("{server} answers with something else than the keys of a member; does it run the same version?");
    };
    Ok(enrolled)
}
