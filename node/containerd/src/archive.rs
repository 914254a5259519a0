//! Images without a registry: an OCI archive of a few files, made in memory. The pause image comes this way, and the
//! images of tests.

use std::collections::BTreeMap;

use serde::Serialize;
use sha2::{Digest, Sha256};

/// A file of the image, below its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Without a leading slash.
    pub path: String,
    pub mode: u32,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Data(Vec<u8>),
    Directory,
    Link { target: String },
}

/// What the image says about running it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Settings {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A part of an image, by its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    pub media_type: &'static str,
    pub digest: String,
    pub data: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, data: Vec<u8>) -> Blob {
        Blob { media_type, digest: format!("sha256:{}", hex::encode(Sha256::digest(&data))), data }
    }

    fn descriptor(&self) -> Descriptor<'_> {
        Descriptor { media_type: self.media_type, digest: &self.digest, size: self.data.len(), annotations: None }
    }
}

/// An image of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub manifest: Blob,
    pub config: Blob,
    pub layer: Blob,
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'a str,
    digest: &'a str,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<&'a str, &'a str>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: Descriptor<'a>,
    layers: [Descriptor<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u32,
    manifests: [Descriptor<'a>; 1],
}

#[derive(Serialize)]
struct ImageConfig<'a> {
    architecture: &'a str,
    os: &'a str,
    config: &'a Settings,
    rootfs: RootFs<'a>,
}

#[derive(Serialize)]
struct RootFs<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    diff_ids: [&'a str; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: &'static str,
}

/// The name that OCI gives the machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The same files and settings give the same image.
pub fn image(files: &[File], settings: &Settings) -> Image {
    let layer = Blob::new(LAYER, tar(files));
    let config = Blob::new(
        CONFIG,
        json(&ImageConfig {
            architecture: architecture(),
            os: "linux",
            config: settings,
            rootfs: RootFs { kind: "layers", diff_ids: [&layer.digest] },
        }),
    );
    let manifest = Blob::new(
        MANIFEST,
        json(&Manifest {
            schema_version: 2,
            media_type: MANIFEST,
            config: config.descriptor(),
            layers: [layer.descriptor()],
        }),
    );
    Image { manifest, config, layer }
}

/// The archive that `ctr images import` and `skopeo copy oci-archive:` take. `reference` is a full name, such as
/// `localhost/pause:1`.
pub fn archive(reference: &str, image: &Image) -> Vec<u8> {
    let mut named = image.manifest.descriptor();
    named.annotations = Some(BTreeMap::from([
        ("io.containerd.image.name", reference),
        ("org.opencontainers.image.ref.name", reference),
    ]));
    let data = |path: String, data: Vec<u8>| File { path, mode: 0o644, content: Content::Data(data) };
    let mut files = vec![
        data("oci-layout".to_owned(), json(&Layout { image_layout_version: "1.0.0" })),
        data("index.json".to_owned(), json(&Index { schema_version: 2, manifests: [named] })),
    ];
    for blob in [&image.manifest, &image.config, &image.layer] {
        files.push(data(format!("blobs/{}", blob.digest.replace(':', "/")), blob.data.clone()));
    }
    tar(&files)
}

/// Serialising these types cannot fail: they have neither maps with other keys than text nor foreign code.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

const TAR_BLOCK: usize = 512;

fn tar(files: &[File]) -> Vec<u8> {
    let mut out = Vec::new();
    for file in files {
        let (kind, data, target): (u8, &[u8], &str) = match &file.content {
            Content::Data(data) => (b'0', data, ""),
            Content::Link { target } => (b'2', &[], target),
            Content::Directory => (b'5', &[], ""),
        };
        out.extend_from_slice(&tar_header(&file.path, file.mode, data.len(), kind, target));
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(TAR_BLOCK), 0);
    }
    out.resize(out.len() + 2 * TAR_BLOCK, 0);
    out
}

/// A ustar header: owned by root, without a time, so that equal contents give equal bytes.
fn tar_header(path: &str, mode: u32, size: usize, kind: u8, target: &str) -> [u8; TAR_BLOCK] {
    let mut header = [0; TAR_BLOCK];
    let mut put = |offset: usize, length: usize, text: &[u8]| {
        let length = length.min(text.len());
        header[offset..offset + length].copy_from_slice(&text[..length]);
    };
    put(0, 100, path.as_bytes());
    put(100, 8, format!("{mode:07o}\0").as_bytes());
    put(108, 8, b"0000000\0");
    put(116, 8, b"0000000\0");
    put(124, 12, format!("{size:011o}\0").as_bytes());
    put(136, 12, b"00000000000\0");
    // The sum is of a header whose own field is blanks.
    put(148, 8, b"        ");
    put(156, 1, &[kind]);
    put(157, 100, target.as_bytes());
    put(257, 8, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use expect_test::expect;

    use super::*;

    fn sample() -> Image {
        let files = [
            File { path: "bin".into(), mode: 0o755, content: Content::Directory },
            File { path: "bin/true".into(), mode: 0o755, content: Content::Data(b"#!".to_vec()) },
            File { path: "bin/yes".into(), mode: 0o777, content: Content::Link { target: "true".into() } },
        ];
        image(&files, &Settings { entrypoint: vec!["/bin/true".into()], ..Default::default() })
    }

    #[test]
    fn equal_contents_give_equal_images() {
        assert_eq!(sample(), sample());
        expect!["sha256:6812a4f0d0cb017a351c4d836358fb6e91d053f3f0b6fe090d4f7638d0cc6740"]
            .assert_eq(&sample().layer.digest);
    }

    #[test]
    fn other_programs_read_the_archive() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("image.tar");
        std::fs::write(&file, archive("localhost/sample:1", &sample())).unwrap();
        let listed = Command::new("tar").arg("-tf").arg(&file).output().unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let names = String::from_utf8(listed.stdout).unwrap();
        assert!(names.starts_with("oci-layout\nindex.json\nblobs/sha256/"), "{names}");

        let layer = directory.path().join("layer.tar");
        std::fs::write(&layer, &sample().layer.data).unwrap();
        let listed = Command::new("tar").arg("-tvf").arg(&layer).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let lines: Vec<&str> = listed.lines().collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].starts_with("drwxr-xr-x 0/0") && lines[2].ends_with("bin/yes -> true"), "{lines:?}");
    }
}
