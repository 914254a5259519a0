use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{Interest, unix::AsyncFd};

const PACKET_BYTES: usize = 128 * 1024;

/// One end of a connection that carries packets, each with at most one open file.
pub(crate) struct Wire(AsyncFd<OwnedFd>);

impl Wire {
    /// Two connected ends.
    pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
    }

    /// Needs the event loop that will wait for it.
    pub(crate) fn new(end: OwnedFd) -> io::Result<Wire> {
        Ok(Wire(watched(end, Interest::READABLE | Interest::WRITABLE)?))
    }

    pub(crate) async fn send<T: Serialize>(&self, message: &T, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
        if bytes.len() > PACKET_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message does not fit into a packet"));
        }
        self.0.async_io(Interest::WRITABLE, |end| send_packet(end.as_fd(), &bytes, file)).await
    }

    /// The next message, or `None` when the other end is gone.
    pub(crate) async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Option<OwnedFd>)>> {
        let received = self.0.async_io(Interest::READABLE, |end| receive_packet(end.as_fd())).await;
        match received {
            Ok((bytes, _)) if bytes.is_empty() => Ok(None),
            Ok((bytes, file)) => Ok(Some((serde_json::from_slice(&bytes).map_err(io::Error::other)?, file))),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Has the event loop of this thread watch a file.
#[allow(unsafe_code, reason = "the event loop keeps the number of the file")]
pub(crate) fn watched<T: AsRawFd + OwnsFile>(file: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: the types that own a file keep the same one open until they are dropped, and `AsyncFd` owns this value.
    Ok(unsafe { AsyncFd::register_with_interest(file, interest) }?)
}

/// Types that keep one file open from their making to their end.
pub(crate) trait OwnsFile {}

impl OwnsFile for OwnedFd {}
impl OwnsFile for std::net::TcpListener {}

fn send_packet(end: BorrowedFd<'_>, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = file.map(|file| [file]);
    if let Some(files) = &files
        && !control.push(SendAncillaryMessage::ScmRights(files))
    {
        return Err(io::Error::other("no room for an open file"));
    }
    sendmsg(end, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_packet(end: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = vec![0; PACKET_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(end, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    bytes.truncate(received.bytes);
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    Ok((bytes, file))
}
