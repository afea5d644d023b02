//! Serving a Fetch: one database's missing log, or a copy of its pages and the log that completes it.
//!
//! A copy takes pages while writers go on. What was in the file when it began is its base; the change set
//! from the base to a position reached after the last page was read makes it exact. So a copy needs no
//! state here but its base, and can be continued on another connection, page by page.

use std::sync::Arc;

use bytes::Bytes;
use tracing::{debug, error, info, warn};

use crate::database::{Common, Database, LogRead, LogRecord, OpError, Snapshot};
use crate::log::Payload;
use crate::replication::catchup::{Situation, Step, first_step, is_close, log_step};
use crate::replication::convert::Incoming;
use crate::replication::error::{LinkError, Malformed, Reason, Refusal};
use crate::replication::limits::{CHUNK_BYTES, CHUNK_TIMEOUT, SUMS_PER_MESSAGE};
use crate::replication::link::{Ended, Sender, blocking, last_words, receive, send};
use crate::replication::message::{CopyState, FetchBegin, FetchChunk, FetchRequest};
use crate::store::Store;
use crate::types::{Checksum, PageNo, PageSize, Pos};

/// Serves one Fetch.
pub(crate) struct Source {
    pub(crate) store: Arc<Store>,
    pub(crate) db: Arc<Database>,
    pub(crate) out: Sender<FetchChunk>,
}

impl Source {
    /// Serves until the follower has everything.
    pub(crate) async fn run(
        self,
        begin: FetchBegin,
        mut requests: Incoming<FetchRequest>,
    ) -> Ended {
        let name = self.db.name();
        let Err(reason) = self.serve(&begin, &mut requests).await else { return Ended::Told };
        let peer = &begin.caller.name;
        if matches!(&reason, LinkError::Refused(refusal) if refusal.reason == Reason::Failed) {
            error!(db = %name, peer, %reason, "a fetch could not be served");
        } else {
            info!(db = %name, peer, %reason, "a fetch ended early");
        }
        last_words(&self.out, reason)
    }

    async fn serve(
        &self,
        begin: &FetchBegin,
        requests: &mut Incoming<FetchRequest>,
    ) -> Result<(), LinkError> {
        let (pos, pages_wanted) = (begin.pos, begin.pages || begin.resume.is_some());
        let path = self.store.files().join(self.db.name().as_path());
        let situation = self.on_disk(move |db| {
            let database_bytes = std::fs::metadata(path).map_or(0, |file| file.len());
            Ok(Situation { span: db.log_span(pos)?, database_bytes, pages_wanted })
        });
        let situation = situation.await?;
        let step = first_step(situation);
        debug!(db = %self.db.name(), ?situation, ?step, "fetch begins");
        if step == Step::Copy {
            self.copy(begin, requests).await
        } else {
            let reached = self.send_log(begin.pos).await?;
            self.send(FetchChunk::Done { pos: reached }).await
        }
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, OpError> + Send + 'static,
    ) -> Result<T, LinkError> {
        let db = Arc::clone(&self.db);
        let done = blocking(move || work(&db)).await?;
        Ok(done.map_err(|error| Refusal::failed(&error))?)
    }

    async fn send(&self, chunk: FetchChunk) -> Result<(), LinkError> {
        send(&self.out, chunk, CHUNK_TIMEOUT).await
    }

    // ---- the log ----

    /// Sends log from `after` on until the live stream can take over.
    async fn send_log(&self, mut after: Pos) -> Result<Pos, LinkError> {
        loop {
            let Some(read) = self.on_disk(move |db| read_step(db, after)).await? else {
                return Ok(after);
            };
            for record in read {
                after = record.pos;
                self.send_record(record).await?;
            }
        }
    }

    async fn send_record(&self, record: LogRecord) -> Result<(), LinkError> {
        let LogRecord { epoch, pos, ltx } = record;
        let size = ltx.len();
        self.send(FetchChunk::Record { epoch, pos, size }).await?;
        if let Some(ltx) = ltx.memory() {
            let mut rest = ltx.clone();
            while !rest.is_empty() {
                let part = rest.split_to(CHUNK_BYTES.min(rest.len()));
                self.send(FetchChunk::Data(part)).await?;
            }
            return Ok(());
        }
        let ltx = Arc::new(ltx);
        let mut at = 0;
        while at < size {
            let ltx = Arc::clone(&ltx);
            let part = self.on_disk(move |db| read_part(db, &ltx, at)).await?;
            at += part.len() as u64;
            self.send(FetchChunk::Data(part)).await?;
        }
        Ok(())
    }

