//! Rollback mode, and the ways between the modes.

use super::*;

#[test]
pub(super) fn changes_in_rollback_mode_reach_readers() {
    let mut source = Source::rollback();
    let node = Node::new();
    node.apply(source.change());
    assert_eq!(node.fence(), FileState::Main);
    let mut reader = node.shell();
    for k in 1..200 {
        let sql = format!("insert into t values({k}, randomblob({}));", k * 50);
        assert_eq!(node.apply(source.run(&sql)), FileState::Main);
        assert_eq!(reader.run("select count(*) from t;"), k.to_string());
    }
    assert_eq!(reader.run("pragma integrity_check;"), "ok");
    let refused = reader.run("insert into t values(1000, 1); select count(*) from t;");
    assert_eq!(refused, "199");
    node.apply(source.run("delete from t where k > 3; vacuum;"));
    assert_eq!(reader.run("select count(*) from t; pragma integrity_check;"), "3\nok");
    assert!(node.pool.unfence(DB).unwrap());
    assert_eq!(reader.run("insert into t values(1000, 1); select count(*) from t;"), "4");
}

#[test]
pub(super) fn a_reader_in_rollback_mode_is_waited_for_and_no_new_one_comes_between() {
    let mut source = Source::rollback();
    let node = Node::impatient();
    node.apply(source.run("insert into t values(1, 1);"));
    node.fence();
    let mut reader = node.shell();
    assert_eq!(reader.run("begin; select count(*) from t;"), "1");
    let change = source.run("insert into t values(2, 2);");
    assert_busy(node.pool.apply(DB, name(), change.clone()));
    // Having given up, it lets others read.
    assert_eq!(node.shell().run("select count(*) from t;"), "1");
    std::thread::scope(|scope| {
        let applying = scope.spawn(|| {
            loop {
                match node.pool.apply(DB, name(), change.clone()) {
                    Err(ClientError::Busy { .. }) => (),
                    applied => break applied,
                }
            }
        });
        assert_eq!(reader.run("select count(*) from t; commit;"), "1");
        applying.join().unwrap().unwrap();
    });
    assert_eq!(reader.run("select count(*) from t;"), "2");
}

#[test]
pub(super) fn a_database_switches_to_wal_and_back() {
    let mut source = Source::rollback();
    let node = Node::new();
    node.apply(source.run("insert into t values(1, 1);"));
    node.fence();
    let mut reader = node.shell();
    assert_eq!(reader.run("select count(*) from t;"), "1");
    let state = node.apply(source.run("pragma journal_mode=wal; insert into t values(2, 2);"));
    assert_eq!(wal(state).frames, 0, "the switch itself is in place");
    let state = wal(node.apply(source.run("insert into t values(3, 3);")));
    assert_ne!(state.frames, 0);
    assert_eq!(reader.run("select count(*) from t; insert into t values(9, 9);"), "3");
    assert_eq!(reader.run("pragma journal_mode;"), "wal");
    // While the reader is connected to the WAL, that must stay.
    let change = source.run("pragma journal_mode=delete; insert into t values(4, 4);");
    wal(node.apply(change));
    assert_eq!(reader.run("select count(*) from t; insert into t values(9, 9);"), "4");
    drop(reader);
    assert_eq!(node.apply(source.run("insert into t values(5, 5);")), FileState::Main);
    assert!(!node.companion("-wal").exists() && !node.companion("-shm").exists());
    let mut reader = node.shell();
    assert_eq!(reader.run("select count(*) from t; pragma journal_mode;"), "5\ndelete");
    assert_eq!(reader.run("insert into t values(9, 9); select count(*) from t;"), "5");
    node.apply(source.run("pragma journal_mode=wal; insert into t values(6, 6);"));
    node.apply(source.run("insert into t values(7, 7);"));
    assert_eq!(reader.run("select count(*) from t; pragma integrity_check;"), "7\nok");
    drop(reader);
    assert!(node.bytes() == source.last);
}

#[test]
pub(super) fn a_new_page_size_waits_for_whoever_reads_but_not_for_open_connections() {
    let mut source = Source::wal();
    let node = Node::impatient();
    node.apply(source.run("insert into t values(1, randomblob(20000));"));
    node.fence();
    let mut reader = node.shell();
    assert_eq!(reader.run("select count(*) from t;"), "1");
    assert_ne!(wal(node.apply(source.run("update t set v = 'other';"))).frames, 0);
    let change = source
        .run("pragma journal_mode=delete; pragma page_size=1024; vacuum; pragma journal_mode=wal;");
    assert_eq!(change.page_size.get(), 1024);
    assert!(change.is_whole());
    // Frames that somebody reads are in the way of a WAL with frames of another size.
    assert_eq!(reader.run("begin; select count(*) from t;"), "1");
    assert_busy(node.pool.apply(DB, name(), change.clone()));
    assert_eq!(reader.run("select count(*) from t; commit;"), "1");
    let mut idle = node.shell();
    idle.run("pragma mmap_size=1000000; select count(*) from t;");
    let pages = change.commit;
    assert_eq!(wal(node.apply(change)).frames, pages);
    let look = "select count(*) from t; pragma page_size; pragma integrity_check;";
    assert_eq!(reader.run(look), "1\n1024\nok");
    assert_eq!(idle.run(look), "1\n1024\nok");
    // A transaction that began before sees what was there, and the next sizes come beside it.
    assert_eq!(reader.run("begin; select count(*) from t;"), "1");
    node.apply(source.run("insert into t values(2, 2);"));
    assert_eq!(idle.run(look), "2\n1024\nok");
    assert_eq!(reader.run("select count(*) from t; commit; select count(*) from t;"), "1\n2");
    assert_eq!(node.shell().run(look), "2\n1024\nok");
    let resize =
        "pragma journal_mode=delete; pragma page_size=8192; vacuum; insert into t values(3, 3);";
    node.apply(source.run(resize));
    assert_eq!(reader.run(look), "3\n8192\nok");
    assert_eq!(idle.run("insert into t values(9, 9); select count(*) from t;"), "3");
    drop((reader, idle));
    node.apply(source.run("insert into t values(4, 4);"));
    assert_eq!(node.shell().run(look), "4\n8192\nok");
    assert!(node.bytes() == source.last);
}

