use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use tandem_api::CLUSTER_REGISTRY;

use crate::error::Error;

const REPOSITORY_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

macro_rules! text {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<$name, Error> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

/// The path of an image without host and tag, `library/nginx`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Repository(String);
text!(Repository);

/// Lower case letters and digits, joined by one dot, one or two underscores, or dashes.
fn is_segment(segment: &str) -> bool {
    let bytes = segment.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let joint = |run: &str| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|byte| byte == b'-');
    edge(bytes.first())
        && edge(bytes.last())
        && segment.split(|letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit()).all(joint)
}

impl FromStr for Repository {
    type Err = Error;

    fn from_str(text: &str) -> Result<Repository, Error> {
        if text.len() > REPOSITORY_BYTES_MAX || !text.split('/').all(is_segment) {
            return Err(Error::name_invalid(text));
        }
        Ok(Repository(text.to_owned()))
    }
}

/// A name that can be moved from one image to another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);
text!(Tag);

impl FromStr for Tag {
    type Err = Error;

    fn from_str(text: &str) -> Result<Tag, Error> {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let bytes = text.as_bytes();
        let sound = bytes.first().is_some_and(|first| letter(*first))
            && bytes.iter().all(|byte| letter(*byte) || matches!(byte, b'.' | b'-'));
        if !sound || text.len() > TAG_BYTES_MAX {
            return Err(Error::tag_invalid(text));
        }
        Ok(Tag(text.to_owned()))
    }
}

/// The hash functions that content can be named by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    const ALL: [(Algorithm, &'static str, usize); 2] =
        [(Algorithm::Sha256, "sha256", 64), (Algorithm::Sha512, "sha512", 128)];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Algorithm> {
        Algorithm::ALL.iter().find(|(_, known, _)| *known == name).map(|(algorithm, ..)| *algorithm)
    }
}

/// The name of content: the hash of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);
text!(Digest);

impl Digest {
    /// The sha256 digest of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(tandem_component::image::digest(bytes))
    }

    pub(crate) fn new(algorithm: Algorithm, hash: &[u8]) -> Digest {
        Digest(format!("{}:{}", algorithm.name(), hex::encode(hash)))
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        if self.0.starts_with("sha512:") { Algorithm::Sha512 } else { Algorithm::Sha256 }
    }

    /// The hash in hexadecimal.
    pub(crate) fn hash(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hash)| hash)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Digest, Error> {
        let (name, hash) = text.split_once(':').unwrap_or((text, ""));
        let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let known = Algorithm::ALL.iter().find(|(_, known, _)| *known == name);
        match known {
            Some((_, _, length)) if hash.len() == *length && hash.bytes().all(lower_hex) => Ok(Digest(text.to_owned())),
            _ => Err(Error::digest_invalid(format!("{text:?} is not a sha256 or sha512 digest in lower case"))),
        }
    }
}

/// What a manifest is asked for by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference, Error> {
        if text.contains(':') { Ok(Reference::Digest(text.parse()?)) } else { Ok(Reference::Tag(text.parse()?)) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => tag.fmt(out),
            Reference::Digest(digest) => digest.fmt(out),
        }
    }
}

impl TryFrom<String> for Reference {
    type Error = Error;

    fn try_from(text: String) -> Result<Reference, Error> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.to_string()
    }
}

/// The public registry that a name without a host means.
const DEFAULT_HOST: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// The `image` of a container, taken apart as container engines do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    pub host: String,
    pub repository: Repository,
    pub tag: Option<Tag>,
    pub digest: Option<Digest>,
}

impl ImageName {
    /// What decides which image it is: the digest where there is one, else the tag, else `latest`.
    pub fn reference(&self) -> Reference {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => Reference::Digest(digest.clone()),
            (None, Some(tag)) => Reference::Tag(tag.clone()),
            (None, None) => Reference::Tag(Tag(DEFAULT_TAG.to_owned())),
        }
    }

    /// Whether nodes ask the cluster's registry for it: by its name, or as the mirror of the public one.
    pub fn is_local(&self) -> bool {
        self.host == CLUSTER_REGISTRY || self.host == DEFAULT_HOST
    }
}

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(text: &str) -> Result<ImageName, Error> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        let (host, path) = match rest.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => (DEFAULT_HOST, rest),
        };
        let (path, tag) = match path.split_once(':') {
            Some((path, tag)) => (path, Some(tag.parse()?)),
            None => (path, None),
        };
        let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
        let official = host == DEFAULT_HOST && !path.contains('/');
        let repository = if official { format!("{DEFAULT_NAMESPACE}{path}").parse()? } else { path.parse()? };
        Ok(ImageName { host: host.to_owned(), repository, tag, digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories() {
        for good in ["a", "library/nginx", "a/b/c", "a.b_c__d--e/0"] {
            assert!(good.parse::<Repository>().is_ok(), "{good}");
        }
        let long = "a".repeat(256);
        for bad in
            ["", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "../a", "a/..", "-a", "a-", "a%2fb", "ä", "a b", &long]
        {
            assert!(bad.parse::<Repository>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tags_and_digests() {
        assert!("1.25".parse::<Tag>().is_ok());
        assert!("_x-Y.z".parse::<Tag>().is_ok());
        for bad in ["", ".a", "-a", "a/b", "a:b", &"a".repeat(129)] {
            assert!(bad.parse::<Tag>().is_err(), "{bad}");
        }
        let hash = "0".repeat(64);
        assert!(format!("sha256:{hash}").parse::<Digest>().is_ok());
        assert!(format!("sha512:{hash}{hash}").parse::<Digest>().is_ok());
        for bad in [hash.clone(), format!("sha256:{}", "A".repeat(64)), "sha256:00".to_owned(), format!("md5:{hash}")] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn image_names() {
        let parse = |text: &str| {
            let name: ImageName = text.parse().unwrap();
            format!("{} {} {}", name.host, name.repository, name.reference())
        };
        assert_eq!(parse("nginx"), "docker.io library/nginx latest");
        assert_eq!(parse("nginx:1.25"), "docker.io library/nginx 1.25");
        assert_eq!(parse("bitnami/nginx:1"), "docker.io bitnami/nginx 1");
        assert_eq!(parse("registry.tandem/samples/hello-http:1"), "registry.tandem samples/hello-http 1");
        assert_eq!(parse("localhost:5000/a"), "localhost:5000 a latest");
        let digest = format!("sha256:{}", "1".repeat(64));
        assert_eq!(parse(&format!("registry.tandem/a:1@{digest}")), format!("registry.tandem a {digest}"));
        assert!("UPPER".parse::<ImageName>().is_err());
        assert!("a:b:c".parse::<ImageName>().is_err());
    }
}
