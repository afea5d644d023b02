//! Who is refused, and that both sides can read why.

use weir::store::Role;
use weir::types::ClusterId;

use crate::world::{CLUSTER, Primary, Replica, eventually};

async fn refused(replica: &Replica, needles: &[&str]) {
    eventually(&format!("a refusal with {needles:?}"), || {
        let error = replica.status().error.unwrap_or_default();
        needles.iter().all(|needle| error.contains(needle))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_cluster_is_refused_with_both_ids() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut writer = primary.writer("x.db");
    writer.insert(10);
    let other = ClusterId::new(0xbad);
    let data = dir.path().join("b");
    let replica = Replica::start_with(&data, 2, &primary.url(), &[], Some(other));
    refused(&replica, &[&CLUSTER.to_string(), &other.to_string()]).await;
    assert!(replica.store.databases().is_empty());
    assert!(primary.server.followers().is_empty());
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_calls_itself_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let replica = Replica::start(&dir.path().join("b"), 1, &primary.url());
    refused(&replica, &["called itself"]).await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    primary.store.set_role(Role::Replica { primary: Some("z".to_owned()) });
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    refused(&replica, &["not the primary", "z"]).await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_leave_a_node_that_is_primary_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    eventually("connected", || replica.status().link.is_some()).await;
    primary.store.set_role(Role::Replica { primary: None });
    refused(&replica, &["not the primary"]).await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_nodes_with_one_id_the_older_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let older = Replica::start(&dir.path().join("b"), 2, &primary.url());
    eventually("connected", || older.status().link.is_some()).await;
    let newer = Replica::start(&dir.path().join("c"), 2, &primary.url());
    refused(&older, &["node id 0000000000000002", "node.json"]).await;
    eventually("the newer one stays", || newer.status().link.is_some()).await;
    assert_eq!(primary.server.followers().len(), 1);
    older.stop().await;
    newer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_cluster_joins_the_primarys() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut writer = primary.writer("x.db");
    writer.insert(10);
    let data = dir.path().join("b");
    let replica = Replica::start_with(&data, 2, &primary.url(), &[], None);
    replica.reaches(&primary, "x.db").await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_where_nobody_listens_is_tried_again_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let replica = Replica::start(&dir.path().join("b"), 2, "http://127.0.0.1:1");
    refused(&replica, &["connect to http://127.0.0.1:1"]).await;
    replica.stop().await;
}
