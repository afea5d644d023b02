//! Sends a database at one position: raw pages, then the change set that makes them exact.

use anyhow::Context as _;

use super::server::Answer;
use super::{CHUNK_BYTES, Reply, WireName};
use crate::store::Store;
use crate::types::{DbName, PageNo};

/// Sends the whole answer.
pub(super) fn export(store: &Store, name: &WireName, answer: &Answer) -> anyhow::Result<()> {
    let db = find(store, name)?;
    let name = db.name();
    let failed = || format!("export {name}");
    let snapshot = db.snapshot().with_context(failed)?;
    let (page_size, pages) = snapshot.size();
    answer.line(Reply::Copy { page_size: page_size.get(), pages })?;
    let step = u32::try_from(CHUNK_BYTES / page_size.bytes()).unwrap_or(1);
    let mut next = 1;
    while next <= pages {
        let first = PageNo::new(next).expect("BUG: pages count from 1");
        let count = step.min(pages - next + 1);
        let bytes = snapshot.read(first, count).with_context(failed)?;
        answer.bytes(Reply::Pages { first: next, bytes: bytes.len() }, bytes)?;
        next = next.saturating_add(count);
    }
    let record = snapshot.finish().with_context(failed)?;
    let position = record.pos.to_string();
    let reply = Reply::ChangeSet { bytes: record.ltx.len(), position };
    answer.bytes(reply, record.ltx.into())?;
    Ok(())
}

/// The database that a client named.
pub(super) fn find(
    store: &Store,
    name: &WireName,
) -> anyhow::Result<std::sync::Arc<crate::database::Database>> {
    let name = DbName::try_from(name).context("the database's name")?;
    store
        .by_name(&name)
        .with_context(|| format!("{name}: no such database on this node; `weir status` lists them"))
}
