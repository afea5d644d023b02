//! Serving the sums of a database's pages to a follower that compares.
//!
//! Writers go on: what the log says to have changed behind the follower's position is named, the sums of all other
//! pages are what they were there. So both compare one position, and nobody waits.

use std::sync::Arc;

use tracing::{error, info};

use crate::database::{Changed, Database, OpError};
use crate::replication::error::{LinkError, Reason, Refusal};
use crate::replication::limits::{CHUNK_TIMEOUT, SUMS_PER_MESSAGE};
use crate::replication::link::{Ended, Sender, blocking, last_words, send};
use crate::replication::message::{SumsChunk, SumsRequest};
use crate::types::{PageNo, Pos};

/// Serves one comparison.
pub(crate) struct SumsSource {
    pub(crate) db: Arc<Database>,
    pub(crate) out: Sender<SumsChunk>,
}

impl SumsSource {
    /// Serves until everything is said.
    pub(crate) async fn run(self, request: SumsRequest) -> Ended {
        let Err(reason) = self.serve(request.pos).await else { return Ended::Told };
        let (db, peer) = (self.db.name(), &request.caller.name);
        if matches!(&reason, LinkError::Refused(refusal) if refusal.reason == Reason::Failed) {
            error!(%db, peer, %reason, "page sums could not be served");
        } else {
            info!(%db, peer, %reason, "a comparison of page sums ended early");
        }
        last_words(&self.out, reason)
    }

    async fn serve(&self, pos: Pos) -> Result<(), LinkError> {
        if self.on_disk(move |db| db.log_span(pos)).await?.is_none() {
            return self.send(SumsChunk::Gone { pos: self.db.position() }).await;
        }
        let mut first = PageNo::FIRST;
        loop {
            let sums = self.on_disk(move |db| db.page_sums(first, SUMS_PER_MESSAGE)).await?;
            let count = u32::try_from(sums.len()).unwrap_or(SUMS_PER_MESSAGE);
            if !sums.is_empty() {
                self.send(SumsChunk::Sums { first, sums }).await?;
            }
            match PageNo::new(first.get().saturating_add(count)) {
                Some(next) if count == SUMS_PER_MESSAGE => first = next,
                Some(_) | None => break,
            }
        }
        // Asked last: whatever changed while the sums were read is among it.
        match self.on_disk(move |db| db.changed_since(pos)).await? {
            Some(changed) => self.send_changed(changed).await,
            None => self.send(SumsChunk::Gone { pos: self.db.position() }).await,
        }
    }

    async fn send_changed(&self, changed: Changed) -> Result<(), LinkError> {
        let Changed { pages, kept, end } = changed;
        let mut pages = pages.into_iter().peekable();
        if kept != u32::MAX || pages.peek().is_some() {
            loop {
                let part = pages.by_ref().take(SUMS_PER_MESSAGE as usize).collect();
                self.send(SumsChunk::Changed { pages: part, kept }).await?;
                if pages.peek().is_none() {
                    break;
                }
            }
        }
        self.send(SumsChunk::Done { pos: end }).await
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, OpError> + Send + 'static,
    ) -> Result<T, LinkError> {
        let db = Arc::clone(&self.db);
        let done = blocking(move || work(&db)).await?;
        Ok(done.map_err(|error| Refusal::failed(&error))?)
    }

    async fn send(&self, chunk: SumsChunk) -> Result<(), LinkError> {
        send(&self.out, chunk, CHUNK_TIMEOUT).await
    }
}
