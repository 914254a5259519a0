use std::fmt;

use serde::{Deserialize, Serialize};

/// The kind of the body that every failed request is answered with.
pub const STATUS_KIND: &str = "Status";

/// Why a request failed, in the words that Kubernetes clients branch on (`metav1.StatusReason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    NotAcceptable,
    AlreadyExists,
    Conflict,
    Gone,
    Expired,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    Invalid,
    TooManyRequests,
    InternalError,
    ServiceUnavailable,
    ServerTimeout,
    Timeout,
}

impl Reason {
    /// The HTTP status code that goes with the reason.
    pub const fn code(self) -> u16 {
        match self {
            Reason::BadRequest => 400,
            Reason::Unauthorized => 401,
            Reason::Forbidden => 403,
            Reason::NotFound => 404,
            Reason::MethodNotAllowed => 405,
            Reason::NotAcceptable => 406,
            Reason::AlreadyExists | Reason::Conflict => 409,
            Reason::Gone | Reason::Expired => 410,
            Reason::RequestEntityTooLarge => 413,
            Reason::UnsupportedMediaType => 415,
            Reason::Invalid => 422,
            Reason::TooManyRequests => 429,
            Reason::InternalError | Reason::ServerTimeout => 500,
            Reason::ServiceUnavailable => 503,
            Reason::Timeout => 504,
        }
    }
}

/// One reason of several, with the field that it is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub field: String,
}

/// What the error is about. `kind` holds the resource's plural for NotFound and AlreadyExists, as in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub group: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub causes: Vec<Cause>,
    #[serde(skip_serializing_if = "is_zero", default)]
    pub retry_after_seconds: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(seconds: &u32) -> bool {
    *seconds == 0
}

/// The words of somebody else who refused, a webhook: any code, any reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub code: u16,
    pub reason: String,
    /// `Status.details` as it was given; null for none.
    pub details: serde_json::Value,
}

/// A request that failed: everything a `metav1.Status` says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub reason: Reason,
    pub message: String,
    pub details: Box<Details>,
    /// A fresh continue token, given with an expired one (`Status.metadata.continue`).
    pub continue_token: Option<String>,
    /// What the client is told instead of `reason` and `details`. Nothing here branches on it.
    pub told: Option<Box<Told>>,
}

impl ApiError {
    pub fn new(reason: Reason, message: impl Into<String>) -> ApiError {
        ApiError { reason, message: message.into(), details: Box::default(), continue_token: None, told: None }
    }

    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(Reason::BadRequest, message)
    }

    /// For failures that are ours. The message is shown to the client: never put a secret in it.
    pub fn internal(error: impl fmt::Display) -> ApiError {
        ApiError::new(Reason::InternalError, format!("Internal error occurred: {error}"))
    }

    /// `deployments.apps "web" not found`
    pub fn not_found(group: &str, resource: &str, name: &str) -> ApiError {
        let message = format!("{} {name:?} not found", qualified(group, resource));
        ApiError::new(Reason::NotFound, message).about(group, resource, name)
    }

    /// `deployments.apps "web" already exists`
    pub fn already_exists(group: &str, resource: &str, name: &str) -> ApiError {
        let message = format!("{} {name:?} already exists", qualified(group, resource));
        ApiError::new(Reason::AlreadyExists, message).about(group, resource, name)
    }

    /// A lost optimistic-concurrency race, in the words that clients retry on.
    pub fn conflict(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> ApiError {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(group, resource));
        ApiError::new(Reason::Conflict, message).about(group, resource, name)
    }

    /// `Deployment.apps "web" is invalid: [spec.replicas: Invalid value: …, …]`
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> ApiError {
        let lines: Vec<String> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let list = if lines.len() == 1 { lines.concat() } else { format!("[{}]", lines.join(", ")) };
        let message = format!("{} {name:?} is invalid: {list}", qualified(group, kind));
        let mut error = ApiError::new(Reason::Invalid, message).about(group, kind, name);
        error.details.causes = causes;
        error
    }

    #[must_use]
    pub fn about(mut self, group: &str, kind: &str, name: &str) -> ApiError {
        self.details.group = group.to_owned();
        self.details.kind = kind.to_owned();
        self.details.name = name.to_owned();
        self
    }

    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> ApiError {
        self.details.retry_after_seconds = seconds;
        self
    }

    pub fn code(&self) -> u16 {
        self.told.as_ref().map_or_else(|| self.reason.code(), |told| told.code)
    }

    /// The `metav1.Status` object that the client receives.
    pub fn status(&self) -> serde_json::Value {
        let mut metadata = serde_json::Map::new();
        if let Some(token) = &self.continue_token {
            metadata.insert("continue".to_owned(), token.clone().into());
        }
        let mut status = serde_json::json!({
            "kind": STATUS_KIND, "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code(),
        });
        if *self.details != Details::default() {
            status["details"] = serde_json::json!(self.details);
        }
        if let Some(told) = &self.told {
            status["reason"] = told.reason.as_str().into();
            status["details"] = told.details.clone();
            // What was not said is left out.
            let empty = |value: &serde_json::Value| value.is_null() || value == "";
            for key in ["reason", "details"] {
                if empty(&status[key])
                    && let Some(status) = status.as_object_mut()
                {
                    status.shift_remove(key);
                }
            }
        }
        status
    }
}

fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speaks_kubernetes() {
        let error = ApiError::not_found("apps", "deployments", "web");
        assert_eq!(error.message, "deployments.apps \"web\" not found");
        let status = error.status();
        assert_eq!(status["reason"], "NotFound");
        assert_eq!(status["details"]["kind"], "deployments");
        let causes = vec![Cause { field: "spec.x".into(), message: "Required value".into(), ..Cause::default() }];
        let mut error = ApiError::invalid("", "Pod", "p", causes);
        assert_eq!(error.message, "Pod \"p\" is invalid: spec.x: Required value");
        let told = Told { code: 418, reason: String::new(), details: serde_json::Value::Null };
        error.told = Some(Box::new(told));
        let status = error.status();
        assert_eq!((&status["code"], status.get("reason"), status.get("details")), (&418.into(), None, None));
    }
}
