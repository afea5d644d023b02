//! Random operations on the mount and on a plain directory: the results and the trees must agree.
//! `SEED=26 cargo test --test fuse_tree claim_to_be` replays one seed, `FIRST=100 SEEDS=50` explores.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, RenameFlags, Timespec, Timestamps, XattrFlags,
};

use crate::serve::Served;

/// Names that meet each other, and some that look like companions and special files.
const NAMES: [&str; 10] =
    ["a", "b", "c", "a-wal", "a-journal", "b-shm", "a-Pos", ".hidden", "d e", "\u{fc}\n"];
/// Names of which some are databases and others their companions; none is a special file's.
const DATABASE_NAMES: [&str; 10] =
    ["a", "a-wal", "a-journal", "a-shm", "b", "b-wal", "b-journal", "c", "c-journal", "d"];
const DIRECTORIES: [&str; 5] = ["", "x", "y", "x/z", "y/z"];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write { path: PathBuf, offset: u64, data: Vec<u8>, append: bool, truncate: bool },
    CreateNew(PathBuf),
    Read(PathBuf),
    Truncate(PathBuf, u64),
    Unlink(PathBuf),
    Mkdir(PathBuf),
    Rmdir(PathBuf),
    Rename(PathBuf, PathBuf, bool),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    Readlink(PathBuf),
    Chmod(PathBuf, u32),
    Chown(PathBuf, u32, u32),
    Times(PathBuf, i64, i64),
    Fifo(PathBuf),
    List(PathBuf),
    Stat(PathBuf),
    SetXattr(PathBuf, Vec<u8>),
    GetXattr(PathBuf),
    RemoveXattr(PathBuf),
    Hold(PathBuf),
    HeldWrite(usize, u64, Vec<u8>),
    HeldRead(usize),
    HeldTruncate(usize, u64),
    HeldFallocate(usize, u32, u64, u64),
    HeldSeek(usize, u64),
    HeldSync(usize),
    Drop(usize),
}

/// What is written into files.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contents {
    Bytes,
    /// Files become databases, with headers that promise what is not there.
    Databases,
}

/// The beginning of a database with one page of 512 bytes and a rollback journal.
fn header() -> Vec<u8> {
    let mut page = vec![0; 512];
    page[..16].copy_from_slice(b"SQLite format 3\0");
    page[16..18].copy_from_slice(&512_u16.to_be_bytes());
    page[18..24].copy_from_slice(&[1, 1, 0, 64, 32, 32]);
    page[27] = 1;
    page[31] = 1;
    page[47] = 4;
    page[59] = 1;
    page[95] = 1;
    page[100] = 13;
    page[105] = 2;
    page
}

