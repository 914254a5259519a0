const TAG_MAX: usize = 128;
const NAME_MAX: usize = 255;

/// An image reference, completed as Docker does: `nginx` is `docker.io/library/nginx:latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// What is wrong with a reference, in the words that Docker's parser made known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name \"{text}\": {why}")]
pub(crate) struct Invalid {
    text: String,
    why: &'static str,
}

impl Reference {
    pub(crate) fn parse(text: &str) -> Result<Reference, Invalid> {
        let invalid = |why| Invalid { text: text.to_owned(), why };
        let format = || invalid("invalid reference format");
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(format()),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(format());
        }
        let (host, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" || has_upper(host) => (host, path),
            _ => ("docker.io", name),
        };
        if has_upper(path) {
            return Err(invalid("invalid reference format: repository name must be lowercase"));
        }
        if name.len() > NAME_MAX || !is_host(host) || !path.split('/').all(is_component) {
            return Err(format());
        }
        let official = host == "docker.io" && !path.contains('/');
        let repository = if official { format!("library/{path}") } else { path.to_owned() };
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Reference { host: host.to_owned(), repository, tag, digest })
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    /// What a manifest is asked by: the digest if there is one, else the tag.
    pub(crate) fn manifest(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }

    pub(crate) fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(formatter, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn has_upper(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_digest(text: &str) -> bool {
    let hexadecimal = |hex: &str, length: usize| hex.len() == length && hex.bytes().all(|b| b.is_ascii_hexdigit());
    match text.split_once(':') {
        Some(("sha256", hex)) => hexadecimal(hex, 64),
        Some(("sha512", hex)) => hexadecimal(hex, 128),
        _ => false,
    }
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let first = text.bytes().next().is_some_and(word);
    first && text.len() <= TAG_MAX && text.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn is_host(text: &str) -> bool {
    let (name, port) = text.split_once(':').unwrap_or((text, "1"));
    let label = |label: &str| {
        let sound = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        !label.is_empty() && sound && !label.starts_with('-') && !label.ends_with('-')
    };
    name.split('.').all(label) && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Lower-case letters and digits, joined by `.`, `_`, `__` or dashes.
fn is_component(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let edges = text.bytes().next().is_some_and(plain) && text.bytes().last().is_some_and(plain);
    let separators = text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let known = |run: &str| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|byte| byte == b'-');
    edges && separators.into_iter().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_completed() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let cases = [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.25", "docker.io/library/nginx:1.25"),
            ("user/app", "docker.io/user/app:latest"),
            ("registry.tandem/team/app:v1", "registry.tandem/team/app:v1"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("localhost/app", "localhost/app:latest"),
        ];
        for (text, wanted) in cases {
            assert_eq!(Reference::parse(text).unwrap().to_string(), wanted);
        }
        let pinned = Reference::parse(&format!("nginx@{digest}")).unwrap();
        assert_eq!((pinned.manifest(), pinned.tag()), (digest.as_str(), None));
    }

    #[test]
    fn what_is_no_reference_is_told() {
        for text in ["", "a b", "nginx:", "nginx:-", "nginx@sha256:12", "a//b", "-a", "a_-b", "http://x/y", "x:y:z"] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
        assert_eq!(
            Reference::parse("Nginx:1").unwrap_err().to_string(),
            "couldn't parse image name \"Nginx:1\": invalid reference format: repository name must be lowercase"
        );
    }
}
