//! Readers on a replica whose pages are cached: what they see is one state of the primary, and never an older one again.

use rand::Rng as _;
use rand::rngs::StdRng;

use crate::harness::{Acks, Cluster, Options, Worker, env_number, rng, seed, sqlite3_ok};

/// A table of which every transaction keeps the sum, spread over many pages, and a counter.
const ACCOUNTS: &str = "CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER, fill); \
    WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i < 400) \
    INSERT INTO account SELECT i, 1000, zeroblob(700) FROM n; \
    CREATE TABLE counter(n); INSERT INTO counter VALUES (0); \
    CREATE TRIGGER move AFTER UPDATE ON counter BEGIN \
      UPDATE account SET balance = balance - 1 WHERE id = 1 + abs(random()) % 200; \
      UPDATE account SET balance = balance + 1 WHERE id = 201 + abs(random()) % 200; \
    END;";

/// One transaction that moves balances between two distant pages.
const MOVE: &str = "UPDATE counter SET n = n + 1";

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

/// Connections on a replica, and what each has seen.
struct Readers<'a> {
    cluster: &'a Cluster,
    db: &'a str,
    rng: StdRng,
    all: Vec<(Worker, u64)>,
    newest: u64,
}

impl<'a> Readers<'a> {
    fn new(cluster: &'a Cluster, db: &'a str, seed: u64) -> Self {
        let mut readers = Self { cluster, db, rng: rng(seed), all: Vec::new(), newest: 0 };
        readers.all = (0..4).map(|which| (readers.open(which), 0)).collect();
        readers
    }

    /// Every second one reads by a memory map.
    fn open(&self, which: usize) -> Worker {
        let mut reader = Worker::on(&self.cluster.replicas()[0].path(self.db));
        if which % 2 == 1 {
            reader.ok("PRAGMA mmap_size=100000000");
        }
        reader
    }

    /// One of them looks: at one state, which is no older than any that was seen before.
    fn look(&mut self, writer: Option<&mut Acks>) {
        let which = self.rng.random_range(0..self.all.len());
        let db = self.db;
        match self.rng.random_range(0..40) {
            0 => self.all[which].0 = self.open(which),
            1 => drop(self.all[which].0.run("PRAGMA wal_checkpoint(PASSIVE)")),
            2 => {
                let reader = &mut self.all[which].0;
                reader.ok("BEGIN");
                let first = look(reader, db);
                if let Some(writer) = writer {
                    writer.wait(writer.acked.len() + self.rng.random_range(1..30));
                }
                assert_eq!(look(reader, db), first, "{db}: a snapshot moved");
                reader.ok("COMMIT");
            }
            3 => assert_eq!(self.all[which].0.value("PRAGMA integrity_check"), "ok", "{db}"),
            _ => (),
        }
        let now = look(&mut self.all[which].0, db);
        let newest = self.newest;
        assert!(now >= newest, "{db}: reader {which} sees {now} when {newest} was seen before");
        self.newest = now;
    }

    /// Nobody writes: every node shows what its files hold, to old connections and to new ones.
    fn all_show_the_same(&mut self) -> u64 {
        let db = self.db;
        // A writer that was killed may have left a hot journal: whoever reads first rolls it back.
        sqlite3_ok(&self.cluster.path(db), "SELECT n FROM counter;");
        self.cluster.level(db);
        let copy = self.cluster.outside().join("copy.db");
        let mut seen = Vec::new();
        for node in &self.cluster.nodes {
            for suffix in ["", "-wal"] {
                let (from, to) = (format!("{db}{suffix}"), format!("copy.db{suffix}"));
                let to = self.cluster.outside().join(to);
                drop(std::fs::remove_file(&to));
                drop(std::fs::copy(node.backing(from), to));
            }
            let content = "SELECT n FROM counter; SELECT id, balance FROM account;";
            let truth = sqlite3_ok(&copy, content);
            let shown = sqlite3_ok(&node.path(db), content);
            assert!(shown == truth, "{db}: {} shows something else than its files hold", node.name);
            seen.push(shown.lines().next().unwrap().parse::<u64>().unwrap());
        }
        assert!(seen.iter().all(|n| *n == seen[0]), "{db}: {seen:?}");
        for (which, (reader, _)) in self.all.iter_mut().enumerate() {
            assert_eq!(look(reader, db), seen[0], "{db}: reader {which} stays behind");
        }
        seen[0]
    }
}

/// Writers come and are killed; readers on the replica look all the time.
fn readers_beside_dying_writers(mode: &str, options: Options, commits: i64) {
    let seed = seed();
    let cluster = Cluster::with(options);
    let db = format!("{mode}.db");
    let mut setup = Worker::on(&cluster.path(&db));
    // Every so often the WAL begins anew.
    let pragmas = format!(
        "PRAGMA journal_mode={mode}; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=50;"
    );
    setup.ok(&format!("{pragmas} {ACCOUNTS}"));
    cluster.level(&db);
    let mut readers = Readers::new(&cluster, &db, seed);
    let mut rng = rng(seed + 1);
    let mut before = 0;
    for round in 0..env_number("WEIR_TEST_ROUNDS", 1) * 8 {
        if round % 5 == 4 {
            // Now and then nobody has it open in between.
            setup = Worker::on(&cluster.path(&db));
        }
        let mut writer = Worker::on(&cluster.path(&db));
        writer.ok(&pragmas);
        let mut writer = writer.count("UPDATE counter SET n = n + 1 + 0 * ?1", 0, commits);
        for _ in 0..rng.random_range(5..40) {
            readers.look((commits > 1).then_some(&mut writer));
        }
        writer.kill9();
        let acked = u64::try_from(writer.acked.len()).unwrap();
        let now = readers.all_show_the_same();
        assert!(now >= before + acked, "{db}: {acked} were acknowledged, {before} -> {now}");
        before = now;
        if round % 3 == 2 {
            setup.ok(MOVE);
        }
    }
    drop((readers, setup));
    cluster.converge(&db);
}

