//! Every error text of the configuration, and what wins over what.

use std::path::Path;
use std::time::Duration;

use super::*;

const SMALLEST: &str = r#"[node]
name  = "a"
data  = "/var/lib/weir"
mount = "/mnt/db"
[replication]
listen    = "[::]:7400"
advertise = "http://a.internal:7400"
[lease]
type    = "static"
primary = "a"
peers   = { a = "http://a.internal:7400", b = "http://b.internal:7400" }
"#;

fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Config::parse(Some((Path::new("/etc/weir.toml"), text)), &environment)
}

fn check_error(text: &str, expected: &str) {
    let found = parse(text, &[]).map(|_| ()).map_err(|error| error.to_string());
    assert_eq!(found, Err(expected.to_owned()), "{text}");
}

/// The smallest file with some lines put in the place of one.
fn with(line: &str, replacement: &str) -> String {
    assert!(SMALLEST.contains(line), "{line}");
    SMALLEST.replace(line, replacement)
}

#[test]
fn the_smallest_file_of_the_readme_is_enough() {
    let config = parse(SMALLEST, &[]).unwrap();
    assert_eq!(config.node.name, "a");
    assert_eq!(config.node.data, Path::new("/var/lib/weir"));
    assert_eq!(config.replication.listen.as_ref().unwrap().to_string(), "[::]:7400");
    assert_eq!(config.log.age, Duration::from_secs(86_400));
    assert_eq!(config.log.bytes, 1 << 30);
    assert_eq!(config.replica_writes, ReplicaWrites::Busy);
    let LeaseConfig::Static { primary, peers } = &config.lease;
    assert_eq!((primary.as_str(), peers.len()), ("a", 2));
    assert!(config.warnings.is_empty());
    assert_eq!(config.origin("node.data").to_string(), "/etc/weir.toml:3");
    assert_eq!(config.origin("mount.threads"), Origin::Default);
}

#[test]
fn a_node_without_peers_is_its_own_primary() {
    let config = parse("[node]\ndata='/d'\nmount='/m'", &[]).unwrap();
    let LeaseConfig::Static { primary, .. } = &config.lease;
    assert_eq!(*primary, config.node.name);
}

#[test]
fn the_environment_wins_over_the_file() {
    let config = parse(
        SMALLEST,
        &[
            ("WEIR_NODE_DATA", "/other"),
            ("WEIR_LEASE_PEERS", "a=http://a.internal:7400, c=http://c:1/"),
            ("WEIR_REPLICATION_DATABASES", "app/*, users.db"),
            ("WEIR_MOUNT_ALLOW_OTHER", "true"),
        ],
    )
    .unwrap();
    assert_eq!(config.node.data, Path::new("/other"));
    assert_eq!(config.origin("node.data").to_string(), "environment WEIR_NODE_DATA");
    assert_eq!(config.replication.databases, ["app/*", "users.db"]);
    assert!(config.mount.allow_other);
    let LeaseConfig::Static { peers, .. } = &config.lease;
    assert_eq!(peers["c"], "http://c:1");
}

#[test]
fn the_environment_alone_is_enough() {
    let environment = [("WEIR_NODE_DATA", "/d"), ("WEIR_NODE_MOUNT", "/m")];
    let environment = environment.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let config = Config::parse(None, &environment).unwrap();
    assert_eq!(config.node.mount, Path::new("/m"));
}

#[test]
fn a_variable_that_looks_like_a_key_is_a_warning() {
    let config = parse(SMALLEST, &[("WEIR_NODE_NMAE", "x"), ("WEIR_LOG_FORMAT", "json")]).unwrap();
    assert_eq!(
        config.warnings,
        ["the environment variable WEIR_NODE_NMAE sets no key; did you mean WEIR_NODE_NAME?"]
    );
}

#[test]
fn relative_paths_count_from_the_file() {
    let config = parse(&with("/mnt/db", "../mnt/./db"), &[]).unwrap();
    assert_eq!(config.node.mount, Path::new("/mnt/db"));
}

