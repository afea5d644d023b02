//! Reads the log for followers: records as they are, or many merged into one.

use bytes::Bytes;

use super::{Database, OpError};
use crate::log::{LogReader, Payload, Read, RecordInfo};
use crate::ltx::{self, Compressor, Encoder, Header, LtxFile};
use crate::types::{Checksum, DbName, Epoch, Pos};

/// Bytes of log that are read at a time while merging.
const MERGE_STEP_BYTES: usize = 16 << 20;

/// One record of the log, ready to send.
#[derive(Clone, Debug)]
pub struct LogRecord {
    /// Epoch of the primary that wrote it.
    pub epoch: Epoch,
    /// Position after it.
    pub pos: Pos,
    /// The LTX file; not in memory if the log has it as one large record.
    pub ltx: Payload,
}

/// What [`Database::read_log`] found behind a position.
#[derive(Debug)]
pub enum LogRead {
    /// Records that follow the position, oldest first; empty if there are none.
    Records(Vec<LogRecord>),
    /// The position is not in the log (too old, or another history): the follower needs a snapshot.
    NeedsSnapshot,
}

/// What of the log lies behind a position, known without reading the records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogSpan {
    /// How many records.
    pub records: u64,
    /// Their bytes, all together, estimated.
    pub bytes: u64,
    /// Bytes of the first of them; 0 if there is none.
    pub first_bytes: u64,
}

impl Database {
    /// Records behind `after`, at least one if there are any, about `bytes_max` in total. A first one beyond that is
    /// not read.
    ///
    /// # Errors
    /// The log could not be read.
    pub fn read_log(&self, after: Pos, bytes_max: usize) -> Result<LogRead, OpError> {
        let Some(reader) = self.log_reader()? else { return Ok(LogRead::NeedsSnapshot) };
        let end = self.position();
        let Read::Records(records) = reader.read_lazily(after, bytes_max)? else {
            return Ok(LogRead::NeedsSnapshot);
        };
        Ok(LogRead::Records(published(records, end)))
    }

    /// One change set over the records behind `after`, the last image of each page: at least one
    /// record, then as many as fit in `bytes_max` bytes of log. `Ok(None)` if `after` is not in the
    /// log, or is its end.
    ///
    /// # Errors
    /// The log could not be read.
    pub fn merge_log(&self, after: Pos, bytes_max: u64) -> Result<Option<LogRecord>, OpError> {
        let Some(reader) = self.log_reader()? else { return Ok(None) };
        let end = self.position();
        merge(&self.name(), &reader, after, end, bytes_max)
    }

    /// How much log lies behind `after`; `None` if the position is not in the log.
    ///
    /// # Errors
    /// The log could not be read.
    pub fn log_span(&self, after: Pos) -> Result<Option<LogSpan>, OpError> {
        let Some(reader) = self.log_reader()? else { return Ok(None) };
        let (end, base) = (self.position(), reader.base());
        let at = after.txid.map_or(Ok(None), |txid| reader.info_at(txid))?;
        if after != base && at.is_none_or(|info| info.pos() != after) {
            return Ok(None);
        }
        let records = end.txid_raw().saturating_sub(after.txid_raw());
        if records == 0 {
            return Ok(Some(LogSpan::default()));
        }
        let first = reader.info_at(after.next_txid())?;
        let first_bytes = first.map_or(0, |info| u64::from(info.ltx_bytes));
        // By the average size of a record: exact sums would mean reading.
        let all = end.txid_raw().saturating_sub(base.txid_raw()).max(1);
        let bytes = (reader.stored_bytes() / all).saturating_mul(records).max(first_bytes);
        Ok(Some(LogSpan { records, bytes, first_bytes }))
    }

    /// Without the state's lock if the log is open: a follower of many databases must not wait for one that is busy.
    pub(super) fn log_reader(&self) -> Result<Option<LogReader>, OpError> {
        if let Some(reader) = self.reader.lock().upgrade() {
            return Ok(Some(reader));
        }
        let mut state = self.state.lock();
        let Some(tracked) = state.tracked.as_mut() else { return Ok(None) };
        let reader = tracked.files(&self.shared)?.reader.clone();
        *self.reader.lock() = reader.downgrade();
        Ok(Some(reader))
    }
}

