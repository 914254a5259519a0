use std::{collections::HashSet, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use tandem_component::image::{DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, INDEX, MANIFEST, Manifest};

use crate::{error::Error, name::Digest};

/// A manifest that may be stored, once what it refers to is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sound {
    pub(crate) manifest: Manifest,
    pub(crate) media_type: String,
    pub(crate) blobs: Vec<Digest>,
    pub(crate) children: Vec<Digest>,
    pub(crate) subject: Option<Digest>,
}

/// Whether a type is that of an image, of an index, or of neither.
fn is_index(media_type: &str) -> Option<bool> {
    match media_type {
        MANIFEST | DOCKER_MANIFEST => Some(false),
        INDEX | DOCKER_INDEX => Some(true),
        _ => None,
    }
}

/// Checks a manifest by itself. Two readers must never understand two things: a document with layers and manifests,
/// a type that contradicts its header, or a key given twice is refused.
pub(crate) fn check(bytes: &[u8], content_type: Option<&str>) -> Result<Sound, Error> {
    let _: Unique = serde_json::from_slice(bytes).map_err(|error| Error::manifest_invalid(error.to_string()))?;
    let manifest: Manifest =
        serde_json::from_slice(bytes).map_err(|error| Error::manifest_invalid(error.to_string()))?;
    if manifest.schema_version != 2 {
        return Err(Error::manifest_invalid(format!("schema version {} is not supported", manifest.schema_version)));
    }
    let content_type = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
    let media_type = match (content_type, manifest.media_type.as_deref()) {
        (Some(header), Some(inside)) if header != inside => {
            let message = format!("the manifest says that it is {inside:?}, its Content-Type {header:?}");
            return Err(Error::manifest_invalid(message));
        }
        (Some(known), _) | (None, Some(known)) => known.to_owned(),
        (None, None) => return Err(Error::manifest_invalid("it has neither a Content-Type nor a mediaType")),
    };
    let Some(index) = is_index(&media_type) else {
        return Err(Error::manifest_invalid(format!("manifests of type {media_type:?} are not supported")));
    };
    let image_fields = manifest.layers.is_some() || manifest.config.is_some();
    if index && image_fields || !index && manifest.manifests.is_some() {
        return Err(Error::manifest_invalid("it mixes the fields of an image with those of an index"));
    }
    if index && manifest.manifests.is_none() {
        return Err(Error::manifest_invalid("an index without manifests"));
    }
    if !index && (manifest.config.is_none() || manifest.layers.is_none()) {
        return Err(Error::manifest_invalid("an image manifest without config or layers"));
    }
    let layers = manifest.layers.iter().flatten().filter(|layer| !is_elsewhere(layer));
    let blobs = digests(manifest.config.iter().chain(layers))?;
    let children = digests(manifest.manifests.iter().flatten())?;
    let subject = manifest.subject.as_ref().map(|subject| subject.digest.parse()).transpose()?;
    Ok(Sound { manifest, media_type, blobs, children, subject })
}

/// Layers that may only be fetched from their makers.
fn is_elsewhere(layer: &Descriptor) -> bool {
    layer.media_type.contains(".nondistributable.") || layer.media_type.contains(".foreign.")
}

fn digests<'a>(descriptors: impl Iterator<Item = &'a Descriptor>) -> Result<Vec<Digest>, Error> {
    let mut found: Vec<Digest> = Vec::new();
    for descriptor in descriptors {
        let digest = descriptor.digest.parse()?;
        if !found.contains(&digest) {
            found.push(digest);
        }
    }
    Ok(found)
}

/// Any JSON in which no object has a key twice.
struct Unique;

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Unique, D::Error> {
        deserializer.deserialize_any(UniqueVisitor)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Unique;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value::<Unique>()?;
            if !keys.insert(key.clone()) {
                return Err(A::Error::custom(format!("duplicate key {key:?}")));
            }
        }
        Ok(Unique)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Unique, A::Error> {
        while items.next_element::<Unique>()?.is_some() {}
        Ok(Unique)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_str<E>(self, _: &str) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_unit<E>(self) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Unique, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Unique)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn what_is_refused() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let part = format!(r#"{{"mediaType":"x","digest":"{digest}","size":1}}"#);
        let image = format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{part},"layers":[{part}]}}"#);
        let cases = [
            (image.clone(), Some(MANIFEST)),
            (image.clone(), None),
            (image.clone(), Some(INDEX)),
            (image.replace("\"layers\"", "\"manifests\":[],\"layers\""), Some(MANIFEST)),
            (image.replace("\"layers\"", "\"x\":{\"a\":1,\"a\":2},\"layers\""), Some(MANIFEST)),
            (image.replace("\"schemaVersion\":2", "\"schemaVersion\":1"), Some(MANIFEST)),
            (image.replace("sha256", "SHA256"), Some(MANIFEST)),
            (format!(r#"{{"schemaVersion":2,"config":{part}}}"#), Some(MANIFEST)),
            (format!(r#"{{"schemaVersion":2,"manifests":[{part}]}}"#), Some(INDEX)),
            (format!(r#"{{"schemaVersion":2,"manifests":[{part}]}}"#), None),
            (r#"{"schemaVersion":2}"#.to_owned(), Some("text/plain")),
            ("[".to_owned(), Some(MANIFEST)),
            ("[".repeat(100_000), Some(MANIFEST)),
        ];
        let said: Vec<String> = cases
            .iter()
            .map(|(text, content_type)| match check(text.as_bytes(), *content_type) {
                Ok(sound) => format!("{} blobs, {} children", sound.blobs.len(), sound.children.len()),
                Err(error) => format!("{}: {error}", error.code),
            })
            .collect();
        expect![[r#"
            1 blobs, 0 children
            1 blobs, 0 children
            MANIFEST_INVALID: the manifest says that it is "application/vnd.oci.image.manifest.v1+json", its Content-Type "application/vnd.oci.image.index.v1+json"
            MANIFEST_INVALID: it mixes the fields of an image with those of an index
            MANIFEST_INVALID: duplicate key "a" at line 1 column 212
            MANIFEST_INVALID: schema version 1 is not supported
            DIGEST_INVALID: "SHA256:00" is not a sha256 or sha512 digest in lower case
            MANIFEST_INVALID: an image manifest without config or layers
            0 blobs, 1 children
            MANIFEST_INVALID: it has neither a Content-Type nor a mediaType
            MANIFEST_INVALID: manifests of type "text/plain" are not supported
            MANIFEST_INVALID: EOF while parsing a list at line 1 column 1
            MANIFEST_INVALID: recursion limit exceeded at line 1 column 128"#]].assert_eq(&said.join("\n").replace(&"0".repeat(64), "00"));
    }
}
