//! The node's runtimes. Nothing else in the agent knows that there are two.

use std::sync::Arc;

use tandem_runtime::{Image, Result, Runtime};

use crate::observed::{ImageKind, Kind};

/// A node always runs components, and containers where there is a runtime for them.
#[derive(Clone)]
pub struct Runtimes {
    pub containers: Option<Arc<dyn Runtime>>,
    pub components: Arc<dyn Runtime>,
}

impl Runtimes {
    pub(crate) fn get(&self, kind: Kind) -> Option<&Arc<dyn Runtime>> {
        match kind {
            Kind::Container => self.containers.as_ref(),
            Kind::Component => Some(&self.components),
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (Kind, &Arc<dyn Runtime>)> {
        let containers = self.containers.as_ref().map(|runtime| (Kind::Container, runtime));
        std::iter::once((Kind::Component, &self.components)).chain(containers)
    }

    /// The image if it is on the node, and what it is. What it imports is not known from here.
    pub(crate) async fn local_image(&self, reference: &str) -> Result<Option<(ImageKind, Image)>> {
        for (kind, runtime) in self.all() {
            if let Some(image) = runtime.image(reference).await? {
                return Ok(Some((ImageKind { kind, sockets: false }, image)));
            }
        }
        Ok(None)
    }

    pub(crate) fn scheme(&self, kind: Kind) -> &'static str {
        self.get(kind).map_or("containerd", |runtime| runtime.name())
    }
}