fn random_op(random: &mut Random, contents: Contents) -> Op {
    let names = if contents == Contents::Databases { &DATABASE_NAMES } else { &NAMES };
    let path = |random: &mut Random| {
        Path::new(DIRECTORIES[random.below(DIRECTORIES.len())])
            .join(names[random.below(names.len())])
    };
    let directory = |random: &mut Random| PathBuf::from(DIRECTORIES[1 + random.below(4)]);
    let data = |random: &mut Random| {
        if contents == Contents::Databases && random.below(2) == 0 {
            return header();
        }
        let length = [1, 24, 512, 4096, 70_000][random.below(5)];
        vec![random.next() as u8; length]
    };
    let length = |random: &mut Random| [0, 1, 100, 4096, 10_000, 100_000][random.below(6)];
    match random.below(34) {
        0..=4 => Op::Write {
            path: path(random),
            offset: length(random),
            data: data(random),
            append: random.below(3) == 0,
            truncate: random.below(4) == 0,
        },
        5 => Op::CreateNew(path(random)),
        6 | 7 => Op::Read(path(random)),
        8 => Op::Truncate(path(random), length(random)),
        9 => Op::Unlink(path(random)),
        10 | 11 => Op::Mkdir(directory(random)),
        12 => Op::Rmdir(directory(random)),
        13 | 14 => Op::Rename(path(random), path(random), random.below(4) == 0),
        15 => Op::Rename(directory(random), directory(random), false),
        16 => Op::Link(path(random), path(random)),
        17 => Op::Symlink(path(random), path(random)),
        18 => Op::Readlink(path(random)),
        19 => Op::Chmod(path(random), 0o600 | (random.next() as u32 & 0o177)),
        20 => Op::Chown(path(random), random.below(3) as u32 * 1000, random.below(3) as u32 * 1000),
        21 => Op::Times(path(random), random.below(1000) as i64 - 500, random.below(999) as i64),
        22 => Op::Fifo(path(random)),
        23 => Op::List(DIRECTORIES[random.below(DIRECTORIES.len())].into()),
        24 => Op::Stat(path(random)),
        25 => match random.below(3) {
            0 => Op::SetXattr(path(random), data(random).into_iter().take(600).collect()),
            1 => Op::GetXattr(path(random)),
            _ => Op::RemoveXattr(path(random)),
        },
        26 | 27 => Op::Hold(path(random)),
        28 => Op::HeldWrite(random.below(8), length(random), data(random)),
        29 => Op::HeldRead(random.below(8)),
        30 => Op::HeldTruncate(random.below(8), length(random)),
        31 => {
            let modes = [0, 1, 3, 0x10, 0x11];
            let mode = modes[random.below(modes.len())];
            Op::HeldFallocate(random.below(8), mode, length(random), 1 + length(random))
        }
        32 => match random.below(2) {
            0 => Op::HeldSeek(random.below(8), length(random)),
            _ => Op::HeldSync(random.below(8)),
        },
        _ => Op::Drop(random.below(8)),
    }
}

/// One side: a directory and the files that are held open in it.
struct Side {
    root: PathBuf,
    held: Vec<File>,
}

/// Names of special files in the tests' trees.
fn is_special(path: &Path) -> bool {
    let name = path.file_name().unwrap().as_encoded_bytes();
    path == Path::new(".lag") || name.ends_with(b"-pos")
}

fn digest(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(0_u64, |sum, byte| {
        sum.wrapping_mul(1_099_511_628_211).wrapping_add(u64::from(*byte) + 1)
    });
    format!("{} bytes, {sum:x}", bytes.len())
}

fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len() as usize;
    let mut buffer = vec![0; length + 10];
    let mut filled = 0;
    loop {
        let read = file.read_at(&mut buffer[filled..], filled as u64)?;
        if read == 0 {
            break;
        }
        filled += read;
    }
    buffer.truncate(filled);
    Ok(buffer)
}

fn describe(path: &Path) -> io::Result<String> {
    let metadata = fs::symlink_metadata(path)?;
    let kind = metadata.file_type();
    let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
    let mut text = format!("{mode:o} {uid}:{gid}");
    if !kind.is_dir() {
        text += &format!(" links {}", metadata.nlink());
    }
    if kind.is_file() {
        text += &format!(" size {}", metadata.len());
    }
    if kind.is_symlink() {
        text += &format!(" -> {}", fs::read_link(path)?.display());
    }
    if kind.is_fifo() {
        text += " fifo";
    }
    Ok(text)
}

impl Side {
    fn held(&self, index: usize) -> Option<&File> {
        if self.held.is_empty() { None } else { self.held.get(index % self.held.len()) }
    }

