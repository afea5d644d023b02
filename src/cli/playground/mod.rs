//! Nodes on this machine, in a temporary directory: the stage of `demo` and `bench`.
//!
//! Each node is a child process of this same program, `weir mount` with a configuration written here.
//! What always holds: dropping a [`Playground`] ends its daemons, unmounts and removes everything, also
//! after Ctrl-C (all waits end early through [`Interrupt`]) and after an error. [`Playground::keep`] is
//! the exception, asked for by the user.

mod compare;
mod interrupt;
mod node;

pub(crate) use compare::compare;
pub(crate) use interrupt::Interrupt;
pub(crate) use node::Node;

use std::fmt::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;

/// Nodes `a`, `b`, … of which `a` is the primary.
#[derive(Debug)]
pub(crate) struct Playground {
    root: PathBuf,
    pub(crate) nodes: Vec<Node>,
    keep: bool,
}

impl Playground {
    /// Starts `count` nodes below `parent` and waits until they serve.
    ///
    /// # Errors
    /// A node did not come up; its log is part of the error.
    pub(crate) fn start(
        parent: &Path,
        purpose: &str,
        count: usize,
        interrupt: &Arc<Interrupt>,
    ) -> anyhow::Result<Self> {
        let root = parent.join(format!("weir-{purpose}-{}", std::process::id()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&root)
            .with_context(|| format!("create {}", root.display()))?;
        let mut playground = Self { root, nodes: Vec::new(), keep: false };
        playground.write_nodes(count, interrupt)?;
        for node in &mut playground.nodes {
            node.spawn()?;
        }
        for node in &mut playground.nodes {
            node.wait_ready()?;
        }
        Ok(playground)
    }

    fn write_nodes(&mut self, count: usize, interrupt: &Arc<Interrupt>) -> anyhow::Result<()> {
        // All ports are held until all are known, so that they differ.
        let mut listeners = Vec::new();
        for _ in 0..count {
            listeners.push(TcpListener::bind("127.0.0.1:0").context("find a free port")?);
        }
        let mut addresses = Vec::new();
        for (name, listener) in ('a'..='z').zip(&listeners) {
            addresses.push((name.to_string(), listener.local_addr()?.to_string()));
        }
        let mut peers = String::new();
        for (name, address) in &addresses {
            let separator = if peers.is_empty() { "" } else { ", " };
            write!(peers, "{separator}{name} = \"http://{address}\"")?;
        }
        for (name, address) in &addresses {
            let node = Node::create(&self.root, name, address, &peers, interrupt)?;
            self.nodes.push(node);
        }
        Ok(())
    }

    /// The directory that holds the nodes.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The node that takes writes.
    pub(crate) fn primary(&self) -> &Node {
        &self.nodes[0]
    }

    /// The nodes that follow.
    pub(crate) fn replicas(&self) -> &[Node] {
        &self.nodes[1..]
    }

    /// Leaves everything running when this is dropped.
    pub(crate) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        if self.keep {
            self.nodes.iter_mut().for_each(Node::leave_running);
            return;
        }
        // Replicas first, so that none of them looks for a primary that ends.
        for node in self.nodes.iter_mut().rev() {
            node.stop();
        }
        if self.nodes.iter().any(Node::is_mounted) {
            // Never delete through a mount that is still there.
            let root = self.root.display();
            super::output::error(&anyhow::anyhow!(
                "{root} is still mounted; see `mount`, then remove it"
            ));
        } else if let Err(error) = std::fs::remove_dir_all(&self.root) {
            super::output::error(&anyhow::anyhow!("remove {}: {error}", self.root.display()));
        }
    }
}