#[test]
pub(super) fn an_empty_database_becomes_one_and_empty_again() {
    let mut source = Source::rollback();
    let node = Node::new();
    node.pool.make_parents(DB, name()).unwrap();
    std::fs::write(node.path(), b"").unwrap();
    std::fs::write(node.companion("-journal"), b"left from another database of this name").unwrap();
    node.fence();
    let change = source.change();
    node.apply(change.clone());
    assert_eq!(node.shell().run("select count(*) from t;"), "0");
    assert!(!node.companion("-journal").exists());
    node.apply(Change { commit: 0, pages: Vec::new().into(), ..change });
    assert_eq!(node.shell().run("select count(*) from sqlite_schema;"), "0");
}

#[test]
pub(super) fn pages_on_both_sides_of_the_lock_page_are_written() {
    let node = Node::new();
    let page_size = crate::types::PageSize::MAX;
    let lock_page = page_size.lock_page().get();
    let page = |n: u32, fill: u8| {
        (PageNo::new(n).unwrap(), bytes::Bytes::from(vec![fill; page_size.bytes()]))
    };
    let pages = vec![page(lock_page - 1, 1), page(lock_page + 1, 2)].into();
    node.apply(Change { page_size, commit: lock_page + 1, pages });
    let file = std::fs::File::open(node.path()).unwrap();
    assert_eq!(file.metadata().unwrap().len(), (1 << 30) + 2 * 65536);
    let mut bytes = [9; 1];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 1 << 30).unwrap();
    assert_eq!(bytes, [0]);
    let pages = vec![page(lock_page, 3)].into();
    let refused = node.pool.apply(DB, name(), Change { page_size, commit: lock_page + 1, pages });
    assert!(matches!(refused, Err(ClientError::InvalidChange { .. })));
}

#[test]
pub(super) fn waiting_for_a_writer_without_a_journal_ends_with_its_lock() {
    let mut source = Source::rollback();
    let node = Node::new();
    node.apply(source.run("insert into t values(1, 1);"));
    let mut app = node.shell();
    app.run("pragma journal_mode=off; begin exclusive; insert into t values(2, 2);");
    let short = Duration::from_millis(20);
    let waited = node.pool.wait_unlocked(DB, name(), short);
    assert!(matches!(waited, Err(ClientError::Busy { .. })), "{waited:?}");
    app.run("commit;");
    node.pool.wait_unlocked(DB, name(), Duration::from_secs(10)).unwrap();
    assert_eq!(app.run("begin exclusive; commit; select count(*) from t;"), "2");
}

#[test]
pub(super) fn a_renamed_database_is_followed_and_a_removed_one_is_gone() {
    let mut source = Source::wal();
    let node = Node::new();
    node.apply(source.change());
    node.fence();
    let mut reader = node.shell();
    node.apply(source.run("insert into t values(1, 1);"));
    assert_eq!(reader.run("select count(*) from t;"), "1");
    drop(reader);
    let other = DbName::new(b"elsewhere/y.db").unwrap();
    node.pool.rename(DB, name(), other.clone()).unwrap();
    assert!(!node.path().exists() && !node.companion("-wal").exists());
    node.pool.apply(DB, other.clone(), source.run("insert into t values(2, 2);")).unwrap();
    let path = node.mount.path().join("elsewhere/y.db");
    assert_eq!(Shell::open(&path).run("select count(*) from t;"), "2");
    node.pool.remove(DB, other).unwrap();
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    assert!(matches!(node.pool.fence(DB, name()), Err(ClientError::Io { .. })));
}

#[test]
pub(super) fn a_file_that_is_replaced_is_fenced_again() {
    let mut source = Source::wal();
    let node = Node::new();
    node.apply(source.run("insert into t values(1, 1);"));
    node.fence();
    let new = node.mount.path().join("new");
    std::fs::write(&new, &source.last).unwrap();
    rustix::fs::rename(&new, node.path()).unwrap();
    node.apply(source.run("insert into t values(2, 2);"));
    let mut app = node.shell();
    assert_eq!(app.run("insert into t values(3, 3); select count(*) from t;"), "2");
}

#[test]
pub(super) fn idle_sessions_close_and_leave_no_wal() {
    let node =
        Node::with(Timing { lock_wait: Duration::from_secs(10), idle: Duration::from_millis(20) });
    let mut source = Source::wal();
    node.apply(source.change());
    let mut app = node.shell();
    assert_eq!(app.run("select count(*) from t;"), "0");
    // The application has it open, so this goes through the WAL, and the session stays for a while.
    wal(node.apply(source.run("insert into t values(1, 1);")));
    drop(app);
    eventually("the WAL is removed", || !node.companion("-wal").exists());
    assert!(node.bytes() == source.last);
}
