//! Our LTX files against the reference tool, both ways.
//!
//! The tool is built once by `go install` into the target directory. Without Go or the module proxy the
//! tests say that they are left out and pass.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use weir::ltx::{
    Compressor, DatabaseSum, Encoder, Flags, Header, LtxFile, PageEncoding, WalSource, merge,
    page_sum,
};
use weir::types::{Checksum, NodeId, PageNo, PageSize, Txid};

/// The first release whose checksums leave the lock page out.
const VERSION: &str = "v0.5.3";

const PAGE_SIZES: [u32; 8] = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];

/// The reference tool, or `None` and a word on the terminal.
fn reference() -> Option<&'static Path> {
    static TOOL: OnceLock<Option<PathBuf>> = OnceLock::new();
    TOOL.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ltx-{VERSION}"));
        let tool = directory.join("ltx");
        if tool.exists() {
            return Some(tool);
        }
        let installed = Command::new("go")
            .args(["install", &format!("github.com/superfly/ltx/cmd/ltx@{VERSION}")])
            .env("GOBIN", &directory)
            .stdin(Stdio::null())
            .output();
        match installed {
            Ok(output) if output.status.success() => Some(tool),
            Ok(output) => left_out(&String::from_utf8_lossy(&output.stderr)),
            Err(error) => left_out(&format!("go: {error}")),
        }
    })
    .as_deref()
}

/// Says it past the test runner, which hides what passing tests print.
fn left_out(reason: &str) -> Option<PathBuf> {
    let reason = reason.trim().lines().last().unwrap_or("no reason given");
    let mut terminal = std::io::stderr().lock();
    writeln!(terminal, "LEFT OUT: comparison with the reference ltx {VERSION}: {reason}").unwrap();
    None
}

/// Runs the tool, which must succeed, and returns what it prints.
fn run(tool: &Path, arguments: &[&str]) -> String {
    let output = Command::new(tool).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ltx {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn weir(arguments: &[&str]) -> String {
    run(Path::new(env!("CARGO_BIN_EXE_weir")), &[&["ltx"], arguments].concat())
}

/// A small database that changes at random, and the files that tell its history.
struct History {
    random: u64,
    page_size: PageSize,
    has_checksums: bool,
    pages: Vec<Vec<u8>>,
    txid: u64,
    dir: tempfile::TempDir,
    files: Vec<PathBuf>,
}

impl History {
    fn new(seed: u64, page_size: u32, has_checksums: bool) -> Self {
        Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            page_size: PageSize::new(page_size).unwrap(),
            has_checksums,
            pages: Vec::new(),
            txid: 0,
            dir: tempfile::tempdir().unwrap(),
            files: Vec::new(),
        }
    }

    fn below(&mut self, limit: u64) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from((self.random >> 11) % limit).unwrap()
    }

    fn page(&mut self) -> Vec<u8> {
        let noise = self.below(3);
        let fill = u8::try_from(self.below(256)).unwrap();
        let bytes = self.page_size.bytes();
        let mut page = vec![fill; bytes];
        for byte in page.iter_mut().take(bytes * noise / 2) {
            *byte = u8::try_from(self.below(256)).unwrap();
        }
        page
    }

    fn checksum(&self) -> Checksum {
        let mut sum = DatabaseSum::new(self.page_size);
        for (no, data) in (1..).zip(&self.pages) {
            sum.toggle(PageNo::new(no).unwrap(), data);
        }
        sum.checksum()
    }

    /// Changes some pages and the size; the first page says what SQLite's header says of the size of pages.
    fn commit(&mut self, encoding: PageEncoding) {
        let before = self.checksum();
        let old_len = self.pages.len();
        let len = 1 + self.below(12);
        self.pages.truncate(len);
        let mut changed = vec![0];
        for index in old_len..len {
            let page = self.page();
            self.pages.push(page);
            changed.push(index);
        }
        for _ in 0..self.below(4) {
            let index = self.below(len as u64);
            self.pages[index] = self.page();
            changed.push(index);
        }
        changed.sort_unstable();
        changed.dedup();
        let size = u16::try_from(self.page_size.get()).unwrap_or(1);
        self.pages[0][..16].copy_from_slice(b"SQLite format 3\0");
        self.pages[0][16..24].copy_from_slice(&[0, 0, 1, 1, 0, 64, 32, 32]);
        self.pages[0][16..18].copy_from_slice(&size.to_be_bytes());
        self.txid += 1;
        self.write(before, &changed, encoding);
    }

    fn write(&mut self, before: Checksum, changed: &[usize], encoding: PageEncoding) {
        let txid = Txid::new(self.txid).unwrap();
        let header = Header {
            flags: if self.has_checksums { Flags::NONE } else { Flags::NO_CHECKSUM },
            page_size: self.page_size,
            commit: u32::try_from(self.pages.len()).unwrap(),
            min_txid: txid,
            max_txid: txid,
            timestamp_ms: 1_700_000_000_000,
            pre_apply: (self.has_checksums && self.txid > 1).then_some(before),
            wal: WalSource::default(),
            node_id: NodeId::new(0xfeed),
        };
        let mut compressor = Compressor::new(encoding);
        let path = self.dir.path().join(format!("{txid}-{txid}.ltx"));
        let mut encoder =
            Encoder::begin(&mut compressor, File::create(&path).unwrap(), &header).unwrap();
        for index in changed {
            let page = PageNo::new(u32::try_from(index + 1).unwrap()).unwrap();
            encoder.page(page, &self.pages[*index]).unwrap();
        }
        if self.has_checksums {
            encoder.finish(self.checksum()).unwrap();
        } else {
            encoder.finish_without_checksum().unwrap();
        }
        self.files.push(path);
    }

    /// Applies files with the tool and compares bytes and checksum.
    fn check_applied(&self, tool: &Path, files: &[&str]) {
        run(tool, &[&["verify"], files].concat());
        let database = self.dir.path().join("applied.db");
        fs::write(&database, b"").unwrap();
        let database_name = database.to_str().unwrap();
        run(tool, &[&["apply", "-db", database_name], files].concat());
        assert!(fs::read(&database).unwrap() == self.pages.concat(), "other bytes");
        assert_eq!(run(tool, &["checksum", database_name]).trim(), self.checksum().to_string());
        fs::remove_file(&database).unwrap();
    }
}

