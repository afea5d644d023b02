//! `weir ltx merge`, `encode`, `apply` and `checksum`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};

use super::{Output, explain, open};
use crate::cli::output;
use crate::disk::clock::wall_ms;
use crate::ltx::{
    Compressor, DatabaseSum, Encoder, Flags, Format, Header, MergeError, Trailer, WalSource,
    merge_streams,
};
use crate::sqlite::DatabaseHeader;
use crate::types::{Checksum, NodeId, PageNo, PageSize, Txid};

pub(super) fn merge(
    files: &[PathBuf],
    format: Format,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let inputs = files.iter().map(|path| open(path, format)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut compressor = Compressor::new(output.page_encoding.get());
    create(output, files, |out| {
        merge_streams(inputs, &mut compressor, out).map_err(|error| match error {
            MergeError::Input { input, error } => explain(&files[input], format, error),
            MergeError::PageSize { input, .. }
            | MergeError::Gap { input, .. }
            | MergeError::Diverged { input, .. } => {
                anyhow::Error::new(error).context(files[input].display().to_string())
            }
            MergeError::Nothing | MergeError::Hole(_) | MergeError::Output(_) => error.into(),
        })
    })
}

pub(super) fn encode(
    database: &Path,
    txid: u64,
    no_checksum: bool,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let max_txid =
        Txid::new(txid).with_context(|| format!("--txid is {txid}, the first transaction is 1"))?;
    refuse_unfinished(database)?;
    let plain = PlainFile::open(database)?;
    let header = Header {
        flags: if no_checksum { Flags::NO_CHECKSUM } else { Flags::NONE },
        page_size: plain.page_size,
        commit: plain.pages,
        min_txid: Txid::FIRST,
        max_txid,
        timestamp_ms: wall_ms(),
        pre_apply: None,
        wal: WalSource::default(),
        node_id: NodeId::new(0),
    };
    let mut compressor = Compressor::new(output.page_encoding.get());
    create(output, &[database.to_owned()], |out| {
        let mut encoder = Encoder::begin(&mut compressor, out, &header)?;
        let mut sum = DatabaseSum::new(plain.page_size);
        plain.each(|page, data| {
            sum.toggle(page, data);
            Ok(encoder.page(page, data)?)
        })?;
        Ok(if no_checksum {
            encoder.finish_without_checksum()?
        } else {
            encoder.finish(sum.checksum())?
        })
    })
}

pub(super) fn checksum(database: &Path) -> anyhow::Result<ExitCode> {
    refuse_unfinished(database)?;
    let file = File::open(database).with_context(|| database.display().to_string())?;
    length_of(database, &file)?;
    // Not by the length, which files of the system do not tell.
    let filled = file.read_at(&mut [0], 0).with_context(|| database.display().to_string())?;
    let checksum =
        if filled == 0 { Checksum::EMPTY } else { PlainFile::open(database)?.checksum()? };
    output::print(&format!("{checksum}\n"))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn apply(
    database: &Path,
    files: &[PathBuf],
    format: Format,
) -> anyhow::Result<ExitCode> {
    refuse_unfinished(database)?;
    for path in files {
        open(path, format)?.finish().map_err(|error| explain(path, format, error))?;
    }
    let mut target = Target::open(database)?;
    for path in files {
        target.apply(path, format)?;
    }
    target.file.sync_all().with_context(|| database.display().to_string())?;
    let name = database.display();
    let last = target.last.map_or_else(String::new, |txid| format!("transaction {txid}, "));
    output::print(&format!("{name}: {last}{} pages, {}\n", target.pages, target.sum))?;
    Ok(ExitCode::SUCCESS)
}

/// Length of a file, which a device or a directory has none of.
fn length_of(path: &Path, file: &File) -> anyhow::Result<u64> {
    let metadata = file.metadata().with_context(|| path.display().to_string())?;
    ensure!(metadata.is_file(), "{}: not a regular file", path.display());
    Ok(metadata.len())
}

/// Writes a file under another name first: an error leaves what was there before.
fn create(
    output: &Output,
    inputs: &[PathBuf],
    write: impl FnOnce(&mut BufWriter<File>) -> anyhow::Result<Trailer>,
) -> anyhow::Result<ExitCode> {
    let path = &output.file;
    let name = || path.display().to_string();
    if let Ok(existing) = fs::metadata(path) {
        ensure!(existing.is_file(), "{}: not a regular file", name());
        ensure!(output.force, "{}: exists already, give --force to replace it", name());
        let is_same =
            |input: &fs::Metadata| (input.dev(), input.ino()) == (existing.dev(), existing.ino());
        let reads_it = inputs.iter().any(|input| fs::metadata(input).is_ok_and(|m| is_same(&m)));
        ensure!(!reads_it, "{}: is also an input, choose another name", name());
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let file = OpenOptions::new().write(true).create_new(true).open(&partial);
    let mut out = BufWriter::new(file.with_context(name)?);
    #[allow(clippy::disallowed_methods, reason = "the file is synced, and a user runs it again")]
    let result = write(&mut out).and_then(|trailer| {
        out.flush().and_then(|()| out.get_ref().sync_all()).with_context(name)?;
        fs::rename(&partial, path).with_context(name)?;
        Ok(trailer)
    });
    match result {
        Ok(trailer) => {
            let post = trailer.post_apply.map_or("no checksum".to_owned(), |sum| sum.to_string());
            output::print(&format!("{}: written, {post}\n", name()))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            fs::remove_file(&partial).with_context(name)?;
            Err(error)
        }
    }
}

/// A database with a WAL or journal is more than its main file.
fn refuse_unfinished(database: &Path) -> anyhow::Result<()> {
    for suffix in ["-wal", "-journal"] {
        let mut companion = database.as_os_str().to_owned();
        companion.push(suffix);
        let is_filled = fs::metadata(&companion).is_ok_and(|metadata| metadata.len() > 0);
        ensure!(
            !is_filled,
            "{}: {} is not empty, so the file alone is not the database: close it or run \
             `sqlite3 DB 'PRAGMA wal_checkpoint(TRUNCATE)'` first",
            database.display(),
            Path::new(&companion).display(),
        );
    }
    Ok(())
}

/// A SQLite file that nothing changes meanwhile.
struct PlainFile {
    path: PathBuf,
    file: File,
    page_size: PageSize,
    pages: u32,
}

impl PlainFile {
    fn open(path: &Path) -> anyhow::Result<Self> {
        Self::new(path, File::open(path).with_context(|| path.display().to_string())?)
    }

    fn new(path: &Path, file: File) -> anyhow::Result<Self> {
        let name = || path.display().to_string();
        let length = length_of(path, &file)?;
        let mut head = vec![0; DatabaseHeader::SIZE];
        file.read_exact_at(&mut head, 0)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    anyhow::anyhow!("shorter than a SQLite header, so it is no database")
                }
                _ => error.into(),
            })
            .with_context(name)?;
        let page_size = DatabaseHeader::parse(&head).with_context(name)?.page_size;
        let size = u64::from(page_size.get());
        ensure!(
            length.is_multiple_of(size),
            "{}: {length} bytes are no whole number of pages of {size} bytes",
            name()
        );
        let pages = u32::try_from(length / size).with_context(name)?;
        Ok(Self { path: path.to_owned(), file, page_size, pages })
    }

    /// Hands out all pages but the lock page.
    fn each(
        &self,
        mut each: impl FnMut(PageNo, &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut reader = BufReader::with_capacity(1 << 20, &self.file);
        let mut data = vec![0; self.page_size.bytes()];
        for page in (1..=self.pages).filter_map(PageNo::new) {
            reader.read_exact(&mut data).with_context(|| self.path.display().to_string())?;
            if page != self.page_size.lock_page() {
                each(page, &data)?;
            }
        }
        Ok(())
    }

    fn checksum(&self) -> anyhow::Result<Checksum> {
        let mut sum = DatabaseSum::new(self.page_size);
        self.each(|page, data| {
            sum.toggle(page, data);
            Ok(())
        })?;
        Ok(sum.checksum())
    }
}

/// A database being changed.
struct Target {
    path: PathBuf,
    file: File,
    page_size: Option<PageSize>,
    pages: u32,
    sum: Checksum,
    last: Option<Txid>,
}

impl Target {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let name = || path.display().to_string();
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.with_context(name)?;
        let (mut page_size, mut pages, mut sum) = (None, 0, Checksum::EMPTY);
        if length_of(path, &file)? > 0 {
            let plain = PlainFile::new(path, file.try_clone().with_context(name)?)?;
            sum = plain.checksum()?;
            page_size = Some(plain.page_size);
            pages = plain.pages;
        }
        Ok(Self { path: path.to_owned(), file, page_size, pages, sum, last: None })
    }

    fn apply(&mut self, path: &Path, format: Format) -> anyhow::Result<()> {
        let mut decoder = open(path, format)?;
        let header = *decoder.header();
        self.check_before(path, &header)?;
        if header.is_snapshot() {
            self.resize(0, header.page_size)?;
        }
        self.page_size = Some(header.page_size);
        // The pages in between read as zeros, and count as such, before the file's own are written.
        let before = self.pages;
        self.resize(before.max(header.commit), header.page_size)?;
        while let Some(page) = decoder.next_page().map_err(|e| explain(path, format, e))? {
            self.toggle(page.page, header.page_size)?;
            let offset = page.page.offset(header.page_size);
            self.file.write_all_at(page.data, offset).with_context(|| self.name())?;
            let mut sum = DatabaseSum::new(header.page_size);
            sum.toggle(page.page, page.data);
            self.sum = self.sum.toggle(sum.checksum());
        }
        self.resize(header.commit, header.page_size)?;
        let trailer = decoder.finish().map_err(|error| explain(path, format, error))?;
        self.last = Some(header.max_txid);
        match trailer.post_apply {
            Some(promised) if promised != self.sum => bail!(
                "{}: the database has the checksum {} after {}, which promises {promised}: \
                 the database is not usable, restore it from a snapshot",
                self.name(),
                self.sum,
                path.display(),
            ),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the file may be applied now.
    fn check_before(&self, path: &Path, header: &Header) -> anyhow::Result<()> {
        if header.is_snapshot() {
            return Ok(());
        }
        let page_size = self.page_size.unwrap_or(header.page_size);
        ensure!(
            page_size == header.page_size,
            "{}: has pages of {} bytes, {} has {page_size}",
            path.display(),
            header.page_size,
            self.name(),
        );
        if let Some(last) = self.last {
            ensure!(
                header.min_txid == last.next(),
                "{}: begins at transaction {}, {} would follow",
                path.display(),
                header.min_txid,
                last.next(),
            );
        }
        if let Some(expected) = header.pre_apply {
            ensure!(
                expected == self.sum,
                "{}: wants a database with the checksum {expected}, {} has {}",
                path.display(),
                self.name(),
                self.sum,
            );
        }
        Ok(())
    }

    /// Cuts or grows the file; pages that come or go are counted.
    fn resize(&mut self, pages: u32, page_size: PageSize) -> anyhow::Result<()> {
        if pages == 0 {
            self.sum = Checksum::EMPTY;
        } else {
            for page in (pages + 1..=self.pages).filter_map(PageNo::new) {
                self.toggle(page, page_size)?;
            }
        }
        let length = u64::from(pages) * u64::from(page_size.get());
        self.file.set_len(length).with_context(|| self.name())?;
        for page in (self.pages + 1..=pages).filter_map(PageNo::new) {
            self.toggle(page, page_size)?;
        }
        self.pages = pages;
        Ok(())
    }

    /// Adds or takes out a page as it is in the file.
    fn toggle(&mut self, page: PageNo, page_size: PageSize) -> anyhow::Result<()> {
        let mut data = vec![0; page_size.bytes()];
        let offset = page.offset(page_size);
        self.file.read_exact_at(&mut data, offset).with_context(|| self.name())?;
        let mut sum = DatabaseSum::new(page_size);
        sum.toggle(page, &data);
        self.sum = self.sum.toggle(sum.checksum());
        Ok(())
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}
