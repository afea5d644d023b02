//! Between the generated messages and ours: the only file that knows both.
//!
//! Everything that came from a peer is checked here, once: sizes, names, numbers. Nothing panics.

use bytes::Bytes;
use prost::Message as _;
use std::pin::Pin;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Status, Streaming};

use super::error::{LinkError, Malformed, Reason, Refusal};
use super::limits::{
    ENTRIES_PER_MESSAGE, FILTER_BYTES_MAX, FILTERS_MAX, HISTORY_MAX, SUMS_PER_MESSAGE,
    TEXT_BYTES_MAX,
};
use super::message::{
    Ack, Beat, Caller, CopyState, FetchBegin, FetchChunk, FetchRequest, FollowEvent, FollowRequest,
    Record, SumsChunk, SumsRequest, Welcome,
};
use super::pb;
use crate::types::{Checksum, ClusterId, DbId, DbName, Epoch, NodeId, PageNo, PageSize, Pos, Txid};

/// A stream of checked messages from a peer.
pub(super) type Incoming<T> = Pin<Box<dyn Stream<Item = Result<T, LinkError>> + Send>>;

/// A stream of messages to a peer.
pub(super) type Outgoing<Raw> = Pin<Box<dyn Stream<Item = Result<Raw, Status>> + Send>>;

fn bounded(what: &'static str, count: usize, max: usize) -> Result<(), Malformed> {
    if count > max { Err(Malformed::TooMany { what, count, max }) } else { Ok(()) }
}

fn present<T>(what: &'static str, value: Option<T>) -> Result<T, Malformed> {
    value.ok_or(Malformed::Missing(what))
}

fn page_no(what: &'static str, raw: u32) -> Result<PageNo, Malformed> {
    PageNo::new(raw).ok_or(Malformed::PageNo(what))
}

// ---- positions ----

impl From<Pos> for pb::Position {
    fn from(pos: Pos) -> Self {
        Self { epoch: pos.epoch.get(), txid: pos.txid_raw(), checksum: pos.checksum.get() }
    }
}

fn position(what: &'static str, raw: Option<pb::Position>) -> Result<Pos, Malformed> {
    let raw = present(what, raw)?;
    if raw.txid == 0 {
        return Ok(Pos::ZERO);
    }
    let txid = Txid::new(raw.txid).ok_or(Malformed::Position(what))?;
    let checksum = Checksum::from_stored(raw.checksum).ok_or(Malformed::Position(what))?;
    Ok(Pos { epoch: Epoch::new(raw.epoch), txid: Some(txid), checksum })
}

fn positions(raw: Vec<pb::DatabasePosition>) -> Result<Vec<(DbId, Pos)>, Malformed> {
    bounded("a list of positions", raw.len(), ENTRIES_PER_MESSAGE)?;
    raw.into_iter()
        .map(|entry| Ok((DbId::new(entry.database), position("a position", entry.position)?)))
        .collect()
}

fn positions_out(entries: Vec<(DbId, Pos)>) -> Vec<pb::DatabasePosition> {
    entries
        .into_iter()
        .map(|(db, pos)| pb::DatabasePosition { database: db.get(), position: Some(pos.into()) })
        .collect()
}

// ---- the caller ----

impl From<Caller> for pb::Caller {
    fn from(caller: Caller) -> Self {
        Self {
            protocol: caller.protocol,
            software: caller.software,
            cluster: caller.cluster.map_or(0, ClusterId::get),
            node: caller.node.get(),
            name: caller.name,
            session: caller.session,
        }
    }
}

pub(super) fn caller(raw: Option<pb::Caller>) -> Result<Caller, Malformed> {
    let raw = present("the caller", raw)?;
    bounded("the caller's name", raw.name.len(), TEXT_BYTES_MAX)?;
    bounded("the caller's version", raw.software.len(), TEXT_BYTES_MAX)?;
    Ok(Caller {
        protocol: raw.protocol,
        software: raw.software,
        cluster: (raw.cluster != 0).then(|| ClusterId::new(raw.cluster)),
        node: NodeId::new(raw.node),
        name: raw.name,
        session: raw.session,
    })
}

