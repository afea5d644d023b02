//! Applying to a database in WAL mode.

use std::sync::Arc;

use super::*;

/// A random transaction that keeps the sum of all `n` at zero.
fn transaction(dice: &mut Dice) -> String {
    let (a, b, n) = (dice.roll(50), dice.roll(50), dice.roll(1000));
    let churn = match dice.roll(6) {
        0 => "delete from junk where rowid % 7 = abs(random()) % 7;".to_owned(),
        1 => "update junk set v = randomblob(length(v) + 10) where rowid % 5 = 0;".to_owned(),
        size => format!("insert into junk values(randomblob({}));", size * dice.roll(2000)),
    };
    format!(
        "begin; update acc set n = n - {n} where id = {a}; update acc set n = n + {n} where id = {b};
         {churn} commit;"
    )
}

const ACCOUNTS: &str = "pragma journal_mode=wal; create table acc(id integer primary key, n);
    create table junk(v);
    with recursive i(i) as (select 0 union all select i+1 from i where i<49)
    insert into acc select i, 0 from i;";

#[test]
pub(super) fn a_thousand_changes_reach_readers_without_disturbing_them() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(11);
    eprintln!("SEED={seed}");
    let mut dice = Dice(seed);
    let mut source = Source::new(ACCOUNTS);
    let node = Node::new();
    node.apply(source.change());
    node.fence();
    let mut long_reader = node.shell();
    let before = long_reader.run("begin; select count(*), sum(n) from acc, (select 1);");
    std::thread::scope(|scope| {
        let running = Arc::new(());
        let (seen, node) = (Arc::downgrade(&running), &node);
        let reading = scope.spawn(move || {
            let (mut reader, mut rounds) = (node.shell(), 0);
            while seen.strong_count() > 0 {
                assert_eq!(reader.run("select sum(n) from acc;"), "0");
                rounds += 1;
            }
            rounds
        });
        let mut checker = node.shell();
        for round in 1..=1000 {
            node.apply(source.run(&transaction(&mut dice)));
            if round % 100 == 0 {
                assert_eq!(checker.run("pragma integrity_check;"), "ok", "round {round}");
                let sums = "select group_concat(n) || total(length(v)) from acc, junk;";
                assert_eq!(checker.run(sums), source.query(sums), "round {round}");
            }
            if round == 500 {
                assert_eq!(
                    long_reader.run("select count(*), sum(n) from acc, (select 1);"),
                    before
                );
                assert_eq!(long_reader.run("pragma integrity_check; commit;"), "ok");
            }
        }
        drop(running);
        assert!(10 < reading.join().unwrap(), "the reader went on");
    });
    drop(long_reader);
    assert!(node.bytes() == source.last, "the file is the source's, byte for byte");
}

#[test]
pub(super) fn a_long_reader_delays_the_checkpoint_and_no_longer() {
    let mut source = Source::wal();
    let node = Node::new();
    node.apply(source.change());
    node.fence();
    node.apply(source.run("insert into t values(1, 'first');"));
    let mut reader = node.shell();
    assert_eq!(reader.run("begin; select v from t;"), "first");
    let mut state = wal(node.fence());
    let seen = state.frames;
    for k in 2..400 {
        let sql = format!("insert into t values({k}, randomblob(9000));");
        state = wal(node.apply(source.run(&sql)));
        assert!(state.backfilled <= seen, "what the reader sees stays: {state:?}");
    }
    assert!(1000 < state.frames);
    assert_eq!(reader.run("select count(*) from t; commit;"), "1");
    state = wal(node.apply(source.run("insert into t values(1000, 1);")));
    assert_eq!(state.backfilled, state.frames);
    state = wal(node.apply(source.run("insert into t values(1001, 1);")));
    assert!(state.frames < 10, "the WAL starts again: {state:?}");
    assert_eq!(reader.run("select count(*) from t; pragma integrity_check;"), "401\nok");
}

#[test]
pub(super) fn the_wal_does_not_grow_while_nobody_reads() {
    let mut source = Source::wal();
    let node = Node::new();
    node.apply(source.change());
    node.fence();
    let mut idle_connection = node.shell();
    idle_connection.run("select count(*) from t;");
    for k in 1..250 {
        let sql = format!("insert into t values({k}, randomblob(40000));");
        let state = wal(node.apply(source.run(&sql)));
        assert!(state.frames < 1100, "{state:?}");
    }
    assert_eq!(idle_connection.run("pragma integrity_check;"), "ok");
}

#[test]
pub(super) fn local_writers_are_busy_while_fenced_and_write_afterwards() {
    let mut source = Source::wal();
    let node = Node::new();
    node.apply(source.change());
    let mut app = node.shell();
    assert_eq!(app.run("insert into t values(1, 1); select count(*) from t;"), "1");
    node.fence();
    assert_eq!(
        app.run("select count(*) from t; insert into t values(2, 2); select count(*) from t;"),
        "1\n1"
    );
    assert_eq!(app.run("pragma wal_checkpoint;"), "1|-1|-1");
    assert!(!node.pool.unfence(DB).unwrap(), "the WAL stays: the application has it open");
    assert_eq!(app.run("insert into t values(2, 2); select count(*) from t;"), "2");
    assert_eq!(app.run("pragma wal_checkpoint;").split('|').next(), Some("0"));
}

