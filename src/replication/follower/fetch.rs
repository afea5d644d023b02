//! Running the Fetches of one session.
//!
//! Catch-ups by log and copies have limits of their own, so that a short catch-up never waits behind a copy of
//! many gigabytes. One Fetch per database at a time, over all sessions: blocking work of an ended session may
//! still be under way, and keeps its claim until it is done.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::acks::Acks;
use super::assemble::Assembled;
use super::dial::Primary;
use super::image::{Image, ImageError, Place};
use super::lanes::{Event, Fetched, Item, Job, Lanes, Session, trouble};
use crate::database::{Database, OpError};
use crate::replication::catchup::{Parted, parted};
use crate::replication::convert::Incoming;
use crate::replication::error::{LinkError, Malformed, Reason};
use crate::replication::flow::{How, Trouble};
use crate::replication::limits::{
    CATCH_UPS_MAX, CHUNK_TIMEOUT, CHUNKS_QUEUED, COPIES_MAX, RECORD_BYTES_MAX,
};
use crate::replication::link::{blocking, receive};
use crate::replication::membership::Membership;
use crate::replication::message::{CopyState, FetchBegin, FetchChunk, FetchRequest};
use crate::store::{Extra, Store};
use crate::types::{DbId, DbName, Epoch, PageNo, Pos};

/// The primary answers only when it has found a pause between transactions.
const LAST_CHANGE_TIMEOUT: Duration = Duration::from_secs(90);
/// How often a database is looked at whose last Fetch is still ending.
const CLAIM_RETRY: Duration = Duration::from_millis(50);
/// The change set that completes a copy may be as large as LTX allows.
const LAST_CHANGE_BYTES_MAX: u64 = 4 << 30;

/// Why a Fetch ended early.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("install the copy")]
    Install(#[source] OpError),
    #[error("put a change set together in the data directory")]
    Assemble(#[source] std::io::Error),
    /// Said already.
    #[error("a change set was not taken")]
    Receive(Trouble),
    #[error("too many copies at a time")]
    CopyMustWait,
    #[error("the database is gone")]
    Gone,
}

impl FetchError {
    fn trouble(&self) -> Trouble {
        match self {
            Self::Receive(trouble) => *trouble,
            Self::Link(_) | Self::CopyMustWait | Self::Gone => Trouble::Network,
            Self::Image(ImageError::Disk { .. }) => Trouble::Disk,
            Self::Image(ImageError::Stray | ImageError::Ltx(_)) => Trouble::Image,
            Self::Install(OpError::WrongImage { .. }) => Trouble::Image,
            Self::Install(_) | Self::Assemble(_) => Trouble::Disk,
        }
    }
}

/// How far a copy is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopyProgress {
    /// The database.
    pub name: DbName,
    /// Pages that are settled.
    pub pages: u32,
    /// Pages there are.
    pub pages_total: u32,
    /// Pages that have travelled on this connection: the others were here.
    pub pages_received: u32,
}

/// The databases with a Fetch under way, over all sessions.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    claimed: Mutex<HashSet<DbId>>,
}

#[derive(Debug)]
struct Claim {
    claims: Arc<Claims>,
    db: DbId,
}

impl Claims {
    fn try_claim(self: &Arc<Self>, db: DbId) -> Option<Arc<Claim>> {
        let is_free = self.claimed.lock().insert(db);
        is_free.then(|| Arc::new(Claim { claims: Arc::clone(self), db }))
    }

    /// The databases with work under way.
    pub(crate) fn claimed(&self) -> Vec<DbId> {
        self.claimed.lock().iter().copied().collect()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.claimed.lock().remove(&self.db);
    }
}

/// What all Fetches of a session share.
pub(crate) struct Fetcher {
    pub(crate) store: Arc<Store>,
    pub(crate) me: Arc<Membership>,
    pub(crate) session: Arc<Session>,
    pub(crate) primary: Primary,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) acks: Arc<Acks>,
    pub(crate) claims: Arc<Claims>,
    pub(crate) copying: Arc<Mutex<HashMap<DbId, CopyProgress>>>,
    pub(crate) tmp: PathBuf,
    catch_ups: Semaphore,
    copies: Arc<Semaphore>,
}