pub(super) fn heartbeat_request(caller: Caller) -> pb::HeartbeatRequest {
    pb::HeartbeatRequest { caller: Some(caller.into()) }
}

// ---- Follow ----

impl TryFrom<pb::FollowRequest> for FollowRequest {
    type Error = Malformed;

    fn try_from(raw: pb::FollowRequest) -> Result<Self, Malformed> {
        use pb::follow_request::Message;
        Ok(match present("a follow request", raw.message)? {
            Message::Hello(hello) => {
                bounded("the filter", hello.filters.len(), FILTERS_MAX)?;
                for glob in &hello.filters {
                    bounded("a glob", glob.len(), FILTER_BYTES_MAX)?;
                }
                Self::Hello { caller: caller(hello.caller)?, filters: hello.filters }
            }
            Message::Have(have) => {
                Self::Have { databases: positions(have.databases)?, complete: have.complete }
            }
            Message::Acks(acks) => {
                bounded("the acks", acks.acks.len(), ENTRIES_PER_MESSAGE)?;
                Self::Acks(acks.acks.into_iter().map(ack).collect::<Result<_, _>>()?)
            }
            Message::Resume(resume) => Self::Resume {
                db: DbId::new(resume.database),
                pos: position("a resume", resume.position)?,
                run: resume.run,
            },
        })
    }
}

fn ack(raw: pb::Ack) -> Result<Ack, Malformed> {
    Ok(Ack {
        db: DbId::new(raw.database),
        durable: position("the durable position", raw.durable)?,
        applied: position("the applied position", raw.applied)?,
    })
}

impl From<FollowRequest> for pb::FollowRequest {
    fn from(request: FollowRequest) -> Self {
        use pb::follow_request::Message;
        let message = match request {
            FollowRequest::Hello { caller, filters } => {
                Message::Hello(pb::Hello { caller: Some(caller.into()), filters })
            }
            FollowRequest::Have { databases, complete } => {
                Message::Have(pb::Have { databases: positions_out(databases), complete })
            }
            FollowRequest::Acks(acks) => Message::Acks(pb::Acks {
                acks: acks
                    .into_iter()
                    .map(|ack| pb::Ack {
                        database: ack.db.get(),
                        durable: Some(ack.durable.into()),
                        applied: Some(ack.applied.into()),
                    })
                    .collect(),
            }),
            FollowRequest::Resume { db, pos, run } => {
                Message::Resume(pb::Resume { database: db.get(), position: Some(pos.into()), run })
            }
        };
        Self { message: Some(message) }
    }
}

fn named(raw: &pb::Named) -> Result<(DbId, DbName), Malformed> {
    Ok((DbId::new(raw.database), DbName::new(&raw.name)?))
}

fn named_out(db: DbId, name: &DbName) -> pb::Named {
    pb::Named { database: db.get(), name: Bytes::copy_from_slice(name.as_bytes()) }
}

impl TryFrom<pb::FollowEvent> for FollowEvent {
    type Error = Malformed;