#[test]
fn fuse_readers_on_a_replica_see_one_state_after_another_while_writers_are_killed() {
    for mode in ["wal", "delete", "truncate", "persist"] {
        let options = Options { nodes: 2, seconds_max: 900, ..Options::default() };
        readers_beside_dying_writers(mode, options, 1_000_000);
    }
}

#[test]
fn fuse_readers_on_a_replica_see_the_commit_of_a_writer_that_never_heard_of_it() {
    // Each writer is killed when its commit is logged and not answered.
    let env = vec![("WEIR_FAULT", "kill-writer:40+".to_owned())];
    let options = Options { nodes: 2, env, seconds_max: 900, ..Options::default() };
    let seed = seed();
    let cluster = Cluster::with(options);
    let db = "x.db";
    sqlite3_ok(&cluster.path(db), &format!("PRAGMA journal_mode=WAL; {ACCOUNTS}"));
    let mut keeper = Worker::on(&cluster.path(db));
    keeper.ok("SELECT * FROM counter");
    cluster.level(db);
    let mut readers = Readers::new(&cluster, db, seed);
    let mut rng = rng(seed + 1);
    let mut before = 0;
    let mut unheard = 0;
    for round in 0..env_number("WEIR_TEST_ROUNDS", 1) * 60 {
        if round % 7 == 6 {
            keeper = Worker::on(&cluster.path(db));
            keeper.ok("SELECT * FROM counter");
        }
        let mut writer = Worker::on(&cluster.path(db));
        writer.ok("PRAGMA wal_autocheckpoint=20; PRAGMA synchronous=NORMAL");
        let mut writer = writer.count("UPDATE counter SET n = n + 1 + 0 * ?1", 0, 1);
        for _ in 0..rng.random_range(0..4) {
            readers.look(None);
        }
        writer.finish();
        unheard += u32::from(writer.acked.is_empty());
        let now = readers.all_show_the_same();
        assert_eq!(now, before + 1, "seed {seed}: round {round}");
        before = now;
    }
    assert!(unheard > 10, "only {unheard} writers were killed");
    drop((readers, keeper));
    cluster.converge(db);
}

#[test]
fn fuse_readers_that_come_and_go_on_a_replica_see_one_state_after_another() {
    // Between two of them the daemon closes what nobody uses, and writes in place until somebody comes.
    let seed = seed();
    let mut rng = rng(seed);
    let cluster = Cluster::with(Options { nodes: 2, seconds_max: 900, ..Options::default() });
    let replica = &cluster.replicas()[0];
    let dbs: Vec<String> = (0..6).map(|n| format!("{n}-{}.db", ["wal", "delete"][n % 2])).collect();
    let mut writers = Worker::spawn();
    let mut readers = Worker::spawn();
    for (n, db) in (0..).zip(&dbs) {
        writers.open(n, &cluster.path(db)).unwrap();
        let mode = if n % 2 == 0 { "wal" } else { "delete" };
        let pragmas = "PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=30";
        writers.run_on(n, &format!("PRAGMA journal_mode={mode}; {pragmas}; {ACCOUNTS}")).unwrap();
    }
    dbs.iter().for_each(|db| drop(cluster.level(db)));
    let mut seen = vec![0; dbs.len()];
    let mut written = vec![0; dbs.len()];
    let pause = std::time::Duration::from_secs(6);
    for phase in 0..env_number("WEIR_TEST_ROUNDS", 1) * 3 {
        // Two have readers, the others are closed after a while.
        let active = [rng.random_range(0..dbs.len()), rng.random_range(0..dbs.len())];
        let start = std::time::Instant::now();
        let mut step = 0;
        while step < 120 || (phase % 3 == 2 && start.elapsed() < pause) {
            step += 1;
            let which = rng.random_range(0..dbs.len());
            for _ in 0..rng.random_range(0..4) {
                writers.run_on(u32::try_from(which).unwrap(), MOVE).unwrap();
                written[which] += 1;
            }
            let which = active[step % 2];
            let db = &dbs[which];
            readers.open(0, &replica.path(db)).unwrap();
            if rng.random_bool(0.5) {
                readers.ok("PRAGMA mmap_size=100000000");
            }
            for _ in 0..rng.random_range(1..3) {
                let now = look(&mut readers, db);
                assert!(now >= seen[which], "{db}: seed {seed}: from {} to {now}", seen[which]);
                seen[which] = now;
            }
            if rng.random_bool(0.2) {
                // What is there when a reader comes is what it sees.
                cluster.level(db);
                seen[which] = look(&mut readers, db);
                assert_eq!(seen[which], written[which], "{db}: seed {seed}: it stays behind");
            }
            readers.close(0);
        }
    }
    drop((writers, readers));
    dbs.iter().for_each(|db| drop(cluster.converge(db)));
}
