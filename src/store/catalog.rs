//! Which databases there are, by name and by identity.
//!
//! The catalog's lock is a leaf: it is taken for map operations only, and nothing is called while it is held,
//! so it may be taken while a database's lock is.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::database::Database;
use crate::types::{DbId, DbName};

#[derive(Default, Debug)]
pub(super) struct Catalog {
    names: HashMap<DbName, Weak<Database>>,
    tracked: HashMap<DbId, Arc<Database>>,
    inserts: usize,
}

impl Catalog {
    pub(super) fn by_name(&self, name: &DbName) -> Option<Arc<Database>> {
        self.names.get(name).and_then(Weak::upgrade)
    }

    pub(super) fn by_id(&self, id: DbId) -> Option<Arc<Database>> {
        self.tracked.get(&id).cloned()
    }

    pub(super) fn tracked(&self) -> Vec<Arc<Database>> {
        self.tracked.values().cloned().collect()
    }

    /// Makes an entry for a file that is open; it lasts as long as somebody holds the database.
    pub(super) fn name(&mut self, name: DbName, db: &Arc<Database>) {
        self.inserts += 1;
        if self.inserts > 1024 && self.inserts > self.names.len() / 2 {
            self.names.retain(|_, db| db.strong_count() > 0);
            self.inserts = 0;
        }
        self.names.insert(name, Arc::downgrade(db));
    }

    pub(super) fn track(&mut self, id: DbId, db: Arc<Database>) {
        self.names.insert(db.name(), Arc::downgrade(&db));
        self.tracked.insert(id, db);
    }

    /// Keeps the name: the file may be open still.
    pub(super) fn untrack(&mut self, id: DbId) -> Option<Arc<Database>> {
        self.tracked.remove(&id)
    }

    pub(super) fn remove_name(&mut self, name: &DbName) {
        self.names.remove(name);
    }

    /// What has a name, or lies below it if it is a directory.
    pub(super) fn at_or_below(&self, name: &DbName) -> Vec<(DbName, Arc<Database>)> {
        if let Some(db) = self.by_name(name) {
            return vec![(name.clone(), db)];
        }
        let below = [name.as_bytes(), b"/"].concat();
        self.names
            .iter()
            .filter(|(name, _)| name.as_bytes().starts_with(&below))
            .filter_map(|(name, db)| Some((name.clone(), db.upgrade()?)))
            .collect()
    }
}
