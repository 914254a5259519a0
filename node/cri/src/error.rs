use std::path::PathBuf;

use tandem_runtime::Error as RuntimeError;
use tonic::{Code, Status};

/// Why there is no runtime behind a socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no container runtime answers on {}: {message}", socket.display())]
    Unreachable { socket: PathBuf, message: String },
    #[error("the container runtime on {} speaks CRI {version}, not v1", socket.display())]
    Version { socket: PathBuf, version: String },
}

/// The error of one call. gRPC codes that say what kind of failure it is become that kind; all others keep the
/// runtime's text.
pub(crate) fn call(operation: &'static str, subject: &str, status: &Status) -> RuntimeError {
    match status.code() {
        Code::NotFound => RuntimeError::NotFound { operation, subject: subject.to_owned() },
        Code::DeadlineExceeded => RuntimeError::Timeout { operation },
        Code::Unimplemented => RuntimeError::Unsupported(operation),
        Code::InvalidArgument | Code::PermissionDenied => RuntimeError::Refused(status.message().to_owned()),
        _ => failed(operation, status.message()),
    }
}

/// The error of fetching an image: what the registry answered, unless the runtime itself is not there.
pub(crate) fn pull(status: &Status) -> RuntimeError {
    match status.code() {
        Code::Unavailable => failed("pull", status.message()),
        Code::InvalidArgument => RuntimeError::Refused(status.message().to_owned()),
        _ => RuntimeError::Pull(status.message().to_owned()),
    }
}

/// The streams of commands and those of containers are carried by the same code, which speaks of commands.
pub(crate) fn of_attach(error: RuntimeError) -> RuntimeError {
    match error {
        RuntimeError::Failed { operation: "exec", message } => RuntimeError::Failed { operation: "attach", message },
        other => other,
    }
}

pub(crate) fn failed(operation: &'static str, message: impl ToString) -> RuntimeError {
    RuntimeError::Failed { operation, message: message.to_string() }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(status: Status, expected: Expect) {
        expected.assert_eq(&format!("{} / {}", call("start", "c1", &status), pull(&status)));
    }

    #[test]
    fn codes_that_name_a_kind_become_it() {
        check(Status::not_found("no such container"), expect!["start c1: not found / no such container"]);
        check(Status::deadline_exceeded("10s"), expect!["start: timed out / 10s"]);
        check(Status::unimplemented("x"), expect!["start is not supported by this runtime / x"]);
        check(Status::invalid_argument("imports wasi:nn"), expect!["imports wasi:nn / imports wasi:nn"]);
    }

    #[test]
    fn other_codes_keep_the_text() {
        check(
            Status::unknown("runc: exec format error"),
            expect!["start: runc: exec format error / runc: exec format error"],
        );
        check(
            Status::unavailable("connection refused"),
            expect!["start: connection refused / pull: connection refused"],
        );
    }
}
