use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tandem_api::{ApiError, Identity};
use tandem_store::Consistency;

use super::unauthorized;
use crate::core::Core;

/// Clocks of nodes and members may differ by this much.
const LEEWAY_SECONDS: i64 = 10;

/// An object that a token dies with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bound {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) uid: String,
}

/// The claims under `kubernetes.io`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Binding {
    pub(crate) namespace: String,
    pub(crate) serviceaccount: Bound,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<Bound>,
}

/// A ServiceAccount token as Kubernetes writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) aud: Vec<String>,
    pub(crate) exp: i64,
    pub(crate) iat: i64,
    pub(crate) iss: String,
    pub(crate) jti: String,
    pub(crate) nbf: i64,
    pub(crate) sub: String,
    #[serde(rename = "kubernetes.io")]
    pub(crate) binding: Binding,
}

/// The identity of a token that was signed here for one of `audiences`, whose account and bound objects still exist.
pub(crate) async fn authenticate(core: &Core, token: &str, audiences: &[&str]) -> Result<Identity, ApiError> {
    let key = core.service_account_key.as_ref().ok_or_else(unauthorized)?;
    let claims: Claims = key.verify(token).map_err(|_| unauthorized())?;
    check(&claims, &core.settings.token_issuer, audiences, core.clock.now().as_second())?;
    let Binding { namespace, serviceaccount, pod, node, secret } = &claims.binding;
    exists(core, "serviceaccounts", Some(namespace), serviceaccount).await?;
    for (resource, bound) in [("pods", pod), ("secrets", secret)] {
        if let Some(bound) = bound {
            exists(core, resource, Some(namespace), bound).await?;
        }
    }
    // The node of a pod-bound token is told, not checked: the pod goes when its node does.
    if let (Some(node), None) = (node, pod) {
        exists(core, "nodes", None, node).await?;
    }
    Ok(identity(&claims))
}

fn check(claims: &Claims, issuer: &str, audiences: &[&str], now: i64) -> Result<(), ApiError> {
    let Binding { namespace, serviceaccount, .. } = &claims.binding;
    let subject = format!("system:serviceaccount:{namespace}:{}", serviceaccount.name);
    let sound = claims.iss == issuer
        && claims.sub == subject
        && claims.aud.iter().any(|audience| audiences.contains(&audience.as_str()))
        && now < claims.exp + LEEWAY_SECONDS
        && claims.nbf - LEEWAY_SECONDS <= now;
    if sound { Ok(()) } else { Err(unauthorized()) }
}

async fn exists(core: &Core, resource: &str, namespace: Option<&str>, bound: &Bound) -> Result<(), ApiError> {
    let def = core.row("", "v1", resource)?;
    for at in [Consistency::Any, Consistency::Linearizable] {
        let found = core.objects.get(&def, namespace, &bound.name, at).await?;
        if found.is_some_and(|found| bound.uid.is_empty() || found.uid() == bound.uid) {
            return Ok(());
        }
    }
    Err(unauthorized())
}

fn identity(claims: &Claims) -> Identity {
    let Binding { namespace, serviceaccount, pod, node, .. } = &claims.binding;
    let mut identity = Identity::service_account(namespace, &serviceaccount.name);
    identity.uid.clone_from(&serviceaccount.uid);
    let mut extra = BTreeMap::new();
    let mut tell = |key: &str, value: &str| {
        extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    };
    tell("credential-id", &format!("JTI={}", claims.jti));
    if let Some(pod) = pod {
        tell("pod-name", &pod.name);
        tell("pod-uid", &pod.uid);
    }
    if let Some(node) = node {
        tell("node-name", &node.name);
        tell("node-uid", &node.uid);
    }
    identity.extra = extra;
    identity
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_judged() {
        let binding = Binding {
            namespace: "a".to_owned(),
            serviceaccount: Bound { name: "b".to_owned(), uid: "u".to_owned() },
            ..Binding::default()
        };
        let claims = Claims {
            aud: vec!["api".to_owned()],
            exp: 1000,
            iat: 100,
            iss: "me".to_owned(),
            jti: "j".to_owned(),
            nbf: 100,
            sub: "system:serviceaccount:a:b".to_owned(),
            binding,
        };
        let sound = |claims: &Claims, issuer, audience, now| check(claims, issuer, &[audience], now).is_ok();
        assert!(sound(&claims, "me", "api", 500));
        assert!(!sound(&claims, "you", "api", 500));
        assert!(!sound(&claims, "me", "vault", 500));
        assert!(!sound(&claims, "me", "api", 1010));
        assert!(!sound(&claims, "me", "api", 80));
        let stolen = Claims { sub: "system:serviceaccount:a:c".to_owned(), ..claims.clone() };
        assert!(!sound(&stolen, "me", "api", 500));
        assert_eq!(identity(&claims).name, "system:serviceaccount:a:b");
    }
}
