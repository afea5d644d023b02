//! Pages of a large change, read one by one when they are written: from the log, or from a copy of the database.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::OpError;
use super::requests::read_or_zeros;
use crate::client::{Change, Images};
use crate::log::Payload;
use crate::ltx::IndexedFile;
use crate::types::{DbName, PageNo, PageSize};

/// The pages of one record of the log.
#[derive(Debug)]
struct LogImages {
    ltx: Payload,
    file: IndexedFile,
}

impl Images for LogImages {
    fn read(&self, index: usize, image: &mut [u8]) -> io::Result<()> {
        let entry = self.file.entries()[index];
        let mut stored = vec![0; entry.size as usize];
        self.ltx.read_at(entry.offset, &mut stored)?;
        self.file.decode(entry, &stored, image).map_err(io::Error::other)
    }
}

/// A record of the log as a change whose pages stay in the log.
pub(super) fn change_of(name: &DbName, ltx: Payload) -> Result<Change, OpError> {
    ltx.check()?;
    let file = IndexedFile::open(ltx.len(), |at, buffer| ltx.read_at(at, buffer))
        .map_err(|source| OpError::Decode { db: name.clone(), source })?;
    let (page_size, commit) = (file.header().page_size, file.header().commit);
    let numbers = file.entries().iter().map(|entry| entry.page).collect();
    let images = Arc::new(LogImages { ltx, file });
    Ok(Change { page_size, commit, pages: crate::client::Pages::Stored { numbers, images } })
}

/// Some pages of a complete database file.
#[derive(Debug)]
pub(super) struct FileImages {
    pub(super) file: Arc<File>,
    pub(super) page_size: PageSize,
    pub(super) numbers: Vec<PageNo>,
}

impl Images for FileImages {
    fn read(&self, index: usize, image: &mut [u8]) -> io::Result<()> {
        read_or_zeros(&self.file, self.numbers[index], self.page_size, image)
    }
}