    fn try_from(raw: pb::FollowEvent) -> Result<Self, Malformed> {
        use pb::follow_event::Event;
        Ok(match present("a follow event", raw.event)? {
            Event::Welcome(raw) => {
                bounded("the primary's name", raw.name.len(), TEXT_BYTES_MAX)?;
                bounded("the primary's version", raw.software.len(), TEXT_BYTES_MAX)?;
                if raw.cluster == 0 {
                    return Err(Malformed::Missing("the cluster id"));
                }
                Self::Welcome(Welcome {
                    protocol: raw.protocol,
                    software: raw.software,
                    cluster: ClusterId::new(raw.cluster),
                    node: NodeId::new(raw.node),
                    name: raw.name,
                    epoch: Epoch::new(raw.epoch),
                })
            }
            Event::Catalog(raw) => {
                bounded("the catalog", raw.databases.len(), ENTRIES_PER_MESSAGE)?;
                let databases = raw.databases.iter().map(named).collect::<Result<_, _>>()?;
                Self::Catalog { databases, complete: raw.complete }
            }
            Event::Named(raw) => {
                let (db, name) = named(&raw)?;
                Self::Named { db, name }
            }
            Event::Dropped(raw) => Self::Dropped { db: DbId::new(raw.database) },
            Event::Transactions(raw) => {
                bounded("the records", raw.records.len(), ENTRIES_PER_MESSAGE)?;
                Self::Transactions {
                    db: DbId::new(raw.database),
                    run: raw.run,
                    records: raw.records.into_iter().map(record).collect(),
                    sync_now: raw.sync_now,
                }
            }
            Event::Behind(raw) => Self::Behind { db: DbId::new(raw.database), run: raw.run },
        })
    }
}

fn record(raw: pb::Record) -> Record {
    Record { epoch: Epoch::new(raw.epoch), ltx: raw.ltx }
}

impl From<FollowEvent> for pb::FollowEvent {
    fn from(event: FollowEvent) -> Self {
        use pb::follow_event::Event;
        let event = match event {
            FollowEvent::Welcome(welcome) => Event::Welcome(pb::Welcome {
                protocol: welcome.protocol,
                software: welcome.software,
                cluster: welcome.cluster.get(),
                node: welcome.node.get(),
                name: welcome.name,
                epoch: welcome.epoch.get(),
            }),
            FollowEvent::Catalog { databases, complete } => Event::Catalog(pb::Catalog {
                databases: databases.iter().map(|(db, name)| named_out(*db, name)).collect(),
                complete,
            }),
            FollowEvent::Named { db, name } => Event::Named(named_out(db, &name)),
            FollowEvent::Dropped { db } => Event::Dropped(pb::Dropped { database: db.get() }),
            FollowEvent::Transactions { db, run, records, sync_now } => {
                Event::Transactions(pb::Transactions {
                    database: db.get(),
                    run,
                    records: records
                        .into_iter()
                        .map(|r| pb::Record { epoch: r.epoch.get(), ltx: r.ltx })
                        .collect(),
                    sync_now,
                })
            }
            FollowEvent::Behind { db, run } => {
                Event::Behind(pb::Behind { database: db.get(), run })
            }
        };
        Self { event: Some(event) }
    }
}

// ---- Heartbeat ----

impl TryFrom<pb::Beat> for Beat {
    type Error = Malformed;

    fn try_from(raw: pb::Beat) -> Result<Self, Malformed> {
        bounded("the databases that are gone", raw.gone.len(), ENTRIES_PER_MESSAGE)?;
        Ok(Self {
            sequence: raw.sequence,
            boottime_ns: raw.boottime_ns,
            wall_ms: raw.wall_ms,
            interval_ms: raw.interval_ms,
            epoch: Epoch::new(raw.epoch),
            databases: positions(raw.databases)?,
            gone: raw.gone.into_iter().map(DbId::new).collect(),
            more: raw.more,
        })
    }
}

impl From<Beat> for pb::Beat {
    fn from(beat: Beat) -> Self {
        Self {
            sequence: beat.sequence,
            boottime_ns: beat.boottime_ns,
            wall_ms: beat.wall_ms,
            interval_ms: beat.interval_ms,
            epoch: beat.epoch.get(),
            databases: positions_out(beat.databases),
            gone: beat.gone.into_iter().map(DbId::get).collect(),
            more: beat.more,
        }
    }
}

// ---- Fetch ----

fn copy(raw: pb::Copy) -> Result<CopyState, Malformed> {
    let page_size = PageSize::new(raw.page_size).ok_or(Malformed::PageSize(raw.page_size))?;
    // `page_count + 1` must be a page number too.
    if raw.page_count == u32::MAX || raw.next_page > raw.page_count + 1 {
        return Err(Malformed::PageNo("the next page of a copy"));
    }
    Ok(CopyState {
        base: position("the base of a copy", raw.base)?,
        page_size,
        page_count: raw.page_count,
        next: page_no("the next page of a copy", raw.next_page)?,
    })
}

