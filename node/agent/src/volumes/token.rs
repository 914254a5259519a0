use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, api::PostParams};
use parking_lot::Mutex;

use crate::pod;

const LIFETIME_SECONDS_DEFAULT: i64 = 3600;
/// A token is renewed when this much of its life is over, or when it is a day old.
const RENEW_PERCENT: i64 = 80;
const AGE_MAX: SignedDuration = SignedDuration::from_hours(24);

/// Tokens of ServiceAccounts, bound to their pods and renewed in time.
pub(super) struct Tokens {
    client: kube::Client,
    kept: Mutex<HashMap<Key, Token>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    pod: String,
    path: String,
    audience: Option<String>,
}

#[derive(Clone)]
struct Token {
    text: String,
    issued: Timestamp,
    expires: Timestamp,
}

impl Token {
    fn is_due(&self, now: Timestamp) -> bool {
        let life = self.expires.duration_since(self.issued);
        let used = now.duration_since(self.issued);
        used > AGE_MAX || used.as_secs() * 100 >= life.as_secs() * RENEW_PERCENT
    }
}

impl Tokens {
    pub(super) fn new(client: kube::Client) -> Tokens {
        Tokens { client, kept: Mutex::default() }
    }

    pub(super) async fn get(
        &self,
        pod: &Pod,
        source: &ServiceAccountTokenProjection,
        now: Timestamp,
    ) -> Result<String, String> {
        let key = Key {
            pod: pod::uid(pod).to_owned(),
            path: source.path.clone(),
            audience: source.audience.clone().filter(|audience| !audience.is_empty()),
        };
        let known = self.kept.lock().get(&key).cloned();
        if let Some(token) = known.as_ref().filter(|token| !token.is_due(now)) {
            return Ok(token.text.clone());
        }
        match self.request(pod, source, &key, now).await {
            Ok(token) => {
                let text = token.text.clone();
                self.kept.lock().insert(key, token);
                Ok(text)
            }
            // An old token that is still good is better than none while the API does not answer.
            Err(why) => match known.filter(|token| now < token.expires) {
                Some(token) => Ok(token.text),
                None => Err(why),
            },
        }
    }

    async fn request(
        &self,
        pod: &Pod,
        source: &ServiceAccountTokenProjection,
        key: &Key,
        now: Timestamp,
    ) -> Result<Token, String> {
        let account = pod::spec(pod).and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
        let request = TokenRequest {
            metadata: ObjectMeta::default(),
            spec: TokenRequestSpec {
                audiences: Some(key.audience.iter().cloned().collect()),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
                expiration_seconds: Some(source.expiration_seconds.unwrap_or(LIFETIME_SECONDS_DEFAULT)),
            }
            .into(),
            status: None,
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), pod::namespace(pod));
        let answer = api.create_token_request(account, &PostParams::default(), &request).await;
        let answer = answer.map_err(|error| format!("failed to fetch token: {error}"))?;
        let status = answer.status.ok_or("failed to fetch token: the answer has none")?;
        let (Some(text), Some(expires)) = (status.token, status.expiration_timestamp) else {
            return Err("failed to fetch token: the answer has none".to_owned());
        };
        Ok(Token { text, issued: now, expires: expires.0 })
    }

    /// Forgets the tokens of a pod that is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.kept.lock().retain(|key, _| key.pod != uid);
    }
}
