//! What an image is, from its manifest and configuration.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::observed::{ImageKind, Kind};

const WASM_CONFIGS: &[&str] = &[
    "application/vnd.wasm.config.v0+json",
    "application/vnd.wasm.config.v1+json",
    "application/vnd.module.wasm.config.v1+json",
    "application/vnd.fermyon.spin.application.v1+config",
];
const WASM_LAYERS: &[&str] = &[
    "application/wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];
const COMPAT_ANNOTATION: &str = "module.wasm.image/variant";

/// A manifest or an index of manifests, as far as it is needed here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Manifest {
    pub(super) config: Option<Descriptor>,
    pub(super) layers: Vec<Descriptor>,
    pub(super) manifests: Vec<Descriptor>,
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    pub(super) platform: Option<Platform>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Platform {
    pub(super) architecture: String,
    pub(super) os: String,
}

/// An image's configuration: a container's or a component's.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ImageConfig {
    pub(super) architecture: String,
    pub(super) os: String,
    pub(super) component: Option<ComponentConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ComponentConfig {
    pub(super) imports: Vec<String>,
}

fn is_wasm_platform(architecture: &str, os: &str) -> bool {
    architecture.starts_with("wasm") || os.starts_with("wasi")
}

/// The manifest of an index that this machine would run: its own platform, else a component.
pub(super) fn choose(index: &Manifest) -> Option<&Descriptor> {
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let of = |wanted: &dyn Fn(&Platform) -> bool| {
        index.manifests.iter().find(|manifest| manifest.platform.as_ref().is_some_and(wanted))
    };
    of(&|platform| platform.os == "linux" && platform.architecture == machine)
        .or_else(|| of(&|platform| is_wasm_platform(&platform.architecture, &platform.os)))
        .or_else(|| index.manifests.iter().find(|manifest| manifest.platform.is_none()))
}

/// The kind by the manifest alone, where that decides it.
pub(super) fn by_manifest(manifest: &Manifest) -> Option<Kind> {
    let config = manifest.config.as_ref().map(|config| config.media_type.as_str()).unwrap_or_default();
    let layer = |layer: &Descriptor| WASM_LAYERS.contains(&layer.media_type.as_str());
    let wasm = WASM_CONFIGS.contains(&config) || manifest.layers.iter().any(layer);
    wasm.then_some(Kind::Component)
}

/// The kind by manifest and configuration.
pub(super) fn by_config(manifest: &Manifest, config: &ImageConfig) -> ImageKind {
    let compat = manifest.annotations.get(COMPAT_ANNOTATION).is_some_and(|variant| variant == "compat");
    let component = by_manifest(manifest).is_some() || is_wasm_platform(&config.architecture, &config.os) || compat;
    let imports = config.component.as_ref().map(|component| component.imports.as_slice()).unwrap_or_default();
    let sockets = component && imports.iter().any(|import| import.starts_with("wasi:sockets/"));
    ImageKind { kind: if component { Kind::Component } else { Kind::Container }, sockets }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(manifest: &str, config: &str) -> ImageKind {
        by_config(&serde_json::from_str(manifest).unwrap(), &serde_json::from_str(config).unwrap())
    }

    #[test]
    fn kinds_are_told_apart() {
        let component = ImageKind { kind: Kind::Component, sockets: false };
        let container = ImageKind { kind: Kind::Container, sockets: false };
        let oci = r#"{"config":{"mediaType":"application/vnd.oci.image.config.v1+json"}}"#;
        let cases = [
            (r#"{"config":{"mediaType":"application/vnd.wasm.config.v0+json"}}"#, "{}", component),
            (r#"{"layers":[{"mediaType":"application/wasm"}]}"#, "{}", component),
            (oci, r#"{"architecture":"wasm","os":"wasip2"}"#, component),
            (oci, r#"{"architecture":"amd64","os":"wasi"}"#, component),
            (r#"{"annotations":{"module.wasm.image/variant":"compat"}}"#, "{}", component),
            (oci, r#"{"architecture":"amd64","os":"linux"}"#, container),
        ];
        for (manifest, config, wanted) in cases {
            assert_eq!(kind(manifest, config), wanted, "{manifest} {config}");
        }
        let sockets = r#"{"component":{"imports":["wasi:io/streams@0.2.0","wasi:sockets/tcp@0.2.0"]}}"#;
        let wasm = r#"{"layers":[{"mediaType":"application/wasm"}]}"#;
        assert_eq!(kind(wasm, sockets), ImageKind { kind: Kind::Component, sockets: true });
    }

    #[test]
    fn an_index_gives_the_machines_own_platform_first() {
        let index =
            |entries: &str| serde_json::from_str::<Manifest>(&format!(r#"{{"manifests":[{entries}]}}"#)).unwrap();
        let wasm = r#"{"digest":"w","platform":{"architecture":"wasm","os":"wasi"}}"#;
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let linux = format!(r#"{{"digest":"l","platform":{{"architecture":"{arch}","os":"linux"}}}}"#);
        assert_eq!(choose(&index(&format!("{wasm},{linux}"))).unwrap().digest, "l");
        assert_eq!(choose(&index(wasm)).unwrap().digest, "w");
        assert!(choose(&index("")).is_none());
    }
}
