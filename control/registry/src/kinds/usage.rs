//! What nodes and pods use, as `metrics.k8s.io` says it: answered from measurements, never stored.

use crate::{Hooks, columns};

pub(super) const NODE: Hooks = Hooks { cells: columns::usage::node, ..Hooks::NONE };
pub(super) const POD: Hooks = Hooks { cells: columns::usage::pod, ..Hooks::NONE };
