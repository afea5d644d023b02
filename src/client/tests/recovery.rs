//! What dead processes leave behind.

use std::os::unix::fs::FileExt as _;

use super::*;
use crate::client::Abandoned;
use crate::sqlite::{WalEncoder, WalHeader};

/// A database that a killed process left, with transactions in its WAL.
fn left_wal(node: &Node, source: &mut Source) {
    node.apply(source.change());
    node.pool.detach(DB).unwrap();
    let mut app = node.shell();
    let sql = "pragma wal_autocheckpoint=0; insert into t values(1, randomblob(5000));
        insert into t values(2, randomblob(300000)); select count(*) from t;";
    assert_eq!(app.run(sql), "0\n2");
    app.kill();
}

#[test]
pub(super) fn a_wal_that_a_killed_process_left_is_recovered() {
    let mut source = Source::wal();
    let node = Node::new();
    left_wal(&node, &mut source);
    let state = wal(node.fence());
    assert!(50 < state.frames, "{state:?}");
    let mut reader = node.shell();
    assert_eq!(reader.run("select count(*) from t; pragma integrity_check;"), "2\nok");
    drop(reader);
    assert!(node.pool.detach(DB).unwrap());
    assert_eq!(node.shell().run("select count(*) from t; pragma integrity_check;"), "2\nok");
}

#[test]
pub(super) fn a_torn_tail_of_a_wal_does_not_count() {
    let mut source = Source::wal();
    let node = Node::new();
    left_wal(&node, &mut source);
    let file = std::fs::File::options().write(true).open(node.companion("-wal")).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    node.fence();
    assert_eq!(node.shell().run("select count(*) from t; pragma integrity_check;"), "1\nok");
}

#[test]
pub(super) fn garbage_in_the_companions_is_not_believed() {
    let mut source = Source::wal();
    let node = Node::new();
    node.apply(source.run("insert into t values(1, 1);"));
    node.pool.detach(DB).unwrap();
    let garbage: Vec<u8> = (0..100_000u32).map(|n| (n * 7).to_be_bytes()[3]).collect();
    std::fs::write(node.companion("-wal"), &garbage).unwrap();
    std::fs::write(node.companion("-shm"), &garbage).unwrap();
    assert_eq!(wal(node.fence()).frames, 0);
    node.apply(source.run("insert into t values(2, 2);"));
    assert_eq!(node.shell().run("select count(*) from t; pragma integrity_check;"), "2\nok");
    assert!(node.bytes() == source.last);
}

#[test]
pub(super) fn a_hot_journal_is_rolled_back_first() {
    let mut source = Source::rollback();
    let sql = "with recursive i(i) as (select 1 union all select i+1 from i where i<500)
        insert into t select i, randomblob(500) from i;";
    for fenced in [false, true] {
        let node = Node::new();
        source.last.clear();
        node.apply(source.run(&format!("delete from t; {sql}")));
        let mut app = node.shell();
        app.run("pragma cache_size=5; begin; update t set v = randomblob(700); select 1;");
        app.kill();
        assert!(std::fs::metadata(node.companion("-journal")).unwrap().len() != 0);
        if fenced {
            node.fence();
        }
        let mut reader = node.shell();
        node.apply(source.run("update t set v = 'new' where k = 3;"));
        assert_eq!(reader.run("select v from t where k = 3; pragma integrity_check;"), "new\nok");
        drop(reader);
        assert!(!node.companion("-journal").exists());
        assert!(node.bytes() == source.last);
    }
}

/// Appends a change to the WAL as a writer does that then dies, and returns what capture would have seen.
fn abandon(node: &Node, change: &Change, committed: u32) -> Abandoned {
    let file =
        std::fs::File::options().read(true).write(true).open(node.companion("-wal")).unwrap();
    let mut head = [0; 32];
    let (header, mut encoder) = if committed == 0 {
        let header = WalHeader::new(change.page_size, 0, crate::sqlite::Salts([3; 8]));
        file.write_all_at(&header.encode(), 0).unwrap();
        (header, WalEncoder::begin(&header))
    } else {
        file.read_exact_at(&mut head, 0).unwrap();
        let header = WalHeader::parse(&head).unwrap();
        let mut last = [0; 24];
        file.read_exact_at(&mut last, header.frame_offset(committed)).unwrap();
        let last = crate::sqlite::FrameHeader::parse(&last).unwrap();
        (header, WalEncoder::resume(header.order, header.salts, last.checksum))
    };
    let mut frames = Vec::new();
    let mut image = vec![0; change.page_size.bytes()];
    for (n, page) in change.pages.numbers().enumerate() {
        let commit = if n + 1 == change.pages.len() { change.commit } else { 0 };
        change.pages.read(n, &mut image).unwrap();
        encoder.frame(page, commit, &image, &mut frames);
    }
    file.write_all_at(&frames, header.frame_offset(committed + 1)).unwrap();
    let frames = committed + u32::try_from(change.pages.len()).unwrap();
    Abandoned { salts: header.salts, frames, pages: change.commit }
}

#[allow(clippy::host_endian_bytes, reason = "the wal-index is in the machine's own order")]
fn word(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes(bytes.try_into().unwrap())
}

/// Committed frames as the wal-index has them.
fn committed(node: &Node) -> u32 {
    let shm = std::fs::read(node.companion("-shm")).unwrap();
    word(&shm[16..20])
}

#[test]
pub(super) fn the_commit_of_a_dead_writer_is_published() {
    for earlier in [0, 1, 5] {
        let mut source = Source::wal();
        let node = Node::new();
        node.apply(source.change());
        let (mut writer, mut reader) = (node.shell(), node.shell());
        writer.run("select * from t;");
        for k in 0..earlier {
            let sql = format!("insert into t values({k}, 'a');");
            source.run(&sql);
            writer.run(&sql);
        }
        assert_eq!(reader.run("select count(*) from t;"), earlier.to_string());
        writer.run("begin immediate;");
        let before = committed(&node);
        // The two databases took the same steps, so a change of one fits the other.
        let change = source.run("insert into t values(100, randomblob(50000));");
        let abandoned = abandon(&node, &change, before);
        let publish = |abandoned| node.pool.publish_abandoned(DB, name(), abandoned).unwrap();
        let other_salts = crate::sqlite::Salts([1; 8]);
        assert!(!publish(Abandoned { salts: other_salts, ..abandoned }));
        assert_eq!(reader.run("select count(*) from t;"), earlier.to_string());
        assert!(publish(abandoned));
        assert!(!publish(abandoned), "the second time there is nothing to do");
        writer.kill();
        let all = earlier + 1;
        assert_eq!(
            reader.run("select count(*) from t; pragma integrity_check;"),
            format!("{all}\nok")
        );
        assert_eq!(committed(&node), abandoned.frames);
        reader.run("insert into t values(101, 1);");
        assert!(abandoned.frames < committed(&node), "the next writer goes on behind it");
        let mut another = node.shell();
        let count = another.run("select count(*) from t; pragma integrity_check;");
        assert_eq!(count, format!("{}\nok", all + 1));
    }
}
