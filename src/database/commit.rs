//! Makes a change set of a transaction and puts it into the log.
//!
//! Two steps with the caller's own write between them: [`prepare`] encodes and appends, [`finish`] moves the
//! position; [`cancel`] takes the record back if the write failed. Costs O(changed pages), and of memory a few dozen
//! bytes per changed page: the pages themselves go from file to log one by one.
//! Invariant: log, page sums and position move together, under the database's mutex.

use std::cell::RefCell;
use std::io;

use super::mend::{Before, StandIns, mend};
use super::state::Tracked;
use super::{OpError, Shared};
use crate::disk::{clock, fault};
use crate::log::{Appender, RecordInfo, WalSpan};
use crate::ltx::{self, Compressor, Encoder, Flags, Header, WalSource};
use crate::types::{Checksum, DbName, PageNo, PageSize};

/// Bytes of encoding memory that a thread keeps between transactions.
const SCRATCH_BYTES_MAX: usize = 1 << 20;
/// The largest change set that a record of the log can hold.
const RECORD_BYTES_MAX: u64 = u32::MAX as u64;

/// Memory for encoding that every thread reuses.
#[derive(Default)]
struct Scratch {
    compressor: Compressor,
    buffer: Vec<u8>,
    page: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A transaction to be logged.
pub(super) struct Transaction<'a> {
    pub(super) page_size: PageSize,
    /// Size of the database afterwards, in pages.
    pub(super) commit: u32,
    /// Candidates, ascending: written pages and those a growing file gained without a write.
    pub(super) pages: Vec<PageNo>,
    /// Fills in a page's image after the transaction.
    pub(super) image: &'a mut dyn FnMut(PageNo, &mut [u8]) -> io::Result<()>,
    /// Fills in a page as it was before the transaction, for a sum that was lost; `None` if that is not to be had.
    pub(super) before: Option<Before<'a>>,
    pub(super) wal: Option<WalSpan>,
    /// Leave out pages whose image is what it was.
    pub(super) skip_unchanged: bool,
    /// The page sums say nothing about the file: log every page.
    pub(super) knows_nothing: bool,
}

/// A transaction that is in the log but not yet the database's position.
#[derive(Debug)]
pub(super) struct Prepared {
    info: RecordInfo,
    sums: Vec<(PageNo, Checksum)>,
    resets_sums: bool,
}

impl Prepared {
    /// The pages in it.
    pub(super) fn pages(&self) -> impl Iterator<Item = PageNo> + '_ {
        self.sums.iter().map(|(page, _)| *page)
    }
}

/// Adds to `pages` what a database gained by growing from `before` to `commit` pages: SQLite does not write
/// pages that were allocated and freed in one transaction, yet they have content (zeros, or what was there).
pub(super) fn with_grown(
    mut pages: Vec<PageNo>,
    before: u32,
    commit: u32,
    page_size: PageSize,
) -> Vec<PageNo> {
    pages.retain(|page| page.get() <= commit && *page != page_size.lock_page());
    if commit > before {
        let kept = pages.partition_point(|page| page.get() <= before);
        pages.truncate(kept);
        pages.extend((before + 1..=commit).filter_map(PageNo::new));
        pages.retain(|page| *page != page_size.lock_page());
    }
    pages
}

/// Appends the transaction to the log. `None` if it changes nothing.
///
/// # Errors
/// The transaction is not in the log.
pub(super) fn prepare(
    tracked: &mut Tracked,
    shared: &Shared,
    name: &DbName,
    transaction: Transaction<'_>,
) -> Result<Option<Prepared>, OpError> {
    SCRATCH.with_borrow_mut(|scratch| {
        let prepared = prepare_with(scratch, tracked, shared, name, transaction);
        if scratch.buffer.capacity() > SCRATCH_BYTES_MAX {
            // A large transaction's memory must not stay with each thread that served one.
            *scratch = Scratch::default();
        }
        prepared
    })
}

fn prepare_with(
    scratch: &mut Scratch,
    tracked: &mut Tracked,
    shared: &Shared,
    name: &DbName,
    transaction: Transaction<'_>,
) -> Result<Option<Prepared>, OpError> {
    let Scratch { compressor, buffer, page } = scratch;
    tracked.note_only_received(shared, false)?;
    let about = transaction.pages.len() as u64 * u64::from(transaction.page_size.get());
    // A large change set goes to the log as it is encoded, a small one at its end.
    let mut record = tracked.files(shared)?.log.appender(buffer, about)?;
    let encoded = encode(compressor, page, tracked, shared, name, transaction, &mut record);
    let prepared = match (encoded, record.take_error()) {
        (Err(_), Some(error)) => return Err(error.into()),
        (encoded, _) => encoded?,
    };
    let Some(mut prepared) = prepared else { return Ok(None) };
    prepared.info.ltx_bytes = u32::try_from(record.bytes())
        .map_err(|_| OpError::TooLarge { db: name.clone(), bytes: record.bytes() })?;
    fault::fail("log-append").map_err(super::disk_error("append to log", &shared.logs))?;
    record.finish(&mut tracked.files(shared)?.log, &prepared.info)?;
    Ok(Some(prepared))
}

