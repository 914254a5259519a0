//! Tokens of other issuers (OpenID Connect), as an `AuthenticationConfiguration` names them.
//!
//! ```text
//!  token ─ whose? (iss) ─> Keys: the issuer's, fetched over HTTPS, kept ─ signature ─> claims ─ Mapping ─> Identity
//! ```

mod claims;
mod config;
mod fetch;
mod keys;

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, Validation};
use serde_json::Value;
use tandem_api::Identity;

use claims::Mapping;
use config::{Anonymous, Configuration};
use keys::Keys;

/// Longer tokens are nobody's.
const TOKEN_MAX_BYTES: usize = 16 * 1024;
/// Clocks of issuers and members may differ by this much.
const LEEWAY_SECONDS: i64 = 10;
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Whom this server believes beside itself.
pub struct Authentication {
    issuers: Vec<Issuer>,
    anonymous: Anonymous,
}

struct Issuer {
    url: String,
    audiences: Vec<String>,
    mapping: Mapping,
    keys: Arc<Keys>,
}

impl Authentication {
    /// Reads an `AuthenticationConfiguration`. Tokens of `own` issuer are not to be judged by it.
    pub fn parse(text: &str, own: &str) -> Result<Authentication, String> {
        let configuration = Configuration::parse(text, own)?;
        let issuers = configuration.jwt.into_iter().enumerate().map(|(at, jwt)| {
            let of = |why: String| format!("jwt[{at}]: {why}");
            let keys = Arc::new(Keys::new(&jwt.issuer).map_err(of)?);
            let mapping = Mapping::compile(&jwt).map_err(of)?;
            Ok(Issuer { url: jwt.issuer.url, audiences: jwt.issuer.audiences, mapping, keys })
        });
        let issuers = issuers.collect::<Result<Vec<_>, String>>()?;
        Ok(Authentication { issuers, anonymous: configuration.anonymous.unwrap_or_default() })
    }

    /// Whether somebody who says nothing of himself is answered there.
    pub(crate) fn allows_anonymous(&self, path: &str) -> bool {
        let Anonymous { enabled, conditions } = &self.anonymous;
        *enabled && (conditions.is_empty() || conditions.iter().any(|one| one.path == path))
    }

    /// Whom the token stands for; `None` where it is not by one of the issuers. The reason of a refusal is for the log.
    pub(crate) async fn identify(&self, token: &str, now: Timestamp) -> Option<Result<Identity, String>> {
        if token.len() > TOKEN_MAX_BYTES {
            return None;
        }
        let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
        let said: Value = serde_json::from_slice(&payload).ok()?;
        let issuer = self.issuers.iter().find(|issuer| said["iss"] == issuer.url)?;
        Some(issuer.identify(token, now).await)
    }
}

impl Issuer {
    async fn identify(&self, token: &str, now: Timestamp) -> Result<Identity, String> {
        let header = jsonwebtoken::decode_header(token).map_err(|why| why.to_string())?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(format!("the algorithm {:?} is not taken", header.alg));
        }
        let mut validation = Validation::new(header.alg);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let mut failure = "no key of the issuer has signed it".to_owned();
        for key in self.keys.get(header.kid.as_deref()).await? {
            match jsonwebtoken::decode::<Value>(token, &key, &validation) {
                Ok(decoded) => return self.judge(&decoded.claims, now),
                Err(why) => failure = why.to_string(),
            }
        }
        Err(failure)
    }

    fn judge(&self, claims: &Value, now: Timestamp) -> Result<Identity, String> {
        let now = now.as_second();
        #[allow(clippy::cast_possible_truncation, reason = "seconds with a fraction: whole ones are meant")]
        let time = |name: &str| claims[name].as_i64().or_else(|| claims[name].as_f64().map(|time| time as i64));
        let ends = time("exp").ok_or("it has no expiry")?;
        if now >= ends.saturating_add(LEEWAY_SECONDS) {
            return Err("it has expired".to_owned());
        }
        if time("nbf").is_some_and(|begins| now < begins.saturating_sub(LEEWAY_SECONDS)) {
            return Err("it is not good yet".to_owned());
        }
        let is_ours = |audience: &Value| self.audiences.iter().any(|own| audience == own);
        let for_us = match &claims["aud"] {
            Value::Array(all) => all.iter().any(is_ours),
            one => is_ours(one),
        };
        if claims["iss"] != self.url || !for_us {
            return Err("it is for other audiences".to_owned());
        }
        self.mapping.identity(claims)
    }
}

#[cfg(test)]
mod tests;
