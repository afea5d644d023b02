//! What the log costs a commit: `cargo bench --bench log`. Needs a quiet machine and a real disk; the
//! files go to a temporary directory below `TMPDIR`.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints numbers")]

use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use weir::log::{Log, LogOptions, PageSums, Read, RecordInfo};
use weir::types::{Checksum, Epoch, PageNo, PageSize, Pos};

fn record(after: Pos, ltx: &[u8]) -> RecordInfo {
    let min = after.next_txid();
    RecordInfo {
        min,
        max: min,
        epoch: Epoch::new(1),
        pre: after.checksum,
        post: Checksum::new(min.get()),
        page_size: PageSize::new(4096).unwrap(),
        commit: 100,
        pages: 1,
        timestamp_ms: 0,
        wal: None,
        ltx_bytes: u32::try_from(ltx.len()).unwrap(),
    }
}

fn append(log: &mut Log, ltx: &[u8]) {
    let info = record(log.position(), ltx);
    log.append(&info, ltx).unwrap();
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_nanos() / 100;
    let us = |tenths: u128| format!("{}.{}", tenths / 10, tenths % 10);
    format!("p50 {} us, p90 {} us, p99 {} us", us(at(50)), us(at(90)), us(at(99)))
}

fn appends(dir: &Path, ltx: &[u8]) {
    let mut log = Log::create(&dir.join("append"), Pos::ZERO, LogOptions::default()).unwrap();
    let mut times = Vec::new();
    let count = 20_000;
    let begun = Instant::now();
    for _ in 0..count {
        let begun = Instant::now();
        append(&mut log, ltx);
        times.push(begun.elapsed());
    }
    let mean = begun.elapsed().as_nanos() / count;
    println!("append {:>6} B              mean {mean} ns, {}", ltx.len(), percentiles(times));
    let mut cpu = 0;
    let mut hashed = 0;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(50) {
        hashed ^= crc32fast::hash(ltx);
        cpu += 1;
    }
    std::hint::black_box(hashed);
    println!("  of which CRC-32           {} ns", begun.elapsed().as_nanos() / cpu);
}

fn commits(dir: &Path, ltx: &[u8]) {
    let mut log = Log::create(&dir.join("commit"), Pos::ZERO, LogOptions::default()).unwrap();
    let sync = log.syncer();
    let mut times = Vec::new();
    for _ in 0..3000 {
        let begun = Instant::now();
        append(&mut log, ltx);
        sync.sync().unwrap();
        times.push(begun.elapsed());
    }
    println!("append + sync {:>6} B       {}", ltx.len(), percentiles(times));
}

fn group(dir: &Path, ltx: &[u8]) {
    let threads = 8;
    let commits = 1000;
    let log = Log::create(&dir.join("group"), Pos::ZERO, LogOptions::default()).unwrap();
    let sync = log.syncer();
    let log = Mutex::new(log);
    let barrier = Barrier::new(threads);
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                barrier.wait();
                for _ in 0..commits {
                    append(&mut log.lock(), ltx);
                    sync.sync().unwrap();
                }
            });
        }
    });
    let total = threads * commits;
    let each = begun.elapsed().as_micros() / total as u128;
    println!(
        "8 threads {:>6} B           {each} us a commit, {} fdatasyncs for {total}",
        ltx.len(),
        sync.fdatasyncs()
    );
}

fn reads(dir: &Path, ltx: &[u8]) {
    let path = dir.join("read");
    let mut log = Log::create(&path, Pos::ZERO, LogOptions::default()).unwrap();
    let mut positions = Vec::new();
    for _ in 0..50_000 {
        append(&mut log, ltx);
        positions.push(log.position());
    }
    log.syncer().sync().unwrap();
    let bytes = log.bytes();
    let reader = log.reader();
    let mut after = Pos::ZERO;
    let begun = Instant::now();
    while let Read::Records(records) = reader.read(after, 1 << 20).unwrap() {
        let Some((last, _)) = records.last() else { break };
        after = last.pos();
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("read in order               {:.0} MB/s", log.bytes() as f64 / 1e6 / seconds);

    let mut tail = Vec::new();
    let mut random = Vec::new();
    for step in 0..1000 {
        let begun = Instant::now();
        reader.clone().read(positions[positions.len() - 3], 1 << 20).unwrap();
        tail.push(begun.elapsed());
        let begun = Instant::now();
        reader.clone().read(positions[step * 7919 % positions.len()], 1).unwrap();
        random.push(begun.elapsed());
    }
    println!("read near the end           {}", percentiles(tail));
    println!("read anywhere               {}", percentiles(random));

    drop(log);
    let mut times = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        let log = Log::open(&path, LogOptions::default()).unwrap();
        times.push(begun.elapsed());
        drop(log);
    }
    println!("open {:>3} MB                 {}", bytes / 1_000_000, percentiles(times));
}

fn sums(dir: &Path) {
    let pages = 1_000_000;
    let mut sums = PageSums::create(&dir.join("sums"), PageSize::new(4096).unwrap()).unwrap();
    let page = |number: u32| PageNo::new(number % pages + 1).unwrap();
    let begun = Instant::now();
    for number in 0..pages {
        sums.set(page(number), Checksum::new(u64::from(number)));
    }
    println!("sums: set                   {} ns", begun.elapsed().as_nanos() / u128::from(pages));
    let begun = Instant::now();
    sums.flush(Pos::ZERO).unwrap();
    println!("sums: flush of 1 M pages    {} us", begun.elapsed().as_micros());
    let begun = Instant::now();
    for number in 0..100_000_u32 {
        sums.get(page(number.wrapping_mul(2_654_435_761))).unwrap();
    }
    println!("sums: get, at random        {} ns", begun.elapsed().as_nanos() / 100_000);
}

fn main() {
    let dir = tempfile::tempdir().unwrap();
    // Half of it compresses to nothing in reality; the log does not look at the bytes.
    for bytes in [300, 4300, 65_536] {
        let ltx: Vec<u8> = (0..bytes).map(|n: u32| n.to_be_bytes()[3]).collect();
        let dir = dir.path().join(format!("{bytes}"));
        appends(&dir, &ltx);
        commits(&dir, &ltx);
        if bytes == 300 {
            group(&dir, &ltx);
            reads(&dir, &ltx);
        }
    }
    sums(dir.path());
}
