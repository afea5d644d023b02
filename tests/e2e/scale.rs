//! Many databases, and a large one.

use crate::harness::{Cluster, Options, Worker, sqlite3_ok};

#[test]
fn fuse_200_databases() {
    let mut cluster = Cluster::start(2);
    for directory in 0..10 {
        std::fs::create_dir(cluster.path(format!("dir{directory}"))).unwrap();
    }
    let names: Vec<String> = (0..200).map(|n| format!("dir{}/tenant{n}.db", n % 10)).collect();
    let mut db = Worker::spawn();
    let setup = |n: usize| {
        format!("PRAGMA journal_mode={}; CREATE TABLE t(a, b)", ["wal", "delete"][n % 2])
    };
    for (n, name) in names.iter().enumerate() {
        db.open(0, &cluster.path(name)).unwrap();
        db.ok(&setup(n));
    }
    for round in 0..3 {
        for (n, name) in names.iter().enumerate() {
            db.open(0, &cluster.path(name)).unwrap();
            db.ok(&format!("INSERT INTO t VALUES ({round}, randomblob({}))", n * 10));
        }
        if round == 1 {
            cluster.nodes[1].kill9();
        }
    }
    drop(db);
    cluster.nodes[1].start();
    for name in &names {
        cluster.converge(name);
    }
}

/// The page that holds byte 2^30 is never written: neither by SQLite nor into a change set.
fn a_database_beyond_the_lock_page(page_size: u64) {
    let cluster = Cluster::with(Options { nodes: 2, seconds_max: 600, ..Options::default() });
    let mut db = Worker::on(&cluster.path("x.db"));
    let lock_page = (1 << 30) / page_size + 1;
    db.ok(&format!("PRAGMA page_size={page_size}; CREATE TABLE t(id INTEGER PRIMARY KEY, b)"));
    // An overflow page holds four bytes less than it is long.
    let half = (lock_page - 40) / 2 * (page_size - 4);
    db.start(&format!("INSERT INTO t(b) VALUES (zeroblob({half})), (zeroblob({half}))"));
    db.finish(std::time::Duration::from_secs(300)).unwrap();
    let pages: u64 = db.value("PRAGMA page_count").parse().unwrap();
    assert!(
        (lock_page - 50..lock_page).contains(&pages),
        "{pages} pages, just below the lock page"
    );
    for mode in ["delete", "wal"] {
        db.ok(&format!("PRAGMA journal_mode={mode}"));
        for _ in 0..3 {
            db.ok(&format!("INSERT INTO t(b) VALUES (randomblob({}))", 46 * page_size));
            db.ok(&format!(
                "UPDATE t SET b = randomblob({}) WHERE id = (SELECT max(id) FROM t)",
                23 * page_size
            ));
        }
    }
    let pages: u64 = db.value("PRAGMA page_count").parse().unwrap();
    assert!(pages > lock_page, "{pages} pages, beyond the lock page");
    let pos = cluster.level("x.db");
    let (primary, replica) = (cluster.primary().image("x.db"), cluster.replicas()[0].image("x.db"));
    assert_eq!(format!("{:016x}", primary.checksum()), pos.split('/').nth(1).unwrap());
    replica.assert_same(&primary, "x.db");
    drop(db);
    let output = cluster.replicas()[0].weir(&["verify", "x.db"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let replica = cluster.replicas()[0].path("x.db");
    assert_eq!(sqlite3_ok(&replica, "PRAGMA quick_check;"), "ok");
}

#[test]
fn fuse_a_database_beyond_the_lock_page() {
    a_database_beyond_the_lock_page(65536);
}

#[test]
fn fuse_a_database_beyond_the_lock_page_with_pages_as_they_usually_are() {
    a_database_beyond_the_lock_page(4096);
}
