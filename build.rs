//! Generates the gRPC code from `proto/`, without a `protoc` on the PATH.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let root = Path::new("proto");
    let files = protox::compile([root.join("weir/v1/replication.proto")], [root])?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}
