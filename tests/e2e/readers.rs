//! Readers on a replica whose pages are cached: what they see is one state of the primary, and never an older one again.

use crate::harness::{Cluster, Worker};

/// A table of which every transaction keeps the sum, spread over many pages, and a counter.
const ACCOUNTS: &str = "CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER, fill); \
    WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i < 400) \
    INSERT INTO account SELECT i, 1000, zeroblob(700) FROM n; \
    CREATE TABLE counter(n); INSERT INTO counter VALUES (0);";

/// One transaction that moves balances between two distant pages.
const MOVE: &str = "BEGIN IMMEDIATE; \
    UPDATE account SET balance = balance - 1 WHERE id = 1 + abs(random()) % 200; \
    UPDATE account SET balance = balance + 1 WHERE id = 201 + abs(random()) % 200; \
    UPDATE counter SET n = n + 1; COMMIT;";

/// What a reader sees: the counter, after checking that the rest is of one moment.
fn look(reader: &mut Worker, what: &str) -> u64 {
    let row = &reader.ok("SELECT (SELECT n FROM counter), sum(balance), count(*), \
        sum(CASE WHEN id <= 200 THEN 1000 - balance END) FROM account")[0];
    let number = |index: usize| row[index].parse::<u64>().unwrap();
    assert_eq!((number(1), number(2)), (400_000, 400), "{what}: a mix of two states: {row:?}");
    assert_eq!(number(3), number(0), "{what}: a mix of two states: {row:?}");
    number(0)
}

#[test]
fn fuse_a_reader_with_a_warm_cache_follows_a_primary_that_locks_exclusively() {
    // With locking_mode=EXCLUSIVE SQLite moves the change counter once, however many transactions follow: a reader
    // elsewhere took its cached pages for current ones.
    let cluster = Cluster::start(2);
    for mode in ["delete", "truncate", "persist", "memory", "off"] {
        let db = format!("{mode}.db");
        let mut primary = Worker::on(&cluster.path(&db));
        primary.ok(&format!("PRAGMA journal_mode={mode}; {ACCOUNTS}"));
        cluster.level(&db);
        let mut warm = Worker::on(&cluster.replicas()[0].path(&db));
        let mut mapped = Worker::on(&cluster.replicas()[0].path(&db));
        mapped.ok("PRAGMA mmap_size=100000000");
        assert_eq!((look(&mut warm, mode), look(&mut mapped, mode)), (0, 0));
        primary.ok("PRAGMA locking_mode=EXCLUSIVE");
        let is_seen_at_once = !matches!(mode, "memory" | "off");
        for round in 1..8_u64 {
            primary.ok(MOVE);
            if !is_seen_at_once {
                continue;
            }
            cluster.level(&db);
            for reader in [&mut warm, &mut mapped] {
                assert_eq!(look(reader, mode), round, "{mode}: the reader stays behind");
            }
        }
        drop(primary);
        cluster.converge(&db);
        let mut primary = Worker::on(&cluster.path(&db));
        for round in 8..12 {
            primary.ok(MOVE);
            cluster.level(&db);
            for reader in [&mut warm, &mut mapped] {
                assert_eq!(look(reader, mode), round, "{mode}: the reader stays behind");
            }
        }
        cluster.converge(&db);
    }
}