/// The parts of a [`Fetcher`].
pub(crate) struct Parts {
    pub(crate) store: Arc<Store>,
    pub(crate) me: Arc<Membership>,
    pub(crate) session: Arc<Session>,
    pub(crate) primary: Primary,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) acks: Arc<Acks>,
    pub(crate) claims: Arc<Claims>,
    pub(crate) copying: Arc<Mutex<HashMap<DbId, CopyProgress>>>,
    pub(crate) tmp: PathBuf,
}

impl Fetcher {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { store, me, session, primary, lanes, acks, claims, copying, tmp } = parts;
        let catch_ups = Semaphore::new(CATCH_UPS_MAX);
        let copies = Arc::new(Semaphore::new(COPIES_MAX));
        Self { store, me, session, primary, lanes, acks, claims, copying, tmp, catch_ups, copies }
    }

    /// Runs jobs until the session ends; then those under way are cut.
    pub(crate) async fn run(self, mut jobs: mpsc::UnboundedReceiver<Job>) -> LinkError {
        let fetcher = Arc::new(self);
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                job = jobs.recv() => match job {
                    Some(job) => { running.spawn(Arc::clone(&fetcher).run_job(job)); }
                    None => return LinkError::Closed,
                },
                Some(ended) = running.join_next() => {
                    if let Err(error) = ended {
                        return error.into();
                    }
                }
            }
        }
    }

    async fn run_job(self: Arc<Self>, job: Job) {
        let Job { db, order } = job;
        tokio::time::sleep(order.pause).await;
        let result = Box::pin(self.fetch(db, order.how)).await;
        self.copying.lock().remove(&db);
        let fetched = match result {
            Ok(()) => Fetched::Done,
            Err(FetchError::Gone) => {
                Place::new(&self.tmp, db).remove();
                Fetched::Gone
            }
            Err(FetchError::Receive(trouble)) => Fetched::Failed(trouble),
            Err(error) => {
                let trouble = error.trouble();
                if trouble == Trouble::Image {
                    Place::new(&self.tmp, db).remove();
                }
                let name = self.store.by_id(db).map(|db| db.name().to_string());
                let reason = &error as &(dyn std::error::Error + Sync);
                warn!(db = name, error = reason, ?trouble, "fetch failed, trying again");
                Fetched::Failed(trouble)
            }
        };
        let (session, event) = (Arc::clone(&self.session), Event::Fetched(fetched));
        self.lanes.push(Item { session, db, event }).await;
    }

    async fn fetch(&self, db: DbId, how: How) -> Result<(), FetchError> {
        let claim = loop {
            match self.claims.try_claim(db) {
                Some(claim) => break claim,
                None => tokio::time::sleep(CLAIM_RETRY).await,
            }
        };
        let mut copy_permit = None;
        loop {
            let Some(database) = self.store.by_id(db) else { return Err(FetchError::Gone) };
            let place = Place::new(&self.tmp, db);
            let one = One { fetcher: self, db, database, place, claim: Arc::clone(&claim) };
            let result = if copy_permit.is_some() {
                one.run(how, copy_permit.take()).await
            } else {
                let permit = self.catch_ups.acquire().await;
                let result = one.run(how, None).await;
                drop(permit);
                result
            };
            match result {
                Err(FetchError::CopyMustWait) => {
                    let permit = Arc::clone(&self.copies).acquire_owned().await;
                    copy_permit = Some(permit.map_err(|_| LinkError::Stopping)?);
                }
                Err(FetchError::Link(LinkError::Refused(refusal)))
                    if refusal.reason == Reason::NoDatabase =>
                {
                    return Err(FetchError::Gone);
                }
                result => return result,
            }
        }
    }
}

/// One Fetch of one database.
struct One<'a> {
    fetcher: &'a Fetcher,
    db: DbId,
    database: Arc<Database>,
    place: Place,
    claim: Arc<Claim>,
}

