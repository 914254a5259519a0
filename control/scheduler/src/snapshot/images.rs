//! Which images nodes have, by full names.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Node;

/// Images of a node that count, and names of each: what a kubelet reports at most.
const IMAGES_MAX: usize = 50;
const NAMES_MAX: usize = 10;

/// The sizes of images in bytes, by each of their names.
pub(crate) type Images = Arc<BTreeMap<Arc<str>, i64>>;

/// A reference completed as runtimes do: `nginx` is `docker.io/library/nginx:latest`.
pub(super) fn full_name(reference: &str) -> String {
    let (rest, digest) = reference.split_once('@').map_or((reference, None), |(rest, digest)| (rest, Some(digest)));
    let tag = rest.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'));
    let (path, tag) = tag.map_or((rest, None), |(path, tag)| (path, Some(tag)));
    let is_host = |host: &str| host.contains(['.', ':']) || host == "localhost";
    let path = match path.split_once('/') {
        Some((host, _)) if is_host(host) => path.to_owned(),
        Some(_) => format!("docker.io/{path}"),
        None => format!("docker.io/library/{path}"),
    };
    match (digest, tag) {
        (Some(digest), _) => format!("{path}@{digest}"),
        (None, tag) => format!("{path}:{}", tag.unwrap_or("latest")),
    }
}

pub(super) fn of(node: &Node) -> Images {
    let images = node.status.as_ref().and_then(|status| status.images.as_deref()).unwrap_or_default();
    let mut sizes = BTreeMap::new();
    for image in images.iter().take(IMAGES_MAX) {
        let size = image.size_bytes.unwrap_or(0).max(0);
        for name in image.names.iter().flatten().take(NAMES_MAX) {
            sizes.insert(full_name(name).into(), size);
        }
    }
    Arc::new(sizes)
}

/// Adds to, or takes from, the number of nodes that have each of the images.
pub(super) fn count(nodes: &mut HashMap<Arc<str>, i64>, images: &Images, change: i64) {
    for name in images.keys() {
        let there = nodes.entry(name.clone()).or_default();
        *there += change;
        if *there <= 0 {
            nodes.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::full_name;

    #[test]
    fn names_are_completed() {
        for (short, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.25", "docker.io/library/nginx:1.25"),
            ("user/app", "docker.io/user/app:latest"),
            ("localhost/app:1", "localhost/app:1"),
            ("host:5000/app", "host:5000/app:latest"),
            ("registry.tandem/a/b:1", "registry.tandem/a/b:1"),
            ("nginx:1@sha256:ab", "docker.io/library/nginx@sha256:ab"),
        ] {
            assert_eq!(full_name(short), full);
        }
    }
}
