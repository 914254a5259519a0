//! The OCI images that carry components: made by [`wrap`], recognised by [`kind`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::inspect::{Binary, Component, Error, Inspection, Interface, magic};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// The config and the layer of the CNCF wasm artifact.
pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
pub const WASM_LAYER: &str = "application/wasm";

const LEGACY_WASM_CONFIGS: &[&str] =
    &["application/vnd.module.wasm.config.v1+json", "application/vnd.wasm.config.v1+json"];
const SPIN_CONFIG: &str = "application/vnd.fermyon.spin.application.v1+config";
const WASM_LAYERS: &[&str] = &[
    WASM_LAYER,
    "application/vnd.module.wasm.content.layer.v1+wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];
const CONTAINER_CONFIGS: &[&str] =
    &["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const COMPAT_ANNOTATION: &str = "module.wasm.image/variant";
/// The other variants of the annotation mark images whose containers stay native.
const COMPAT: &str = "compat";

/// A reference to content by digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Where an image of an index runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// An image manifest or an image index, OCI's or Docker's: the fields say which.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<Descriptor>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifests: Option<Vec<Descriptor>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The config of the CNCF wasm artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WasmConfig {
    pub created: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    pub architecture: String,
    pub os: String,
    pub layer_digests: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<Interfaces>,
}

/// What a component's author says about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interfaces {
    #[serde(default)]
    pub exports: Vec<Interface>,
    #[serde(default)]
    pub imports: Vec<Interface>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// A component as an image. The layer is the bytes that it was made from.
#[derive(Clone, Debug)]
pub struct Image {
    pub inspection: Inspection,
    pub config: Vec<u8>,
    pub config_digest: String,
    pub layer_digest: String,
    pub manifest: Vec<u8>,
    /// The digest of the image.
    pub digest: String,
}

/// Reproducible builds leave the time out; the convention demands one, so that everyone's is the same.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// `sha256:` and the digest in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Makes the image of a component or module. The same bytes and annotations give the same digest.
pub fn wrap(bytes: &[u8], annotations: BTreeMap<String, String>) -> Result<Image, Error> {
    let inspection = Component::inspect(bytes)?;
    let layer_digest = digest(bytes);
    let component = (inspection.binary == Binary::Component).then(|| Interfaces {
        exports: inspection.exports.clone(),
        imports: {
            let mut all: Vec<Interface> = inspection.imports.iter().chain(&inspection.types).cloned().collect();
            all.sort();
            all
        },
        target: None,
    });
    let config = json(&WasmConfig {
        created: CREATED.to_owned(),
        author: None,
        architecture: "wasm".to_owned(),
        // The convention has no value for WASI 0.3: the imports tell the release.
        os: if component.is_some() { "wasip2" } else { "wasip1" }.to_owned(),
        layer_digests: vec![layer_digest.clone()],
        component,
    })?;
    let described = |media_type: &str, digest: &str, size: usize| Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_owned(),
        size: size as u64,
        ..Descriptor::default()
    };
    let config_digest = digest(&config);
    let manifest = json(&Manifest {
        schema_version: 2,
        media_type: Some(MANIFEST.to_owned()),
        config: Some(described(WASM_CONFIG, &config_digest, config.len())),
        layers: Some(vec![described(WASM_LAYER, &layer_digest, bytes.len())]),
        annotations,
        ..Manifest::default()
    })?;
    let digest = digest(&manifest);
    Ok(Image { inspection, config, config_digest, layer_digest, manifest, digest })
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::Image(error.to_string()))
}

/// What an image holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageKind {
    Wasm(Form),
    Container,
    /// Several images, one for each platform.
    Index,
    /// Something that no node runs, named by its media type.
    Artifact(String),
}

/// Where in an image the wasm file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The layer with this index is the file.
    Layer(usize),
    /// The one layer is a tar archive that holds `plugin.wasm`.
    Compat,
    /// A root file system whose entrypoint is the file.
    Entrypoint,
}

/// The part of a container's image config that tells wasm from native code.
#[derive(Default, Deserialize)]
struct ContainerConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// What the image is, in the order: config type, layer type, architecture, annotation.
///
/// The fifth step, an entrypoint that is a wasm file in an otherwise ordinary image, needs the unpacked image:
/// [`entrypoint`] answers it.
pub fn kind(manifest: &Manifest, config: &[u8]) -> Result<ImageKind, Error> {
    if manifest.manifests.is_some() {
        return Ok(ImageKind::Index);
    }
    let config_type = manifest.config.as_ref().map_or("", |config| config.media_type.as_str());
    let layers = manifest.layers.as_deref().unwrap_or_default();
    let wasm_layers: Vec<usize> = (0..layers.len()).filter(|index| is_wasm_layer(&layers[*index].media_type)).collect();
    if config_type == WASM_CONFIG || LEGACY_WASM_CONFIGS.contains(&config_type) {
        return match (wasm_layers.as_slice(), layers.len()) {
            ([0], 1) => Ok(ImageKind::Wasm(Form::Layer(0))),
            (_, 1) => {
                Err(Error::Image(format!("its layer has the type {:?}, not {WASM_LAYER:?}", layers[0].media_type)))
            }
            (_, count) => Err(Error::Image(format!("a wasm image has exactly one layer; this one has {count}"))),
        };
    }
    if config_type == SPIN_CONFIG {
        return Ok(ImageKind::Artifact(config_type.to_owned()));
    }
    match wasm_layers.as_slice() {
        [] => {}
        [only] => return Ok(ImageKind::Wasm(Form::Layer(*only))),
        [_, _, ..] => return Err(Error::Image(format!("it has {} wasm layers; one is the limit", wasm_layers.len()))),
    }
    if !CONTAINER_CONFIGS.contains(&config_type) {
        return Ok(ImageKind::Artifact(manifest.artifact_type.clone().unwrap_or_else(|| config_type.to_owned())));
    }
    let compat = manifest.annotations.get(COMPAT_ANNOTATION).is_some_and(|variant| variant == COMPAT);
    let config: ContainerConfig = serde_json::from_slice(config)
        .map_err(|error| Error::Image(format!("its config is not an image config: {error}")))?;
    if config.architecture.starts_with("wasm") || config.os.starts_with("wasi") {
        return Ok(ImageKind::Wasm(if compat { Form::Compat } else { Form::Entrypoint }));
    }
    Ok(if compat { ImageKind::Wasm(Form::Compat) } else { ImageKind::Container })
}

fn is_wasm_layer(media_type: &str) -> bool {
    WASM_LAYERS.contains(&media_type)
}

/// The last step of [`kind`], for an image that is unpacked: which binary its entrypoint file is, if it is wasm at all.
pub fn entrypoint(head: &[u8]) -> Option<Binary> {
    magic(head).ok()
}

/// Whether the platform of an index entry is wasm.
pub fn is_wasm_platform(platform: &Platform) -> bool {
    platform.architecture.starts_with("wasm") || platform.os.starts_with("wasi")
}
