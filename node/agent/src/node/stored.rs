//! The images that the node says it has: the scheduler likes nodes that have what a pod needs.

use k8s_openapi::api::core::v1::ContainerImage;
use tandem_runtime::StoredImage;

use crate::context::Context;

/// The kubelet's `nodeStatusMaxImages`.
const IMAGES_MAX: usize = 50;
/// As many names of an image as the kubelet reports.
const NAMES_MAX: usize = 5;

/// The images of the runtimes that answer; `None` when one does not, and it is not known what there is.
pub(super) async fn images(context: &Context) -> Option<Vec<ContainerImage>> {
    let mut all = Vec::new();
    for (_, runtime) in context.runtimes.all() {
        match runtime.images().await {
            Ok(images) => all.extend(images),
            Err(error) => {
                tracing::debug!(runtime = runtime.name(), %error, "its images are not known");
                return None;
            }
        }
    }
    Some(reported(all))
}

/// The largest ones first: they are the ones that it costs most to pull.
fn reported(mut images: Vec<StoredImage>) -> Vec<ContainerImage> {
    images.retain(|image| !image.names.is_empty());
    images.sort_by(|one, other| (other.size_bytes, &one.id).cmp(&(one.size_bytes, &other.id)));
    let report = |image: StoredImage| {
        let mut names = image.names;
        names.sort();
        names.truncate(NAMES_MAX);
        ContainerImage { names: Some(names), size_bytes: i64::try_from(image.size_bytes).ok() }
    };
    images.into_iter().take(IMAGES_MAX).map(report).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_images_are_reported_with_their_names() {
        let image = |id: usize, size_bytes: u64, names: usize| StoredImage {
            id: format!("{id:03}"),
            names: (0..names).map(|name| format!("r/{id}:{name}")).collect(),
            size_bytes,
        };
        let mut all: Vec<StoredImage> = (0..60).map(|id| image(id, 10, 1)).collect();
        all.extend([image(60, 99, 7), image(61, 500, 0)]);
        let reported = reported(all);
        assert_eq!(reported.len(), IMAGES_MAX);
        assert_eq!(reported[0].size_bytes, Some(99));
        assert_eq!(reported[0].names.as_ref().map(Vec::len), Some(NAMES_MAX));
        assert_eq!(reported[1].names, Some(vec!["r/0:0".to_owned()]), "the same each time");
    }
}
