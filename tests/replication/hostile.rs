//! Peers that send garbage, send nothing, or never read; networks that lose or damage what they carry.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tonic::Code;
use weir::replication::PROTOCOL;

use crate::fakes::pb::fetch_chunk::Chunk;
use crate::fakes::pb::follow_event::Event;
use crate::fakes::{FakeFollower, FakePrimary, Script, end_of, named, pb};
use crate::proxy::{Proxy, Weather};
use crate::world::{DEADLINE, Primary, Replica, eventually, name};

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

/// Follows a primary that breaks a rule until it is told so.
async fn refuses(script: Script, needles: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let primary = FakePrimary::start(script).await;
    let replica = Replica::start(dir.path(), 2, &primary.url);
    let mut seen = String::new();
    eventually(&format!("a refusal with {needles:?}"), || {
        seen = replica.status().error.unwrap_or(std::mem::take(&mut seen));
        needles.iter().all(|needle| seen.contains(needle))
    })
    .await;
    replica.stop().await;
}

fn transactions(database: u64, ltx: Vec<u8>) -> Event {
    let records = vec![pb::Record { epoch: 1, ltx: ltx.into() }];
    Event::Transactions(pb::Transactions { database, run: 0, records, sync_now: false })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_breaks_the_protocol_is_left_with_the_reason() {
    let catalog = vec![(1, b"x.db".as_slice())];
    let script =
        |events: Vec<Event>| Script { catalog: catalog.clone(), events, ..Script::default() };
    let stranger = transactions(2, vec![]);
    refuses(script(vec![stranger]), &["not in the catalog"]).await;
    let behind = Event::Behind(pb::Behind { database: 2, run: 0 });
    refuses(script(vec![behind]), &["not in the catalog"]).await;
    let outside = Event::Named(named(3, b"../../etc/passwd"));
    refuses(script(vec![outside]), &["name of a database is not acceptable"]).await;
    let huge = transactions(1, vec![0; 5 << 20]);
    refuses(script(vec![huge]), &["message length too large"]).await;
    let catalog = Event::Catalog(pb::Catalog { databases: vec![], complete: true });
    refuses(script(vec![catalog]), &["a second catalog"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beats_about_invented_databases_are_not_kept_without_end() {
    let beats = (0..8_u64).map(|n| {
        let position = Some(pb::Position { epoch: 1, txid: 1, checksum: 1 << 63 });
        let databases =
            (0..1000).map(|m| pb::DatabasePosition { database: n * 1000 + m, position }).collect();
        pb::Beat { databases, ..pb::Beat::default() }
    });
    let script = Script { beats: beats.collect(), ..Script::default() };
    refuses(script, &["beats about databases that are not in the catalog", "4096"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invented_database_in_a_beat_does_not_make_the_node_late() {
    let dir = tempfile::tempdir().unwrap();
    let position = Some(pb::Position { epoch: 1, txid: 1, checksum: 1 << 63 });
    let databases = vec![pb::DatabasePosition { database: 9, position }];
    let beats = vec![pb::Beat { databases, ..pb::Beat::default() }];
    let primary = FakePrimary::start(Script { beats, ..Script::default() }).await;
    let replica = Replica::start(dir.path(), 2, &primary.url);
    eventually("it is level", || replica.status().lag.is_some()).await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fetched_nonsense_costs_no_memory_and_harms_no_other_database() {
    let record = |size| {
        let position = Some(pb::Position { epoch: 1, txid: 1, checksum: 1 << 63 });
        Chunk::Record(pb::RecordBegin { epoch: 1, position, size })
    };
    let copy = |page_count| {
        let base = Some(pb::Position::default());
        let copy = pb::Copy { base, page_size: 65536, page_count, next_page: 1 };
        Chunk::Copy(pb::CopyBegin { copy: Some(copy), ..pb::CopyBegin::default() })
    };
    let pages = |first_page, len, next_page| {
        Chunk::Pages(pb::Pages { first_page, data: vec![7; len].into(), next_page })
    };
    let data = |len| Chunk::Data(pb::Data { data: vec![7; len].into() });
    for chunks in [
        vec![record(u64::MAX)],
        vec![record(100), data(1000)],
        vec![record(1000), data(1000), copy(1)],
        vec![data(10)],
        vec![pages(1, 65536, 2)],
        vec![copy(u32::MAX - 1), pages(9, 100, 10)],
        vec![copy(4), pages(3, 65536 * 2, 5), record(u64::MAX)],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let behind = Event::Behind(pb::Behind { database: 1, run: 0 });
        let script = Script {
            catalog: vec![(1, b"x.db"), (2, b"y.db")],
            events: vec![behind],
            chunks,
            ..Script::default()
        };
        let primary = FakePrimary::start(script).await;
        let replica = Replica::start(dir.path(), 2, &primary.url);
        // It is asked again, after a pause.
        eventually("two fetches", || primary.fetches() >= 2).await;
        assert!(replica.status().link.is_some(), "{:?}", replica.status());
        primary.say(Event::Named(named(2, b"z.db")));
        eventually("another database is renamed", || {
            replica.store.by_name(&name("z.db")).is_some()
        })
        .await;
        replica.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_different_protocols_refuse_each_other_with_the_remedy() {
    let remedy = "run the same version of weir on all nodes";
    let other = PROTOCOL + 41;
    let script = Script { protocol: Some(other), ..Script::default() };
    let ours = format!("speaks protocol {other}, this node speaks {PROTOCOL}");
    refuses(script, &["weir 9.9", &ours, remedy]).await;

    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(dir.path()).await;
    let mut follower = FakeFollower::dial(&primary).await;
    let hello = FakeFollower::hello(other);
    let refused = end_of(follower.follow(tokio_stream::iter([hello])).await).await;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    for needle in ["weir 0.0.1", &ours, remedy] {
        assert!(refused.message().contains(needle), "{refused}");
    }
    assert!(primary.server.followers().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_cannot_say_positions_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(dir.path()).await;
    let mut follower = FakeFollower::dial(&primary).await;
    let full = (0..).map(|n: u64| {
        let invented = (0..1024).map(|m| pb::DatabasePosition {
            database: n * 1024 + m,
            position: Some(pb::Position::default()),
        });
        FakeFollower::have(invented.collect(), false)
    });
    let empty = std::iter::repeat_with(|| FakeFollower::have(vec![], false));
    let hello = || std::iter::once(FakeFollower::hello(PROTOCOL));
    // The follower is still saying them when it is refused, so the reason may be lost when the stream is cut.
    let refused = async {
        [
            end_of(follower.follow(tokio_stream::iter(hello().chain(full))).await).await,
            end_of(follower.follow(tokio_stream::iter(hello().chain(empty))).await).await,
        ]
    };
    let refused = tokio::time::timeout(DEADLINE * 3, refused).await.expect("it is refused");
    assert!(refused.iter().all(|status| status.code() != Code::Ok), "{refused:?}");
    assert!(primary.server.followers().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_absurd_size_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut follower = FakeFollower::dial(&primary).await;
    let entry = pb::DatabasePosition { database: 1, position: Some(pb::Position::default()) };
    let requests = [FakeFollower::hello(PROTOCOL), FakeFollower::have(vec![entry; 400_000], true)];
    let refused = end_of(follower.follow(tokio_stream::iter(requests)).await).await;
    // It is not even read to its end, so the refusal may be lost when the stream is cut; but nobody counts its entries.
    assert_ne!(refused.code(), Code::Ok, "{refused}");
    assert!(!refused.message().contains("a list of positions"), "{refused}");
    assert!(primary.server.followers().is_empty());
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    eventually("others are served", || replica.status().link.is_some()).await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_has_one_heartbeat_and_a_limited_number_of_fetches() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(dir.path()).await;
    let mut writer = primary.writer("x.db");
    writer.grow(4 << 20);
    let mut follower = FakeFollower::dial(&primary).await;
    let _live = follower.follow_all().await;
    let request = || pb::HeartbeatRequest { caller: Some(FakeFollower::caller(PROTOCOL)) };
    let beats = follower.client.heartbeat(request()).await.unwrap();
    let refused = follower.client.heartbeat(request()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    drop(beats);
    let deadline = Instant::now() + DEADLINE;
    while let Err(refused) = follower.client.heartbeat(request()).await {
        assert!(Instant::now() < deadline, "the first heartbeat has ended: {refused}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Fetches that are never read.
    let database = primary.store.by_name(&name("x.db")).unwrap().id().unwrap().get();
    let mut open = Vec::new();
    let refused = loop {
        let caller = Some(FakeFollower::caller(PROTOCOL));
        let position = Some(pb::Position::default());
        let begin =
            pb::FetchBegin { caller, database, position, pages: true, ..Default::default() };
        let message = Some(pb::fetch_request::Message::Begin(begin));
        let requests = tokio_stream::once(pb::FetchRequest { message });
        let requests = tokio_stream::StreamExt::chain(requests, tokio_stream::pending());
        match follower.client.fetch(requests).await {
            Ok(chunks) => open.push(chunks),
            Err(refused) => break refused,
        }
        assert!(open.len() <= 16, "there is no limit");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert_eq!(open.len(), 16);
}