    #[allow(clippy::too_many_lines, reason = "a table")]
    fn apply(&mut self, op: &Op) -> io::Result<String> {
        let at = |path: &PathBuf| self.root.join(path);
        let is_fifo = |path: &Path| fs::metadata(path).is_ok_and(|it| it.file_type().is_fifo());
        let done = || Ok(String::new());
        match op {
            Op::Write { path, offset, data, append, truncate } => {
                let path = at(path);
                if is_fifo(&path) {
                    return done();
                }
                let mut options = OpenOptions::new();
                if *append {
                    options.append(true).create(true);
                } else {
                    options.write(true).create(true).truncate(*truncate);
                }
                let file = options.open(path)?;
                if *append {
                    io::Write::write_all(&mut &file, data)?;
                } else {
                    file.write_all_at(data, *offset)?;
                }
            }
            Op::CreateNew(path) => drop(File::create_new(at(path))?),
            Op::Read(path) => {
                let path = at(path);
                if is_fifo(&path) || path.is_dir() {
                    return done();
                }
                return Ok(digest(&read_all(&File::open(path)?)?));
            }
            Op::Truncate(path, length) => {
                rustix::fs::stat(at(path))?;
                if is_fifo(&at(path)) {
                    return done();
                }
                let file = OpenOptions::new().write(true).open(at(path))?;
                file.set_len(*length)?;
            }
            Op::Unlink(path) => fs::remove_file(at(path))?,
            Op::Mkdir(path) => fs::create_dir(at(path))?,
            Op::Rmdir(path) => fs::remove_dir(at(path))?,
            Op::Rename(from, to, noreplace) => {
                let flags = if *noreplace { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
                rustix::fs::renameat_with(CWD, at(from), CWD, at(to), flags)?;
            }
            Op::Link(from, to) => fs::hard_link(at(from), at(to))?,
            Op::Symlink(from, to) => std::os::unix::fs::symlink(from, at(to))?,
            Op::Readlink(path) => return Ok(fs::read_link(at(path))?.display().to_string()),
            Op::Chmod(path, mode) => {
                fs::set_permissions(at(path), fs::Permissions::from_mode(*mode))?;
            }
            Op::Chown(path, uid, gid) => {
                std::os::unix::fs::lchown(at(path), Some(*uid), Some(*gid))?;
            }
            Op::Times(path, seconds, nanos) => {
                let time = Timespec { tv_sec: *seconds, tv_nsec: *nanos * 1_000_000 };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, at(path), &times, AtFlags::SYMLINK_NOFOLLOW)?;
                let stat = rustix::fs::statat(CWD, at(path), AtFlags::SYMLINK_NOFOLLOW)?;
                return Ok(format!("{} {}", stat.st_mtime, stat.st_mtime_nsec));
            }
            Op::Fifo(path) => {
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(CWD, at(path), kind, Mode::from_raw_mode(0o640), 0)?;
            }
            Op::List(path) => {
                let mut names: Vec<OsString> = Vec::new();
                for entry in fs::read_dir(at(path))? {
                    names.push(entry?.file_name());
                }
                names.retain(|name| !is_special(Path::new(name)));
                names.sort();
                return Ok(format!("{names:?}"));
            }
            Op::Stat(path) => return describe(&at(path)),
            Op::SetXattr(path, value) => {
                rustix::fs::lsetxattr(at(path), "user.weir", value, XattrFlags::empty())?;
            }
            Op::GetXattr(path) => {
                let mut buffer = vec![0; 1000];
                let length = rustix::fs::lgetxattr(at(path), "user.weir", &mut buffer[..])?;
                let mut list = vec![0; 1000];
                let listed = rustix::fs::llistxattr(at(path), &mut list[..])?;
                let list = String::from_utf8_lossy(&list[..listed]).into_owned();
                return Ok(format!("{} {list}", digest(&buffer[..length])));
            }
            Op::RemoveXattr(path) => rustix::fs::lremovexattr(at(path), "user.weir")?,
            Op::Hold(path) => {
                let path = at(path);
                if is_fifo(&path) || self.held.len() >= 8 {
                    return done();
                }
                let file = OpenOptions::new().read(true).write(true).open(path)?;
                self.held.push(file);
            }
            Op::HeldWrite(index, offset, data) => {
                if let Some(file) = self.held(*index) {
                    file.write_all_at(data, *offset)?;
                }
            }
            Op::HeldRead(index) => {
                if let Some(file) = self.held(*index) {
                    let metadata = file.metadata()?;
                    let content = digest(&read_all(file)?);
                    return Ok(format!("{content}, {:o} {}", metadata.mode(), metadata.nlink()));
                }
            }
            Op::HeldTruncate(index, length) => {
                if let Some(file) = self.held(*index) {
                    file.set_len(*length)?;
                }
            }
            Op::HeldFallocate(index, mode, offset, length) => {
                if let Some(file) = self.held(*index) {
                    let mode = FallocateFlags::from_bits_retain(*mode);
                    rustix::fs::fallocate(file, mode, *offset, *length)?;
                    return Ok(file.metadata()?.len().to_string());
                }
            }
            Op::HeldSeek(index, offset) => {
                if let Some(file) = self.held(*index) {
                    let hole = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(*offset))?;
                    return Ok(format!("{}", hole >= *offset));
                }
            }
            Op::HeldSync(index) => {
                if let Some(file) = self.held(*index) {
                    file.sync_all()?;
                }
            }
            Op::Drop(index) => {
                if !self.held.is_empty() {
                    let index = index % self.held.len();
                    drop(self.held.swap_remove(index));
                }
            }
        }
        done()
    }

    /// Everything in the tree, and the content of files.
    fn tree(&self) -> BTreeMap<PathBuf, String> {
        let mut all = BTreeMap::new();
        let mut todo = vec![PathBuf::new()];
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(self.root.join(&directory)).unwrap() {
                let entry = entry.unwrap();
                let path = directory.join(entry.file_name());
                if is_special(&path) {
                    continue;
                }
                let full = self.root.join(&path);
                let mut text = describe(&full).unwrap();
                let kind = entry.file_type().unwrap();
                if kind.is_file() {
                    text += &digest(&read_all(&File::open(full).unwrap()).unwrap());
                } else if kind.is_dir() {
                    todo.push(path.clone());
                }
                all.insert(path, text);
            }
        }
        all
    }
}