    // ---- the pages ----

    async fn copy(
        &self,
        begin: &FetchBegin,
        requests: &mut Incoming<FetchRequest>,
    ) -> Result<(), LinkError> {
        let resume = begin.resume;
        let (snapshot, mut copy) = self.on_disk(move |db| open_copy(db, resume)).await?;
        let compare = begin.sums && !copy.is_complete();
        info!(
            db = %self.db.name(), peer = %begin.caller.name, pages = copy.page_count,
            next = %copy.next, compare, "copy of pages begins"
        );
        let history = begin.history.clone();
        let Common { pos: common, oldest } = self.on_disk(move |db| db.common(&history)).await?;
        self.send(FetchChunk::Copy { copy, compare, common, oldest: Some(oldest) }).await?;
        let snapshot = Arc::new(snapshot);
        if compare {
            self.send_differing(&snapshot, &mut copy, requests).await?;
        }
        self.send_pages(&snapshot, &mut copy, u32::MAX).await?;
        let snapshot = Arc::into_inner(snapshot).expect("BUG: all reads have returned");
        let mut completion = snapshot.finish();
        loop {
            let (after, change) = blocking(move || {
                let change = completion.next_change();
                (completion, change)
            })
            .await?;
            completion = after;
            let pos = completion.pos();
            match change.map_err(|error| Refusal::failed(&error))? {
                Some(ltx) => self.send_record(LogRecord { epoch: pos.epoch, pos, ltx }).await?,
                None => return self.send(FetchChunk::Done { pos }).await,
            }
        }
    }

    /// Sends pages before `end`, or to the last one.
    async fn send_pages(
        &self,
        snapshot: &Arc<Snapshot>,
        copy: &mut CopyState,
        end: u32,
    ) -> Result<(), LinkError> {
        let end = end.min(copy.page_count.saturating_add(1));
        while copy.next.get() < end {
            let first = copy.next;
            let count = chunk_pages(copy.page_size).min(end - first.get());
            let snapshot = Arc::clone(snapshot);
            let data = blocking(move || snapshot.read(first, count)).await?;
            let data = Bytes::from(data.map_err(|error| Refusal::failed(&error))?);
            let got = u32::try_from(data.len() / copy.page_size.bytes()).unwrap_or(u32::MAX);
            // The file became shorter: the log says so too, and brings what else has changed.
            let next = if got < count { copy.page_count + 1 } else { first.get() + count };
            copy.next = page_of(next);
            self.send(FetchChunk::Pages { first, data, next: copy.next }).await?;
            if got < count {
                break;
            }
        }
        Ok(())
    }

    /// Our sums; none if they are not known, so that all pages count as differing.
    async fn sums(&self, first: PageNo, count: u32) -> Result<Vec<Checksum>, LinkError> {
        let db = Arc::clone(&self.db);
        blocking(move || {
            db.page_sums(first, count).unwrap_or_else(|error| {
                warn!(db = %db.name(), %error, "read page sums");
                Vec::new()
            })
        })
        .await
    }

    /// Sends the pages whose sums differ from the follower's, as long as it sends sums.
    async fn send_differing(
        &self,
        snapshot: &Arc<Snapshot>,
        copy: &mut CopyState,
        requests: &mut Incoming<FetchRequest>,
    ) -> Result<(), LinkError> {
        loop {
            let FetchRequest::Sums { first, sums, last } = receive(requests, CHUNK_TIMEOUT).await?
            else {
                return Err(Malformed::Unexpected("a second begin").into());
            };
            if first != copy.next {
                return Err(Malformed::Unexpected("a sum of another page").into());
            }
            let left = (copy.page_count + 1).saturating_sub(first.get()) as usize;
            let theirs: Vec<Checksum> = sums.into_iter().take(left).collect();
            if !theirs.is_empty() {
                let count = u32::try_from(theirs.len()).unwrap_or(SUMS_PER_MESSAGE);
                let ours = self.sums(first, count).await?;
                for (start, end) in differing(first.get(), &ours, &theirs) {
                    copy.next = page_of(start);
                    self.send_pages(snapshot, copy, end).await?;
                }
                let next = page_of(first.get() + count).max(copy.next);
                copy.next = next;
                self.send(FetchChunk::Pages { first: next, data: Bytes::new(), next }).await?;
            }
            if last || copy.is_complete() {
                return Ok(());
            }
        }
    }
}

