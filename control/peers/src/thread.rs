use std::{future::Future, io};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinHandle,
};

/// One for raft itself and the connections, one so that applying a large command delays no heartbeat.
const WORKERS: usize = 2;

/// The threads on which a member talks to the others, apart from those that serve clients.
#[derive(Debug)]
pub struct Thread {
    /// Taken when the thread is dropped.
    runtime: Option<Runtime>,
}

impl Thread {
    pub fn start() -> io::Result<Thread> {
        let runtime =
            Builder::new_multi_thread().worker_threads(WORKERS).thread_name("tandem-raft").enable_all().build()?;
        Ok(Thread { runtime: Some(runtime) })
    }

    pub fn handle(&self) -> Handle {
        match &self.runtime {
            Some(runtime) => runtime.handle().clone(),
            None => Handle::current(),
        }
    }

    /// Runs a future there; what it spawns stays there.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.handle().spawn(future)
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // Within another runtime nothing may block; what matters has been shut down in order before.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