fn copy_out(copy: CopyState) -> pb::Copy {
    pb::Copy {
        base: Some(copy.base.into()),
        page_size: copy.page_size.get(),
        page_count: copy.page_count,
        next_page: copy.next.get(),
    }
}

fn sums(raw: &[u8]) -> Result<Vec<Checksum>, Malformed> {
    bounded("the sums", raw.len() / 8, SUMS_PER_MESSAGE as usize)?;
    let (sums, rest) = raw.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(Malformed::Sums);
    }
    sums.iter()
        .map(|sum| Checksum::from_stored(u64::from_be_bytes(*sum)).ok_or(Malformed::Sums))
        .collect()
}

impl TryFrom<pb::FetchRequest> for FetchRequest {
    type Error = Malformed;

    fn try_from(raw: pb::FetchRequest) -> Result<Self, Malformed> {
        use pb::fetch_request::Message;
        Ok(match present("a fetch request", raw.message)? {
            Message::Begin(begin) => Self::Begin(FetchBegin {
                caller: caller(begin.caller)?,
                db: DbId::new(begin.database),
                pos: position("the follower's position", begin.position)?,
                pages: begin.pages,
                sums: begin.sums,
                resume: begin.resume.map(copy).transpose()?,
                history: {
                    bounded("the history", begin.history.len(), HISTORY_MAX)?;
                    let all = begin.history.into_iter();
                    all.map(|pos| position("a position", Some(pos))).collect::<Result<_, _>>()?
                },
            }),
            Message::Sums(raw) => Self::Sums {
                first: page_no("the first page of sums", raw.first_page)?,
                sums: sums(&raw.sums)?,
                last: raw.last,
            },
        })
    }
}