/// A piece of a change set that the log has.
fn read_part(db: &Database, ltx: &Payload, at: u64) -> Result<Bytes, OpError> {
    if at == 0 {
        ltx.check()?;
    }
    let left = usize::try_from(ltx.len() - at).unwrap_or(usize::MAX);
    let mut part = vec![0; CHUNK_BYTES.min(left)];
    ltx.read_at(at, &mut part).map_err(|source| {
        let path = db.name().as_path().to_owned();
        OpError::Disk { step: "read the log of", path, source }
    })?;
    Ok(part.into())
}

fn page_of(raw: u32) -> PageNo {
    PageNo::new(raw).expect("BUG: page numbers of a copy begin at 1")
}

fn chunk_pages(size: PageSize) -> u32 {
    u32::try_from(CHUNK_BYTES / size.bytes()).unwrap_or(1).max(1)
}

/// Runs of pages whose sums differ: first page, and the page after the last.
fn differing(first: u32, ours: &[Checksum], theirs: &[Checksum]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for (page, (n, sum)) in (first..).zip(theirs.iter().enumerate()) {
        if ours.get(n) == Some(sum) {
            continue;
        }
        match runs.last_mut() {
            Some((_, end)) if *end == page => *end = page + 1,
            Some(_) | None => runs.push((page, page + 1)),
        }
    }
    runs
}

/// The next records behind `after`; `None` when the follower is close enough, or when the log no longer
/// has the position: the live stream finds out and says so.
fn read_step(db: &Database, after: Pos) -> Result<Option<Vec<LogRecord>>, OpError> {
    let Some(span) = db.log_span(after)? else { return Ok(None) };
    if is_close(span) {
        return Ok(None);
    }
    let records = match log_step(span) {
        Step::Done | Step::Copy => Vec::new(),
        Step::Records { bytes_max } => match db.read_log(after, bytes_max)? {
            LogRead::Records(records) => records,
            LogRead::NeedsSnapshot => Vec::new(),
        },
        Step::Merge { bytes_max } => db.merge_log(after, bytes_max)?.into_iter().collect(),
    };
    Ok(if records.is_empty() { None } else { Some(records) })
}

fn open_copy(db: &Database, resume: Option<CopyState>) -> Result<(Snapshot, CopyState), OpError> {
    // It would take the place of what the follower has, which may be all that is left.
    if db.quarantined().is_some() {
        return Err(OpError::Quarantined(db.name()));
    }
    if let Some(copy) = resume
        && let Some(snapshot) = db.resume_snapshot(copy.base)?
        && snapshot.size().0 == copy.page_size
    {
        return Ok((snapshot, copy));
    }
    let snapshot = db.snapshot()?;
    let (page_size, page_count) = snapshot.size();
    let copy = CopyState { base: snapshot.base(), page_size, page_count, next: PageNo::FIRST };
    Ok((snapshot, copy))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(raw: &[u64]) -> Vec<Checksum> {
        raw.iter().map(|sum| Checksum::new(*sum)).collect()
    }

    #[test]
    fn pages_that_differ_travel_in_runs() {
        let check = |ours: &[u64], theirs: &[u64], expected: &[(u32, u32)]| {
            assert_eq!(differing(5, &sums(ours), &sums(theirs)), expected, "{ours:?} {theirs:?}");
        };
        check(&[1, 2, 3], &[1, 2, 3], &[]);
        check(&[1, 2, 3], &[9, 2, 9], &[(5, 6), (7, 8)]);
        check(&[1, 2, 3], &[1, 9, 9], &[(6, 8)]);
        // What we have no sum for counts as different.
        check(&[], &[1, 2], &[(5, 7)]);
        check(&[1, 2, 3], &[1], &[]);
    }

    #[test]
    fn a_chunk_holds_at_least_one_page() {
        assert_eq!(chunk_pages(PageSize::MIN), 512);
        assert_eq!(chunk_pages(PageSize::MAX), 4);
    }
}
