//! Who is attached to a container: what it says goes to them as it comes, and what they say is its input.
//!
//! No guest waits for a client: each has a bounded buffer, and one that falls further behind is let go and told.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

/// Output that may wait for one client.
const WAITING_MAX_BYTES: usize = 1 << 20;
/// Clients that are attached to one container at a time.
pub(crate) const LISTENERS_MAX: usize = 16;
/// Parts of the input that may wait for the guest.
const INPUT_PARTS: usize = 16;

/// Something that a client hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// `stdout` or `stderr`, and what was written to it.
    Output(&'static str, Bytes),
    /// The container has ended.
    Ended,
    /// More waited than may: some of the output is lost.
    Behind,
}

/// The clients that hear one container.
#[derive(Default)]
pub(crate) struct Live(Mutex<Listeners>);

#[derive(Default)]
struct Listeners {
    all: Vec<Weak<Listener>>,
    ended: bool,
}

impl Live {
    /// A client that hears everything from now on; `None` where there are too many.
    pub(crate) fn listen(&self) -> Option<Arc<Listener>> {
        let mut listeners = self.0.lock();
        listeners.all.retain(|listener| listener.strong_count() > 0);
        if listeners.all.len() >= LISTENERS_MAX {
            return None;
        }
        let listener = Arc::new(Listener::default());
        if listeners.ended {
            listener.end(Heard::Ended);
        }
        listeners.all.push(Arc::downgrade(&listener));
        Some(listener)
    }

    pub(crate) fn tell(&self, stream: &'static str, bytes: &[u8]) {
        let mut listeners = self.0.lock();
        listeners.all.retain(|listener| listener.upgrade().is_some_and(|listener| listener.take(stream, bytes)));
    }

    /// Nothing comes any more.
    pub(crate) fn end(&self) {
        let mut listeners = self.0.lock();
        listeners.ended = true;
        for listener in listeners.all.drain(..).filter_map(|listener| listener.upgrade()) {
            listener.end(Heard::Ended);
        }
    }
}

/// One client's buffer.
#[derive(Default)]
pub(crate) struct Listener {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    parts: VecDeque<(&'static str, BytesMut)>,
    bytes: usize,
    end: Option<Heard>,
}

impl Listener {
    /// False when there is no room.
    fn take(&self, stream: &'static str, bytes: &[u8]) -> bool {
        {
            let mut waiting = self.waiting.lock();
            if waiting.bytes + bytes.len() > WAITING_MAX_BYTES {
                waiting.end.get_or_insert(Heard::Behind);
            } else {
                waiting.bytes += bytes.len();
                match waiting.parts.back_mut() {
                    Some((last, part)) if *last == stream => part.extend_from_slice(bytes),
                    _ => waiting.parts.push_back((stream, BytesMut::from(bytes))),
                }
            }
        }
        self.wake.notify_one();
        self.waiting.lock().end.is_none()
    }

    fn end(&self, why: Heard) {
        self.waiting.lock().end.get_or_insert(why);
        self.wake.notify_one();
    }

    /// What comes next. The end comes again and again.
    pub(crate) async fn next(&self) -> Heard {
        loop {
            {
                let mut waiting = self.waiting.lock();
                if let Some((stream, part)) = waiting.parts.pop_front() {
                    waiting.bytes -= part.len();
                    return Heard::Output(stream, part.freeze());
                }
                if let Some(end) = &waiting.end {
                    return end.clone();
                }
            }
            self.wake.notified().await;
        }
    }
}

/// The input of a command whose pod keeps it open for those who attach.
pub(crate) struct Input {
    /// `None` once it has ended.
    sender: Mutex<Option<mpsc::Sender<Bytes>>>,
    /// It ends with the first client that sends any.
    once: bool,
}

impl Input {
    /// The receiver is the guest's.
    pub(crate) fn open(once: bool) -> (Input, mpsc::Receiver<Bytes>) {
        let (sender, receiver) = mpsc::channel(INPUT_PARTS);
        (Input { sender: Mutex::new(Some(sender)), once }, receiver)
    }

    /// Passes on what one client sends, to its end or that of the input. False when the input goes on without it.
    pub(crate) async fn take(&self, mut from_client: mpsc::Receiver<Bytes>) -> bool {
        // Also when the client goes without a word.
        let _leaving = Leaving(self);
        while let Some(bytes) = from_client.recv().await {
            let sender = self.sender.lock().clone();
            let Some(sender) = sender else { return true };
            if sender.send(bytes).await.is_err() {
                return true;
            }
        }
        self.once
    }
}

struct Leaving<'a>(&'a Input);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if self.0.once {
            *self.0.sender.lock() = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clients_hear_what_is_said_from_now_on() {
        let live = Live::default();
        live.tell("stdout", b"before");
        let (first, second) = (live.listen().unwrap(), live.listen().unwrap());
        for (stream, text) in [("stdout", "one "), ("stdout", "two"), ("stderr", "oh")] {
            live.tell(stream, text.as_bytes());
        }
        live.end();
        let late = live.listen().unwrap();
        for listener in [first, second] {
            assert_eq!(listener.next().await, Heard::Output("stdout", Bytes::from_static(b"one two")));
            assert_eq!(listener.next().await, Heard::Output("stderr", Bytes::from_static(b"oh")));
            assert_eq!(listener.next().await, Heard::Ended);
        }
        assert_eq!(late.next().await, Heard::Ended);
    }

    #[tokio::test]
    async fn a_client_that_falls_behind_is_let_go_and_the_others_are_not() {
        let live = Live::default();
        let (slow, quick) = (live.listen().unwrap(), live.listen().unwrap());
        let part = vec![b'x'; WAITING_MAX_BYTES / 2 + 1];
        for _ in 0..3 {
            live.tell("stdout", &part);
            assert!(matches!(quick.next().await, Heard::Output("stdout", heard) if heard.len() == part.len()));
        }
        assert!(matches!(slow.next().await, Heard::Output("stdout", heard) if heard.len() == part.len()));
        assert_eq!(slow.next().await, Heard::Behind);
        // Those that have gone make room.
        drop(slow);
        let all: Vec<_> = std::iter::from_fn(|| live.listen()).collect();
        assert_eq!(all.len(), LISTENERS_MAX - 1);
    }

    #[tokio::test]
    async fn input_ends_with_its_client_where_there_is_only_one() {
        for once in [true, false] {
            let (input, mut guest) = Input::open(once);
            for text in ["first", "second"] {
                let (client, from_client) = mpsc::channel(1);
                client.send(Bytes::from(text)).await.unwrap();
                drop(client);
                assert_eq!(input.take(from_client).await, once);
            }
            assert_eq!(guest.recv().await.unwrap(), "first");
            if once {
                assert_eq!(guest.recv().await, None);
            } else {
                assert_eq!(guest.recv().await.unwrap(), "second");
                assert!(guest.try_recv().is_err());
            }
        }
    }
}
