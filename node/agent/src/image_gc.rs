//! Keeps images from filling the disk: when it is nearly full, those that nothing uses are removed, the least recently
//! used first, as the kubelet does.
//!
//! <https://kubernetes.io/docs/concepts/architecture/garbage-collection/#container-image-lifecycle>

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tandem_runtime::{Runtime, StoredImage};
use tokio_util::sync::CancellationToken;

use crate::{context::Context, machine, observed::Kind};

const PERIOD: Duration = Duration::from_secs(300);
/// The kubelet's `imageGCHighThresholdPercent`: from this use of the disk on images are removed.
const HIGH_PERCENT: u64 = 85;
/// The kubelet's `imageGCLowThresholdPercent`: until this is reached.
const LOW_PERCENT: u64 = 80;
/// The kubelet's `imageMinimumGCAge`: a pod may just be about to use it.
const AGE_MIN: Duration = Duration::from_secs(120);

/// Size and free space of the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Disk {
    size: u64,
    free: u64,
}

impl Disk {
    fn of(path: &Path) -> Disk {
        let (size, free) = machine::disk(path);
        Disk { size, free }
    }

    /// How much has to go; nothing below the threshold.
    fn surplus(self) -> Option<u64> {
        let used = self.size.saturating_sub(self.free);
        if self.size == 0 || used.saturating_mul(100) < self.size.saturating_mul(HIGH_PERCENT) {
            return None;
        }
        Some((self.size / 100 * (100 - LOW_PERCENT)).saturating_sub(self.free))
    }
}

/// An image of one of the runtimes.
type Name = (Kind, String);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    name: Name,
    bytes: u64,
    in_use: bool,
}

/// When an image was seen first, and in use last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    first: Timestamp,
    used: Option<Timestamp>,
}

/// What is known of images from one look to the next: as many as there are.
#[derive(Debug, Default)]
struct Memory(HashMap<Name, Times>);

impl Memory {
    fn note(&mut self, found: &[Found], now: Timestamp) {
        let there: BTreeSet<&Name> = found.iter().map(|image| &image.name).collect();
        self.0.retain(|name, _| there.contains(name));
        for image in found {
            let times = self.0.entry(image.name.clone()).or_insert(Times { first: now, used: None });
            if image.in_use {
                times.used = Some(now);
            }
        }
    }

    /// Unused images in the order in which they may go.
    fn idle<'a>(&self, found: &'a [Found], now: Timestamp) -> Vec<&'a Found> {
        let times = |image: &Found| self.0.get(&image.name).copied();
        let is_old = |at: Timestamp| Duration::try_from(now.duration_since(at)).is_ok_and(|age| age >= AGE_MIN);
        let mut idle: Vec<&Found> = found
            .iter()
            .filter(|image| !image.in_use)
            .filter(|image| times(image).is_some_and(|times| is_old(times.used.unwrap_or(times.first))))
            .collect();
        idle.sort_by_key(|image| times(image).map(|times| (times.used, times.first)));
        idle
    }
}

