//! What the tests with real clients share.

use std::{path::Path, process::Command};

/// Runs skopeo beside the server; what it prints, or what it complains about.
pub(crate) async fn try_skopeo(arguments: String) -> Result<String, String> {
    let run = move || {
        let output = Command::new("skopeo").arg("--insecure-policy").args(arguments.split(' ')).output();
        let output = output.expect("skopeo is installed");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// An OCI layout with one image of one layer.
pub(crate) fn layout(folder: &Path) {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let keep = |bytes: &[u8]| {
        let digest = tandem_images::Digest::of(bytes).to_string();
        std::fs::write(blobs.join(&digest["sha256:".len()..]), bytes).unwrap();
        format!(r#""digest":"{digest}","size":{}"#, bytes.len())
    };
    let tar = vec![0; 10240];
    let diff = tandem_images::Digest::of(&tar);
    let layer = keep(&tar);
    let config = keep(
        format!(r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{diff}"]}}}}"#)
            .as_bytes(),
    );
    let manifest = keep(
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json",{config}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar",{layer}}}]}}"#
        )
        .as_bytes(),
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json",{manifest},"annotations":{{"org.opencontainers.image.ref.name":"1"}}}}]}}"#
    );
    std::fs::write(folder.join("index.json"), index).unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
