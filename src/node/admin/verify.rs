//! Compares a database's pages with its stored page sums and its position.

use std::thread;
use std::time::Duration;

use anyhow::Context as _;

use super::server::{Answer, Context, Reported};
use super::{CHUNK_BYTES, Reply, Verified, WireName, export};
use crate::database::Database;
use crate::disk::clock;
use crate::ltx::LtxFile;
use crate::node::image::ImageSums;
use crate::types::{Checksum, PageNo, Pos};

/// Pages that are named when they differ.
const NAMED_MAX: usize = 100;
/// Page sums that are asked for at once.
const SUMS_STEP: u32 = 16 << 10;

/// How long the primary's and this node's position may take to be the same transaction.
const PRIMARY_WAIT: Duration = Duration::from_secs(3);
const PRIMARY_POLL: Duration = Duration::from_millis(20);

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
        match verify_one(&db, context.reported.as_ref(), answer) {
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
    reported: Option<&Reported>,
    answer: &Answer,
) -> anyhow::Result<Verified> {
    let (image, pos) = copy(db, answer)?;
    let checksum = image.total() == pos.checksum;
    let (differing, note) = compare_sums(db, &image, pos)?;
    let primary = reported.map(|reported| compare_with_primary(db, reported));
    let is_like_primary = primary.as_ref().is_none_or(|(is_like, _)| *is_like);
    Ok(Verified {
        name: db.name().to_string(),
        position: pos.to_string(),
        pages: u32::try_from(image.pages().len()).unwrap_or(u32::MAX),
        ok: checksum && differing.is_empty() && is_like_primary,
        checksum,
        differing_pages: differing,
        primary: primary.map(|(_, text)| text),
        note,
    })
}

/// Compares this node's position with what the primary's beats say: the same transaction must have the
/// same checksum over all pages. Returns whether nothing speaks against it, and the words for it.
fn compare_with_primary(db: &Database, reported: &Reported) -> (bool, String) {
    let Some(id) = db.id() else { return (true, "not compared: no longer a database".to_owned()) };
    let deadline = clock::boottime() + PRIMARY_WAIT;
    loop {
        let (ours, theirs) = (db.position(), reported(id));
        match theirs {
            Some(theirs) if theirs.txid == ours.txid && theirs.checksum == ours.checksum => {
                return (true, format!("equal at {ours}"));
            }
            Some(theirs) if theirs.txid == ours.txid => {
                return (
                    false,
                    format!("differs: this node is at {ours}, the primary at {theirs}"),
                );
            }
            None if clock::boottime() >= deadline => {
                return (true, "not compared: the primary says nothing of it".to_owned());
            }
            Some(theirs) if clock::boottime() >= deadline => {
                let text = format!("not compared: this node is at {ours}, the primary at {theirs}");
                return (true, text);
            }
            Some(_) | None => thread::park_timeout(PRIMARY_POLL),
        }
    }
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
    let record = snapshot.finish()?;
    let file = LtxFile::parse_with(&record.ltx, |page, data| image.write(page, data))
        .context("the log's change set")?;
    image.set_pages(file.header().commit);
    Ok((image, record.pos))
}

/// Pages whose stored sum is not that of their content. Writers go on meanwhile: what was read counts
/// only if the position is still the same afterwards.
fn compare_sums(
    db: &Database,
    image: &ImageSums,
    pos: Pos,
) -> anyhow::Result<(Vec<u32>, Option<String>)> {
    let mut differing = Vec::new();
    let mut next = 1u32;
    let pages = u32::try_from(image.pages().len()).unwrap_or(u32::MAX);
    while next <= pages && differing.len() < NAMED_MAX {
        let first = PageNo::new(next).expect("BUG: pages count from 1");
        let count = SUMS_STEP.min(pages - next + 1);
        let stored = db.page_sums(first, count)?;
        for (index, found) in
            image.pages()[next as usize - 1..].iter().take(count as usize).enumerate()
        {
            let stored = stored.get(index).copied().unwrap_or(Checksum::EMPTY);
            if *found != stored && *found != Checksum::EMPTY {
                differing.push(next + u32::try_from(index).unwrap_or(0));
            }
        }
        next = next.saturating_add(count);
    }
    differing.truncate(NAMED_MAX);
    if db.position() == pos {
        return Ok((differing, None));
    }
    let note =
        "the database was written meanwhile: the checksum was compared, single page sums were not";
    Ok((Vec::new(), Some(note.to_owned())))
}