pub(crate) async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let mut memory = Memory::default();
    loop {
        let disk = Disk::of(context.directories.node());
        round(&context, &mut memory, disk).await;
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn round(context: &Context, memory: &mut Memory, disk: Disk) {
    let found = found(context).await;
    let now = context.clock.now();
    memory.note(&found, now);
    let Some(wanted) = disk.surplus() else { return };
    let mut freed = 0;
    for image in memory.idle(&found, now) {
        if freed >= wanted {
            break;
        }
        let (kind, id) = &image.name;
        let Some(runtime) = context.runtimes.get(*kind) else { continue };
        match runtime.remove_image(id).await {
            Ok(()) => {
                tracing::info!(image = id, bytes = image.bytes, "an unused image is removed: the disk is nearly full");
                freed += image.bytes;
            }
            Err(error) => tracing::warn!(image = id, %error, "an unused image cannot be removed"),
        }
    }
    if freed < wanted {
        let message = format!(
            "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
        );
        context.events.node_warning("FreeDiskSpaceFailed", message);
    }
}

/// The images of all runtimes that answer. Where it is not known what runs, nothing may be removed.
async fn found(context: &Context) -> Vec<Found> {
    let mut found = Vec::new();
    for (kind, runtime) in context.runtimes.all().filter(|(_, runtime)| runtime.capabilities().own_images) {
        match of(runtime.as_ref(), kind).await {
            Ok(images) => found.extend(images),
            Err(error) => tracing::warn!(runtime = runtime.name(), %error, "its images and their use are not known"),
        }
    }
    found
}

/// What is used is asked last: a container that was made meanwhile counts.
async fn of(runtime: &dyn Runtime, kind: Kind) -> tandem_runtime::Result<Vec<Found>> {
    let images = runtime.images().await?;
    let mut used = BTreeSet::new();
    // Whether they run or not: they may be started again.
    for container in runtime.list().await?.into_iter().flat_map(|sandbox| sandbox.containers) {
        used.extend([container.image, container.image_digest]);
    }
    let is_used = |image: &StoredImage| image.names.iter().chain([&image.id]).any(|name| used.contains(name));
    let found = |image: StoredImage| Found { in_use: is_used(&image), bytes: image.size_bytes, name: (kind, image.id) };
    Ok(images.into_iter().map(found).collect())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use tandem_api::SystemClock;
    use tandem_runtime::{Fake, Program};

    use super::*;
    use crate::testing::{
        at,
        node::{TestNode, is_ready},
        pod,
    };

    #[test]
    fn images_go_from_the_high_mark_to_the_low_one() {
        for (free, surplus) in [(500, None), (151, None), (150, Some(50)), (20, Some(180)), (0, Some(200))] {
            assert_eq!(Disk { size: 1000, free }.surplus(), surplus, "{free}");
        }
        assert_eq!(Disk { size: 0, free: 0 }.surplus(), None, "a disk that nobody knows is not full");
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_newest_not_at_all() {
        let image = |name: &str, in_use| Found { name: (Kind::Container, name.to_owned()), bytes: 1, in_use };
        let all = |used: &[&str]| -> Vec<Found> {
            ["never", "long-ago", "lately", "now"].map(|name| image(name, used.contains(&name))).into()
        };
        let mut memory = Memory::default();
        memory.note(&all(&["long-ago"]), at(0));
        memory.note(&all(&["lately", "now"]), at(300));
        let mut last = all(&["now"]);
        last.push(image("new", false));
        memory.note(&last, at(600));
        let idle = |now| -> Vec<String> { memory.idle(&last, at(now)).iter().map(|one| one.name.1.clone()).collect() };
        assert_eq!(idle(600), ["never", "long-ago", "lately"]);
        assert_eq!(idle(720), ["never", "new", "long-ago", "lately"]);
    }

    #[tokio::test]
    async fn nothing_is_known_of_images_where_it_is_not_known_what_runs() {
        let runtime = Fake::new("containerd", Arc::new(SystemClock));
        runtime.offer("image/idle:1", Program::waits());
        runtime.pull("image/idle:1", None).await.unwrap();
        assert_eq!(of(&runtime, Kind::Container).await.unwrap().len(), 1);
        runtime.fail_next("list", tandem_runtime::Error::Unsupported("list"));
        assert!(of(&runtime, Kind::Container).await.is_err());
    }

    #[tokio::test]
    async fn what_runs_keeps_its_image_on_a_full_disk() {
        let node = TestNode::new().await;
        for name in ["a", "component-a", "idle"] {
            node.offer(name, Program::waits());
        }
        node.api.put_pod(Pod { status: None, ..pod(&["a", "component-a"]) });
        let agent = node.start();
        node.until_pod("a ready pod", is_ready).await;
        for runtime in [&node.containers, &node.components] {
            runtime.pull("image/idle:1", None).await.unwrap();
        }
        let mut memory = Memory::default();
        let full = Disk { size: 1 << 30, free: 0 };
        round(&agent.context, &mut memory, full).await;
        let there = async |name: &str| {
            let image = format!("image/{name}:1");
            (
                node.containers.image(&image).await.unwrap().is_some(),
                node.components.image(&image).await.unwrap().is_some(),
            )
        };
        assert_eq!(there("idle").await, (true, true), "they were seen just now");
        for times in memory.0.values_mut() {
            times.first = at(0);
        }
        round(&agent.context, &mut memory, Disk { size: 1 << 30, free: 1 << 29 }).await;
        assert_eq!(there("idle").await, (true, true), "the disk has room");
        round(&agent.context, &mut memory, full).await;
        assert_eq!(there("idle").await, (false, false));
        assert_eq!((there("a").await.0, there("component-a").await.1), (true, true));
        agent.end().await;
    }
}
