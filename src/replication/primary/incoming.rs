//! Accepting connections: bounded in number, each with a handle to close it.
//!
//! HTTP/2 keeps what a peer does not read; the only way to be rid of a peer that never reads is to close
//! its connection.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tracing::warn;

use crate::replication::limits::CONNECTIONS_MAX;

/// Pause after an accept that failed: the process may be out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A connection as the service sees it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) address: SocketAddr,
    socket: Arc<std::net::TcpStream>,
}

impl Connection {
    /// Whether it is the same one.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.socket, &other.socket)
    }

    /// Closes it, whatever is under way.
    pub(crate) fn close(&self) {
        if let Err(error) = self.socket.shutdown(Shutdown::Both)
            && error.kind() != io::ErrorKind::NotConnected
        {
            warn!(peer = %self.address, %error, "close a connection");
        }
    }
}

/// One accepted connection.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    connection: Connection,
    _permit: OwnedSemaphorePermit,
}

impl Socket {
    fn new(
        stream: TcpStream,
        address: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let socket = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
        let connection = Connection { address, socket: Arc::new(socket) };
        Ok(Self { stream, connection, _permit: permit })
    }
}

impl Connected for Socket {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Accepts until dropped. One connection too many is closed at once.
pub(crate) fn accept(listener: TcpListener) -> impl Stream<Item = io::Result<Socket>> {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    futures_util::stream::unfold((listener, permits), |(listener, permits)| async move {
        loop {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                warn!(peer = %address, max = CONNECTIONS_MAX, "too many connections");
                continue;
            };
            match Socket::new(stream, address, permit) {
                Ok(socket) => return Some((Ok(socket), (listener, permits))),
                Err(error) => warn!(peer = %address, %error, "prepare a connection"),
            }
        }
    })
}
