//! Peers that send garbage, send nothing, or never read; networks that lose or damage what they carry.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::proxy::{Proxy, Weather};
use crate::world::{Primary, Replica, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_port_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut writer = primary.writer("x.db");
    let mut silent = Vec::new();
    for seed in 0..50_u8 {
        let mut stream = TcpStream::connect(primary.address).unwrap();
        let bytes: Vec<u8> = (0..2000).map(|_| rand::random::<u8>().wrapping_mul(seed)).collect();
        drop(stream.write_all(&bytes));
        silent.push(stream);
    }
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    writer.insert(10);
    replica.reaches(&primary, "x.db").await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_is_no_primary_is_given_up_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let replica = Replica::start(&dir.path().join("b"), 2, &url);
    let accepted = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut bytes = [0; 1024];
        // Says hello, hears nothing, and goes.
        while stream.read(&mut bytes).is_ok_and(|count| count > 0) {}
    });
    eventually("the follower gives up", || replica.status().error.is_some()).await;
    accepted.await.unwrap();
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_notice_a_dead_peer_within_three_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut writer = primary.writer("x.db");
    let proxy = Proxy::start(primary.address).await;
    let replica = Replica::start(&dir.path().join("b"), 2, &proxy.url());
    writer.insert(10);
    replica.reaches(&primary, "x.db").await;
    proxy.set(Weather::Frozen);
    let began = Instant::now();
    let (mut replica_took, mut primary_took) = (None, None);
    eventually("both sides give up", || {
        if replica.status().link.is_none() {
            replica_took.get_or_insert_with(|| began.elapsed());
        }
        if primary.server.followers().is_empty() {
            primary_took.get_or_insert_with(|| began.elapsed());
        }
        replica_took.is_some() && primary_took.is_some()
    })
    .await;
    // Half a second more for a busy machine.
    let limit = Some(Duration::from_millis(3500));
    assert!(replica_took < limit && primary_took < limit, "{replica_took:?} {primary_took:?}");
    writer.insert(10);
    proxy.set(Weather::Fair);
    replica.reaches(&primary, "x.db").await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_rot_on_the_way_are_never_applied() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut writer = primary.writer("x.db");
    let mut other = primary.writer("other.db");
    let proxy = Proxy::start(primary.address).await;
    let replica = Replica::start(&dir.path().join("b"), 2, &proxy.url());
    proxy.set(Weather::Rotten);
    for round in 0..20 {
        writer.insert(20_000);
        other.insert(100);
        if round % 5 == 0 {
            writer.grow(2 << 20);
        }
        let sent = proxy.bytes();
        eventually("bytes pass", || proxy.bytes() > sent + 1000).await;
    }
    proxy.set(Weather::Fair);
    for (file, writer) in [("x.db", &writer), ("other.db", &other)] {
        replica.reaches(&primary, file).await;
        assert_eq!(replica.query(file, "SELECT count(*) FROM t"), writer.rows());
        let ok = "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check='ok'";
        assert_eq!(replica.query(file, ok), 1);
    }
    replica.stop().await;
}