#[test]
fn the_reference_accepts_and_applies_what_we_write() {
    let Some(tool) = reference() else { return };
    let encodings = [PageEncoding::Block, PageEncoding::Plain, PageEncoding::Frame];
    for (seed, page_size) in (1..).zip(PAGE_SIZES) {
        for (has_checksums, encoding) in [(true, 0), (true, 1), (true, 2), (false, 0)] {
            let mut history = History::new(seed, page_size, has_checksums);
            for _ in 0..6 {
                history.commit(encodings[encoding]);
            }
            let files: Vec<_> = history.files.iter().map(|path| path.to_str().unwrap()).collect();
            history.check_applied(tool, &files);

            // Merged in memory: the rest after the snapshot, and all of it.
            let bytes: Vec<_> = history.files.iter().map(|path| fs::read(path).unwrap()).collect();
            let inputs: Vec<_> = bytes.iter().map(|b| LtxFile::parse(b).unwrap()).collect();
            for from in [0, 1] {
                let mut merged = Vec::new();
                let mut compressor = Compressor::new(encodings[encoding]);
                merge(&inputs[from..], &mut compressor, &mut merged).unwrap();
                let path = history.dir.path().join("merged.ltx");
                fs::write(&path, &merged).unwrap();
                let merged = path.to_str().unwrap();
                history.check_applied(tool, &[&files[..from], &[merged]].concat());
            }
        }
    }
}

