//! A primary, replicas, and a SQLite writer whose files are replayed into the primary.

use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use weir::client::Pool;
use weir::database::{Database, FileRole, Origin};
use weir::replication::{Follower, FollowerOptions, Membership, Server};
use weir::store::{ReplicaWrites, Retention, Role, Store, StoreOptions};
use weir::types::{ClusterId, DbName, Epoch, NodeId};

/// Everything here happens within this time or not at all.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const CLUSTER: ClusterId = ClusterId::new(0xc1);

/// Waits for a condition.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn name(text: &str) -> DbName {
    DbName::new(text.as_bytes()).unwrap()
}

pub(crate) fn open_store(data: &Path, node: u64) -> Arc<Store> {
    let retention =
        Retention { age: Duration::from_secs(3600), bytes: 1 << 30, bytes_max: 1 << 30 };
    let (data, node) = (data.to_owned(), NodeId::new(node));
    let replica_writes = ReplicaWrites::Busy;
    Store::open(StoreOptions { data, node, replica_writes, retention }).unwrap()
}

pub(crate) fn member(node: u64, cluster: Option<ClusterId>) -> Arc<Membership> {
    Arc::new(Membership::new(NodeId::new(node), format!("n{node}"), cluster, Box::new(|_| Ok(()))))
}

/// A node that serves followers.
pub(crate) struct Primary {
    pub(crate) store: Arc<Store>,
    pub(crate) server: Arc<Server>,
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
}

impl Primary {
    pub(crate) async fn start(data: &Path) -> Self {
        Self::start_on(data, "127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_on(data: &Path, address: SocketAddr) -> Self {
        let store = open_store(data, 1);
        store.set_role(Role::Primary { epoch: Epoch::new(1) });
        Self::serve(store, address).await
    }

    /// Another node as the primary that its own configuration makes it.
    pub(crate) async fn of_node(data: &Path, node: u64) -> Self {
        let store = open_store(data, node);
        store.set_role(Role::Primary { epoch: Epoch::new(1) });
        Self::serve(store, "127.0.0.1:0".parse().unwrap()).await
    }

    /// Ends it in an orderly way.
    pub(crate) async fn stop(mut self) {
        self.stop_serving().await;
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || store.close()).await.unwrap();
    }

    /// Serves an open store.
    pub(crate) async fn serve(store: Arc<Store>, address: SocketAddr) -> Self {
        let server = Server::new(Arc::clone(&store), member(1, Some(CLUSTER)));
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn({
            let server = Arc::clone(&server);
            async move {
                server.serve(listener, async { drop(stopped.await) }).await.unwrap();
            }
        });
        let (stop, serving) = (Some(stop), Some(serving));
        Self { store, server, address, stop, serving }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends the server; the store stays.
    pub(crate) async fn stop_serving(&mut self) {
        drop(self.stop.take());
        if let Some(serving) = self.serving.take() {
            serving.await.unwrap();
        }
    }

    pub(crate) fn writer(&self, file: &str) -> Writer {
        Writer::new(self, file, 4096)
    }

    /// The server's view of the first follower's lag, in transactions, over all databases.
    pub(crate) fn lag(&self) -> Option<u64> {
        let followers = self.server.followers();
        let databases = &followers.first()?.databases;
        Some(databases.iter().map(|db| db.lag.transactions).sum())
    }
}

/// A node that follows.
pub(crate) struct Replica {
    pub(crate) data: PathBuf,
    pub(crate) store: Arc<Store>,
    pub(crate) follower: Option<Follower>,
    pool: Arc<Pool>,
}

impl Replica {
    pub(crate) fn start(data: &Path, node: u64, url: &str) -> Self {
        Self::start_with(data, node, url, &[], Some(CLUSTER))
    }

    pub(crate) fn start_with(
        data: &Path,
        node: u64,
        url: &str,
        filters: &[&str],
        cluster: Option<ClusterId>,
    ) -> Self {
        let store = open_store(data, node);
        let files = store.files().to_owned();
        let pool = Arc::new(Pool::start(files, 2).unwrap());
        store.connect(Arc::clone(&pool));
        store.mounted(Arc::new(|_| ()));
        let mut replica = Self { data: data.to_owned(), store, follower: None, pool };
        replica.follow(node, url, filters, cluster);
        replica
    }

    pub(crate) fn follow(
        &mut self,
        node: u64,
        url: &str,
        filters: &[&str],
        cluster: Option<ClusterId>,
    ) {
        let options = FollowerOptions {
            addresses: vec![url.to_owned()],
            filters: filters.iter().map(|glob| (*glob).to_owned()).collect(),
            tmp: self.data.join("tmp"),
        };
        let me = member(node, cluster);
        self.follower = Some(Follower::start(options, me, Arc::clone(&self.store)).unwrap());
    }

    /// Why a database of the primary is not as there, once it is said.
    pub(crate) fn aside(&self, file: &str) -> Option<String> {
        let aside = self.status().aside.into_iter().find(|aside| aside.name == name(file));
        aside.map(|aside| aside.reason)
    }

