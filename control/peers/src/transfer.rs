//! A file on its way to another member: a connection of its own, so that nothing waits for it.

use std::{io, path::Path, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use tokio::{fs::File, io::AsyncReadExt as _, time::timeout};

use crate::{Error, dialer::Connection, frame::Frame};

const CHUNK_BYTES: usize = 256 << 10;
/// How long the other side may take for one chunk, and may be silent while it works on the whole.
const STALL_MAX: Duration = Duration::from_secs(10);

/// Sends a file and waits until the other side has done with it what it does.
pub(crate) async fn send(mut connection: Connection, header: Bytes, file: &Path) -> Result<Bytes, Error> {
    let stalled = |_| Error::Lost("it takes nothing that is sent".to_owned());
    let lost = |error: io::Error| Error::Lost(error.to_string());
    let unreadable = |error: io::Error| Error::Failed(format!("the file cannot be read here: {error}"));
    let mut file = File::open(file).await.map_err(unreadable)?;
    let length = file.metadata().await.map_err(unreadable)?.len();
    connection.feed(Frame::Begin { length, header }).await.map_err(lost)?;
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        if file.read_buf(&mut chunk).await.map_err(unreadable)? == 0 {
            break;
        }
        timeout(STALL_MAX, connection.send(Frame::Chunk(chunk.freeze()))).await.map_err(stalled)?.map_err(lost)?;
    }
    timeout(STALL_MAX, connection.send(Frame::End)).await.map_err(stalled)?.map_err(lost)?;
    loop {
        let silent = |_| Error::Lost("it gives no sign of life".to_owned());
        match timeout(STALL_MAX, connection.next()).await.map_err(silent)? {
            Some(Ok(Frame::Pong)) => {}
            Some(Ok(Frame::Answer { body, .. })) => return Ok(body),
            Some(Ok(Frame::Failure { why, .. })) => return Err(Error::Failed(why)),
            Some(Ok(_)) => return Err(Error::Lost("it sent what nobody asked for".to_owned())),
            Some(Err(error)) => return Err(lost(error)),
            None => return Err(Error::Lost("it closed the connection".to_owned())),
        }
    }
}
