use std::{io, time::Duration};

use futures::{SinkExt as _, StreamExt as _};
use rustix::net::sockopt;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::codec::Framed;

use crate::{
    Error, Identity,
    frame::{FRAME_BYTES_MAX, Frame, Frames, Lane, VERSION},
};

/// A member that is there answers much sooner; a fresh attempt finds one that came back sooner than an old one would.
const CONNECT_MAX: Duration = Duration::from_secs(1);
const GREETING_MAX: Duration = Duration::from_secs(3);
/// The kernel gives a connection up after this long without an acknowledgement: half of it for probes on idle ones.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(6);
const PROBE: Duration = Duration::from_secs(2);
const PROBES: u32 = 2;

pub(crate) type Connection = Framed<TlsStream<TcpStream>, Frames>;

/// Connects to a member, and makes sure that it is the one.
pub(crate) async fn dial(identity: &Identity, member: u64, address: &str, lane: Lane) -> Result<Connection, Error> {
    let name = identity.name_of(member)?;
    let connecting = timeout(CONNECT_MAX, TcpStream::connect(address)).await;
    let stream = match connecting {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(Error::Connect(format!("{address}: {error}"))),
        Err(_) => return Err(Error::Connect(format!("{address} takes no connection in time"))),
    };
    prepare(&stream).map_err(|error| Error::Connect(error.to_string()))?;
    let greeted = timeout(GREETING_MAX, async {
        let stream = TlsConnector::from(identity.client())
            .connect(name, stream)
            .await
            .map_err(|error| Error::Identity(error.to_string()))?;
        greet(stream, lane).await
    });
    greeted.await.unwrap_or_else(|_| Err(Error::Connect(format!("{address} does not greet in time"))))
}

/// What all connections between members have in common.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PROBE)?;
    sockopt::set_tcp_keepintvl(stream, PROBE)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    let unacknowledged = u32::try_from(UNACKNOWLEDGED_MAX.as_millis()).map_err(io::Error::other)?;
    sockopt::set_tcp_user_timeout(stream, unacknowledged)?;
    Ok(())
}

async fn greet(stream: TlsStream<TcpStream>, lane: Lane) -> Result<Connection, Error> {
    let lost = |error: io::Error| Error::Lost(error.to_string());
    let mut connection = Framed::new(stream, Frames::default());
    connection.send(Frame::Hello { version: VERSION, lane }).await.map_err(lost)?;
    match connection.next().await {
        Some(Ok(Frame::Welcome { version: VERSION })) => {
            connection.codec_mut().bytes_max = FRAME_BYTES_MAX;
            Ok(connection)
        }
        Some(Ok(Frame::Welcome { version })) => Err(Error::Refused(format!("it speaks version {version}"))),
        Some(Ok(Frame::Refused { why })) => Err(Error::Refused(why)),
        Some(Ok(_)) => Err(Error::Refused("it does not greet".to_owned())),
        Some(Err(error)) => Err(lost(error)),
        None => Err(Error::Lost("it closed the connection instead of greeting".to_owned())),
    }
}
