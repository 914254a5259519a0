//! The kubelet: brings the pods that are bound to this node to life, and says what became of them.
//!
//! ```text
//!   API ─ pods ─> supervisor ─> worker, one a pod ─ plan_pod (pure) ─> steps ─> Runtime (containers, components)
//!    ^                            │   ^                                            │
//!    └────── status, Events ──────┘   └── observer: one listing for all pods <─────┘
//!   node ─ Node, Lease      server ─ logs, exec, metrics      probes, volumes, images, env ─ parts of steps
//! ```
//!
//! What it must never do: know which runtimes exist (only `runtimes` does), keep state that the runtimes do not have
//! too, decide anything outside `plan` and `status`, or take a workload along when it ends.

mod agent;
mod backoff;
mod cgroup;
mod config;
mod container;
mod context;
mod disk;
mod env;
mod events;
mod execute;
mod fault;
mod fields;
mod hooks;
mod image_gc;
mod images;
mod last_words;
mod life;
mod logs;
mod machine;
mod metrics;
mod node;
mod objects;
mod observed;
mod observer;
mod plan;
mod pod;
mod probes;
mod quantity;
mod reclaim;
mod registry;
mod report;
mod resize;
mod resources;
mod rotation;
mod runtimes;
mod sandbox;
mod server;
mod services;
mod status;
mod supervisor;
#[cfg(test)]
mod testing;
mod usage;
mod volumes;
mod worker;

pub use agent::{Error, Remains, down, run, unmount_volumes};
pub use config::{Config, ServerConfig};
pub use registry::{Endpoint, Registries};
pub use runtimes::Runtimes;
pub use usage::{IngressCounts, WINDOW};
