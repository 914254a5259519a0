//! `tandem token create`: a join token is a Kubernetes bootstrap token with the CA's fingerprint before it.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context as _;
use jiff::SignedDuration;
use tandem_api::{Clock as _, SystemClock, SystemEntropy};
use tandem_client::{
    k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta},
    kube::{Api, api::PostParams, config::Kubeconfig},
};
use tandem_pki::JoinToken;

use crate::{cli::Role, data, terminal};

/// Where a client command finds the cluster: the file it was given, or the administrator's in the data folder.
pub(crate) fn kubeconfig_path(given: Option<&Path>, data_dir: Option<&Path>) -> std::path::PathBuf {
    given.map_or_else(|| data::chosen(data_dir).join("admin.kubeconfig"), Path::to_owned)
}

pub(crate) async fn create(role: Role, ttl: SignedDuration, kubeconfig: &Path) -> anyhow::Result<()> {
    let fingerprint = tandem_pki::fingerprint(&authority(kubeconfig)?)?;
    let client = tandem_client::from_kubeconfig(kubeconfig).await?;
    let token = JoinToken::new(fingerprint, &SystemEntropy);
    let expiry = SystemClock.now().checked_add(ttl).context("the token would be good for too long")?;
    let secrets = Api::<Secret>::namespaced(client, "kube-system");
    secrets
        .create(&PostParams::default(), &secret(&token, role, expiry))
        .await
        .context("the cluster did not take the token")?;
    terminal::answer(&token.to_string())?;
    Ok(())
}

/// The Secret that the API server knows the token by (Kubernetes: bootstrap tokens).
fn secret(token: &JoinToken, role: Role, expiry: jiff::Timestamp) -> Secret {
    let groups = match role {
        Role::Node => "system:bootstrappers:nodes",
        Role::Control => tandem_api::groups::MEMBER_BOOTSTRAPPERS,
    };
    let data = [
        ("token-id", token.id.clone()),
        ("token-secret", token.secret.clone()),
        ("expiration", expiry.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        ("usage-bootstrap-authentication", "true".to_owned()),
        ("auth-extra-groups", groups.to_owned()),
    ];
    Secret {
        metadata: ObjectMeta { name: Some(format!("bootstrap-token-{}", token.id)), ..ObjectMeta::default() },
        type_: Some("bootstrap.kubernetes.io/token".to_owned()),
        string_data: Some(data.map(|(key, value)| (key.to_owned(), value)).into_iter().collect::<BTreeMap<_, _>>()),
        ..Secret::default()
    }
}

fn authority(kubeconfig: &Path) -> anyhow::Result<String> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| format!("cannot read {}", kubeconfig.display()))?;
    let data = file
        .clusters
        .into_iter()
        .find_map(|cluster| cluster.cluster?.certificate_authority_data)
        .with_context(|| format!("{} does not hold the cluster's CA", kubeconfig.display()))?;
    Ok(String::from_utf8(STANDARD.decode(data)?)?)
}
