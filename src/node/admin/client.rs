//! The client's side: blocking, used by the command line.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{CHUNK_BYTES, REPLY_BYTES_MAX, Reply, Request, SOCKET, address};
use crate::node::{lock, status::Status};

/// Longer than the daemon waits for anything without a word.
const ANSWER_WAIT: Duration = Duration::from_secs(150);

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No daemon.
    #[error(
        "no weir runs on {data}; start it with `weir mount`, or name its configuration with --config",
        data = data.display()
    )]
    NotRunning {
        /// The data directory.
        data: PathBuf,
    },
    /// A daemon that does not listen yet, or no more.
    #[error(
        "weir (process {pid}) is starting or stopping on {data}; try again in a moment",
        data = data.display()
    )]
    NotListening {
        /// Its process.
        pid: u32,
        /// The data directory.
        data: PathBuf,
    },
    /// The socket is another user's.
    #[error(
        "not allowed to talk to the weir on {data}; run this command as its user",
        data = data.display()
    )]
    NotAllowed {
        /// The data directory.
        data: PathBuf,
    },
    /// The daemon's answer.
    #[error("{0}")]
    Refused(String),
    /// Not what a weir of this version answers.
    #[error("the running weir answered something unknown; use the same version of weir for both")]
    Unknown,
    /// The connection broke.
    #[error("talk to the running weir")]
    Io(#[from] io::Error),
}

/// A connection to the daemon of a data directory.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`AdminError`] says why there is nobody to talk to.
    pub fn connect(data: &Path) -> Result<Self, AdminError> {
        let connected = address(data, SOCKET).and_then(|(path, _directory)| {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(ANSWER_WAIT))?;
            stream.set_write_timeout(Some(ANSWER_WAIT))?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => Ok(Self { stream: BufReader::with_capacity(64 << 10, stream) }),
            Err(error) => Err(Self::explain(data, error)),
        }
    }

    fn explain(data: &Path, error: io::Error) -> AdminError {
        let data = data.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => match lock::holder(&data)
            {
                Ok(Some(holder)) => AdminError::NotListening { pid: holder.pid, data },
                Ok(None) | Err(_) => AdminError::NotRunning { data },
            },
            io::ErrorKind::PermissionDenied => AdminError::NotAllowed { data },
            _ => AdminError::Io(error),
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// The connection broke.
    pub fn send(&mut self, request: &Request) -> Result<(), AdminError> {
        let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        Ok(())
    }

    /// Receives the next line of an answer.
    ///
    /// # Errors
    /// [`AdminError::Refused`] is the daemon's own error.
    pub fn receive(&mut self) -> Result<Reply, AdminError> {
        let mut line = Vec::new();
        (&mut self.stream).take(REPLY_BYTES_MAX).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match serde_json::from_slice(&line) {
            Ok(Reply::Error { message }) => Err(AdminError::Refused(message)),
            Ok(reply) => Ok(reply),
            Err(_) => Err(AdminError::Unknown),
        }
    }

    /// Receives the raw bytes that a line announced.
    ///
    /// # Errors
    /// The connection broke.
    pub fn receive_bytes(&mut self, length: usize) -> Result<Vec<u8>, AdminError> {
        let mut bytes = Vec::with_capacity(length.min(CHUNK_BYTES));
        (&mut self.stream).take(length as u64).read_to_end(&mut bytes)?;
        if bytes.len() == length {
            Ok(bytes)
        } else {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
        }
    }

    /// Asks for the node's state.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn status(&mut self) -> Result<Status, AdminError> {
        self.send(&Request::Status)?;
        match self.receive()? {
            Reply::Status(status) => Ok(*status),
            _ => Err(AdminError::Unknown),
        }
    }
}