/// Writes the change set. `None` if it changes nothing.
fn encode(
    compressor: &mut Compressor,
    page_buffer: &mut Vec<u8>,
    tracked: &mut Tracked,
    shared: &Shared,
    name: &DbName,
    transaction: Transaction<'_>,
    out: &mut Appender<'_>,
) -> Result<Option<Prepared>, OpError> {
    let Transaction {
        page_size,
        commit,
        pages,
        image,
        before: image_before,
        wal,
        skip_unchanged,
        knows_nothing,
    } = transaction;
    let resets_sums = knows_nothing || (tracked.pages > 0 && page_size != tracked.page_size);
    let before = if resets_sums { 0 } else { tracked.pages };
    let pos = tracked.pos;
    let mut checksum = if resets_sums { Checksum::EMPTY } else { pos.checksum };
    let pages = with_grown(pages, before, commit, page_size);

    page_buffer.resize(page_size.bytes(), 0);
    let txid = pos.next_txid();
    let timestamp_ms = clock::wall_ms().max(tracked.timestamp_ms);
    let header = Header {
        flags: Flags::NONE,
        page_size,
        commit,
        min_txid: txid,
        max_txid: txid,
        timestamp_ms,
        pre_apply: pos.txid.map(|_| pos.checksum),
        wal: wal.map_or_else(WalSource::default, |span| wal_source(span, page_size)),
        node_id: shared.node,
    };
    let mut old_sums = OldSums { shared, name, before: image_before, stand_ins: None };
    let mut sums = Vec::with_capacity(pages.len());
    let mut encoder = Encoder::begin(compressor, out, &header).map_err(encode_error(name))?;
    for page in pages {
        image(page, page_buffer).map_err(super::disk_error("read page", name.as_path()))?;
        let sum = ltx::page_sum(page, page_buffer);
        if page.get() <= before {
            let old = old_sums.get(tracked, page)?;
            if skip_unchanged && old == sum {
                continue;
            }
            checksum = checksum.toggle(old);
        }
        checksum = checksum.toggle(sum);
        encoder.page(page, page_buffer).map_err(encode_error(name))?;
        if encoder.bytes() > RECORD_BYTES_MAX {
            return Err(OpError::TooLarge { db: name.clone(), bytes: encoder.bytes() });
        }
        sums.push((page, sum));
    }
    // Removes the sums of the pages that a shrinking database lost.
    for page in (commit + 1..=before).filter_map(PageNo::new) {
        if page != page_size.lock_page() {
            checksum = checksum.toggle(old_sums.get(tracked, page)?);
        }
    }
    if skip_unchanged && sums.is_empty() && commit == before && !resets_sums {
        return Ok(None);
    }
    encoder.finish(checksum).map_err(encode_error(name))?;
    let info = RecordInfo {
        min: txid,
        max: txid,
        epoch: shared.epoch().max(pos.epoch),
        pre: pos.checksum,
        post: checksum,
        page_size,
        commit,
        pages: u32::try_from(sums.len()).unwrap_or(u32::MAX),
        timestamp_ms,
        wal,
        ltx_bytes: 0,
    };
    Ok(Some(Prepared { info, sums, resets_sums }))
}

/// The sums before the transaction, mended when one is lost.
struct OldSums<'a, 'b> {
    shared: &'a Shared,
    name: &'a DbName,
    before: Option<Before<'b>>,
    stand_ins: Option<StandIns>,
}

impl OldSums<'_, '_> {
    fn get(&mut self, tracked: &mut Tracked, page: PageNo) -> Result<Checksum, OpError> {
        if let Some(sum) = tracked.files(self.shared)?.sums.get(page)? {
            return Ok(sum);
        }
        let unknown = || OpError::SumUnknown { db: self.name.clone(), page };
        let stand_ins = match (&self.stand_ins, self.before.as_deref_mut()) {
            (Some(stand_ins), _) => stand_ins,
            (None, None) => return Err(unknown()),
            (None, Some(before)) => {
                let stand_ins = mend(tracked, self.shared, self.name, before)?;
                self.stand_ins.insert(stand_ins)
            }
        };
        let mended = tracked.files(self.shared)?.sums.get(page)?;
        mended.or_else(|| stand_ins.get(&page).copied()).ok_or_else(unknown)
    }
}

/// The transaction's last bytes are in the file: it is the position now.
pub(super) fn finish(tracked: &mut Tracked, prepared: Prepared) {
    let Prepared { info, sums, resets_sums } = prepared;
    if let Some(files) = &mut tracked.files {
        if resets_sums {
            files.sums.reset(info.page_size);
        }
        files.sums.truncate(info.commit);
        for (page, sum) in sums {
            files.sums.set(page, sum);
        }
    }
    tracked.pos = info.pos();
    tracked.page_size = info.page_size;
    tracked.pages = info.commit;
    tracked.timestamp_ms = info.timestamp_ms;
}

/// The write that would have completed the transaction failed: takes it out of the log again.
///
/// # Errors
/// It may still be there after a crash; the database must take no more transactions.
pub(super) fn cancel(tracked: &mut Tracked) -> Result<(), OpError> {
    let to = tracked.pos;
    let Some(files) = &mut tracked.files else { return Ok(()) };
    Ok(files.log.retract(to)?)
}

fn wal_source(span: WalSpan, page_size: PageSize) -> WalSource {
    let frame = 24 + i64::from(page_size.get());
    let frames = i64::from(span.end_frame) - i64::from(span.start_frame) + 1;
    WalSource {
        offset: 32 + (i64::from(span.start_frame) - 1) * frame,
        size: frames * frame,
        salt1: span.salts.0,
        salt2: span.salts.1,
    }
}

fn encode_error(name: &DbName) -> impl Fn(ltx::EncodeError) -> OpError + '_ {
    move |source| OpError::Encode { db: name.clone(), source }
}
