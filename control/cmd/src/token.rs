//! `tandem token create`: a join token is a Kubernetes bootstrap token with the CA's fingerprint before it.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, bail};
use jiff::SignedDuration;
use tandem_api::{Clock as _, SystemClock, SystemEntropy};
use tandem_client::{
    k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta},
    kube::{Api, api::PostParams, config::Kubeconfig},
};
use tandem_pki::JoinToken;

use crate::{cli::Role, terminal};

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
    let shown = kubeconfig.display();
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| format!("cannot read {shown}"))?;
    current_authority(file).with_context(|| format!("{shown} does not hold the cluster's CA"))
}

/// The CA of the cluster that a client of this kubeconfig talks to.
fn current_authority(file: Kubeconfig) -> anyhow::Result<String> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let current = file.current_context.context("it has no current-context")?;
    let context = file.contexts.into_iter().find(|context| context.name == current);
    let context = context.and_then(|named| named.context).with_context(|| format!("it has no context {current:?}"))?;
    let cluster = file.clusters.into_iter().find(|cluster| cluster.name == context.cluster);
    let cluster =
        cluster.and_then(|named| named.cluster).with_context(|| format!("it has no cluster {:?}", context.cluster))?;
    match (cluster.certificate_authority_data, cluster.certificate_authority) {
        (Some(data), _) => Ok(String::from_utf8(STANDARD.decode(data)?)?),
        (None, Some(path)) => fs::read_to_string(&path).with_context(|| format!("cannot read {path}")),
        (None, None) => bail!("its cluster {:?} has no certificate-authority", context.cluster),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clusters `a` and `b` hold the CAs `A` and `B`; `file` names a file of it, `none` nothing.
    fn told(current: &str) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.crt"), "C").unwrap();
        let text = format!(
            "{current}\n\
             clusters:\n\
             - {{name: a, cluster: {{server: 'https://a', certificate-authority-data: QQ==}}}}\n\
             - {{name: b, cluster: {{server: 'https://b', certificate-authority-data: Qg==}}}}\n\
             - {{name: file, cluster: {{server: 'https://c', certificate-authority: ca.crt}}}}\n\
             - {{name: none, cluster: {{server: 'https://d'}}}}\n\
             contexts:\n\
             - {{name: first, context: {{cluster: a, user: u}}}}\n\
             - {{name: second, context: {{cluster: b, user: u}}}}\n\
             - {{name: third, context: {{cluster: file, user: u}}}}\n\
             - {{name: fourth, context: {{cluster: none, user: u}}}}\n\
             - {{name: fifth, context: {{cluster: gone, user: u}}}}\n"
        );
        let path = folder.path().join("config");
        fs::write(&path, text).unwrap();
        authority(&path).map_err(|error| error.root_cause().to_string())
    }

    #[test]
    fn the_authority_is_that_of_the_current_context() {
        for (current, answer) in [
            ("current-context: first", Ok("A")),
            ("current-context: second", Ok("B")),
            ("current-context: third", Ok("C")),
            ("current-context: fourth", Err("its cluster \"none\" has no certificate-authority")),
            ("current-context: fifth", Err("it has no cluster \"gone\"")),
            ("current-context: other", Err("it has no context \"other\"")),
            ("kind: Config", Err("it has no current-context")),
        ] {
            assert_eq!(told(current), answer.map(Into::into).map_err(Into::into), "{current}");
        }
    }
}
