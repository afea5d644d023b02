//! What the kernel knows: inodes, the names that lead to them, and how often each was looked up.
//!
//! An inode number is the backing file's, except for the root, which is 1. A node lives from the first
//! lookup to the FORGET that takes the last one back. Names are hints: whoever opens a file by a name
//! from here checks the inode of what it got.
//! Not here: the backing files (`backing`), open handles (`handles`).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use parking_lot::Mutex;

/// The inode number of the mount's root.
pub(super) const ROOT: u64 = 1;

/// Deepest tree that is served; it also ends a walk through a damaged table.
const DEPTH_MAX: usize = 2048;

/// One name of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Link {
    pub(super) parent: u64,
    pub(super) name: OsString,
}

#[derive(Debug, Default)]
struct Node {
    lookups: u64,
    links: Vec<Link>,
    /// Tells apart two files that had the same backing inode one after the other.
    generation: u64,
    /// The last name was removed: if the inode appears again, it is another file.
    is_gone: bool,
}

#[derive(Debug, Default)]
struct Table {
    nodes: HashMap<u64, Node>,
    generation_last: u64,
}

/// The table of nodes. Its lock is held for memory work only.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    table: Mutex<Table>,
}

impl Nodes {
    /// Counts a lookup that is about to be answered. Returns the node's generation.
    pub(super) fn remember(&self, ino: u64, parent: u64, name: &OsStr) -> u64 {
        if ino == ROOT {
            return 0;
        }
        let mut table = self.table.lock();
        let table = &mut *table;
        let node = table.nodes.entry(ino).or_default();
        if node.is_gone {
            table.generation_last += 1;
            node.generation = table.generation_last;
            node.is_gone = false;
        }
        node.lookups += 1;
        if !node.links.iter().any(|link| link.parent == parent && link.name == name) {
            node.links.push(Link { parent, name: name.to_owned() });
        }
        node.generation
    }

    /// Takes lookups back.
    pub(super) fn forget(&self, ino: u64, lookups: u64) {
        let mut table = self.table.lock();
        if let Some(node) = table.nodes.get_mut(&ino) {
            node.lookups = node.lookups.saturating_sub(lookups);
            if node.lookups == 0 {
                table.nodes.remove(&ino);
            }
        }
    }

    /// A name was removed; `was_last` if the file has no other.
    pub(super) fn unlinked(&self, ino: u64, parent: u64, name: &OsStr, was_last: bool) {
        let mut table = self.table.lock();
        if let Some(node) = table.nodes.get_mut(&ino) {
            node.links.retain(|link| link.parent != parent || link.name != name);
            if was_last {
                node.links.clear();
                node.is_gone = true;
            }
        }
    }

    /// A name was changed.
    pub(super) fn renamed(&self, ino: u64, from: (u64, &OsStr), to: (u64, &OsStr)) {
        let mut table = self.table.lock();
        if let Some(node) = table.nodes.get_mut(&ino) {
            node.links.retain(|link| link.parent != from.0 || link.name != from.1);
            node.links.push(Link { parent: to.0, name: to.1.to_owned() });
        }
    }

    /// The names that should lead to a node.
    pub(super) fn links(&self, ino: u64) -> Vec<Link> {
        self.table.lock().nodes.get(&ino).map(|node| node.links.clone()).unwrap_or_default()
    }

    /// Whether the kernel knows the node.
    pub(super) fn is_known(&self, ino: u64) -> bool {
        ino == ROOT || self.table.lock().nodes.contains_key(&ino)
    }

    /// The path of a directory below the root, without a leading slash; empty for the root itself.
    pub(super) fn directory_path(&self, ino: u64) -> Option<Vec<u8>> {
        let table = self.table.lock();
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let link = table.nodes.get(&at)?.links.last()?;
            parts.push(link.name.as_bytes());
            at = link.parent;
            if parts.len() > DEPTH_MAX {
                return None;
            }
        }
        parts.reverse();
        Some(parts.join(&b'/'))
    }

    /// Number of nodes, for tests and status.
    pub(super) fn len(&self) -> usize {
        self.table.lock().nodes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    #[test]
    fn a_path_follows_the_renames_of_its_directories() {
        let nodes = Nodes::default();
        nodes.remember(10, ROOT, name("a"));
        nodes.remember(11, 10, name("b"));
        assert_eq!(nodes.directory_path(11), Some(b"a/b".to_vec()));
        nodes.renamed(10, (ROOT, name("a")), (ROOT, name("c")));
        assert_eq!(nodes.directory_path(11), Some(b"c/b".to_vec()));
        assert_eq!(nodes.directory_path(ROOT), Some(Vec::new()));
        assert_eq!(nodes.directory_path(99), None);
    }

    #[test]
    fn a_node_lives_until_the_last_lookup_is_forgotten() {
        let nodes = Nodes::default();
        nodes.remember(10, ROOT, name("a"));
        nodes.remember(10, ROOT, name("b"));
        assert_eq!(nodes.links(10).len(), 2);
        nodes.forget(10, 1);
        assert!(nodes.is_known(10));
        nodes.forget(10, 1);
        assert_eq!(nodes.len(), 0);
    }

    #[test]
    fn a_reused_inode_gets_another_generation() {
        let nodes = Nodes::default();
        let before = nodes.remember(10, ROOT, name("a"));
        nodes.unlinked(10, ROOT, name("a"), true);
        assert_eq!(nodes.links(10), []);
        let behind = nodes.remember(10, ROOT, name("b"));
        assert_ne!(before, behind);
        assert_eq!(nodes.remember(10, ROOT, name("b")), behind);
    }

    #[test]
    fn a_loop_in_the_table_ends() {
        let nodes = Nodes::default();
        nodes.remember(10, 11, name("a"));
        nodes.remember(11, 10, name("b"));
        assert_eq!(nodes.directory_path(10), None);
    }
}
