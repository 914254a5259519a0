use std::sync::Arc;

use tandem_api::{ApiError, Clock, Entropy, Settings};
use tandem_pki::{Pki, ServiceAccountKey};
use tandem_registry::{Registry, ResourceDef, Schema};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::{
    EndpointDialer, ImageKinds, NodeDialer, ReadyCheck, admission,
    aggregation::Aggregation,
    audit::AuditLog,
    authz,
    kinds::Kinds,
    layers::{Limits, Metrics},
    objects::Objects,
    request, usage,
    webhook::Webhooks,
};

/// What all requests share.
pub(crate) struct Core {
    pub(crate) objects: Objects,
    pub(crate) kinds: Kinds,
    pub(crate) settings: Settings,
    pub(crate) grants: authz::Follower,
    pub(crate) policies: admission::Policies,
    pub(crate) webhooks: Arc<Webhooks>,
    pub(crate) hooks: admission::webhook::Follower,
    pub(crate) turns: admission::Turns,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) service_account_key: Option<Arc<ServiceAccountKey>>,
    pub(crate) nodes: Option<Arc<dyn NodeDialer>>,
    pub(crate) endpoints: Arc<dyn EndpointDialer>,
    pub(crate) pki: Option<Arc<Pki>>,
    pub(crate) aggregation: Aggregation,
    pub(crate) images: Option<Arc<dyn ImageKinds>>,
    pub(crate) audit: Option<AuditLog>,
    pub(crate) ready: Vec<ReadyCheck>,
    pub(crate) quorum: Option<watch::Receiver<bool>>,
    pub(crate) metrics: Metrics,
    pub(crate) limits: Limits,
    pub(crate) usage: usage::Nodes,
    /// Connections to nodes that outlive the request that opened them.
    pub(crate) tasks: TaskTracker,
}

impl Core {
    /// The rows that are served now.
    pub(crate) fn registry(&self) -> Arc<Registry> {
        self.kinds.served().registry.clone()
    }

    pub(crate) fn schema(&self) -> Arc<Schema> {
        self.registry().schema().clone()
    }

    pub(crate) fn has_quorum(&self) -> bool {
        self.quorum.as_ref().is_none_or(|quorum| *quorum.borrow())
    }

    /// The row of a resource that the server itself needs.
    pub(crate) fn row(&self, group: &str, version: &str, plural: &str) -> Result<Arc<ResourceDef>, ApiError> {
        self.registry().by_path(group, version, plural).ok_or_else(request::not_found)
    }

    /// Whether any resource has this subresource: a bound on what metrics are labelled with.
    pub(crate) fn known_subresource(&self, name: &str) -> bool {
        self.kinds.served().documents.subresources.iter().any(|known| known == name)
    }
}
