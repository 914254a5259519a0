//! `tandem inspect`: what a WebAssembly file is, without running it.

use std::path::Path;

use anyhow::{Context as _, bail};
use tandem_component::Component;

use crate::terminal;

/// A component larger than this is refused, here as on upload.
pub(crate) const COMPONENT_BYTES_MAX: u64 = 256 * 1024 * 1024;

pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let length = std::fs::metadata(path).with_context(|| format!("cannot read {shown}"))?.len();
    if length > COMPONENT_BYTES_MAX {
        bail!("{shown} has {length} bytes; components may have {COMPONENT_BYTES_MAX}");
    }
    std::fs::read(path).with_context(|| format!("cannot read {shown}"))
}

pub(crate) fn show(name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let inspection = Component::inspect(bytes).with_context(|| format!("{name} cannot be inspected"))?;
    terminal::answer(inspection.to_string().trim_end())?;
    Ok(())
}
