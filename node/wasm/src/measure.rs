//! The path of a request without the processes around it, for measurements.

use std::{error::Error, net::SocketAddr, path::Path, sync::Arc, time::Instant};

use tandem_component::Component;

use crate::{
    engine::{Blueprint, Compiler, Compiling, Cpu, Engine, Lanes, MemoryAccount, NodeMemory, SocketRules},
    link::LocalSockets,
    network::{Attachment, Dialer, Dns, Sockets},
    notices::Notices,
    outgoing::Outgoing,
    output::LogFile,
    serve::{Limits, Service, ServiceParts},
};

/// Serves one HTTP component on an address with `threads` express lanes, until the process ends.
pub fn serve_component(file: &Path, address: SocketAddr, threads: usize) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(file, address, threads))
}

async fn serve(file: &Path, address: SocketAddr, threads: usize) -> Result<(), Box<dyn Error>> {
    let engine = Arc::new(Engine::new()?);
    let lanes = Lanes::start(engine.ticker().clone(), threads, None)?;
    let cache = std::env::temp_dir().join(format!("tandem-serve-{}", std::process::id()));
    let compiler = Compiler::new(&engine, cache.clone(), Compiling::Here)?;
    let bytes = std::fs::read(file)?;
    let inspection = Component::inspect(&bytes)?;
    let digest = tandem_component::image::digest(&bytes);
    let compiled = compiler.compiled(&digest, file, inspection.binary).await?;
    let program = Arc::new(engine.load(&compiled, &inspection)?);
    let sockets: Arc<dyn Sockets> = Arc::new(LocalSockets);
    let attachment = Attachment::Host { address: address.ip() };
    let listener = sockets.listener("", None, address).await?;
    let outgoing = Outgoing::new(Dialer::new(attachment, Dns::default(), sockets));
    let memory = MemoryAccount::new(NodeMemory::of_this_machine(), None);
    let service = Service::new(ServiceParts {
        container: "measured".to_owned(),
        engine,
        lanes,
        program,
        blueprint: Blueprint::new(Vec::new(), vec!["measured".to_owned()], SocketRules::Denied, outgoing, memory),
        cpu: Arc::new(Cpu::new(0, 0, Instant::now())),
        log: LogFile::new(None),
        notices: Notices::default(),
        limits: Limits::default(),
    });
    service.listen(listener);
    // The code is mapped by now.
    std::fs::remove_dir_all(cache)?;
    std::future::pending().await
}
