//! `tandem push` and `tandem inspect REF`: the cluster's registry, found through a kubeconfig.

use std::path::Path;

use anyhow::Context as _;
use tandem_images::Endpoint;

use crate::{inspect, terminal};

pub(crate) async fn push(file: &Path, reference: &str, kubeconfig: &Path) -> anyhow::Result<()> {
    let wasm = inspect::read(file)?;
    let inspection = tandem_component::Component::inspect(&wasm)
        .with_context(|| format!("{} is not a component that can be uploaded", file.display()))?;
    let pushed = tandem_images::push(&endpoint(kubeconfig)?, wasm.into(), reference).await?;
    for interface in inspection.refused() {
        terminal::remark(&format!(
            "note: it imports {interface}, which nothing in the cluster provides: its pods will be refused"
        ));
    }
    terminal::answer(&pushed.image)?;
    Ok(())
}

pub(crate) async fn show(reference: &str, kubeconfig: &Path) -> anyhow::Result<()> {
    let inspection = tandem_images::inspect(&endpoint(kubeconfig)?, reference).await?;
    terminal::answer(inspection.to_string().trim_end())?;
    Ok(())
}

fn endpoint(kubeconfig: &Path) -> anyhow::Result<Endpoint> {
    Endpoint::from_kubeconfig(kubeconfig).with_context(|| {
        format!("no cluster to talk to: {} does not name one; give --kubeconfig or --data-dir", kubeconfig.display())
    })
}
