//! Network namespaces that a file keeps, as `ip netns` does.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use rustix::{
    mount::{UnmountFlags, mount_bind, unmount},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space},
};

use super::{Error, netlink::Netlink, system};

/// Moves the calling thread into the namespace behind `path`. Sockets that it makes afterwards are of that namespace
/// for ever; the thread must not go back to a pool.
pub fn enter(path: &Path) -> io::Result<()> {
    use std::os::fd::AsFd;
    let namespace = File::open(path)?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Runs `action` on a throw-away thread inside the namespace.
pub(super) async fn within<T: Send + 'static>(
    path: &Path,
    action: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let path = path.to_owned();
    on_own_thread(move || {
        enter(&path)?;
        action()
    })
    .await
}

async fn on_own_thread<T: Send + 'static>(action: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("namespace".into()).spawn(move || {
        let _context = runtime.enter();
        // Nobody waits any more if the caller gave up.
        let _unread = sender.send(action());
    })?;
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace ended early")))
}

/// The namespace behind `path`, made now if it is not there, and a netlink socket in it.
pub(super) async fn ensure(path: &Path) -> Result<Netlink, Error> {
    if let Ok(inside) = within(path, Netlink::here).await {
        return Ok(inside);
    }
    let action = format!("make the namespace {}", path.display());
    // What is there is an empty file, from before the machine was restarted.
    remove(path).await?;
    let target = path.to_owned();
    on_own_thread(move || make(target)).await.map_err(system(action.clone()))?;
    within(path, Netlink::here).await.map_err(system(action))
}

fn make(path: PathBuf) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    File::create(&path)?;
    #[allow(unsafe_code, reason = "a new namespace is made by leaving the old one")]
    // SAFETY: only the network namespace of this thread changes; the file table stays shared.
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)?;
    }
    mount_bind("/proc/thread-self/ns/net", &path)?;
    Ok(())
}

/// The namespace itself goes when the last process and socket in it are gone.
pub(super) async fn remove(path: &Path) -> Result<(), Error> {
    let target = path.to_owned();
    on_own_thread(move || {
        match unmount(&target, UnmountFlags::DETACH) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match std::fs::remove_file(&target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    })
    .await
    .map_err(system(format!("remove the namespace {}", path.display())))
}
