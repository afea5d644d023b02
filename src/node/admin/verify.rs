//! Compares a database's pages with its stored page sums and its position.

use anyhow::Context as _;

use super::server::Answer;
use super::{CHUNK_BYTES, Reply, Verified, WireName, export};
use crate::database::Database;
use crate::ltx::LtxFile;
use crate::node::image::ImageSums;
use crate::store::Store;
use crate::types::{Checksum, PageNo, Pos};

/// Pages that are named when they differ.
const NAMED_MAX: usize = 100;
/// Page sums that are asked for at once.
const SUMS_STEP: u32 = 16 << 10;

/// Sends the whole answer.
pub(super) fn verify(
    store: &Store,
    name: Option<&WireName>,
    answer: &Answer,
) -> anyhow::Result<()> {
    let databases = match name {
        Some(name) => vec![export::find(store, name)?],
        None => {
            let mut all = store.databases();
            all.sort_by_key(|db| db.name());
            all
        }
    };
    for db in databases {
        match verify_one(&db, answer) {
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

fn verify_one(db: &Database, answer: &Answer) -> anyhow::Result<Verified> {
    let (image, pos) = copy(db, answer)?;
    let checksum = image.total() == pos.checksum;
    let (differing, note) = compare_sums(db, &image, pos)?;
    Ok(Verified {
        name: db.name().to_string(),
        position: pos.to_string(),
        pages: u32::try_from(image.pages().len()).unwrap_or(u32::MAX),
        ok: checksum && differing.is_empty(),
        checksum,
        differing_pages: differing,
        primary: None,
        note,
    })
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
