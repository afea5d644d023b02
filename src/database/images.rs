//! Pages of a large change, read a few at a time when they are written: from the log, or from a copy of the database.
//!
//! Lanes, which write them, have a descriptor table of their own: a file that anybody else opened is none for them, not
//! even to be closed. So a thread of this room reads, for as long as the change lives, and a lane asks it.

use std::fs::File;
use std::io;
use std::sync::{Arc, mpsc};

use parking_lot::Mutex;

use super::OpError;
use super::requests::read_or_zeros;
use crate::client::{Change, Images, Pages};
use crate::log::Payload;
use crate::ltx::IndexedFile;
use crate::types::{DbName, PageNo, PageSize};

/// Bytes of pages that are asked for at once.
const STEP_BYTES: usize = 256 << 10;

/// A record of the log as a change whose pages stay in the log.
pub(super) fn change_of(name: &DbName, ltx: Payload) -> Result<Change, OpError> {
    ltx.check()?;
    let file = IndexedFile::open(ltx.len(), |at, buffer| ltx.read_at(at, buffer))
        .map_err(|source| OpError::Decode { db: name.clone(), source })?;
    let (page_size, commit) = (file.header().page_size, file.header().commit);
    let numbers: Vec<PageNo> = file.entries().iter().map(|entry| entry.page).collect();
    let mut stored = Vec::new();
    let images = Asked::new(page_size, numbers.len(), move |index, image: &mut [u8]| {
        let entry = file.entries()[index];
        stored.resize(entry.size as usize, 0);
        ltx.read_at(entry.offset, &mut stored)?;
        file.decode(entry, &stored, image).map_err(io::Error::other)
    });
    let images = Arc::new(images.map_err(super::disk_error("read large change", name.as_path()))?);
    Ok(Change { page_size, commit, pages: Pages::Stored { numbers, images } })
}

/// Some pages of a complete database file.
pub(super) fn pages_of(
    file: Arc<File>,
    page_size: PageSize,
    numbers: Vec<PageNo>,
) -> io::Result<Pages> {
    let wanted = numbers.clone();
    let images = Asked::new(page_size, numbers.len(), move |index, image: &mut [u8]| {
        read_or_zeros(&file, wanted[index], page_size, image)
    })?;
    Ok(Pages::Stored { numbers, images: Arc::new(images) })
}

/// Asks a thread for images.
#[derive(Debug)]
struct Asked {
    page_bytes: usize,
    thread: Mutex<mpsc::Sender<Question>>,
    /// The last answer, and the index of its first page.
    last: Mutex<(usize, Vec<u8>)>,
}

struct Question {
    first: usize,
    answer: mpsc::SyncSender<io::Result<Vec<u8>>>,
}

impl Asked {
    /// Starts the thread, which reads by `read` and ends when this is gone.
    fn new(
        page_size: PageSize,
        count: usize,
        mut read: impl FnMut(usize, &mut [u8]) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let page_bytes = page_size.bytes();
        let (thread, questions) = mpsc::channel::<Question>();
        let mut answer = move |first: usize| {
            let pages = (STEP_BYTES / page_bytes).max(1).min(count.saturating_sub(first));
            let mut bytes = vec![0; pages * page_bytes];
            for (index, image) in (first..).zip(bytes.chunks_exact_mut(page_bytes)) {
                read(index, image)?;
            }
            Ok(bytes)
        };
        std::thread::Builder::new().name("weir-pages".to_owned()).spawn(move || {
            for question in questions {
                // Who does not wait for the answer any more does not need it.
                drop(question.answer.send(answer(question.first)));
            }
        })?;
        Ok(Self { page_bytes, thread: Mutex::new(thread), last: Mutex::default() })
    }
}

impl Images for Asked {
    fn read(&self, index: usize, image: &mut [u8]) -> io::Result<()> {
        let mut last = self.last.lock();
        let place = |first: usize, bytes: &[u8]| {
            let at = index.checked_sub(first)?.checked_mul(self.page_bytes)?;
            (at + self.page_bytes <= bytes.len()).then_some(at)
        };
        let known = place(last.0, &last.1);
        let at = if let Some(at) = known {
            at
        } else {
            let gone = || io::Error::other("the thread that reads pages is gone");
            let (answer, answers) = mpsc::sync_channel(1);
            self.thread.lock().send(Question { first: index, answer }).map_err(|_| gone())?;
            *last = (index, answers.recv().map_err(|_| gone())??);
            place(last.0, &last.1).ok_or(io::ErrorKind::UnexpectedEof)?
        };
        image.copy_from_slice(&last.1[at..at + self.page_bytes]);
        Ok(())
    }
}
