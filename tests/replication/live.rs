//! Transactions arrive as they are committed, and the primary knows how far everyone is.

use std::time::Duration;

use crate::world::{Primary, Replica, eventually, name};

#[tokio::test(flavor = "multi_thread")]
async fn transactions_arrive_and_are_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut writer = primary.writer("x.db");
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    for _ in 0..50 {
        writer.insert(100);
    }
    replica.reaches(&primary, "x.db").await;
    assert_eq!(replica.query("x.db", "SELECT count(*) FROM t"), 50);

    eventually("everything is acknowledged", || primary.lag() == Some(0)).await;
    let position = writer.db().position();
    eventually("durable too", || {
        let followers = primary.server.followers();
        let db = &followers[0].databases[0];
        db.durable == position && db.applied == position
    })
    .await;
    let follower = &primary.server.followers()[0];
    assert_eq!(follower.name, "n2");
    assert_eq!(follower.databases[0].lag.bytes, Some(0));
    assert_eq!(follower.databases[0].lag.time, Duration::ZERO);
    eventually("the replica knows that it is level", || {
        replica.status().lag.is_some_and(|lag| lag < Duration::from_secs(1))
    })
    .await;
    assert!(replica.store.lag_ms() < 1000);
    replica.stop().await;
    eventually("the follower is gone", || primary.server.followers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_away_catches_up_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut writer = primary.writer("x.db");
    let data = dir.path().join("b");
    let replica = Replica::start(&data, 2, &primary.url());
    writer.insert(10);
    replica.reaches(&primary, "x.db").await;
    replica.stop().await;
    // More than the live stream sends one by one.
    for _ in 0..700 {
        writer.insert(1000);
    }
    let replica = Replica::start(&data, 2, &primary.url());
    replica.reaches(&primary, "x.db").await;
    assert_eq!(replica.query("x.db", "SELECT count(*) FROM t"), 701);
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_too_large_for_the_live_stream_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut writer = primary.writer("x.db");
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    writer.insert(10);
    replica.reaches(&primary, "x.db").await;
    for _ in 0..3 {
        writer.grow(5 << 20);
        writer.insert(10);
    }
    replica.reaches(&primary, "x.db").await;
    assert_eq!(replica.query("x.db", "SELECT count(*) FROM t"), writer.rows());
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_databases_share_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut writers: Vec<_> =
        (0..20).map(|n| primary.writer(&format!("dir{}/{n}.db", n % 3))).collect();
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    for round in 0..20 {
        for (n, writer) in writers.iter_mut().enumerate() {
            writer.insert(if n == 0 { 200_000 } else { 50 + round });
        }
    }
    for (n, writer) in writers.iter().enumerate() {
        let file = format!("dir{}/{n}.db", n % 3);
        replica.reaches(&primary, &file).await;
        assert_eq!(replica.query(&file, "SELECT count(*) FROM t"), writer.rows(), "{file}");
    }
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_resumes_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("a");
    let mut primary = Primary::start(&data).await;
    let mut writer = primary.writer("x.db");
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    writer.insert(10);
    replica.reaches(&primary, "x.db").await;
    primary.stop_serving().await;
    eventually("the replica has lost its primary", || replica.status().link.is_none()).await;
    assert!(replica.status().error.is_some());
    writer.insert(10);
    let address = primary.address;
    let store = std::sync::Arc::clone(&primary.store);
    let mut again = Primary::serve(store, address).await;
    replica.reaches(&primary, "x.db").await;
    let id = primary.store.by_name(&name("x.db")).unwrap().id();
    assert_eq!(replica.store.by_name(&name("x.db")).unwrap().id(), id);
    again.stop_serving().await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_replicas_follow_at_their_own_pace() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut writer = primary.writer("x.db");
    let b = Replica::start(&dir.path().join("b"), 2, &primary.url());
    writer.insert(10);
    b.reaches(&primary, "x.db").await;
    let c = Replica::start(&dir.path().join("c"), 3, &primary.url());
    for _ in 0..100 {
        writer.insert(10);
    }
    for replica in [&b, &c] {
        replica.reaches(&primary, "x.db").await;
        assert_eq!(replica.query("x.db", "SELECT count(*) FROM t"), 101);
    }
    assert_eq!(primary.server.followers().len(), 2);
    b.stop().await;
    c.stop().await;
}
