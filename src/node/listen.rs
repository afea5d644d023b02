//! Binds the address on which replicas are served.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket, lookup_host};

use crate::config::Listen;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;

/// Why no replica can be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The host name has no address.
    #[error("replication.listen = \"{listen}\": look up the host name")]
    LookUp {
        /// As configured.
        listen: Listen,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The address cannot be used.
    #[error("replication.listen = \"{listen}\": {remedy}")]
    Bind {
        /// As configured.
        listen: Listen,
        /// What to do.
        remedy: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Listens on the first address that works. `[::]` on a machine without IPv6 is `0.0.0.0`.
pub(super) async fn bind(listen: &Listen) -> Result<TcpListener, ListenError> {
    let found = lookup_host((listen.host.as_str(), listen.port)).await;
    let found = found.map_err(|source| ListenError::LookUp { listen: listen.clone(), source })?;
    let mut addresses: Vec<SocketAddr> = found.collect();
    if addresses.iter().any(|address| address.is_ipv6() && address.ip().is_unspecified()) {
        addresses.push(SocketAddr::from(([0, 0, 0, 0], listen.port)));
    }
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match bind_to(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = error,
        }
        if failed.kind() == io::ErrorKind::AddrInUse {
            break;
        }
    }
    let remedy = match failed.kind() {
        io::ErrorKind::AddrInUse => {
            "another process listens there; stop it (ss -ltnp shows it) or choose another port"
        }
        io::ErrorKind::PermissionDenied => "not allowed; choose a port above 1023",
        _ => "this machine has no such address; \"[::]:7400\" listens on all it has",
    };
    Err(ListenError::Bind { listen: listen.clone(), remedy, source: failed })
}

fn bind_to(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for connections of the last process to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn an_address_in_use_is_named_with_the_remedy() {
        runtime().block_on(async {
            let first = bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
            let port = first.local_addr().unwrap().port();
            let listen = format!("127.0.0.1:{port}").parse().unwrap();
            let error = bind(&listen).await.unwrap_err().to_string();
            assert!(
                error.starts_with(&format!(
                    "replication.listen = \"127.0.0.1:{port}\": another process listens there"
                )),
                "{error}"
            );
        });
    }

    #[test]
    fn a_foreign_address_is_named() {
        runtime().block_on(async {
            let listen = "192.0.2.1:7400".parse().unwrap();
            let error = bind(&listen).await.unwrap_err().to_string();
            assert!(error.contains("this machine has no such address"), "{error}");
        });
    }
}