/// Leaves out a record whose commit is still being answered: it may be taken back.
fn published(records: Vec<(RecordInfo, Payload)>, end: Pos) -> Vec<LogRecord> {
    records
        .into_iter()
        .filter(|(info, _)| info.max.get() <= end.txid_raw())
        .map(|(info, ltx)| LogRecord { epoch: info.epoch, pos: info.pos(), ltx })
        .collect()
}

/// Merges what lies between two positions, step by step, so that memory holds one step and the result. A record that
/// is larger than a step comes alone, as it is.
pub(super) fn merge(
    name: &DbName,
    reader: &LogReader,
    after: Pos,
    end: Pos,
    bytes_max: u64,
) -> Result<Option<LogRecord>, OpError> {
    let mut merged: Option<LogRecord> = None;
    let mut read_bytes = 0u64;
    loop {
        let from = merged.as_ref().map_or(after, |record| record.pos);
        let left = bytes_max.saturating_sub(read_bytes);
        if from == end || (merged.is_some() && left == 0) {
            return Ok(merged);
        }
        // Steps as large as what is merged already: so each byte is merged a few times at most.
        let merged_bytes = merged.as_ref().map_or(0, |record| record.ltx.len());
        let step = left.min((MERGE_STEP_BYTES as u64).max(merged_bytes));
        let step = usize::try_from(step).unwrap_or(usize::MAX);
        let Read::Records(records) = reader.read_lazily(from, step)? else { return Ok(None) };
        let records = published(records, end);
        let Some(last) = records.last().cloned() else { return Ok(merged) };
        if last.ltx.memory().is_none() {
            return Ok(merged.or(Some(last)));
        }
        read_bytes += records.iter().map(|record| record.ltx.len()).sum::<u64>();
        let inputs: Vec<Bytes> = merged
            .iter()
            .chain(&records)
            .filter_map(|record| record.ltx.memory().cloned())
            .collect();
        let ltx = if inputs.len() == 1 { inputs[0].clone() } else { merge_files(name, &inputs)? };
        let ltx = Payload::Memory(ltx);
        merged = Some(LogRecord { ltx, ..last });
    }
}

/// Merges contiguous change sets. One that changes the page size holds every page, so what is before it
/// only gives the beginning.
pub(super) fn merge_files(name: &DbName, inputs: &[Bytes]) -> Result<Bytes, OpError> {
    let decode = |source| OpError::Decode { db: name.clone(), source };
    let files = inputs
        .iter()
        .map(|ltx| LtxFile::parse_trusted(ltx).map_err(decode))
        .collect::<Result<Vec<_>, _>>()?;
    let mut out = Vec::new();
    let mut compressor = Compressor::default();
    let resized =
        files.array_windows().rposition(|[a, b]| a.header().page_size != b.header().page_size);
    match resized {
        None => {
            ltx::merge(&files, &mut compressor, &mut out)
                .map_err(|source| OpError::Merge { db: name.clone(), source })?;
        }
        Some(before) => {
            let mut whole = Vec::new();
            ltx::merge(&files[before + 1..], &mut compressor, &mut whole)
                .map_err(|source| OpError::Merge { db: name.clone(), source })?;
            let first = *files[0].header();
            begin_at(name, &whole, &first, &mut compressor, &mut out)?;
        }
    }
    Ok(out.into())
}

/// A change set that holds every page, as one that follows what `first` follows.
fn begin_at(
    name: &DbName,
    whole: &[u8],
    first: &Header,
    compressor: &mut Compressor,
    out: &mut Vec<u8>,
) -> Result<(), OpError> {
    let decode = |source| OpError::Decode { db: name.clone(), source };
    let encode = |source| OpError::Encode { db: name.clone(), source };
    let file = LtxFile::parse_trusted(whole).map_err(decode)?;
    let header = Header { min_txid: first.min_txid, pre_apply: first.pre_apply, ..*file.header() };
    let mut data = vec![0; header.page_size.bytes()];
    let mut encoder = Encoder::begin(compressor, out, &header).map_err(encode)?;
    for entry in file.entries() {
        file.read(*entry, &mut data).map_err(decode)?;
        encoder.page(entry.page, &data).map_err(encode)?;
    }
    encoder.finish(file.trailer().post_apply.unwrap_or(Checksum::EMPTY)).map_err(encode)?;
    Ok(())
}