#[test]
fn we_accept_and_apply_what_the_reference_writes() {
    let Some(tool) = reference() else { return };
    for page_size in PAGE_SIZES {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (database, file, copy) = (path("a.db"), path("a.ltx"), path("copy.db"));
        let connection = rusqlite::Connection::open(&database).unwrap();
        let sql = format!(
            "PRAGMA page_size={page_size}; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<500)
             INSERT INTO t SELECT i, CASE WHEN i%2 THEN randomblob(300) ELSE printf('%0300d', i) END FROM n;"
        );
        connection.execute_batch(&sql).unwrap();
        drop(connection);
        run(tool, &["encode-db", "-o", &file, &database]);
        let bytes = fs::read(&file).unwrap();
        let mut pages = Vec::new();
        let mut sum = Checksum::EMPTY;
        let parsed = LtxFile::parse_with(&bytes, |page, data| {
            pages.extend_from_slice(data);
            sum = sum.toggle(page_sum(page, data));
        });
        assert_eq!(parsed.unwrap().trailer().post_apply, Some(sum));
        assert!(pages == fs::read(&database).unwrap(), "page size {page_size}");
        let checksum = run(tool, &["checksum", &database]);
        assert_eq!(weir(&["checksum", &database]), checksum);
        weir(&["apply", &copy, &file]);
        assert!(fs::read(&copy).unwrap() == pages);
    }
}

#[test]
fn change_sets_across_the_lock_page_are_the_same_to_both() {
    let Some(tool) = reference() else { return };
    let dir = tempfile::tempdir().unwrap();
    for size in PAGE_SIZES {
        let page_size = PageSize::new(size).unwrap();
        let lock = page_size.lock_page().get();
        let page = |number| PageNo::new(number).unwrap();
        let write = |txid, commit: u32, pages: &[u32]| {
            let txid = Txid::new(txid).unwrap();
            let header = Header {
                flags: Flags::NONE,
                page_size,
                commit,
                min_txid: txid,
                max_txid: txid,
                timestamp_ms: 1,
                pre_apply: Some(Checksum::new(5)),
                wal: WalSource::default(),
                node_id: NodeId::new(0),
            };
            let mut compressor = Compressor::default();
            let mut out = Vec::new();
            let mut encoder = Encoder::begin(&mut compressor, &mut out, &header).unwrap();
            for number in pages {
                encoder.page(page(*number), &vec![7; page_size.bytes()]).unwrap();
            }
            assert!(encoder.page(page(lock), &vec![7; page_size.bytes()]).is_err());
            encoder.finish(Checksum::new(5)).unwrap();
            out
        };
        let (last, before) = (lock + 2, lock - 1);
        let files = [write(2, last, &[before]), write(3, last, &[lock + 1, last])];
        let inputs: Vec<_> = files.iter().map(|bytes| LtxFile::parse(bytes).unwrap()).collect();
        let mut merged = Vec::new();
        merge(&inputs, &mut Compressor::default(), &mut merged).unwrap();
        let kept = LtxFile::parse(&merged).unwrap();
        let kept: Vec<u32> = kept.entries().iter().map(|entry| entry.page.get()).collect();
        assert_eq!(kept, [before, lock + 1, last], "page size {size}");
        for (name, bytes) in [("2", &files[0]), ("3", &files[1]), ("2-3", &merged)] {
            let path = dir.path().join(format!("{size}-{name}.ltx"));
            fs::write(&path, bytes).unwrap();
            run(tool, &["verify", path.to_str().unwrap()]);
        }
    }
}

#[test]
fn a_database_beyond_the_lock_page_is_the_same_to_both() {
    let Some(tool) = reference() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (database, ours, theirs) = (path("big.db"), path("ours.ltx"), path("theirs.ltx"));
    let file = File::create(&database).unwrap();
    let size = PageSize::MAX;
    let pages = size.lock_page().get() + 5;
    file.set_len(u64::from(pages) * u64::from(size.get())).unwrap();
    let mut first = [0; 100];
    first[..16].copy_from_slice(b"SQLite format 3\0");
    first[16..24].copy_from_slice(&[0, 1, 1, 1, 0, 64, 32, 32]);
    first[28..32].copy_from_slice(&pages.to_be_bytes());
    file.write_all_at(&first, 0).unwrap();
    // SQLite keeps the lock page zero; what is there must not count.
    file.write_all_at(b"not counted", size.lock_page().offset(size)).unwrap();
    let checksum = run(tool, &["checksum", &database]);
    assert_eq!(weir(&["checksum", &database]), checksum);
    weir(&["encode", "-o", &ours, &database]);
    run(tool, &["verify", &ours]);
    run(tool, &["encode-db", "-o", &theirs, &database]);
    weir(&["verify", &theirs]);
}
