//! Compares a database's pages with its stored page sums, with its position, and on a replica with the primary.
//!
//! Everything is compared at one position, the one at which the copy of the pages is complete. Writers go on: pages that
//! changed since are left out of the comparison page by page, the checksum over all of them is compared in any case.

use std::collections::BTreeSet;

use anyhow::Context as _;

use super::server::{Answer, Compare, Context};
use super::{CHUNK_BYTES, Reply, Verified, VerifiedPrimary, WireName, export};
use crate::database::{Database, Exact, OpError};
use crate::node::image::ImageSums;
use crate::replication::Comparison;
use crate::store::Store;
use crate::types::{Checksum, PageNo, Pos};

/// Pages that are named when they differ.
const NAMED_MAX: usize = 100;
/// Page sums that are asked for at once.
const SUMS_STEP: u32 = 16 << 10;

/// Sends the whole answer.
pub(super) fn verify(
    context: &Context,
    name: Option<&WireName>,
    answer: &Answer,
) -> anyhow::Result<()> {
    let store = &context.store;
    let databases = match name {
        Some(name) => vec![export::find(store, name)?],
        None => {
            let mut all = store.databases();
            all.sort_by_key(|db| db.name());
            all
        }
    };
    for db in databases {
        match verify_one(&db, store, context.compare.as_ref(), answer) {
            Ok(verified) => answer.line(Reply::Verified(verified))?,
            Err(error) if error.is::<super::server::ClientGone>() => return Err(error),
            Err(error) => answer.line(Reply::Verified(Verified {
                name: db.name().to_string(),
                position: db.position().to_string(),
                pages: 0,
                ok: false,
                checksum: false,
                differing_pages: Vec::new(),
                primary: None,
                note: Some(format!("{error:#}")),
            }))?,
        }
    }
    answer.line(Reply::End)?;
    Ok(())
}

fn verify_one(
    db: &Database,
    store: &Store,
    compare: Option<&Compare>,
    answer: &Answer,
) -> anyhow::Result<Verified> {
    let quarantined_before = db.quarantined().is_some();
    // On a replica, what readers would find in the file and not in the WAL is to be compared.
    store.checkpoint(db);
    let (image, pos) = copy(db, answer)?;
    let checksum = image.total() == pos.checksum;
    let mut differing = differing_from_sums(db, &image)?;
    // Asked last, so that whatever changed while the sums were read is among it.
    let changed = db.changed_since(pos)?;
    let changed = changed.context("the database was replaced meanwhile: try again")?;
    differing.retain(|page| !changed.has(*page));
    let primary = compare.map(|compare| compare_with_primary(db, compare, &image, pos));
    let is_like_primary = primary.as_ref().is_none_or(|(is_like, _)| *is_like);
    let ok = checksum && differing.is_empty() && is_like_primary;
    let mut notes = Vec::new();
    let written = changed.pages.len();
    if written > 0 {
        notes.push(format!(
            "{written} pages were written meanwhile and not compared singly, but the checksum covers them"
        ));
    }
    if !ok {
        notes.push(remedy(db, compare.is_some(), quarantined_before));
    }
    Ok(Verified {
        name: db.name().to_string(),
        position: pos.to_string(),
        pages: u32::try_from(image.pages().len()).unwrap_or(u32::MAX),
        ok,
        checksum,
        differing_pages: named(&differing),
        primary: primary.map(|(_, found)| found),
        note: (!notes.is_empty()).then(|| notes.join("; ")),
    })
}

/// Does what can be done about a database that is damaged, and says so.
fn remedy(db: &Database, is_replica: bool, quarantined_before: bool) -> String {
    if !is_replica {
        return "if a replica is sound, `weir export` it there and `weir import --force` it here"
            .to_owned();
    }
    if !quarantined_before {
        db.quarantine(
            "`weir verify` found pages that differ: a fresh copy from the primary is needed",
            true,
        );
    }
    "quarantined: the pages that differ are fetched from the primary".to_owned()
}

/// Whether nothing speaks against being what the primary has, and what was found.
fn compare_with_primary(
    db: &Database,
    compare: &Compare,
    image: &ImageSums,
    pos: Pos,
) -> (bool, VerifiedPrimary) {
    let found = match db.id() {
        Some(id) => compare(id, pos, image.pages()),
        None => Err(anyhow::anyhow!("no longer a database")),
    };
    let not_compared = |why: String| VerifiedPrimary {
        compared: false,
        differing_pages: Vec::new(),
        result: format!("not compared: {why}"),
    };
    match found {
        Ok(Comparison::Compared { differing, changed }) => {
            let result = match (differing.is_empty(), changed) {
                (false, _) => "differs".to_owned(),
                (true, 0) => "equal".to_owned(),
                (true, changed) => format!("equal, but for {changed} pages that changed meanwhile"),
            };
            let is_like = differing.is_empty();
            let found =
                VerifiedPrimary { compared: true, differing_pages: named(&differing), result };
            (is_like, found)
        }
        Ok(Comparison::Gone(theirs))
            if theirs.txid == pos.txid && theirs.checksum != pos.checksum =>
        {
            let text = format!("differs: this node is at {pos}, the primary at {theirs}");
            (false, VerifiedPrimary { compared: true, differing_pages: Vec::new(), result: text })
        }
        Ok(Comparison::Gone(theirs)) => {
            let why = format!("the primary is at {theirs}, and {pos} is not in its log");
            (true, not_compared(why))
        }
        Ok(Comparison::NotConnected) => {
            (true, not_compared("there is no connection to the primary".to_owned()))
        }
        Err(error) => (true, not_compared(format!("{error:#}"))),
    }
}

fn named(pages: &BTreeSet<PageNo>) -> Vec<u32> {
    pages.iter().take(NAMED_MAX).map(|page| page.get()).collect()
}

/// Reads the whole database at one position.
fn copy(db: &Database, answer: &Answer) -> anyhow::Result<(ImageSums, Pos)> {
    let snapshot = db.snapshot()?;
    let (page_size, pages) = snapshot.size();
    let mut image = ImageSums::new(page_size);
    let step = u32::try_from(CHUNK_BYTES / page_size.bytes()).unwrap_or(1);
    let what = db.name().to_string();
    let mut done = 0;
    while done < pages {
        let first = PageNo::new(done + 1).expect("BUG: pages count from 1");
        let count = step.min(pages - done);
        image.write(first, &snapshot.read(first, count)?);
        done += count;
        answer.line(Reply::Progress {
            what: what.clone(),
            done: done.into(),
            total: pages.into(),
        })?;
    }
    let pos = snapshot.finish().pages(|exact| {
        match exact {
            Exact::Size { page_size, pages } => image.set_size(page_size, pages),
            Exact::Page(page, data) => image.write(page, data),
        }
        Ok::<_, OpError>(())
    })?;
    Ok((image, pos))
}

/// Pages whose stored sum is not that of their content.
fn differing_from_sums(db: &Database, image: &ImageSums) -> anyhow::Result<BTreeSet<PageNo>> {
    let mut differing = BTreeSet::new();
    for (part, first) in
        image.pages().chunks(SUMS_STEP as usize).zip((1..).step_by(SUMS_STEP as usize))
    {
        let stored =
            db.page_sums(PageNo::new(first).context("BUG: pages count from 1")?, SUMS_STEP)?;
        for (index, (page, found)) in (first..).zip(part).enumerate() {
            if *found != stored.get(index).copied().unwrap_or(Checksum::EMPTY) {
                differing.extend(PageNo::new(page));
            }
        }
    }
    Ok(differing)
}