fn errno(result: io::Result<String>) -> Result<String, i32> {
    result.map_err(|error| error.raw_os_error().unwrap_or(-1))
}

/// What the mount refuses on purpose: holes in a database or companion, a second name for a database.
fn is_refused_on_purpose(op: &Op, mounted: &Result<String, i32>) -> bool {
    match op {
        Op::HeldFallocate(..) => *mounted == Err(libc::EOPNOTSUPP),
        Op::Link(..) => *mounted == Err(libc::EPERM),
        _ => false,
    }
}

fn run(seed: u64, ops: usize, contents: Contents) {
    println!("SEED={seed}");
    let Some(served) = Served::start() else { return };
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut plain = Side { root: served.plain(), held: Vec::new() };
    let mut mounted = Side { root: served.path(""), held: Vec::new() };
    for step in 0..ops {
        let op = random_op(&mut random, contents);
        let found = errno(mounted.apply(&op));
        if is_refused_on_purpose(&op, &found) {
            continue;
        }
        let expected = errno(plain.apply(&op));
        assert_eq!(found, expected, "SEED={seed} step {step}: {op:?} (left: mount, right: plain)");
        if step % 50 == 0 || step + 1 == ops {
            assert_eq!(mounted.tree(), plain.tree(), "SEED={seed} step {step} after {op:?}");
        }
    }
    // What the kernel had cached is what is there.
    println!("{:?}", served.mount().requests());
    let tree = mounted.tree();
    drop(mounted);
    let backing = Side { root: served.backing(""), held: Vec::new() };
    assert_eq!(backing.tree(), tree, "SEED={seed}: the plain files behind the mount");
}

/// `SEED=n` replays one run, `SEEDS=n` does that many beginning at `FIRST` (1 if it is not set). Without them the seeds
/// are always the same.
fn run_seeds(contents: Contents) {
    let number = |name: &str| std::env::var(name).ok().and_then(|it| it.parse::<u64>().ok());
    if let Some(seed) = number("SEED") {
        run(seed, 3000, contents);
        return;
    }
    let (first, seeds) = (number("FIRST").unwrap_or(1), number("SEEDS").unwrap_or(3));
    for seed in first..first + seeds {
        run(seed, 1500, contents);
    }
}

#[test]
fn fuse_random_operations_do_what_they_do_in_a_plain_directory() {
    run_seeds(Contents::Bytes);
}

#[test]
fn fuse_random_operations_on_files_that_claim_to_be_databases() {
    run_seeds(Contents::Databases);
}