#[test]
fn variables_in_values_are_expanded() {
    let text = with("\"http://a.internal:7400\"\n", "\"http://a.${ZONE:-internal}:7400\"\n")
        + "[mount]\nallow_other = \"${ZONE == 'x'}\"\n";
    assert!(!parse(&text, &[]).unwrap().mount.allow_other);
    let error = parse(&text, &[("ZONE", "y")]).unwrap_err().to_string();
    assert!(error.contains("replication.advertise is http://a.y:7400"), "{error}");
    check_error(
        &with("/mnt/db", "${MOUNT}"),
        "/etc/weir.toml:4: node.mount: the environment variable MOUNT is not set; set it, or give \
         a default with ${MOUNT:-text}",
    );
}

#[test]
fn unknown_names_give_the_line_and_the_nearest() {
    check_error(
        &with("listen ", "lisen  "),
        "/etc/weir.toml:6: unknown key replication.lisen; did you mean replication.listen?",
    );
    check_error(
        &with("[replication]", "[replicaton]"),
        "/etc/weir.toml:5: unknown section [replicaton]; did you mean [replication]?",
    );
    check_error(
        "\nlisten = ':1'",
        "/etc/weir.toml:2: unknown key listen; did you mean replication.listen?",
    );
    check_error(
        "[node]\ncolour_of_the_bicycle_shed = 1",
        "/etc/weir.toml:2: unknown key node.colour_of_the_bicycle_shed",
    );
}

#[test]
fn wrong_types_say_what_is_expected() {
    check_error(
        &with("\"/mnt/db\"", "[1]"),
        "/etc/weir.toml:4: node.mount is an array, it must be a string",
    );
    check_error("node = 3", "/etc/weir.toml:1: node is an integer, it must be a section");
    check_error(
        &with("\"http://b.internal:7400\"", "7400"),
        "/etc/weir.toml:11: lease.peers.b is an integer, it must be a string",
    );
    check_error(
        "[mount]\nallow_other = 1",
        "/etc/weir.toml:2: mount.allow_other is an integer, it must be true or false",
    );
    check_error(
        "[replication]\ndatabases = 'x'",
        "/etc/weir.toml:2: replication.databases is a string, it must be an array of strings",
    );
}

#[test]
fn bad_values_say_what_to_write() {
    check_error(
        &(SMALLEST.to_owned() + "[log]\nretention_age = 24\n"),
        "/etc/weir.toml:13: log.retention_age = \"24\": it has no unit; write 24s for example",
    );
    check_error(
        &(SMALLEST.to_owned() + "[log]\nretention_bytes = \"5 GiBs\"\n"),
        "/etc/weir.toml:13: log.retention_bytes = \"5 GiBs\": \"GiBs\" is no unit; the units are \
         B, KiB, MiB, GiB, TiB, kB, MB, GB, TB",
    );
    check_error(
        &with("\"static\"", "\"raft\""),
        "/etc/weir.toml:9: lease.type = \"raft\": it must be \"static\"",
    );
    check_error(
        &(SMALLEST.to_owned() + "[replica]\nwrites = \"maybe\"\n"),
        "/etc/weir.toml:13: replica.writes = \"maybe\": it must be \"busy\" or \"readonly\"",
    );
    check_error(
        &with("[::]:7400", "7400"),
        "/etc/weir.toml:6: replication.listen = \"7400\": write host:port or [address]:port, for \
         example \"[::]:7400\"",
    );
    check_error(
        &with("advertise = \"http://a.internal:7400\"", "advertise = \"a.internal\""),
        "/etc/weir.toml:7: replication.advertise = \"a.internal\": write a URL with a port, for \
         example \"http://a.internal:7400\"",
    );
    check_error(
        &with("http://b.internal:7400", "https://b.internal:7400"),
        "/etc/weir.toml:11: lease.peers.b = \"https://b.internal:7400\": https is not supported; \
         write http:// and keep the traffic on a private network",
    );
    check_error(
        &with("name  = \"a\"", "name  = \"a b\""),
        "/etc/weir.toml:2: node.name = \"a b\": a node's name has 1 to 253 letters, digits, '.', '-' \
         or '_'",
    );
    check_error(
        &(SMALLEST.to_owned() + "[mount]\nthreads = 0\n"),
        "/etc/weir.toml:13: mount.threads = \"0\": it must be a number from 2 to 64",
    );
    check_error(
        &with("[lease]", "databases = [\"a[\"]\n[lease]"),
        "/etc/weir.toml:8: replication.databases = \"a[\": unclosed character class; missing ']'",
    );
}