impl From<FetchRequest> for pb::FetchRequest {
    fn from(request: FetchRequest) -> Self {
        use pb::fetch_request::Message;
        let message = match request {
            FetchRequest::Begin(begin) => Message::Begin(pb::FetchBegin {
                caller: Some(begin.caller.into()),
                database: begin.db.get(),
                position: Some(begin.pos.into()),
                pages: begin.pages,
                sums: begin.sums,
                resume: begin.resume.map(copy_out),
                history: begin.history.into_iter().map(Into::into).collect(),
            }),
            FetchRequest::Sums { first, sums, last } => Message::Sums(pb::Sums {
                first_page: first.get(),
                sums: sums.iter().flat_map(|sum| sum.get().to_be_bytes()).collect(),
                last,
            }),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<pb::FetchChunk> for FetchChunk {
    type Error = Malformed;

    fn try_from(raw: pb::FetchChunk) -> Result<Self, Malformed> {
        use pb::fetch_chunk::Chunk;
        Ok(match present("a fetch chunk", raw.chunk)? {
            Chunk::Copy(raw) => {
                let known = |what, raw: Option<pb::Position>| {
                    raw.map(|raw| position(what, Some(raw))).transpose()
                };
                Self::Copy {
                    copy: copy(present("the copy", raw.copy)?)?,
                    compare: raw.compare,
                    common: known("the common position", raw.common)?,
                    oldest: known("the oldest position", raw.oldest)?,
                }
            }
            Chunk::Pages(raw) => Self::Pages {
                first: page_no("the first page", raw.first_page)?,
                data: raw.data,
                next: page_no("the next page", raw.next_page)?,
            },
            Chunk::Record(raw) => Self::Record {
                epoch: Epoch::new(raw.epoch),
                pos: position("the position of a record", raw.position)?,
                size: raw.size,
            },
            Chunk::Data(raw) => Self::Data(raw.data),
            Chunk::Done(raw) => Self::Done { pos: position("the last position", raw.position)? },
        })
    }
}

impl From<FetchChunk> for pb::FetchChunk {
    fn from(chunk: FetchChunk) -> Self {
        use pb::fetch_chunk::Chunk;
        let chunk = match chunk {
            FetchChunk::Copy { copy, compare, common, oldest } => Chunk::Copy(pb::CopyBegin {
                copy: Some(copy_out(copy)),
                compare,
                common: common.map(Into::into),
                oldest: oldest.map(Into::into),
            }),
            FetchChunk::Pages { first, data, next } => {
                Chunk::Pages(pb::Pages { first_page: first.get(), data, next_page: next.get() })
            }
            FetchChunk::Record { epoch, pos, size } => Chunk::Record(pb::RecordBegin {
                epoch: epoch.get(),
                position: Some(pos.into()),
                size,
            }),
            FetchChunk::Data(data) => Chunk::Data(pb::Data { data }),
            FetchChunk::Done { pos } => Chunk::Done(pb::Done { position: Some(pos.into()) }),
        };
        Self { chunk: Some(chunk) }
    }
}

// ---- Sums ----

impl TryFrom<pb::SumsRequest> for SumsRequest {
    type Error = Malformed;

    fn try_from(raw: pb::SumsRequest) -> Result<Self, Malformed> {
        Ok(Self {
            caller: caller(raw.caller)?,
            db: DbId::new(raw.database),
            pos: position("the follower's position", raw.position)?,
        })
    }
}

impl From<SumsRequest> for pb::SumsRequest {
    fn from(request: SumsRequest) -> Self {
        Self {
            caller: Some(request.caller.into()),
            database: request.db.get(),
            position: Some(request.pos.into()),
        }
    }
}

impl TryFrom<pb::SumsChunk> for SumsChunk {
    type Error = Malformed;

    fn try_from(raw: pb::SumsChunk) -> Result<Self, Malformed> {
        use pb::sums_chunk::Chunk;
        Ok(match present("a chunk of sums", raw.chunk)? {
            Chunk::Sums(raw) => Self::Sums {
                first: page_no("the first page of sums", raw.first_page)?,
                sums: sums(&raw.sums)?,
            },
            Chunk::Changed(raw) => {
                bounded("the changed pages", raw.pages.len(), SUMS_PER_MESSAGE as usize)?;
                let page = |raw: u32| page_no("a changed page", raw);
                let pages = raw.pages.into_iter().map(page).collect::<Result<_, _>>()?;
                Self::Changed { pages, kept: raw.kept }
            }
            Chunk::Done(raw) => Self::Done { pos: position("the position of sums", raw.position)? },
            Chunk::Gone(raw) => Self::Gone { pos: position("the position of sums", raw.position)? },
        })
    }
}

impl From<SumsChunk> for pb::SumsChunk {
    fn from(chunk: SumsChunk) -> Self {
        use pb::sums_chunk::Chunk;
        let chunk = match chunk {
            SumsChunk::Sums { first, sums } => Chunk::Sums(pb::Sums {
                first_page: first.get(),
                sums: sums.iter().flat_map(|sum| sum.get().to_be_bytes()).collect(),
                last: false,
            }),
            SumsChunk::Changed { pages, kept } => {
                let pages = pages.into_iter().map(PageNo::get).collect();
                Chunk::Changed(pb::Changed { pages, kept })
            }
            SumsChunk::Done { pos } => Chunk::Done(pb::Done { position: Some(pos.into()) }),
            SumsChunk::Gone { pos } => Chunk::Gone(pb::Done { position: Some(pos.into()) }),
        };
        Self { chunk: Some(chunk) }
    }
}

// ---- refusals ----

fn reason_out(reason: Reason) -> (pb::refusal::Reason, Code) {
    use pb::refusal::Reason as Raw;
    match reason {
        Reason::Protocol => (Raw::Protocol, Code::FailedPrecondition),
        Reason::Cluster => (Raw::Cluster, Code::FailedPrecondition),
        Reason::Itself => (Raw::Self_, Code::FailedPrecondition),
        Reason::Replaced => (Raw::Replaced, Code::Aborted),
        Reason::NotPrimary => (Raw::NotPrimary, Code::Unavailable),
        Reason::NoSession => (Raw::NoSession, Code::Aborted),
        Reason::ProtocolError => (Raw::ProtocolError, Code::InvalidArgument),
        Reason::NoDatabase => (Raw::NoDatabase, Code::NotFound),
        Reason::Busy => (Raw::Busy, Code::ResourceExhausted),
        Reason::Stalled => (Raw::Stalled, Code::DeadlineExceeded),
        Reason::Failed => (Raw::Failed, Code::Internal),
        Reason::Stopping => (Raw::Stopping, Code::Unavailable),
    }
}

fn reason(raw: i32) -> Option<Reason> {
    use pb::refusal::Reason as Raw;
    Some(match Raw::try_from(raw).ok()? {
        Raw::Unspecified => return None,
        Raw::Protocol => Reason::Protocol,
        Raw::Cluster => Reason::Cluster,
        Raw::Self_ => Reason::Itself,
        Raw::Replaced => Reason::Replaced,
        Raw::NotPrimary => Reason::NotPrimary,
        Raw::NoSession => Reason::NoSession,
        Raw::ProtocolError => Reason::ProtocolError,
        Raw::NoDatabase => Reason::NoDatabase,
        Raw::Busy => Reason::Busy,
        Raw::Stalled => Reason::Stalled,
        Raw::Failed => Reason::Failed,
        Raw::Stopping => Reason::Stopping,
    })
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let (reason, code) = reason_out(refusal.reason);
        let details =
            pb::Refusal { reason: reason.into(), primary: refusal.primary.unwrap_or_default() };
        Self::with_details(code, refusal.message, details.encode_to_vec().into())
    }
}

impl From<LinkError> for Status {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Refused(refusal) => refusal.into(),
            LinkError::Lost(status) => *status,
            LinkError::Closed
            | LinkError::Silent(_)
            | LinkError::Connect { .. }
            | LinkError::OldEpoch { .. }
            | LinkError::Join(_)
            | LinkError::Stopping => Self::aborted(error.to_string()),
        }
    }
}

