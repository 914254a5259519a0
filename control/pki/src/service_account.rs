use std::{fmt, path::Path};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::KeyPair;
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use crate::{Error, files};

pub(crate) const FILE: &str = "service-account.key";
/// An uncompressed P-256 point is this byte, then x and y of 32 bytes each (SEC 1, 2.3.3).
const UNCOMPRESSED: u8 = 4;
const COORDINATE_BYTES: usize = 32;

/// The key that signs ServiceAccount tokens (ES256).
pub struct ServiceAccountKey {
    encoding: EncodingKey,
    decoding: DecodingKey,
    point: Vec<u8>,
    id: String,
}

impl fmt::Debug for ServiceAccountKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ServiceAccountKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// One key of a JSON Web Key Set (RFC 7517, RFC 7518 section 6.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PublicKey {
    #[serde(rename = "use")]
    pub usage: &'static str,
    pub kty: &'static str,
    pub kid: String,
    pub crv: &'static str,
    pub alg: &'static str,
    pub x: String,
    pub y: String,
}

impl ServiceAccountKey {
    pub(crate) fn open(directory: &Path) -> Result<ServiceAccountKey, Error> {
        let path = directory.join(FILE);
        let malformed = |why: String| Error::Malformed { path: path.display().to_string(), why };
        let pem = match files::read(&path)? {
            Some(pem) => pem,
            None => {
                let pem = KeyPair::generate().map_err(|why| malformed(why.to_string()))?.serialize_pem();
                files::write_private(&path, pem.as_bytes())?;
                pem
            }
        };
        let pair = KeyPair::from_pem(&pem).map_err(|why| malformed(why.to_string()))?;
        let encoding = EncodingKey::from_ec_pem(pem.as_bytes()).map_err(|why| malformed(why.to_string()))?;
        let decoding =
            DecodingKey::from_ec_pem(pair.public_key_pem().as_bytes()).map_err(|why| malformed(why.to_string()))?;
        let point = pair.public_key_raw().to_vec();
        if point.len() != 1 + 2 * COORDINATE_BYTES || point[0] != UNCOMPRESSED {
            return Err(malformed("it is not a P-256 key".to_owned()));
        }
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(&point));
        Ok(ServiceAccountKey { encoding, decoding, point, id })
    }

    /// A signed token with these claims.
    pub fn sign<C: Serialize>(&self, claims: &C) -> Result<String, Error> {
        let header = Header { kid: Some(self.id.clone()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &self.encoding).map_err(|why| Error::Token(why.to_string()))
    }

    /// The claims of a token that this key signed. Expiry, audience and issuer are the caller's to judge.
    pub fn verify<C: DeserializeOwned + Clone>(&self, token: &str) -> Result<C, Error> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let refused = |why: jsonwebtoken::errors::Error| Error::Token(why.to_string());
        Ok(jsonwebtoken::decode::<C>(token, &self.decoding, &validation).map_err(refused)?.claims)
    }

    /// The public half, as `/openid/v1/jwks` publishes it.
    pub fn public(&self) -> PublicKey {
        let (x, y) = self.point[1..].split_at(COORDINATE_BYTES);
        PublicKey {
            usage: "sig",
            kty: "EC",
            kid: self.id.clone(),
            crv: "P-256",
            alg: "ES256",
            x: URL_SAFE_NO_PAD.encode(x),
            y: URL_SAFE_NO_PAD.encode(y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Claims {
        sub: String,
    }

    #[test]
    fn a_token_is_verified_by_its_own_key_only() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = ServiceAccountKey::open(here.path()).unwrap();
        let claims = Claims { sub: "system:serviceaccount:a:b".to_owned() };
        let token = key.sign(&claims).unwrap();
        let reopened = ServiceAccountKey::open(here.path()).unwrap();
        assert_eq!(reopened.verify::<Claims>(&token).unwrap(), claims);
        assert_eq!(reopened.public(), key.public());
        assert!(ServiceAccountKey::open(there.path()).unwrap().verify::<Claims>(&token).is_err());
        // {"alg":"none"}
        let none = format!("eyJhbGciOiJub25lIn0.{}.", token.split('.').nth(1).unwrap());
        assert!(key.verify::<Claims>(&none).is_err());
    }
}
