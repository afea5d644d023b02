//! `.primary`, `.lag` and `<db>-pos`.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use crate::serve::Served;

fn names(path: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn fuse_special_files_of_a_primary() {
    let Some(served) = Served::start() else { return };
    let lag = served.path(".lag");
    assert_eq!(fs::read(&lag).unwrap(), b"+000000000\n");
    let metadata = fs::metadata(&lag).unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o7777), (11, 0o444));
    assert_eq!(
        fs::metadata(served.path(".primary")).unwrap_err().raw_os_error(),
        Some(libc::ENOENT)
    );
    assert_eq!(names(&served.path("")), [".lag"]);
    let refused = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(refused(fs::remove_file(&lag)), Some(libc::EACCES));
    assert_eq!(refused(fs::rename(&lag, served.path("x"))), Some(libc::EACCES));
    fs::write(served.path("y"), b"").unwrap();
    assert_eq!(refused(fs::rename(served.path("y"), &lag)), Some(libc::EACCES));
    assert_eq!(refused(fs::write(served.path(".primary"), b"")), Some(libc::EACCES));
    assert_eq!(refused(fs::create_dir(served.path(".primary"))), Some(libc::EACCES));
    assert_eq!(refused(fs::write(&lag, b"x")), Some(libc::EACCES));
    // Below the root the names are ordinary.
    fs::create_dir(served.path("d")).unwrap();
    fs::write(served.path("d/.lag"), b"x").unwrap();
    assert_eq!(fs::read(served.path("d/.lag")).unwrap(), b"x");
}

#[test]
fn fuse_a_position_file_beside_each_database() {
    let Some(served) = Served::start() else { return };
    let (db, position) = (served.path("a.db"), served.path("a.db-pos"));
    let connection = rusqlite::Connection::open(&db).unwrap();
    assert!(fs::metadata(&position).is_err(), "not a database yet");
    connection.execute_batch("PRAGMA journal_mode=wal; CREATE TABLE t(x)").unwrap();
    if served.store.databases().is_empty() {
        println!("SKIPPED: this store tracks no databases");
        return;
    }
    let held = File::open(&position).unwrap();
    let (mut last, mut last_time) = (Vec::new(), None);
    for n in 0..20 {
        connection.execute("INSERT INTO t VALUES(?1)", [n]).unwrap();
        let text = fs::read(&position).unwrap();
        let shown = served.store.databases()[0].applied().to_string();
        assert_eq!(String::from_utf8(text.clone()).unwrap(), format!("{shown}\n"));
        let metadata = fs::metadata(&position).unwrap();
        assert_eq!((text.len(), metadata.len()), (34, 34));
        assert_ne!(text, last, "each commit changes it");
        let time = Some((metadata.mtime(), metadata.mtime_nsec()));
        assert_ne!(time, last_time, "each commit changes the time");
        let mut buffer = [0; 100];
        let length = held.read_at(&mut buffer, 0).unwrap();
        assert_eq!(&buffer[..length], text, "a handle that is kept sees later texts");
        (last, last_time) = (text, time);
    }
    let expected = [".lag", "a.db", "a.db-pos", "a.db-shm", "a.db-wal"];
    assert_eq!(names(&served.path("")), expected);
    assert_eq!(fs::remove_file(&position).unwrap_err().raw_os_error(), Some(libc::EACCES));
    assert_eq!(fs::write(&position, b"x").unwrap_err().raw_os_error(), Some(libc::EACCES));
    let second = fs::hard_link(&db, served.path("b.db"));
    assert_eq!(
        second.unwrap_err().raw_os_error(),
        Some(libc::EPERM),
        "no second name for a database"
    );
    drop(connection);
    fs::rename(&db, served.path("c.db")).unwrap();
    assert!(fs::metadata(&position).is_err());
    assert_eq!(fs::read(served.path("c.db-pos")).unwrap().len(), 34);
}
