use std::{fmt, str::FromStr};

use tandem_api::Entropy;

use crate::Error;

const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;
const FINGERPRINT_LENGTH: usize = 64;

/// What a machine needs to join: `FINGERPRINT::ID.SECRET`.
///
/// The fingerprint pins the cluster's CA before anything is trusted; `ID.SECRET` is a Kubernetes bootstrap token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub fingerprint: String,
    pub id: String,
    pub secret: String,
}

impl JoinToken {
    pub fn new(fingerprint: String, entropy: &dyn Entropy) -> JoinToken {
        JoinToken { fingerprint, id: entropy.suffix(ID_LENGTH), secret: entropy.suffix(SECRET_LENGTH) }
    }

    /// The bearer token that the API server knows.
    pub fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}::{}.{}", self.fingerprint, self.id, self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<JoinToken, Error> {
        let parts = text.trim().split_once("::").and_then(|(fingerprint, rest)| {
            let (id, secret) = rest.split_once('.')?;
            let token =
                |part: &str, length| part.len() == length && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
            let sound = fingerprint.len() == FINGERPRINT_LENGTH
                && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit())
                && token(id, ID_LENGTH)
                && token(secret, SECRET_LENGTH);
            sound.then(|| JoinToken { fingerprint: fingerprint.into(), id: id.into(), secret: secret.into() })
        });
        let hint = "it must be FINGERPRINT::ID.SECRET, as `tandem token create` prints it";
        parts.ok_or_else(|| Error::Token(hint.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_being_written_down() {
        let token = JoinToken::new("ab".repeat(32), &tandem_api::SeededEntropy::new(1));
        assert_eq!(token.to_string().parse::<JoinToken>().unwrap(), token);
        assert!(!format!("{token:?}").contains(&token.secret));
        for bad in ["", "x::y.z", "K10abc"] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }
}
