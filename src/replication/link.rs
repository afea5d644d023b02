//! Small things both ends of a stream need.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;

use super::convert::Incoming;
use super::error::{LinkError, Reason, Refusal};

/// Sends to a peer through a small queue.
pub(crate) type Sender<T> = mpsc::Sender<Result<T, LinkError>>;

/// The next message, or why there is none within `limit`.
pub(crate) async fn receive<T>(stream: &mut Incoming<T>, limit: Duration) -> Result<T, LinkError> {
    match tokio::time::timeout(limit, stream.next()).await {
        Ok(Some(message)) => message,
        Ok(None) => Err(LinkError::Closed),
        Err(_) => Err(LinkError::Silent(limit)),
    }
}

/// Sends, waiting up to `limit` for a peer that does not read.
pub(crate) async fn send<T>(out: &Sender<T>, message: T, limit: Duration) -> Result<(), LinkError> {
    match tokio::time::timeout(limit, out.send(Ok(message))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(LinkError::Closed),
        Err(_) => Err(stalled(limit).into()),
    }
}

/// How a stream to a peer ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// The peer can read why, or is gone.
    Told,
    /// The peer has not read what was sent before.
    Unread,
}

/// Says why a stream ends, if there is room for that.
pub(crate) fn last_words<T>(out: &Sender<T>, reason: LinkError) -> Ended {
    match out.try_send(Err(reason)) {
        Err(mpsc::error::TrySendError::Full(_)) => Ended::Unread,
        Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ended::Told,
    }
}

/// What a peer is told that does not read.
pub(crate) fn stalled(limit: Duration) -> Refusal {
    Refusal::new(Reason::Stalled, format!("nothing was read for {limit:?}"))
}

/// Runs disk work off the network's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, LinkError> {
    Ok(tokio::task::spawn_blocking(work).await?)
}
