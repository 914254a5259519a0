//! Calls of raft that are not left in the middle of its end.
//!
//! openraft 0.10.0-alpha.37 lets the first call that learns of raft's end wait for it in the name of all others: when
//! that one is dropped meanwhile, the next call panics (`join_core_task`, `get_core_stop_error`).

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{FutureExt as _, future::BoxFuture};
use openraft::async_runtime::watch::WatchReceiver as _;

use crate::machine::Core;

/// Makes a call. When raft has ended and nobody waits for the answer any more, a task of its own does.
pub(crate) fn to_the_end<T, F>(raft: &Core, call: impl FnOnce(Core) -> F) -> ToTheEnd<T>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    ToTheEnd { raft: raft.clone(), call: Some(call(raft.clone()).boxed()) }
}

pub(crate) struct ToTheEnd<T: Send + 'static> {
    raft: Core,
    /// Until it is answered.
    call: Option<BoxFuture<'static, T>>,
}

impl<T: Send + 'static> Future for ToTheEnd<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(call) = &mut self.call else { return Poll::Pending };
        let answer = std::task::ready!(call.poll_unpin(context));
        self.call = None;
        Poll::Ready(answer)
    }
}

impl<T: Send + 'static> Drop for ToTheEnd<T> {
    fn drop(&mut self) {
        let ended = || self.raft.metrics().borrow_watched().running_state.is_err();
        if let Some(call) = self.call.take_if(|_| ended())
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(call.map(drop));
        }
    }
}