    pub(crate) fn status(&self) -> weir::replication::FollowingStatus {
        self.follower.as_ref().unwrap().status()
    }

    /// Ends the follower only.
    pub(crate) async fn unfollow(&mut self) {
        if let Some(follower) = self.follower.take() {
            follower.stop().await;
        }
    }

    pub(crate) async fn stop(mut self) {
        self.unfollow().await;
        let (store, pool) = (Arc::clone(&self.store), Arc::clone(&self.pool));
        tokio::task::spawn_blocking(move || {
            store.close();
            pool.stop();
        })
        .await
        .unwrap();
    }

    /// Waits until a database is where the primary's is, in log and files.
    pub(crate) async fn reaches(&self, primary: &Primary, file: &str) {
        let wanted = name(file);
        let mut seen = String::new();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let ours = self.store.by_name(&wanted).map(|db| (db.position(), db.applied()));
            let theirs = primary.store.by_name(&wanted).map(|db| db.position());
            if let (Some((logged, applied)), Some(theirs)) = (ours, theirs)
                && logged == theirs
                && applied == theirs
            {
                return;
            }
            if Instant::now() > deadline {
                seen = format!("{file}: {ours:?}, the primary {theirs:?}, {:?}", self.status());
            }
            assert!(seen.is_empty(), "{seen}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Reads one number from the replica's database with plain SQLite.
    pub(crate) fn query(&self, file: &str, sql: &str) -> i64 {
        query(&self.store.files().join(file), sql)
    }
}

pub(crate) fn query(path: &Path, sql: &str) -> i64 {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.busy_timeout(Duration::from_secs(5)).unwrap();
    conn.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// An application of the primary: SQLite works on a file of its own, and each of its transactions is
/// replayed as the mount would pass it on.
pub(crate) struct Writer {
    scratch: TempDir,
    conn: rusqlite::Connection,
    db: Arc<Database>,
    wal: File,
    sent: u64,
}

impl Writer {
    pub(crate) fn new(primary: &Primary, file: &str, page_size: u32) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let source = scratch.path().join("x.db");
        let conn = rusqlite::Connection::open(&source).unwrap();
        conn.execute_batch(&format!(
            "PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
             CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB); PRAGMA wal_checkpoint(TRUNCATE);"
        ))
        .unwrap();
        // The file arrives like one that `cp` writes.
        let path = primary.store.files().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let target = create(&path);
        let db = primary.store.main_file(&name(file));
        db.open(FileRole::Main, Origin::Application, true, false).unwrap();
        let content = fs::read(&source).unwrap();
        db.write(FileRole::Main, Origin::Application, &target, 0, &content).unwrap();
        db.flush(FileRole::Main, Origin::Application, 0).unwrap();
        db.release(FileRole::Main, Origin::Application, true);
        Self::attach(primary, file, scratch, conn)
    }

    /// Goes on with a database that the primary has.
    pub(crate) fn of_existing(primary: &Primary, file: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let source = scratch.path().join("x.db");
        fs::copy(primary.store.files().join(file), &source).unwrap();
        let conn = rusqlite::Connection::open(&source).unwrap();
        conn.execute_batch("PRAGMA wal_autocheckpoint=0").unwrap();
        Self::attach(primary, file, scratch, conn)
    }

    fn attach(primary: &Primary, file: &str, scratch: TempDir, conn: rusqlite::Connection) -> Self {
        let db = primary.store.main_file(&name(file));
        let wal = create(&primary.store.files().join(format!("{file}-wal")));
        db.open(FileRole::Main, Origin::Application, true, false).unwrap();
        db.open(FileRole::Wal, Origin::Application, true, false).unwrap();
        Self { scratch, conn, db, wal, sent: 0 }
    }

    pub(crate) fn db(&self) -> &Arc<Database> {
        &self.db
    }

    /// Runs statements, one transaction, and has it committed on the primary.
    pub(crate) fn run(&mut self, sql: &str) {
        self.conn.execute_batch(sql).unwrap();
        let wal = File::open(self.scratch.path().join("x.db-wal")).unwrap();
        let end = wal.metadata().unwrap().len();
        while self.sent < end {
            // SQLite writes the header by itself.
            let len = if self.sent == 0 { 32 } else { end - self.sent };
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            wal.read_exact_at(&mut bytes, self.sent).unwrap();
            self.db
                .write(FileRole::Wal, Origin::Application, &self.wal, self.sent, &bytes)
                .unwrap();
            self.sent += len;
        }
    }

    /// One row in a transaction of its own.
    pub(crate) fn insert(&mut self, bytes: usize) {
        self.run(&format!("INSERT INTO t(v) VALUES (randomblob({bytes}))"));
    }

    /// One transaction that makes the database this large, in incompressible pages.
    pub(crate) fn grow(&mut self, bytes: usize) {
        let rows = bytes / 3000;
        self.run(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{rows})
             INSERT INTO t(v) SELECT randomblob(2900) FROM n"
        ));
    }

    pub(crate) fn rows(&self) -> i64 {
        self.conn.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }
}

fn create(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap()
}
