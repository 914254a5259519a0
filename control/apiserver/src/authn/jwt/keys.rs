//! The keys of an issuer: fetched when a token needs one, kept, and fetched again when they have become old or a token
//! names one that is not among them.

use std::{sync::Arc, time::Duration};

use jsonwebtoken::{
    DecodingKey,
    jwk::{AlgorithmParameters, Jwk, PublicKeyUse},
};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::{config::IssuerConfig, fetch};

/// How long keys are used without a look at whether they are others now.
const FRESH: Duration = Duration::from_secs(600);
/// Not more often is an issuer asked, whatever tokens come.
const ASKED_AGAIN: Duration = Duration::from_secs(10);
const ANSWER_MAX: Duration = Duration::from_secs(10);
const KEYS_MAX: usize = 100;

struct Key {
    id: Option<String>,
    key: Arc<DecodingKey>,
}

#[derive(Default)]
struct State {
    keys: Vec<Key>,
    fetched: Option<Instant>,
    asked: Option<Instant>,
}

pub(super) struct Keys {
    issuer: String,
    discovery: String,
    connector: TlsConnector,
    state: Mutex<State>,
    turn: tokio::sync::Mutex<()>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

impl Keys {
    pub(super) fn new(config: &IssuerConfig) -> Result<Keys, String> {
        let own = format!("{}/.well-known/openid-configuration", config.url.trim_end_matches('/'));
        Ok(Keys {
            issuer: config.url.clone(),
            discovery: if config.discovery_url.is_empty() { own } else { config.discovery_url.clone() },
            connector: fetch::connector(&config.certificate_authority)?,
            state: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        })
    }

    /// The keys that may have signed a token: the one with the id, or all where there is none.
    pub(super) async fn get(&self, id: Option<&str>) -> Result<Vec<Arc<DecodingKey>>, String> {
        let (found, is_fresh) = self.known(id);
        if is_fresh && !found.is_empty() {
            return Ok(found);
        }
        let _turn = self.turn.lock().await;
        if self.may_ask()
            && let Err(why) = self.refresh().await
        {
            tracing::warn!(issuer = self.issuer, why, "the keys of an issuer of tokens cannot be had");
        }
        // Old ones are better than none: an issuer that is down for a while locks nobody out.
        let (found, _) = self.known(id);
        if found.is_empty() { Err("the issuer has no such key, or it cannot be had".to_owned()) } else { Ok(found) }
    }

    fn known(&self, id: Option<&str>) -> (Vec<Arc<DecodingKey>>, bool) {
        let state = self.state.lock();
        let fits = |key: &&Key| id.is_none() || key.id.is_none() || key.id.as_deref() == id;
        let found = state.keys.iter().filter(fits).map(|key| key.key.clone()).collect();
        (found, state.fetched.is_some_and(|fetched| fetched.elapsed() < FRESH))
    }

    fn may_ask(&self) -> bool {
        let mut state = self.state.lock();
        let may = state.asked.is_none_or(|asked| asked.elapsed() >= ASKED_AGAIN);
        if may {
            state.asked = Some(Instant::now());
        }
        may
    }

    async fn refresh(&self) -> Result<(), String> {
        let fetched = timeout(ANSWER_MAX, self.fetch()).await;
        let keys = fetched.map_err(|_| "it did not answer in time".to_owned())??;
        let mut state = self.state.lock();
        (state.keys, state.fetched) = (keys, Some(Instant::now()));
        Ok(())
    }

    async fn fetch(&self) -> Result<Vec<Key>, String> {
        let document = fetch::get(&self.connector, &self.discovery).await?;
        let found: Discovery = serde_json::from_slice(&document).map_err(|why| format!("its configuration: {why}"))?;
        if found.issuer != self.issuer {
            return Err(format!("its configuration is that of {:?}", found.issuer));
        }
        let set = fetch::get(&self.connector, &found.jwks_uri).await?;
        let set: Set = serde_json::from_slice(&set).map_err(|why| format!("its keys: {why}"))?;
        // Keys of kinds that are not known are other clients'.
        let keys: Vec<Key> = set.keys.into_iter().take(KEYS_MAX).filter_map(key).collect();
        if keys.is_empty() { Err("it has no keys that can be used".to_owned()) } else { Ok(keys) }
    }
}

/// A key that verifies signatures. A shared secret is none: whoever can read it could sign.
fn key(value: Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value).ok()?;
    let is_public = !matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_));
    let signs = jwk.common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
    let key = DecodingKey::from_jwk(&jwk).ok().filter(|_| is_public && signs)?;
    Some(Key { id: jwk.common.key_id, key: Arc::new(key) })
}
