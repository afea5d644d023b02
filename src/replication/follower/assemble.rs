//! A change set put together from its chunks: in memory, or, if it is large, in a file without a name.

use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::FileReader;

/// Up to here a change set is put together in memory.
const MEMORY_BYTES_MAX: u64 = 8 << 20;
/// What is reserved for a change set on the word of the peer.
const RESERVE_BYTES_MAX: u64 = 1 << 20;

/// A change set that is being put together, or is.
#[derive(Debug)]
pub(super) enum Assembled {
    Memory(Vec<u8>),
    File { file: Arc<File>, bytes: u64 },
}

impl Assembled {
    /// For a change set of `size` bytes; a file is made in `tmp`.
    pub(super) fn begin(size: u64, tmp: &Path, name: &str) -> io::Result<Self> {
        if size <= MEMORY_BYTES_MAX {
            let reserve = usize::try_from(size.min(RESERVE_BYTES_MAX)).unwrap_or(0);
            return Ok(Self::Memory(Vec::with_capacity(reserve)));
        }
        let path = tmp.join(name);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        // Gone with the descriptor, however this process ends.
        std::fs::remove_file(&path)?;
        Ok(Self::File { file: Arc::new(file), bytes: 0 })
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { bytes, .. } => *bytes,
        }
    }

    /// Whether adding waits for the disk.
    pub(super) fn is_on_disk(&self) -> bool {
        matches!(self, Self::File { .. })
    }

    /// Adds a chunk.
    pub(super) fn add(&mut self, data: &Bytes) -> io::Result<()> {
        match self {
            Self::Memory(bytes) => bytes.extend_from_slice(data),
            Self::File { file, bytes } => {
                file.write_all_at(data, *bytes)?;
                *bytes += data.len() as u64;
            }
        }
        Ok(())
    }

    /// Reads it from its beginning.
    pub(super) fn reader(&self) -> Box<dyn Read + '_> {
        match self {
            Self::Memory(bytes) => Box::new(Cursor::new(bytes)),
            Self::File { file, bytes } => Box::new(FileReader::new(file, *bytes)),
        }
    }
}
