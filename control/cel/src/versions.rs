//! Kubernetes' library for semantic versions.

use std::{cmp::Ordering, rc::Rc};

use semver::Version;

use crate::{Error, Value};

pub(crate) const KNOWN: &[&str] = &["semver", "isSemver", "major", "minor", "patch"];

/// `None` where the function is not one of versions.
pub(crate) fn call<'a>(name: &str, values: &[Value<'a>]) -> Option<Result<Value<'a>, Error>> {
    let number = |number: u64| Value::Int(i64::try_from(number).unwrap_or(i64::MAX));
    Some(Ok(match (name, values) {
        ("semver" | "isSemver", [text, rest @ ..]) => {
            let normalize = rest.first().and_then(Value::as_bool).unwrap_or_default();
            let parsed = parse(text.as_text()?, normalize);
            match (name, parsed) {
                ("isSemver", parsed) => Value::Bool(parsed.is_some()),
                (_, Some(version)) => Value::Semver(Rc::new(version)),
                (_, None) => return Some(Err(Error::of("Semver parse error during conversion from string"))),
            }
        }
        ("major", [Value::Semver(version)]) => number(version.major),
        ("minor", [Value::Semver(version)]) => number(version.minor),
        ("patch", [Value::Semver(version)]) => number(version.patch),
        ("compareTo", [Value::Semver(one), Value::Semver(other)]) => Value::Int(one.cmp_precedence(other) as i64),
        ("isGreaterThan", [Value::Semver(one), Value::Semver(other)]) => {
            Value::Bool(one.cmp_precedence(other) == Ordering::Greater)
        }
        ("isLessThan", [Value::Semver(one), Value::Semver(other)]) => {
            Value::Bool(one.cmp_precedence(other) == Ordering::Less)
        }
        _ => return None,
    }))
}

/// Normalized, `v1.01` is `1.1.0`.
fn parse(text: &str, normalize: bool) -> Option<Version> {
    if !normalize {
        return Version::parse(text).ok();
    }
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (core, rest) = text.split_at(end);
    let mut parts: Vec<String> =
        core.split('.').map(|part| part.parse::<u64>().ok().map(|number| number.to_string())).collect::<Option<_>>()?;
    parts.resize(parts.len().max(3), "0".to_owned());
    Version::parse(&format!("{}{rest}", parts.join("."))).ok()
}
