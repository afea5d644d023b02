//! The daemon's side.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{REQUEST_BYTES_MAX, Reply, Request, SOCKET, address, export, verify};
use crate::node::status::Status;
use crate::replication::Comparison;
use crate::store::Store;
use crate::types::{Checksum, DbId, Pos};

/// How long a client may take to say what it wants.
const REQUEST_WAIT: Duration = Duration::from_secs(30);
/// How long a client may take to read one message.
const WRITE_WAIT: Duration = Duration::from_secs(30);
/// Clients at one time.
const CLIENTS_MAX: usize = 32;
/// Messages of an answer that wait for their client.
const QUEUE: usize = 4;
/// Pause after a failed accept, which is a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the answers are made from.
pub(in crate::node) struct Context {
    /// The databases.
    pub(in crate::node) store: Arc<Store>,
    /// The node's state.
    pub(in crate::node) status: Box<dyn Fn() -> Status + Send + Sync>,
    /// On a replica: compares with the primary.
    pub(in crate::node) compare: Option<Compare>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Compares the sums of all pages of a database at a position with the primary's. Blocks.
pub(in crate::node) type Compare =
    Box<dyn Fn(DbId, Pos, &[Checksum]) -> anyhow::Result<Comparison> + Send + Sync>;

/// One message of an answer.
pub(super) struct Message {
    reply: Reply,
    bytes: Vec<u8>,
}

/// Where the work behind an answer puts its messages. Used on a blocking thread.
pub(super) struct Answer {
    queue: mpsc::Sender<Message>,
}

/// The client went away.
#[derive(Debug, thiserror::Error)]
#[error("the client went away")]
pub(super) struct ClientGone;

impl Answer {
    pub(super) fn line(&self, reply: Reply) -> Result<(), ClientGone> {
        self.bytes(reply, Vec::new())
    }

    pub(super) fn bytes(&self, reply: Reply, bytes: Vec<u8>) -> Result<(), ClientGone> {
        self.queue.blocking_send(Message { reply, bytes }).map_err(|_| ClientGone)
    }
}

/// The listening socket and the tasks behind it.
#[derive(Debug)]
pub(in crate::node) struct AdminServer {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl AdminServer {
    /// Listens in the data directory; what an earlier daemon left there is replaced.
    ///
    /// # Errors
    /// The socket could not be made.
    pub(in crate::node) fn start(data: &Path, context: Context) -> io::Result<Self> {
        let listener = bind(data)?;
        let task = tokio::spawn(serve(listener, Arc::new(context)));
        Ok(Self { path: data.join(SOCKET), task })
    }

    /// Stops listening and drops all clients.
    pub(in crate::node) async fn stop(self) {
        self.task.abort();
        if let Err(error) = self.task.await
            && !error.is_cancelled()
        {
            warn!(%error, "the admin socket's task failed");
        }
        if let Err(error) = fs::remove_file(&self.path) {
            debug!(%error, path = %self.path.display(), "remove admin socket");
        }
    }
}

/// Binds under another name and renames, so that clients find the old socket or the new one.
fn bind(data: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    let (temporary, _directory) = address(data, "admin.new")?;
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
    // A socket does not survive a crash: nothing to sync.
    rustix::fs::rename(&temporary, data.join(SOCKET))?;
    Ok(listener)
}

async fn serve(listener: UnixListener, context: Arc<Context>) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if clients.len() < CLIENTS_MAX => match accepted {
                Ok((stream, _)) => {
                    if is_allowed(&stream) {
                        clients.spawn(serve_client(stream, context.clone()));
                    }
                }
                Err(error) => {
                    warn!(%error, "accept on the admin socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = clients.join_next() => {}
        }
    }
}

/// The daemon's own user and root.
fn is_allowed(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

async fn serve_client(stream: UnixStream, context: Arc<Context>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut read).take(REQUEST_BYTES_MAX);
        let received = timeout(REQUEST_WAIT, bounded.read_until(b'\n', &mut line)).await;
        if !matches!(received, Ok(Ok(length)) if length > 0) {
            return;
        }
        let outcome = match parse(&line) {
            Ok(request) => answer(request, &context, &mut write).await,
            Err(message) => {
                // What follows a broken line is not trusted to be a request.
                drop(
                    send(
                        &mut write,
                        &Message { reply: Reply::Error { message }, bytes: Vec::new() },
                    )
                    .await,
                );
                return;
            }
        };
        if let Err(error) = outcome {
            debug!(%error, "answer on the admin socket");
            return;
        }
    }
}

fn parse(line: &[u8]) -> Result<Request, String> {
    if line.last() != Some(&b'\n') && line.len() as u64 == REQUEST_BYTES_MAX {
        return Err(format!("the request is longer than {REQUEST_BYTES_MAX} bytes"));
    }
    serde_json::from_slice(line)
        .map_err(|error| format!("not a request ({error}); use the same version of weir for both"))
}

async fn answer(
    request: Request,
    context: &Arc<Context>,
    write: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let (queue, mut messages) = mpsc::channel(QUEUE);
    let worker = tokio::task::spawn_blocking({
        let context = context.clone();
        move || work(request, &context, &Answer { queue })
    });
    let mut outcome = Ok(());
    while let Some(message) = messages.recv().await {
        outcome = send(write, &message).await;
        if outcome.is_err() {
            break;
        }
    }
    drop(messages); // Stops the worker if the client is gone.
    worker.await.map_err(io::Error::other)?;
    outcome
}

/// Runs on a blocking thread. Errors of the request are part of the answer.
fn work(request: Request, context: &Context, answer: &Answer) {
    let outcome = match request {
        Request::Status => {
            answer.line(Reply::Status(Box::new((context.status)()))).map_err(anyhow::Error::from)
        }
        Request::Export { db } => export::export(&context.store, &db, answer),
        Request::Verify { db } => verify::verify(context, db.as_ref(), answer),
    };
    if let Err(error) = outcome
        && !error.is::<ClientGone>()
    {
        let message = format!("{error:#}");
        drop(answer.line(Reply::Error { message }));
    }
}

async fn send(write: &mut OwnedWriteHalf, message: &Message) -> io::Result<()> {
    let mut line = serde_json::to_vec(&message.reply)?;
    line.push(b'\n');
    let both = async {
        write.write_all(&line).await?;
        write.write_all(&message.bytes).await
    };
    timeout(WRITE_WAIT, both).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests;
