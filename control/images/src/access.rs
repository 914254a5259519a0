use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::future::BoxFuture;
use http::{HeaderMap, header};
use tandem_api::{Identity, groups};

use crate::{error::Error, name::Repository};

/// Turns a bearer token into the identity that it proves, if it proves one.
pub type Verifier = Arc<dyn Fn(String) -> BoxFuture<'static, Option<Identity>> + Send + Sync>;

/// What a request does to a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pull,
    Push,
    Delete,
    /// Lists the repositories of the whole registry.
    Catalog,
}

/// Whether the identity may do that. `repository` is none for actions on the registry as a whole.
pub fn allowed(identity: &Identity, repository: Option<&Repository>, action: Action) -> bool {
    if identity.in_group(groups::MASTERS) {
        return true;
    }
    let pulls = identity.node_name().is_some() || identity.in_group(groups::SERVICE_ACCOUNTS);
    match action {
        Action::Pull => pulls && repository.is_some(),
        Action::Push | Action::Delete | Action::Catalog => false,
    }
}

/// Fails as the specification asks: 403 for somebody known.
pub(crate) fn authorize(identity: &Identity, repository: Option<&Repository>, action: Action) -> Result<(), Error> {
    if allowed(identity, repository, action) {
        return Ok(());
    }
    let on = repository.map_or_else(|| "the registry".to_owned(), |name| format!("repository {name}"));
    let verb = match action {
        Action::Pull => "pull from",
        Action::Push => "push to",
        Action::Delete => "delete from",
        Action::Catalog => "list the repositories of",
    };
    Err(Error::denied(format!("{} may not {verb} {on}", identity.name)))
}

/// The token in a request: a bearer token, or the password that image clients send it as.
fn token(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    pair.split_once(':').map(|(_, password)| password.to_owned())
}

/// Who makes the request: the identity that the layers in front found, else the one that its token proves.
pub(crate) async fn authenticate(
    found: Option<Identity>,
    headers: &HeaderMap,
    verifier: Option<&Verifier>,
) -> Result<Identity, Error> {
    if let Some(identity) = found.filter(|identity| !identity.in_group(groups::UNAUTHENTICATED)) {
        return Ok(identity);
    }
    let (Some(verifier), Some(token)) = (verifier, token(headers)) else { return Err(Error::unauthorized()) };
    verifier(token).await.ok_or_else(Error::unauthorized)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_do_what() {
        let repository: Repository = "library/nginx".parse().unwrap();
        let actions = [Action::Pull, Action::Push, Action::Delete, Action::Catalog];
        let may = |identity: &Identity| actions.map(|action| allowed(identity, Some(&repository), action));
        assert_eq!(may(&Identity::administrator()), [true; 4]);
        assert_eq!(may(&Identity::node("n1")), [true, false, false, false]);
        assert_eq!(may(&Identity::service_account("default", "default")), [true, false, false, false]);
        assert_eq!(may(&Identity::user("jane", &[])), [false; 4]);
        assert_eq!(may(&Identity::anonymous()), [false; 4]);
    }

    #[test]
    fn tokens_in_passwords() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            token(&headers)
        };
        assert_eq!(with("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(with(&format!("Basic {}", STANDARD.encode("token:a:b"))).as_deref(), Some("a:b"));
        assert_eq!(with("Digest abc"), None);
        assert_eq!(with("Basic ???"), None);
    }
}
