//! Sends a database at one position: all pages as they are at the time, then those that make the copy exact.

use anyhow::Context as _;

use super::server::Answer;
use super::{CHUNK_BYTES, Reply, WireName};
use crate::database::Exact;
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
    let mut run = Run { answer, first: 0, bytes: Vec::new(), page_bytes: page_size.bytes() };
    let position = snapshot.finish().pages(|exact| match exact {
        Exact::Size { page_size, pages } => {
            run.send()?;
            run.page_bytes = page_size.bytes();
            Ok(answer.line(Reply::Copy { page_size: page_size.get(), pages })?)
        }
        Exact::Page(page, image) => run.add(page, image),
    });
    let position = position.with_context(failed)?.to_string();
    run.send()?;
    Ok(answer.line(Reply::Copied { position })?)
}

/// Neighbouring pages that are sent at once.
struct Run<'a> {
    answer: &'a Answer,
    first: u32,
    bytes: Vec<u8>,
    page_bytes: usize,
}

impl Run<'_> {
    fn add(&mut self, page: PageNo, image: &[u8]) -> anyhow::Result<()> {
        let pages = self.bytes.len() / self.page_bytes;
        let is_next = self.first as usize + pages == page.get() as usize;
        if !is_next || self.bytes.len() >= CHUNK_BYTES {
            self.send()?;
            self.first = page.get();
        }
        self.bytes.extend_from_slice(image);
        Ok(())
    }

    fn send(&mut self) -> anyhow::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.bytes);
        Ok(self.answer.bytes(Reply::Pages { first: self.first, bytes: bytes.len() }, bytes)?)
    }
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