impl From<Status> for LinkError {
    fn from(status: Status) -> Self {
        match refusal(&status) {
            Some(refusal) => Self::Refused(refusal),
            None => Self::Lost(Box::new(status)),
        }
    }
}

/// What arrives, in our types.
pub(super) fn incoming<Raw, T>(stream: Streaming<Raw>) -> Incoming<T>
where
    Raw: Send + 'static,
    T: TryFrom<Raw, Error = Malformed> + 'static,
{
    Box::pin(stream.map(|message| Ok(T::try_from(message?)?)))
}

/// What leaves, in the generated types.
pub(super) fn outgoing<Raw, T>(messages: mpsc::Receiver<Result<T, LinkError>>) -> Outgoing<Raw>
where
    T: Into<Raw> + Send + 'static,
{
    Box::pin(ReceiverStream::new(messages).map(|m| m.map(Into::into).map_err(Status::from)))
}

/// What we ask, in the generated types.
pub(super) fn requests<Raw: 'static, T>(
    messages: mpsc::Receiver<T>,
) -> impl Stream<Item = Raw> + Send + 'static
where
    T: Into<Raw> + Send + 'static,
{
    ReceiverStream::new(messages).map(Into::into)
}

/// The refusal that a status carries, if it is one.
pub(super) fn refusal(status: &Status) -> Option<Refusal> {
    let details = pb::Refusal::decode(status.details()).ok()?;
    let primary = Some(details.primary).filter(|p| !p.is_empty() && p.len() <= TEXT_BYTES_MAX);
    Some(Refusal {
        reason: reason(details.reason)?,
        message: status.message().chars().take(1024).collect(),
        primary,
    })
}

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
#[cfg(test)]
mod tests;
