use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use tandem_api::{ApiError, Identity, Object, groups};
use tandem_store::Consistency;

use super::unauthorized;
use crate::core::Core;

const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP_PREFIX: &str = "system:bootstrappers:";

/// `ID.SECRET`, if the token has the form of a bootstrap token.
pub(super) fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let sound = |part: &str, length| {
        part.len() == length && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    (sound(id, ID_LENGTH) && sound(secret, SECRET_LENGTH)).then_some((id, secret))
}

pub(super) async fn authenticate(core: &Core, id: &str, secret: &str) -> Result<Identity, ApiError> {
    let name = format!("bootstrap-token-{id}");
    let secrets = core.row("", "v1", "secrets")?;
    let found = core.objects.get(&secrets, Some("kube-system"), &name, Consistency::Linearizable).await?;
    let token = found.ok_or_else(unauthorized)?;
    identity(&token, id, secret, core.clock.now()).ok_or_else(unauthorized)
}

/// The identity that the Secret grants to who knows it, at this time.
fn identity(token: &Object, id: &str, secret: &str, now: Timestamp) -> Option<Identity> {
    let data = |key: &str| {
        let text = token.str_at(&["data", key])?;
        String::from_utf8(STANDARD.decode(text).ok()?).ok()
    };
    let sound = token.str_at(&["type"]) == Some(SECRET_TYPE)
        && token.deletion_timestamp().is_none()
        && data("token-id").as_deref() == Some(id)
        && same(data("token-secret")?.as_bytes(), secret.as_bytes())
        && data("usage-bootstrap-authentication").as_deref() == Some("true");
    let expired = match data("expiration") {
        Some(expiration) => expiration.parse::<Timestamp>().ok()? <= now,
        None => false,
    };
    if !sound || expired {
        return None;
    }
    let extra = data("auth-extra-groups").unwrap_or_default();
    let mut members = vec![groups::BOOTSTRAPPERS];
    members.extend(extra.split(',').map(str::trim).filter(|group| group.starts_with(GROUP_PREFIX)));
    Some(Identity::user(format!("system:bootstrap:{id}"), &members))
}

/// Compares in the same time wherever the first difference is.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(expiration: &str) -> Object {
        let mut object = Object::default();
        object.set(&["type"], SECRET_TYPE);
        let data = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            ("expiration", expiration),
            ("auth-extra-groups", "system:bootstrappers:nodes,system:masters"),
        ];
        for (key, value) in data {
            object.set(&["data", key], STANDARD.encode(value));
        }
        object
    }

    #[test]
    fn a_token_speaks_until_it_expires() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let token = secret("2026-01-01T01:00:00Z");
        let identity_of = |secret| identity(&token, "abcdef", secret, now);
        let identity_found = identity_of("0123456789abcdef").unwrap();
        assert_eq!(identity_found.name, "system:bootstrap:abcdef");
        assert_eq!(
            identity_found.groups,
            ["system:bootstrappers", "system:bootstrappers:nodes", "system:authenticated"]
        );
        assert_eq!(identity_of("0123456789abcdee"), None);
        assert_eq!(identity(&secret("2025-12-31T00:00:00Z"), "abcdef", "0123456789abcdef", now), None);
        assert_eq!(parts("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        assert_eq!(parts("abcdef.0123456789ABCDEF"), None);
    }
}
