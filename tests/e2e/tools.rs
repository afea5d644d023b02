//! The commands that talk to a running node, and how a node starts and stops.

use std::process::Output;

use crate::harness::{Cluster, Image, Options, PATIENCE, Worker, is_mounted, sqlite3_ok, until};

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn fuse_status_tells_roles_positions_and_replicas() {
    let cluster = Cluster::start(2);
    sqlite3_ok(&cluster.path("x.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(a);");
    cluster.converge("x.db");
    let plain = text(&cluster.primary().weir(&["status"]));
    for word in ["primary", "x.db", "b"] {
        assert!(plain.contains(word), "{word} is missing in:\n{plain}");
    }
    let status = cluster.primary().status().unwrap();
    assert_eq!(status["role"], "primary", "{status:#}");
    assert_eq!(cluster.replicas()[0].status().unwrap()["role"], "replica");
}

#[test]
fn fuse_export_and_import_while_a_writer_goes_on() {
    let cluster = Cluster::start(2);
    let mut db = Worker::on(&cluster.path("x.db"));
    db.ok("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    let mut writer = db.count("INSERT INTO t VALUES (?1, randomblob(2000))", 0, 1_000_000);
    writer.wait(100);
    let copy = cluster.outside().join("copy.db");
    for node in &cluster.nodes {
        let output = node.weir(&["export", "x.db", copy.to_str().unwrap()]);
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(sqlite3_ok(&copy, "PRAGMA integrity_check;"), "ok");
        assert_eq!(
            sqlite3_ok(&copy, "SELECT count(*) = max(a) + 1 FROM t;"),
            "1",
            "a prefix of the history"
        );
        std::fs::remove_file(&copy).unwrap();
    }
    writer.kill9();
    cluster.converge("x.db");
    // What is exported now is what the files hold.
    let output = cluster.replicas()[0].weir(&["export", "x.db", copy.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    let exported = Image::open(&copy).unwrap();
    exported.assert_same(&cluster.primary().image("x.db"), "exported");
    // Import it under a new name, and over an existing database with another page size.
    sqlite3_ok(&cluster.path("old.db"), "PRAGMA page_size=1024; CREATE TABLE old(a);");
    let refused = cluster.primary().weir(&["import", copy.to_str().unwrap(), "old.db"]);
    assert!(text(&refused).contains("--force"), "{}", text(&refused));
    let content = sqlite3_ok(&copy, ".dump");
    for name in ["new.db", "old.db"] {
        let output = cluster.primary().weir(&["import", "--force", copy.to_str().unwrap(), name]);
        assert!(output.status.success(), "{}", text(&output));
        cluster.converge(name);
        assert!(sqlite3_ok(&cluster.path(name), ".dump") == content, "{name} is what was imported");
    }
}

#[test]
fn fuse_import_refuses_what_is_not_a_sound_database() {
    let cluster = Cluster::start(1);
    sqlite3_ok(&cluster.path("x.db"), "CREATE TABLE t(a); INSERT INTO t VALUES (1);");
    let file = cluster.outside().join("bad.db");
    std::fs::write(&file, "not a database").unwrap();
    let output = cluster.primary().weir(&["import", file.to_str().unwrap(), "x.db"]);
    assert!(!output.status.success());
    assert!(text(&output).contains("bad.db"), "{}", text(&output));
    for name in ["../escape.db", "/abs.db", "a/../../b.db"] {
        let good = cluster.outside().join("good.db");
        if !good.exists() {
            sqlite3_ok(&good, "CREATE TABLE t(a);");
        }
        let output = cluster.primary().weir(&["import", good.to_str().unwrap(), name]);
        assert!(!output.status.success(), "{name}");
    }
    assert_eq!(sqlite3_ok(&cluster.path("x.db"), "SELECT a FROM t;"), "1");
}

#[test]
fn fuse_export_and_import_replace_nothing_that_is_no_database() {
    let cluster = Cluster::start(2);
    sqlite3_ok(&cluster.path("x.db"), "CREATE TABLE t(a); INSERT INTO t VALUES (1);");
    cluster.converge("x.db");
    let good = cluster.outside().join("good.db");
    sqlite3_ok(&good, "CREATE TABLE t(a);");
    std::fs::write(cluster.path("notes.txt"), "notes").unwrap();
    let refused = |node: &crate::harness::Node, args: &[&str], why: &str| {
        let output = node.weir(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", text(&output));
        assert!(text(&output).contains(why), "{args:?}: {}", text(&output));
    };
    let primary = cluster.primary();
    refused(primary, &["export", "--force", "x.db", "/dev/null"], "not a regular file");
    refused(primary, &["export", "x.db", good.to_str().unwrap()], "--force");
    refused(primary, &["export", "notes.txt", "-"], "no such database");
    let good = good.to_str().unwrap();
    for name in ["notes.txt", "x.db-pos", ".lag"] {
        refused(primary, &["import", "--force", good, name], "no SQLite database");
    }
    refused(&cluster.replicas()[0], &["import", good, "y.db"], "import on the primary");
    assert_eq!(std::fs::read_to_string(cluster.path("notes.txt")).unwrap(), "notes");
    cluster.converge("x.db");
}

#[test]
fn fuse_a_second_daemon_is_told_who_holds_the_data() {
    let cluster = Cluster::start(1);
    let output = cluster.primary().weir(&["mount"]);
    assert!(!output.status.success());
    let said = text(&output);
    assert!(said.contains(&cluster.primary().pid().to_string()), "{said}");
    assert!(cluster.primary().status().is_some(), "the first goes on");
}

#[test]
fn fuse_a_stale_mount_is_replaced() {
    let mut cluster = Cluster::start(1);
    sqlite3_ok(&cluster.path("x.db"), "CREATE TABLE t(a);");
    cluster.nodes[0].kill9();
    assert!(is_mounted(&cluster.nodes[0].mount), "the dead mount stays behind");
    cluster.nodes[0].start();
    sqlite3_ok(&cluster.path("x.db"), "INSERT INTO t VALUES (1);");
    cluster.converge("x.db");
}

#[test]
fn fuse_sigterm_unmounts_even_with_files_open() {
    let mut cluster = Cluster::start(1);
    let mut db = Worker::on(&cluster.path("x.db"));
    db.ok("PRAGMA journal_mode=WAL; CREATE TABLE t(a); BEGIN; SELECT * FROM t");
    assert!(cluster.nodes[0].stop().unwrap().success());
    assert!(!is_mounted(&cluster.nodes[0].mount));
    drop(db);
    cluster.nodes[0].start();
    sqlite3_ok(&cluster.path("x.db"), "INSERT INTO t VALUES (1);");
    cluster.converge("x.db");
}

#[test]
fn fuse_a_node_of_another_cluster_is_refused() {
    let mut cluster =
        Cluster::with(Options { nodes: 2, errors_expected: true, ..Options::default() });
    sqlite3_ok(&cluster.path("x.db"), "CREATE TABLE t(a); INSERT INTO t VALUES (1);");
    cluster.converge("x.db");
    // The primary starts over: a new cluster under the same names.
    cluster.nodes[0].stop();
    std::fs::remove_dir_all(&cluster.nodes[0].data).unwrap();
    std::fs::create_dir(&cluster.nodes[0].data).unwrap();
    cluster.nodes[0].start();
    sqlite3_ok(&cluster.path("x.db"), "CREATE TABLE other(a);");
    until("the replica says why it does not follow", PATIENCE, || {
        cluster.nodes[1].log_text().contains("cluster").then_some(())
    });
    assert_eq!(
        sqlite3_ok(&cluster.nodes[1].path("x.db"), "SELECT a FROM t;"),
        "1",
        "it keeps what it has"
    );
}

#[test]
fn fuse_config_check_names_the_unknown_key() {
    let cluster = Cluster::start(1);
    let output = cluster.primary().weir(&["config", "check"]);
    assert!(output.status.success(), "{}", text(&output));
    let config = cluster.outside().join("bad.toml");
    let good = std::fs::read_to_string(&cluster.primary().config).unwrap();
    std::fs::write(&config, good.replace("mount =", "mout =")).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_weir"))
        .arg("--config")
        .arg(&config)
        .args(["config", "check"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output);
    assert!(said.contains("mout") && said.contains("mount"), "{said}");
}