#[test]
fn broken_toml_gives_the_line() {
    let error = parse("[node]\nname = \"a\nb = 3", &[]).unwrap_err().to_string();
    assert!(error.starts_with("/etc/weir.toml:2: "), "{error}");
    let error = parse("[node]\nname = 'a'\nname = 'b'", &[]).unwrap_err().to_string();
    assert!(error.starts_with("/etc/weir.toml:3: duplicate key"), "{error}");
}

#[test]
fn missing_keys_say_where_to_set_them() {
    check_error(
        "[node]\nmount = '/m'",
        "node.data is not set; add it to /etc/weir.toml or set WEIR_NODE_DATA",
    );
    check_error(
        &with("primary = \"a\"\n", ""),
        "lease.primary is not set; add it to /etc/weir.toml or set WEIR_LEASE_PRIMARY",
    );
    let error = Config::parse(None, &Environment::new()).unwrap_err().to_string();
    assert_eq!(
        error,
        "node.data is not set; there is no configuration file (looked for ./weir.toml and \
         /etc/weir.toml); write one, name it with --config, or set WEIR_NODE_DATA"
    );
}

#[test]
fn contradictions_name_both_sides() {
    let apart = "they must be directories apart from each other";
    for (mount, text) in [
        ("/var/lib/weir", "node.data and node.mount are both /var/lib/weir"),
        ("/var/lib/weir/m", "node.mount /var/lib/weir/m is inside node.data /var/lib/weir"),
        ("/var/lib", "node.data /var/lib/weir is inside node.mount /var/lib"),
    ] {
        check_error(&with("/mnt/db", mount), &format!("/etc/weir.toml:4: {text}; {apart}"));
    }
    check_error(
        &with("primary = \"a\"", "primary = \"z\""),
        "/etc/weir.toml:10: lease.primary is \"z\", but lease.peers does not say where it is; add \
         z = \"http://HOST:PORT\" to lease.peers, or set node.name (now \"a\") if this node is meant",
    );
    check_error(
        &with("listen    = \"[::]:7400\"\n", ""),
        "/etc/weir.toml:10: lease.peers lists other nodes and lease.primary is this node (\"a\"), but \
         replication.listen is not set; set it, for example to \"[::]:7400\"",
    );
    check_error(
        &with("advertise = \"http://a.internal:7400\"\n", "")
            .replace("{ a = \"http://a.internal:7400\",", "{"),
        "/etc/weir.toml:6: replication.listen is set, but neither replication.advertise nor \
         lease.peers.a says where other nodes reach this one; set replication.advertise",
    );
    check_error(
        &with("advertise = \"http://a.internal:7400\"", "advertise = \"http://x:7400\""),
        "/etc/weir.toml:7: replication.advertise is http://x:7400, but lease.peers.a is \
         http://a.internal:7400; make them equal",
    );
    check_error(
        &(SMALLEST.to_owned() + "[log]\nretention_bytes_max = \"1MiB\"\n"),
        "/etc/weir.toml:13: log.retention_bytes_max is less than log.retention_bytes; it is the hard \
         cap, raise it",
    );
}

#[test]
fn a_symbolic_link_does_not_hide_a_contradiction() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    std::os::unix::fs::symlink(&data, dir.path().join("link")).unwrap();
    let text = format!(
        "[node]\ndata = '{}'\nmount = '{}'",
        data.display(),
        dir.path().join("link/m").display()
    );
    let error = parse(&text, &[]).unwrap_err().to_string();
    assert!(error.contains("is inside node.data"), "{error}");
}
