//! Shared vocabulary of every Tandem crate: objects, keys, revisions, errors, settings.
//!
//! ```text
//!  Key ── where a value lives in the store        Object ── a JSON object with Kubernetes metadata
//!  Revision ── when it was written                ApiError ── a Kubernetes Status, as an error
//!  Settings ── what is fixed at first start       Clock, Entropy ── the seams of simulation
//!  Quantity ── an amount of a resource             quota ── what objects use of quotas
//! ```
//!
//! This crate stays light: it never depends on kube, k8s-openapi, a server or a runtime.

mod environment;
mod error;
mod identity;
mod key;
pub mod names;
mod object;
pub mod quantity;
pub mod quota;
mod settings;
pub mod volumes;

pub use environment::{Clock, Entropy, FixedClock, SeededEntropy, SystemClock, SystemEntropy};
pub use error::{ApiError, Cause, Details, Reason, STATUS_KIND, Told};
pub use identity::{Fence, Identity, groups};
pub use key::{Key, Revision};
pub use object::{GroupVersion, Object};
pub use quantity::Quantity;
pub use settings::{Settings, SettingsError};

/// The annotation that carries a request's trace id from the API request to the pod's Events and the node's logs.
pub const TRACE_ANNOTATION: &str = "tandem.dev/trace-id";
/// The prefix of the annotations by which a pod's author sets options of its components.
pub const COMPONENT_OPTIONS_PREFIX: &str = "component.tandem.dev/";
/// The RuntimeClass, and its handler, of pods whose containers are all WebAssembly.
pub const WASM_RUNTIME_CLASS: &str = "wasm";
/// The taint of a node that runs components only.
pub const NO_CONTAINERS_TAINT: &str = "tandem.dev/no-containers";
/// The IngressClass whose Ingresses the nodes serve, and what its controller is called.
pub const INGRESS_CLASS: &str = "tandem";
pub const INGRESS_CONTROLLER: &str = "tandem.dev/ingress";
/// The annotation that named the class of an Ingress before there was a field for it.
pub const INGRESS_CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// The annotation of an IngressClass that Ingresses without one become of.
pub const DEFAULT_INGRESS_CLASS_ANNOTATION: &str = "ingressclass.kubernetes.io/is-default-class";
/// The annotation of EndpointSlices that names the autoscaler which wakes the Service's workload when it has no pods.
pub const WOKEN_BY_ANNOTATION: &str = "autoscaling.tandem.dev/woken-by";
/// The annotation of an autoscaler by which a node asks to wake its workload: when it asked.
pub const WAKE_ANNOTATION: &str = "autoscaling.tandem.dev/wake-requested-at";
/// What is measured of the requests of components, Services and Ingresses, as `custom.metrics.k8s.io` names it.
pub const REQUESTS_PER_SECOND: &str = "http_requests_per_second";
pub const REQUESTS_IN_FLIGHT: &str = "http_requests_in_flight";
pub const REQUEST_DURATION: &str = "http_request_duration";
/// The image host that every node resolves to the cluster's own registry.
pub const CLUSTER_REGISTRY: &str = "registry.tandem";
/// The Kubernetes release whose API is served: `/version`, the type table and the typed clients agree on it.
pub const KUBERNETES_MINOR: u32 = 36;
