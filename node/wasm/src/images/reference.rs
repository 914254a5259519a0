use std::fmt;

/// An image name as pods write it, with the defaults filled in that everyone knows from Docker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) host: String,
    pub(crate) repository: String,
    pub(crate) tag: Option<String>,
    pub(crate) digest: Option<String>,
}

const DEFAULT_HOST: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";

impl Reference {
    /// `None` for what cannot be a name.
    pub(crate) fn parse(text: &str) -> Option<Reference> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(valid_digest(digest)?)),
            None => (text, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(valid_tag(tag)?)),
            _ => (name, None),
        };
        let (host, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
            Some(_) => (DEFAULT_HOST, name.to_owned()),
            None => (DEFAULT_HOST, format!("library/{name}")),
        };
        let plain = |part: &str| {
            // Also keeps out `..`, which would be somebody else's path.
            part.starts_with(|first: char| first.is_ascii_alphanumeric())
                && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte))
        };
        let valid = !host.is_empty() && path.split('/').all(plain);
        let tag = if digest.is_none() { tag.or_else(|| Some(DEFAULT_TAG.to_owned())) } else { tag };
        valid.then(|| Reference { host: host.to_owned(), repository: path, tag, digest })
    }

    /// What a registry is asked for.
    pub(crate) fn wanted(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or(DEFAULT_TAG)
    }

    /// `HOST/REPOSITORY`.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(out, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(out, "@{digest}")?;
        }
        Ok(())
    }
}

fn valid_tag(tag: &str) -> Option<String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (!tag.is_empty() && tag.len() <= 128 && tag.bytes().all(fits)).then(|| tag.to_owned())
}

/// Only SHA-256, which every registry has.
pub(crate) fn valid_digest(digest: &str) -> Option<String> {
    let hexadecimal = digest.strip_prefix("sha256:")?;
    let fits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (hexadecimal.len() == 64 && hexadecimal.bytes().all(fits)).then(|| digest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_filled_in() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, expected) in [
            ("hello", "docker.io/library/hello:latest"),
            ("me/hello:1.2", "docker.io/me/hello:1.2"),
            ("registry.tandem/hello", "registry.tandem/hello:latest"),
            ("localhost:5000/a/b/c:x", "localhost:5000/a/b/c:x"),
            ("localhost/a", "localhost/a:latest"),
            (&format!("quay.io/a@{digest}"), &format!("quay.io/a@{digest}")),
            (&format!("quay.io/a:1@{digest}"), &format!("quay.io/a:1@{digest}")),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn what_is_no_name() {
        for text in ["", "Hello", "a//b", "a:", "a@sha256:12", "../../etc/passwd", "a b", "registry.tandem/"] {
            assert_eq!(Reference::parse(text), None, "{text}");
        }
    }
}
