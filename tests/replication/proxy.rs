//! A network between two nodes that can be made bad.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What happens to bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Weather {
    /// They pass.
    Fair,
    /// They are taken and go nowhere; connections stay open.
    Frozen,
    /// One bit in some thousand bytes from the primary is turned.
    Rotten,
}

#[derive(Debug, Default)]
struct Sky {
    weather: AtomicU8,
    /// Bytes from the primary, frozen ones left out.
    bytes: AtomicU64,
}

/// Passes connections on to a primary.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    sky: Arc<Sky>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sky = Arc::<Sky>::default();
        let shared = Arc::clone(&sky);
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let Ok(server) = TcpStream::connect(target).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(pass(from_client, to_server, Arc::clone(&shared), false));
                tokio::spawn(pass(from_server, to_client, Arc::clone(&shared), true));
            }
        });
        Self { address, sky, accepting }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.sky.weather.store(weather as u8, Ordering::SeqCst);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.sky.bytes.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, sky: Arc<Sky>, is_answer: bool) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        let weather = sky.weather.load(Ordering::SeqCst);
        if weather == Weather::Frozen as u8 {
            continue;
        }
        if is_answer {
            sky.bytes.fetch_add(count as u64, Ordering::SeqCst);
            if weather == Weather::Rotten as u8 && rand::random_ratio(1, 20) {
                buffer[rand::random_range(0..count)] ^= 1 << rand::random_range(0..8);
            }
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
