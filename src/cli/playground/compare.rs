//! Whether all nodes hold the same bytes.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, bail};

use super::Playground;

/// What a comparison of one database found.
#[derive(Debug)]
pub(crate) struct Comparison {
    /// The position all nodes are at.
    pub(crate) position: String,
    /// Size of the database.
    pub(crate) bytes: usize,
    /// Names of the nodes whose bytes differ from the primary's.
    pub(crate) different: Vec<String>,
}

/// Waits until all nodes are level, exports the database from each and compares the files.
///
/// # Errors
/// The nodes do not meet, or an export failed.
pub(crate) fn compare(playground: &Playground, db: &str) -> anyhow::Result<Comparison> {
    let position = playground.primary().position(db).context("the database has no position")?;
    for node in playground.replicas() {
        node.wait_position(db, &position)?;
    }
    let mut images = Vec::new();
    for node in &playground.nodes {
        let file: PathBuf = playground.root().join(format!("export-{}", node.name));
        let mut command = node.command()?;
        command.args(["export", db]).arg(&file).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("export from {}", node.name))?;
        if !output.status.success() {
            bail!("export from {}: {}", node.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        images.push(std::fs::read(&file).with_context(|| format!("read {}", file.display()))?);
        std::fs::remove_file(&file)?;
    }
    let different = playground
        .nodes
        .iter()
        .zip(&images)
        .filter(|(_, image)| *image != &images[0])
        .map(|(node, _)| node.name.clone())
        .collect();
    Ok(Comparison { position, bytes: images[0].len(), different })
}
