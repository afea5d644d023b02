//! Lanes use no descriptor but their own.

use super::*;

fn descriptors(thread_id: u32) -> Vec<(String, PathBuf)> {
    let listed = std::fs::read_dir(format!("/proc/self/task/{thread_id}/fd")).unwrap();
    let mut found: Vec<_> = listed
        .map(|entry| entry.unwrap())
        .filter_map(|entry| {
            let target = std::fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().into_string().unwrap(), target))
        })
        .filter(|(number, _)| number.parse().is_ok_and(|number: u32| 2 < number))
        .collect();
    found.sort();
    found
}

#[test]
fn a_lane_inherits_no_descriptor_and_shares_none() {
    // Whatever the process has open must not be in a lane's table, and the reverse.
    let _inherited = tempfile::tempfile().unwrap();
    let mut source = Source::wal();
    let node = Node::new();
    let lanes = node.pool.lane_threads();
    assert_eq!(lanes.len(), 2);
    for thread_id in &lanes {
        assert_eq!(descriptors(*thread_id), []);
        assert!(node.pool.is_lane(*thread_id));
    }
    assert!(!node.pool.is_lane(std::process::id()));
    node.apply(source.change());
    node.fence();
    let root = node.mount.path().canonicalize().unwrap();
    let used: Vec<_> = lanes.iter().flat_map(|thread_id| descriptors(*thread_id)).collect();
    assert_eq!(used.len(), 3, "main, wal, shm: {used:?}");
    assert!(used.iter().all(|(_, target)| target.starts_with(&root)), "{used:?}");
    let own = descriptors(std::process::id());
    assert!(own.iter().all(|(_, target)| !target.starts_with(root.join("sub"))), "{own:?}");
}

#[test]
fn one_busy_database_does_not_delay_another_on_its_lane() {
    let mount = tempfile::tempdir().unwrap();
    let timing = Timing { lock_wait: Duration::from_secs(20), idle: Duration::from_secs(60) };
    let pool = Pool::start_with(mount.path().to_owned(), 1, timing).unwrap();
    let (busy, free) = (DbName::new(b"busy.db").unwrap(), DbName::new(b"free.db").unwrap());
    let mut source = Source::wal();
    let change = source.change();
    pool.apply(DbId::new(1), busy.clone(), change.clone()).unwrap();
    let mut app = Shell::open(&mount.path().join("busy.db"));
    app.run("begin immediate;");
    std::thread::scope(|scope| {
        let fencing = scope.spawn(|| pool.fence(DbId::new(1), busy.clone()));
        for _ in 0..50 {
            pool.apply(DbId::new(2), free.clone(), change.clone()).unwrap();
        }
        assert!(!fencing.is_finished());
        app.run("commit;");
        fencing.join().unwrap().unwrap();
    });
}

#[test]
fn a_stopped_pool_says_so() {
    let node = Node::new();
    let mut source = Source::wal();
    node.apply(source.change());
    node.fence();
    node.pool.stop();
    assert!(!node.companion("-wal").exists(), "stopping detaches");
    assert!(matches!(node.pool.fence(DB, name()), Err(ClientError::Stopped)));
}