impl One<'_> {
    /// Disk work of this Fetch: whoever comes next waits for it.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, LinkError> {
        let claim = Arc::clone(&self.claim);
        blocking(move || {
            let _claim = claim;
            work()
        })
        .await
    }

    async fn run(&self, how: How, permit: Option<OwnedSemaphorePermit>) -> Result<(), FetchError> {
        let pos = self.database.position();
        let resume = match how {
            How::Whole => None,
            How::Best | How::Compare => {
                let place = self.place.clone();
                self.on_disk(move || place.saved()).await?
            }
        };
        let database = Arc::clone(&self.database);
        let history = self.on_disk(move || {
            database.history().unwrap_or_else(|error| {
                warn!(db = %database.name(), %error, "read the history");
                Vec::new()
            })
        });
        let begin = FetchBegin {
            caller: self.fetcher.me.caller(self.fetcher.session.id),
            db: self.db,
            pos,
            history: history.await?,
            pages: how != How::Best,
            sums: how != How::Whole && (pos.txid.is_some() || resume.is_some()),
            resume,
        };
        let (requests, sent) = mpsc::channel(CHUNKS_QUEUED);
        // There is room: nothing was sent before.
        drop(requests.send(FetchRequest::Begin(begin)).await);
        let mut chunks = self.fetcher.primary.fetch(sent).await?;
        match receive(&mut chunks, CHUNK_TIMEOUT).await? {
            FetchChunk::Done { .. } => Ok(()),
            FetchChunk::Record { epoch, size, .. } => self.log(&mut chunks, epoch, size).await,
            FetchChunk::Copy { copy, compare, common, oldest } => {
                let parted = parted(pos, common, oldest);
                let permit = match permit {
                    Some(permit) => permit,
                    None => Arc::clone(&self.fetcher.copies)
                        .try_acquire_owned()
                        .map_err(|_| FetchError::CopyMustWait)?,
                };
                let result =
                    self.copy(&mut chunks, copy, compare.then_some(requests), parted).await;
                drop(permit);
                result
            }
            FetchChunk::Pages { .. } => Err(unexpected("pages without a copy")),
            FetchChunk::Data(_) => Err(unexpected("data without a record")),
        }
    }

    // ---- by log ----

    async fn log(
        &self,
        chunks: &mut Incoming<FetchChunk>,
        mut epoch: Epoch,
        mut size: u64,
    ) -> Result<(), FetchError> {
        loop {
            let (ltx, next) = self.assemble(chunks, size, RECORD_BYTES_MAX).await?;
            let database = Arc::clone(&self.database);
            let taken = self.on_disk(move || {
                let taken = match &ltx {
                    Assembled::Memory(ltx) => database.receive(epoch, ltx),
                    Assembled::File { file, bytes } => database.receive_file(epoch, file, *bytes),
                };
                taken.map_err(|error| trouble(&database, &error))
            });
            taken.await?.map_err(FetchError::Receive)?;
            self.fetcher.acks.received(self.db, false);
            match next {
                FetchChunk::Record { epoch: next_epoch, size: next_size, .. } => {
                    (epoch, size) = (next_epoch, next_size);
                }
                FetchChunk::Done { .. } => return Ok(()),
                FetchChunk::Copy { .. } | FetchChunk::Pages { .. } | FetchChunk::Data(_) => {
                    return Err(unexpected("a page among records"));
                }
            }
        }
    }

    // ---- by pages ----

    async fn copy(
        &self,
        chunks: &mut Incoming<FetchChunk>,
        copy: CopyState,
        sums: Option<mpsc::Sender<FetchRequest>>,
        parted: Parted,
    ) -> Result<(), FetchError> {
        let name = self.database.name();
        info!(db = %name, pages = copy.page_count, next = %copy.next, compare = sums.is_some(), "copy of pages begins");
        let place = self.place.clone();
        let compare = sums.is_some();
        let mut image = self.on_disk(move || Image::open(place, copy, compare)).await??;
        if let Some(sums) = sums {
            self.feed(&image, sums);
        }
        let mut size = loop {
            let limit =
                if image.copy().is_complete() { LAST_CHANGE_TIMEOUT } else { CHUNK_TIMEOUT };
            match receive(chunks, limit).await {
                Ok(FetchChunk::Pages { first, data, next }) => {
                    image = self.take(image, first, data, next).await?;
                    self.report(&name, &image);
                }
                Ok(FetchChunk::Record { size, .. }) if image.copy().is_complete() => break size,
                Ok(
                    FetchChunk::Record { .. }
                    | FetchChunk::Copy { .. }
                    | FetchChunk::Data(_)
                    | FetchChunk::Done { .. },
                ) => return Err(unexpected("a copy that ends before its last page")),
                Err(error) => {
                    self.on_disk(move || image.save()).await??;
                    return Err(error.into());
                }
            }
        };
        image = self.on_disk(move || image.save().map(|()| image)).await??;
        let pos = loop {
            let (ltx, next) = self.assemble(chunks, size, LAST_CHANGE_BYTES_MAX).await?;
            image = self.on_disk(move || image.complete(&ltx).map(|()| image)).await??;
            match next {
                FetchChunk::Record { size: next_size, .. } => size = next_size,
                FetchChunk::Done { pos } => break pos,
                FetchChunk::Copy { .. } | FetchChunk::Pages { .. } | FetchChunk::Data(_) => {
                    return Err(unexpected("a page among the last change sets"));
                }
            }
        };
        let received = image.received();
        self.install(image, pos, parted).await?;
        info!(db = %name, txid = %pos, received, "copy of pages is installed");
        Ok(())
    }

    /// Starts comparing local pages; it ends with the stream.
    fn feed(&self, image: &Image, sums: mpsc::Sender<FetchRequest>) {
        let comparison = image.comparison();
        let (database, claim) = (Arc::clone(&self.database), Arc::clone(&self.claim));
        tokio::task::spawn_blocking(move || {
            let _claim = claim;
            let local = database.snapshot().inspect_err(|error| {
                warn!(db = %database.name(), %error, "no local pages to compare");
            });
            comparison.send_sums(local.as_ref().ok(), &sums);
        });
    }

    async fn take(
        &self,
        mut image: Image,
        first: PageNo,
        data: Bytes,
        next: PageNo,
    ) -> Result<Image, FetchError> {
        let taken = self.on_disk(move || image.take(first, &data, next).map(|()| image)).await?;
        Ok(taken?)
    }

    /// Puts a change set together; also returns what follows it.
    async fn assemble(
        &self,
        chunks: &mut Incoming<FetchChunk>,
        size: u64,
        max: u64,
    ) -> Result<(Assembled, FetchChunk), FetchError> {
        if size > max {
            return Err(unexpected("a change set of this size"));
        }
        let (tmp, name) = (self.fetcher.tmp.clone(), format!("{}.change", self.db));
        let mut ltx = self
            .on_disk(move || Assembled::begin(size, &tmp, &name))
            .await?
            .map_err(FetchError::Assemble)?;
        loop {
            let chunk = receive(chunks, LAST_CHANGE_TIMEOUT).await?;
            if let FetchChunk::Data(data) = chunk {
                if ltx.len() + data.len() as u64 > size || data.is_empty() {
                    return Err(unexpected("more of a change set than announced"));
                }
                if ltx.is_on_disk() {
                    ltx = self
                        .on_disk(move || ltx.add(&data).map(|()| ltx))
                        .await?
                        .map_err(FetchError::Assemble)?;
                } else {
                    ltx.add(&data).map_err(FetchError::Assemble)?;
                }
            } else if ltx.len() == size {
                return Ok((ltx, chunk));
            } else {
                return Err(unexpected("the end of a change set before its last byte"));
            }
        }
    }

    fn report(&self, name: &DbName, image: &Image) {
        let copy = image.copy();
        let progress = CopyProgress {
            name: name.clone(),
            pages: copy.next.get() - 1,
            pages_total: copy.page_count,
            pages_received: image.received(),
        };
        self.fetcher.copying.lock().insert(self.db, progress);
    }

    async fn install(&self, image: Image, pos: Pos, parted: Parted) -> Result<(), FetchError> {
        let (store, database) = (Arc::clone(&self.fetcher.store), Arc::clone(&self.database));
        let place = self.place.clone();
        let installed = self.on_disk(move || {
            image.sync()?;
            let extra = match parted {
                Parted::Never => None,
                Parted::Behind(common) => Some(Extra::Behind(common)),
                Parted::Somewhere => Some(Extra::All),
                Parted::Unknown => Some(Extra::Own),
            };
            if let Some(extra) = extra {
                store.keep_extra(&database, extra).map_err(FetchError::Install)?;
            }
            if database.is_without_log() {
                store.keep_copy(&database).map_err(FetchError::Install)?;
            }
            store.install(&database, place.pages(), pos).map_err(FetchError::Install)?;
            place.remove();
            Ok(())
        });
        installed.await?
    }
}

fn unexpected(what: &'static str) -> FetchError {
    LinkError::from(Malformed::Unexpected(what)).into()
}
