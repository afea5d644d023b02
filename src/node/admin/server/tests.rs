//! The socket against clients that misbehave.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as StdStream;

use super::*;
use crate::node::admin::{AdminError, Client};
use crate::node::status::NodeStatus;
use crate::store::StoreOptions;
use crate::types::NodeId;

fn context(data: &Path) -> Context {
    let options = StoreOptions {
        data: data.to_owned(),
        node: NodeId::new(1),
        replica_writes: crate::store::ReplicaWrites::Busy,
        retention: crate::store::Retention { age: Duration::from_secs(1), bytes: 1, bytes_max: 1 },
    };
    let status = Status {
        node: NodeStatus {
            name: "a".to_owned(),
            id: String::new(),
            cluster: None,
            version: String::new(),
            pid: 1,
            uptime_ms: 0,
            data: data.to_owned(),
            mount: PathBuf::new(),
            listen: None,
        },
        role: "primary".to_owned(),
        primary: None,
        epoch: 1,
        lag_ms: None,
        databases: Vec::new(),
        replicas: Vec::new(),
        copies: Vec::new(),
        aside: Vec::new(),
        follower_error: None,
    };
    Context {
        store: Store::open(options).unwrap(),
        status: Box::new(move || status.clone()),
        compare: None,
    }
}

fn with_server(data: &Path, check: impl FnOnce() + Send) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = {
        let _in_runtime = runtime.enter();
        AdminServer::start(data, context(data)).unwrap()
    };
    check();
    runtime.block_on(server.stop());
    assert!(!data.join(SOCKET).exists());
}

#[test]
fn a_client_gets_the_status_more_than_once() {
    let dir = tempfile::tempdir().unwrap();
    with_server(dir.path(), || {
        let mut client = Client::connect(dir.path()).unwrap();
        assert_eq!(client.status().unwrap().node.name, "a");
        assert_eq!(client.status().unwrap().role, "primary");
        let mode = fs::metadata(dir.path().join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    });
}

#[test]
fn a_data_directory_with_a_very_long_path_works() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("x".repeat(120));
    fs::create_dir(&data).unwrap();
    with_server(&data, || {
        assert_eq!(Client::connect(&data).unwrap().status().unwrap().role, "primary");
    });
}

#[test]
fn a_socket_left_by_a_crash_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap());
    assert!(matches!(Client::connect(dir.path()), Err(AdminError::NotRunning { .. })));
    with_server(dir.path(), || {
        Client::connect(dir.path()).unwrap().status().unwrap();
    });
}

#[test]
fn garbage_is_answered_with_an_error_and_the_server_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let long = vec![b'x'; usize::try_from(REQUEST_BYTES_MAX).unwrap()];
    with_server(dir.path(), || {
        for garbage in [&b"\n"[..], b"{}\n", b"\xff\xfe\n", b"{\"request\":\"fly\"}\n", &long] {
            let mut stream = StdStream::connect(dir.path().join(SOCKET)).unwrap();
            stream.write_all(garbage).unwrap();
            let mut line = String::new();
            let mut stream = BufReader::new(stream);
            stream.read_line(&mut line).unwrap();
            assert!(line.starts_with("{\"error\":{\"message\":\""), "{line}");
            assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
        }
        Client::connect(dir.path()).unwrap().status().unwrap();
    });
}

#[test]
fn an_unknown_or_dangerous_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    with_server(dir.path(), || {
        let mut client = Client::connect(dir.path()).unwrap();
        for (name, expected) in [("../x", "'..'"), ("none.db", "none.db: no such database")] {
            let db = super::super::WireName::Text(name.to_owned());
            client.send(&Request::Export { db }).unwrap();
            let error = client.receive().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    });
}
