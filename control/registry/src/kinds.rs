//! What is particular to single kinds: one file a family, joined to the rows here.

use crate::{Conversion, Hooks};

/// The hooks of a kind.
pub(crate) fn hooks(group: &str, kind: &str) -> Hooks {
    let _ = (group, kind);
    Hooks::NONE
}

pub(crate) const EVENTS_AS_CORE: Conversion = Conversion { to_storage: |_| {}, from_storage: |_| {} };
pub(crate) const AUTOSCALER_V1_AS_V2: Conversion = Conversion { to_storage: |_| {}, from_storage: |_| {} };
