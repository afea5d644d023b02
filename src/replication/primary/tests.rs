//! Peers that break the rules, as only a client of our own making can.

use std::path::Path;
use std::time::Instant;

use tokio::sync::oneshot;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;

use super::*;
use crate::replication::error::Reason;
use crate::replication::limits::PROTOCOL;
use crate::replication::message::{Caller, FollowRequest};
use crate::replication::pb::replication_client::ReplicationClient;
use crate::replication::{convert, pb};
use crate::store::{ReplicaWrites, Retention, Role, StoreOptions};
use crate::types::{ClusterId, Epoch, NodeId};

const CLUSTER: ClusterId = ClusterId::new(7);

/// A primary with databases whose first transactions just fit the live stream.
async fn start(data: &Path, databases: usize) -> (Arc<Server>, Channel, oneshot::Sender<()>) {
    std::fs::create_dir_all(data.join("files")).unwrap();
    for n in 0..databases {
        let conn = rusqlite::Connection::open(data.join(format!("files/{n}.db"))).unwrap();
        conn.execute_batch("CREATE TABLE t(v); INSERT INTO t VALUES (randomblob(800000));")
            .unwrap();
    }
    let store = Store::open(StoreOptions {
        data: data.to_owned(),
        node: NodeId::new(1),
        replica_writes: ReplicaWrites::Busy,
        retention: Retention { age: Duration::from_secs(60), bytes: 1 << 30, bytes_max: 1 << 30 },
    })
    .unwrap();
    store.set_role(Role::Primary { epoch: Epoch::new(1) });
    let join = Box::new(|_| Ok(()));
    let me = Membership::new(NodeId::new(1), "a".to_owned(), Some(CLUSTER), join);
    let server = Server::with_stall_timeout(store, Arc::new(me), Duration::from_millis(300));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(Arc::clone(&server).serve(listener, async { drop(stopped.await) }));
    let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
    (server, channel, stop)
}

fn caller() -> Caller {
    Caller {
        protocol: PROTOCOL,
        software: "test".to_owned(),
        cluster: Some(CLUSTER),
        node: NodeId::new(2),
        name: "b".to_owned(),
        session: 1,
    }
}

fn hello() -> Vec<pb::FollowRequest> {
    let hello = FollowRequest::Hello { caller: caller(), filters: vec![] };
    let have = FollowRequest::Have { databases: vec![], complete: true };
    vec![hello.into(), have.into()]
}

async fn follow(
    channel: &Channel,
    requests: Vec<pb::FollowRequest>,
) -> Result<tonic::Streaming<pb::FollowEvent>, tonic::Status> {
    let requests = tokio_stream::iter(requests).chain(tokio_stream::pending());
    let mut client = ReplicationClient::new(channel.clone());
    Ok(client.follow(requests).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_never_reads_is_dropped_and_holds_little() {
    let dir = tempfile::tempdir().unwrap();
    let (server, channel, _stop) = start(dir.path(), 30).await;
    let mut events = follow(&channel, hello()).await.unwrap();
    assert!(events.message().await.unwrap().is_some(), "the welcome");
    assert_eq!(server.followers().len(), 1);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !server.followers().is_empty() {
        assert!(Instant::now() < deadline, "the follower is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What was on its way is small, and then the connection is closed.
    let mut bytes = 0;
    while let Ok(Some(event)) = events.message().await {
        bytes += prost::Message::encoded_len(&event);
    }
    assert!(bytes < 12 << 20, "{bytes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_breaks_the_protocol_is_told_and_loses_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let (server, channel, _stop) = start(dir.path(), 0).await;
    let check = async |requests: Vec<pb::FollowRequest>, reason: Reason| {
        let refused = match follow(&channel, requests).await {
            Err(status) => status,
            Ok(mut events) => loop {
                if let Err(status) = events.message().await {
                    break status;
                }
            },
        };
        assert_eq!(convert::refusal(&refused).map(|r| r.reason), Some(reason), "{refused}");
    };
    check(vec![pb::FollowRequest::default()], Reason::ProtocolError).await;
    check(vec![FollowRequest::Acks(vec![]).into()], Reason::ProtocolError).await;
    let twice = [hello(), hello()].concat();
    check(twice, Reason::ProtocolError).await;
    let old = Caller { protocol: PROTOCOL + 1, ..caller() };
    check(vec![FollowRequest::Hello { caller: old, filters: vec![] }.into()], Reason::Protocol)
        .await;
    let filters = vec!["[".to_owned()];
    let bad_glob = FollowRequest::Hello { caller: caller(), filters };
    let have = FollowRequest::Have { databases: vec![], complete: true };
    check(vec![bad_glob.into(), have.into()], Reason::ProtocolError).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !server.followers().is_empty() {
        assert!(Instant::now() < deadline, "a follower is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beats_and_fetches_belong_to_a_session() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, channel, _stop) = start(dir.path(), 0).await;
    let mut client = ReplicationClient::new(channel.clone());
    let stranger = convert::heartbeat_request(Caller { session: 99, ..caller() });
    let refused = client.heartbeat(stranger).await.unwrap_err();
    assert_eq!(convert::refusal(&refused).map(|r| r.reason), Some(Reason::NoSession));
    let _events = follow(&channel, hello()).await.unwrap();
    let mut beats =
        client.heartbeat(convert::heartbeat_request(caller())).await.unwrap().into_inner();
    let first = beats.message().await.unwrap().unwrap();
    assert_eq!(first.sequence, 1);
    assert_eq!(beats.message().await.unwrap().unwrap().sequence, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_service_answers() {
    use tonic_health::pb::health_client::HealthClient;
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
    let dir = tempfile::tempdir().unwrap();
    let (_server, channel, _stop) = start(dir.path(), 0).await;
    for service in ["", "weir.v1.Replication"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = HealthClient::new(channel.clone()).check(request).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service:?}");
    }
}
