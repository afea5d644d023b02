//! The protocol's messages in our types. `convert` makes them from the generated ones and back.

use bytes::Bytes;

use crate::types::{Checksum, ClusterId, DbId, DbName, Epoch, NodeId, PageNo, PageSize, Pos};

/// Who calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Caller {
    pub(crate) protocol: u32,
    pub(crate) software: String,
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) session: u64,
}

/// What a follower says on the live stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum FollowRequest {
    Hello { caller: Caller, filters: Vec<String> },
    Have { databases: Vec<(DbId, Pos)>, complete: bool },
    Acks(Vec<Ack>),
    Resume { db: DbId, pos: Pos, run: u32 },
}

/// How far a follower is with one database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ack {
    pub(crate) db: DbId,
    pub(crate) durable: Pos,
    pub(crate) applied: Pos,
}

/// What the primary says first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Welcome {
    pub(crate) protocol: u32,
    pub(crate) software: String,
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) epoch: Epoch,
}

/// One change set on the live stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub(crate) epoch: Epoch,
    pub(crate) ltx: Bytes,
}

/// What the primary says on the live stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum FollowEvent {
    Welcome(Welcome),
    Catalog { databases: Vec<(DbId, DbName)>, complete: bool },
    Named { db: DbId, name: DbName },
    Dropped { db: DbId },
    Transactions { db: DbId, run: u32, records: Vec<Record>, sync_now: bool },
    Behind { db: DbId, run: u32 },
}

/// One message of the heartbeat.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Beat {
    pub(crate) sequence: u64,
    pub(crate) boottime_ns: u64,
    pub(crate) wall_ms: i64,
    pub(crate) interval_ms: u32,
    pub(crate) epoch: Epoch,
    pub(crate) databases: Vec<(DbId, Pos)>,
    pub(crate) gone: Vec<DbId>,
    pub(crate) more: bool,
}

/// State of a copy of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CopyState {
    /// The copied pages hold at least this.
    pub(crate) base: Pos,
    pub(crate) page_size: PageSize,
    pub(crate) page_count: u32,
    /// Pages before this one are copied; `page_count + 1` when all are.
    pub(crate) next: PageNo,
}

impl CopyState {
    /// Whether all pages are copied.
    pub(crate) fn is_complete(&self) -> bool {
        self.next.get() > self.page_count
    }
}

/// How a Fetch begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FetchBegin {
    pub(crate) caller: Caller,
    pub(crate) db: DbId,
    pub(crate) pos: Pos,
    /// The log will not do.
    pub(crate) pages: bool,
    /// The follower can send sums.
    pub(crate) sums: bool,
    pub(crate) resume: Option<CopyState>,
    /// Positions in the follower's log, newest first.
    pub(crate) history: Vec<Pos>,
}

/// Asks for the sums of a database's pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SumsRequest {
    pub(crate) caller: Caller,
    pub(crate) db: DbId,
    pub(crate) pos: Pos,
}

/// What the primary says of a database's pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum SumsChunk {
    /// Consecutive pages.
    Sums { first: PageNo, sums: Vec<Checksum> },
    /// What changed since the follower's position: these, and all behind `kept`.
    Changed { pages: Vec<PageNo>, kept: u32 },
    /// That was all.
    Done { pos: Pos },
    /// The follower's position is not in the log.
    Gone { pos: Pos },
}

/// What a follower says on a Fetch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum FetchRequest {
    Begin(FetchBegin),
    Sums { first: PageNo, sums: Vec<Checksum>, last: bool },
}

/// What the primary says on a Fetch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum FetchChunk {
    /// `common` is the newest position of the follower's history that the primary's log has, `oldest` where that begins.
    Copy {
        copy: CopyState,
        compare: bool,
        common: Option<Pos>,
        oldest: Option<Pos>,
    },
    Pages {
        first: PageNo,
        data: Bytes,
        next: PageNo,
    },
    Record {
        epoch: Epoch,
        pos: Pos,
        size: u64,
    },
    Data(Bytes),
    Done {
        pos: Pos,
    },
}
