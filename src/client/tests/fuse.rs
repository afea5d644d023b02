//! The same tests under a real mount, and what only a real mount can show.
//!
//! They need /dev/fuse and root (or fusermount3), and say so when they are left out.

use std::cell::Cell;

use super::{modes, recovery, wal_mode, *};
use crate::mount::{Mount, MountOptions};
use crate::store::{ReplicaWrites, Retention, Role, Store, StoreOptions};
use crate::types::{Epoch, NodeId};

thread_local! {
    /// Whether nodes that this thread makes are real mounts.
    static REAL: Cell<bool> = const { Cell::new(false) };
}

/// A real mount, unmounted when dropped.
pub(super) struct Served {
    mount: Option<Mount>,
    _data: TempDir,
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.unmount().unwrap();
        }
    }
}

/// Mounts a store of a primary, if this thread is to test that.
pub(super) fn serve_if_asked(mount: &Path, pool: &Arc<Pool>) -> Option<Served> {
    if !REAL.get() {
        return None;
    }
    let data = tempfile::tempdir().unwrap();
    let retention = Retention { age: Duration::from_secs(60), bytes: 1 << 30, bytes_max: 1 << 32 };
    let store = Store::open(StoreOptions {
        data: data.path().to_owned(),
        node: NodeId::new(1),
        replica_writes: ReplicaWrites::Busy,
        retention,
    });
    let store = store.unwrap();
    store.set_role(Role::Primary { epoch: Epoch::new(1) });
    let options = MountOptions { mount: mount.to_owned(), allow_other: false, threads: 4 };
    let served = Mount::start(options, Arc::clone(&store), Arc::clone(pool)).unwrap();
    store.connect(Arc::clone(pool));
    store.mounted(served.invalidate());
    Some(Served { mount: Some(served), _data: data })
}

fn can_mount() -> bool {
    let helper = Command::new("fusermount3").arg("-V").output().is_ok();
    let can = Path::new("/dev/fuse").exists() && (helper || rustix::process::geteuid().is_root());
    if !can {
        eprintln!("SKIPPED: no /dev/fuse, or neither root nor fusermount3");
    }
    can
}

fn on_a_mount(test: fn()) {
    if can_mount() {
        REAL.set(true);
        test();
    }
}

macro_rules! on_a_mount {
    ($($room:ident :: $test:ident;)*) => {
        $(#[test]
        fn $test() {
            on_a_mount($room::$test);
        })*
    };
}

mod fuse_ {
    use super::*;

    on_a_mount! {
        wal_mode::a_thousand_changes_reach_readers_without_disturbing_them;
        wal_mode::a_long_reader_delays_the_checkpoint_and_no_longer;
        wal_mode::the_wal_does_not_grow_while_nobody_reads;
        wal_mode::local_writers_are_busy_while_fenced_and_write_afterwards;
        wal_mode::a_fence_waits_for_a_writer_and_gives_up_in_time;
        wal_mode::a_connection_that_opens_while_fenced_reads_at_once;
        wal_mode::changes_are_written_in_place_when_nobody_has_the_database_open;
        wal_mode::all_page_sizes_and_a_shrinking_database;
        wal_mode::a_change_without_pages_still_shrinks_the_database;
        wal_mode::a_large_change_is_written_in_pieces;
        wal_mode::an_invalid_change_is_refused;
        modes::changes_in_rollback_mode_reach_readers;
        modes::a_reader_in_rollback_mode_is_waited_for_and_no_new_one_comes_between;
        modes::a_database_switches_to_wal_and_back;
        modes::a_new_page_size_waits_for_whoever_reads_but_not_for_open_connections;
        modes::an_empty_database_becomes_one_and_empty_again;
        modes::pages_on_both_sides_of_the_lock_page_are_written;
        modes::waiting_for_a_writer_without_a_journal_ends_with_its_lock;
        modes::a_renamed_database_is_followed_and_a_removed_one_is_gone;
        modes::a_file_that_is_replaced_is_fenced_again;
        modes::idle_sessions_close_and_leave_no_wal;
        recovery::a_wal_that_a_killed_process_left_is_recovered;
        recovery::a_torn_tail_of_a_wal_does_not_count;
        recovery::garbage_in_the_companions_is_not_believed;
        recovery::a_hot_journal_is_rolled_back_first;
        recovery::the_commit_of_a_dead_writer_is_published;
    }
}

/// Set for the process that plays the daemon to be killed.
const PLAY: &str = "WEIR_TEST_PLAYS_DAEMON";

/// Not a test by itself: the process that `fuse_a_killed_daemon_ends_at_once` starts runs this one.
#[test]
fn fuse_daemon_to_be_killed() {
    if std::env::var_os(PLAY).is_none() {
        return;
    }
    REAL.set(true);
    let mut source = Source::wal();
    let node = Node::new();
    node.apply(source.change());
    node.fence();
    let mut reader = node.shell();
    // The parent waits for this line.
    eprintln!("ready {}", node.path().display());
    for k in 0.. {
        node.apply(
            source.run(&format!("insert or replace into t values({}, randomblob(9000));", k % 300)),
        );
        reader.run("select count(*) from t;");
    }
}

/// A daemon whose client had mapped a file of its own mount stayed for ever: the kernel waited for an answer that only
/// the dying process could have given.
#[test]
fn fuse_a_killed_daemon_ends_at_once() {
    if !can_mount() {
        return;
    }
    let leftovers = tempfile::tempdir().unwrap();
    for round in 0..5u32 {
        let mut daemon = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "client::tests::fuse::fuse_daemon_to_be_killed"])
            .env(PLAY, "1")
            .env("TMPDIR", leftovers.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(daemon.stderr.take().unwrap()).lines();
        let ready = lines.map(Result::unwrap).find(|line| line.starts_with("ready ")).unwrap();
        let path = PathBuf::from(ready.trim_start_matches("ready "));
        let until = Instant::now() + Duration::from_millis(40) * round;
        eventually("the moment to kill comes", || until <= Instant::now());
        daemon.kill().unwrap();
        let root = path.parent().and_then(Path::parent).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while daemon.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let ended = daemon.try_wait().unwrap().is_some();
        let flags = rustix::mount::UnmountFlags::FORCE | rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(root, flags).unwrap();
        assert!(ended, "round {round}: the killed daemon stays");
    }
}
