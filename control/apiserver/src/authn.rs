//! Who asks: an identity set in the process, a client certificate, a bearer token; else nobody in particular.

mod bootstrap_token;
mod impersonation;
pub(crate) mod service_account;

use axum::body::Body;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Request, header::AUTHORIZATION};
use tandem_api::{ApiError, Identity, Reason};

pub(crate) use impersonation::impersonate;

use crate::{core::Core, layers};

pub(crate) fn unauthorized() -> ApiError {
    ApiError::new(Reason::Unauthorized, "Unauthorized")
}

/// The identity of a request. Credentials that are wrong are an error; none at all make an anonymous request.
pub(crate) async fn authenticate(core: &Core, credentials: Credentials) -> Result<Identity, ApiError> {
    match credentials {
        Credentials::Known(identity) => Ok(identity),
        Credentials::None => Ok(Identity::anonymous()),
        Credentials::Token(token) => by_token(core, &token).await,
        Credentials::Unreadable => Err(unauthorized()),
    }
}

/// What a request brings to say who asks.
pub(crate) enum Credentials {
    /// Set by the process itself, or by the TLS connection.
    Known(Identity),
    Token(String),
    None,
    Unreadable,
}

impl Credentials {
    pub(crate) fn of(request: &Request<Body>) -> Credentials {
        if let Some(identity) = request.extensions().get::<Identity>() {
            return Credentials::Known(identity.clone());
        }
        let Some(header) = request.headers().get(AUTHORIZATION) else { return Credentials::None };
        let token = header.to_str().ok().and_then(|header| bearer(header, layers::is_registry(request)));
        token.map_or(Credentials::Unreadable, Credentials::Token)
    }
}

/// The token of an `Authorization` header. Registry clients know only user and password; the password is the token.
fn bearer(header: &str, is_registry: bool) -> Option<String> {
    let (scheme, rest) = header.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !is_registry || !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    decoded.split_once(':').map(|(_, password)| password.to_owned())
}

/// The identity that a token stands for.
pub(crate) async fn by_token(core: &Core, token: &str) -> Result<Identity, ApiError> {
    if let Some((id, secret)) = bootstrap_token::parts(token) {
        return bootstrap_token::authenticate(core, id, secret).await;
    }
    service_account::authenticate(core, token, &[&core.settings.token_issuer]).await
}
