//! Images made here, and images that others make.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use expect_test::expect;
use tandem_component::image::{Manifest, digest, kind, wrap};

#[test]
fn wraps_reproducibly() {
    let module = wat::parse_str("(module (func (export \"_start\")))").expect("text");
    let annotations = BTreeMap::from([("org.opencontainers.image.title".to_owned(), "hello".to_owned())]);
    let image = wrap(&module, annotations.clone()).expect("image");
    assert_eq!(image.digest, wrap(&module, annotations).expect("image").digest);
    assert_eq!(image.digest, digest(&image.manifest));
    expect![[r#"{"created":"1970-01-01T00:00:00Z","architecture":"wasm","os":"wasip1","layerDigests":["sha256:5647c39a1d25d8728350f9619025292a62e78a602068a2ad9b6f075751c93d99"]}"#]]
    .assert_eq(&String::from_utf8(image.config).expect("text"));
    expect![[r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.wasm.config.v0+json","digest":"sha256:e80a20734def04be3833fd244bfa0c096755848e8d2c5d69644f26879c4d12cf","size":161},"layers":[{"mediaType":"application/wasm","digest":"sha256:5647c39a1d25d8728350f9619025292a62e78a602068a2ad9b6f075751c93d99","size":36}],"annotations":{"org.opencontainers.image.title":"hello"}}"#]].assert_eq(&String::from_utf8(image.manifest).expect("text"));
}

#[test]
fn a_component_lists_its_interfaces() {
    let text = r#"(component
        (import "wasi:cli/environment@0.2.6" (instance (export "f" (func))))
        (core module)
        (instance $run)
        (export "wasi:cli/run@0.2.6" (instance $run)))"#;
    let image = wrap(&wat::parse_str(text).expect("text"), BTreeMap::new()).expect("image");
    expect![[r#"{"created":"1970-01-01T00:00:00Z","architecture":"wasm","os":"wasip2","layerDigests":["sha256:374ca542513ed80ef4a9e4f0ba8e9cbbb0fa1a6c595939a2b00a2efeaf6bdfc7"],"component":{"exports":["wasi:cli/run@0.2.6"],"imports":["wasi:cli/environment@0.2.6"]}}"#]].assert_eq(&String::from_utf8(image.config).expect("text"));
}

fn check(manifest: &str, config: &str) -> String {
    let manifest: Manifest = serde_json::from_str(manifest).expect("manifest");
    match kind(&manifest, config.as_bytes()) {
        Ok(kind) => format!("{kind:?}"),
        Err(error) => error.to_string(),
    }
}

/// A manifest with this config type, these layer types and these annotations.
fn manifest(config: &str, layers: &[&str], annotations: &str) -> String {
    let descriptor = |media_type: &str| format!(r#"{{"mediaType":"{media_type}","digest":"sha256:00","size":1}}"#);
    let layers: Vec<String> = layers.iter().map(|layer| descriptor(layer)).collect();
    let (config, layers) = (descriptor(config), layers.join(","));
    format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layers}],"annotations":{{{annotations}}}}}"#)
}

#[test]
fn kinds_in_the_order_of_the_conventions() {
    const CONFIG: &str = "application/vnd.wasm.config.v0+json";
    const OCI: &str = "application/vnd.oci.image.config.v1+json";
    const TAR: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const NATIVE: &str = r#"{"architecture":"amd64","os":"linux"}"#;
    let compat = r#""module.wasm.image/variant":"compat""#;
    let sidecar = r#""module.wasm.image/variant":"compat-smart""#;
    let cases = [
        (manifest(CONFIG, &["application/wasm"], ""), "{}"),
        (manifest(CONFIG, &["application/wasm", "application/wasm"], ""), "{}"),
        (manifest(CONFIG, &[TAR], ""), "{}"),
        (
            manifest(
                "application/vnd.module.wasm.config.v1+json",
                &["application/vnd.module.wasm.content.layer.v1+wasm"],
                "",
            ),
            "{}",
        ),
        (manifest(OCI, &["application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"], ""), NATIVE),
        (manifest(OCI, &[TAR, "application/vnd.wasm.content.layer.v1+wasm"], ""), NATIVE),
        (manifest(OCI, &[TAR], ""), r#"{"architecture":"wasm","os":"wasi"}"#),
        (manifest(OCI, &[TAR], ""), r#"{"architecture":"amd64","os":"wasip1"}"#),
        (manifest(OCI, &[TAR], compat), NATIVE),
        (manifest(OCI, &[TAR], sidecar), NATIVE),
        (manifest(OCI, &[TAR, TAR], ""), NATIVE),
        (manifest(OCI, &[TAR], ""), "not JSON"),
        (manifest("application/vnd.docker.container.image.v1+json", &[TAR], ""), NATIVE),
        (
            manifest(
                "application/vnd.fermyon.spin.application.v1+config",
                &["application/vnd.wasm.content.layer.v1+wasm"],
                "",
            ),
            "{}",
        ),
        (
            manifest(
                "application/vnd.cncf.helm.config.v1+json",
                &["application/vnd.cncf.helm.chart.content.v1.tar+gzip"],
                "",
            ),
            "{}",
        ),
        (r#"{"schemaVersion":2,"manifests":[]}"#.to_owned(), ""),
    ];
    let found: Vec<String> = cases.iter().map(|(manifest, config)| check(manifest, config)).collect();
    expect![[r#"
        Wasm(Layer(0))
        broken image: a wasm image has exactly one layer; this one has 2
        broken image: its layer has the type "application/vnd.oci.image.layer.v1.tar+gzip", not "application/wasm"
        Wasm(Layer(0))
        Wasm(Layer(0))
        Wasm(Layer(1))
        Wasm(Entrypoint)
        Wasm(Entrypoint)
        Wasm(Compat)
        Container
        Container
        broken image: its config is not an image config: expected ident at line 1 column 2
        Container
        Artifact("application/vnd.fermyon.spin.application.v1+config")
        Artifact("application/vnd.cncf.helm.config.v1+json")
        Index"#]]
    .assert_eq(&found.join("\n"));
}