#[test]
pub(super) fn a_fence_waits_for_a_writer_and_gives_up_in_time() {
    let mut source = Source::wal();
    let node = Node::impatient();
    node.apply(source.change());
    let mut app = node.shell();
    app.run("begin immediate; insert into t values(1, 1);");
    let pid = app.child.id();
    let holder = node.pool.write_lock_holder(DB, name()).unwrap();
    assert_eq!(holder, Some(crate::client::Holder::Process(pid)));
    assert_busy(node.pool.fence(DB, name()));
    // Nothing is left locked by the attempt.
    assert_eq!(app.run("commit; insert into t values(2, 2); select count(*) from t;"), "2");
    assert_eq!(node.pool.write_lock_holder(DB, name()).unwrap(), None);
    node.fence();
    let holder = node.pool.write_lock_holder(DB, name()).unwrap();
    assert_eq!(holder, Some(crate::client::Holder::Description));
}

#[test]
pub(super) fn a_connection_that_opens_while_fenced_reads_at_once() {
    let mut source = Source::wal();
    let node = Node::new();
    node.apply(source.run("insert into t values(1, 'x');"));
    node.fence();
    assert_eq!(node.shell().run("select v from t;"), "x");
    assert!(node.companion("-wal").exists(), "its close did not remove our WAL");
    node.apply(source.run("update t set v = 'y';"));
    assert_eq!(node.shell().run("select v from t;"), "y");
}

#[test]
pub(super) fn changes_are_written_in_place_when_nobody_has_the_database_open() {
    let mut source = Source::wal();
    let node = Node::new();
    for k in 0..20 {
        let state =
            node.apply(source.run(&format!("insert into t values({k}, randomblob(5000));")));
        assert_eq!(state, FileState::Main);
    }
    assert!(!node.companion("-wal").exists());
    assert!(node.bytes() == source.last);
    assert_eq!(node.shell().run("pragma integrity_check; pragma journal_mode;"), "ok\nwal");
}

#[test]
pub(super) fn all_page_sizes_and_a_shrinking_database() {
    for page_size in [512, 1024, 8192, 65536] {
        let mut source = Source::new(&format!(
            "pragma page_size={page_size}; pragma journal_mode=wal; create table t(k integer primary key, v);"
        ));
        let node = Node::new();
        node.apply(source.change());
        node.fence();
        let mut reader = node.shell();
        for k in 0..30 {
            node.apply(source.run(&format!("insert into t values({k}, randomblob(30000));")));
        }
        let large = source.last.len();
        assert_eq!(reader.run("select count(*) from t;"), "30");
        node.apply(source.run("delete from t where k > 2;"));
        node.apply(source.run("vacuum;"));
        assert!(source.last.len() < large / 2);
        assert_eq!(reader.run("select count(*) from t; pragma integrity_check;"), "3\nok");
        node.apply(source.run("insert into t values(100, randomblob(100000));"));
        assert_eq!(reader.run("select count(*) from t; pragma integrity_check;"), "4\nok");
        drop(reader);
        assert!(node.bytes() == source.last, "page size {page_size}");
    }
}

#[test]
pub(super) fn a_change_without_pages_still_shrinks_the_database() {
    let mut source = Source::wal();
    let node = Node::new();
    let full = source.run("insert into t values(1, randomblob(9000));");
    node.apply(full.clone());
    node.fence();
    let state =
        wal(node.apply(Change { commit: full.commit - 1, pages: Vec::new().into(), ..full }));
    assert_eq!((state.frames, state.pages), (1, full.commit - 1));
    node.pool.detach(DB).unwrap();
    assert_eq!(std::fs::read(node.path()).unwrap(), source.last[..source.last.len() - 4096]);
}

#[test]
pub(super) fn a_large_change_is_written_in_pieces() {
    let mut source = Source::wal();
    let node = Node::new();
    node.apply(source.change());
    node.fence();
    let mut reader = node.shell();
    let sql = "with recursive i(i) as (select 1 union all select i+1 from i where i<9000)
        insert into t select i, randomblob(3900) from i;";
    let state = wal(node.apply(source.run(sql)));
    assert!(9000 < state.frames);
    assert_eq!(state.backfilled, state.frames);
    assert_eq!(reader.run("select count(*) from t; pragma integrity_check;"), "9000\nok");
    let sql = "update t set v = randomblob(3900) where k % 3 = 0; delete from t where k % 4 = 0;";
    node.apply(source.run(sql));
    assert_eq!(reader.run("select count(*) from t; pragma integrity_check;"), "6750\nok");
    drop(reader);
    assert!(node.bytes() == source.last);
}

#[test]
pub(super) fn an_invalid_change_is_refused() {
    let mut source = Source::wal();
    let node = Node::new();
    let good = source.change();
    let crate::client::Pages::Memory(pages) = good.pages.clone() else { panic!("not in memory") };
    let reversed: Vec<_> = pages.into_iter().rev().collect();
    for broken in [
        Change { commit: 1, ..good.clone() },
        Change { pages: reversed.into(), ..good.clone() },
        Change { page_size: crate::types::PageSize::MIN, ..good.clone() },
    ] {
        let result = node.pool.apply(DB, name(), broken);
        assert!(matches!(result, Err(ClientError::InvalidChange { .. })), "{result:?}");
    }
    node.apply(good);
    assert!(node.bytes() == source.last);
}
