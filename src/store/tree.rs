//! What the kernel asks about names: which database a file belongs to, removals, renames.

use std::io;
use std::sync::Arc;

use super::{CatalogChange, Store};
use crate::database::{Database, FileRole, OpError, Origin, WriterIs};
use crate::types::DbName;

const COMPANIONS: [(&str, FileRole); 3] =
    [("-wal", FileRole::Wal), ("-shm", FileRole::Shm), ("-journal", FileRole::Journal)];

impl Store {
    /// The database for a regular file that is not a companion, made if there is none.
    #[must_use]
    pub fn main_file(&self, name: &DbName) -> Arc<Database> {
        let mut catalog = self.catalog.lock();
        if let Some(db) = catalog.by_name(name) {
            return db;
        }
        let db = Database::untracked(&self.shared, name.clone());
        catalog.name(name.clone(), &db);
        db
    }

    /// Splits a path into the database it belongs to and the role of the file: `a/x.db-wal` is the
    /// WAL of `a/x.db` if that file exists, otherwise a main file of its own. What is a main file (a database, or open
    /// as one) stays one when `a/x.db` appears beside it: a file has one role as long as anybody uses it.
    #[must_use]
    pub fn resolve(&self, path: &DbName) -> (Arc<Database>, FileRole) {
        for (suffix, role) in COMPANIONS {
            let Some(base) = path.as_bytes().strip_suffix(suffix.as_bytes()) else { continue };
            let Ok(base) = DbName::new(base) else { continue };
            if let Some(db) = self.catalog.lock().by_name(path) {
                return (db, FileRole::Main);
            }
            if self.shared.files.join(base.as_path()).is_file() {
                return (self.main_file(&base), role);
            }
        }
        (self.main_file(path), FileRole::Main)
    }

    /// Removes a file by calling `remove`, and what hangs on it: the unlink of a journal commits, of a
    /// WAL captures, of a database drops it.
    ///
    /// # Errors
    /// The file is still there, and nothing was committed.
    pub fn unlink(
        &self,
        path: &DbName,
        origin: Origin,
        remove: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<(), OpError> {
        let (db, role) = self.resolve(path);
        if role != FileRole::Main {
            return db.unlink_companion(role, origin, remove);
        }
        self.check_replica_change(&db, origin)?;
        remove().map_err(|source| OpError::Disk {
            step: "remove file",
            path: path.as_path().to_owned(),
            source,
        })?;
        self.catalog.lock().remove_name(path);
        db.removed();
        Ok(())
    }

    /// Renames a file or directory by calling `rename`; databases keep their identity.
    ///
    /// # Errors
    /// Nothing was renamed.
    pub fn rename(
        &self,
        from: &DbName,
        to: &DbName,
        origin: Origin,
        rename: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<(), OpError> {
        // Nobody may have it open any more, and nobody else knows that it becomes a database now.
        let _imported = from.is_being_imported().then(|| self.main_file(from));
        let moved = self.catalog.lock().at_or_below(from);
        let replaced = self.catalog.lock().by_name(to);
        for (_, db) in &moved {
            self.check_replica_change(db, origin)?;
            // A copy that is renamed into place may not have been closed yet.
            if db.is_written_without_journal() && self.shared.is_primary() {
                db.capture_unlogged(WriterIs::Gone, None)?;
            }
        }
        if let Some(db) = &replaced {
            self.check_replica_change(db, origin)?;
        }
        let renames: Vec<(DbName, DbName, Arc<Database>)> = moved
            .into_iter()
            .filter_map(|(name, db)| {
                let rest = &name.as_bytes()[from.as_bytes().len()..];
                let new = DbName::new(&[to.as_bytes(), rest].concat()).ok()?;
                Some((name, new, db))
            })
            .collect();
        for (index, (_, new, db)) in renames.iter().enumerate() {
            if let Err(error) = db.will_rename(new) {
                renames[..index].iter().for_each(|(_, _, db)| db.not_renamed());
                return Err(error);
            }
        }
        if let Err(source) = rename() {
            renames.iter().for_each(|(_, _, db)| db.not_renamed());
            return Err(OpError::Disk { step: "rename", path: from.as_path().to_owned(), source });
        }
        if let Some(replaced) = replaced {
            replaced.removed();
        }
        let mut failed = None;
        for (old, new, db) in renames {
            {
                let mut catalog = self.catalog.lock();
                catalog.remove_name(&old);
                catalog.name(new.clone(), &db);
            }
            if let Err(error) = db.renamed(&new) {
                failed = Some(error);
            }
            if old.is_being_imported() && !new.is_being_imported() && self.shared.is_primary() {
                // Now it is a database, and nobody has heard of it under another name.
                if let Err(error) = db.take_existing_file() {
                    self.unlogged.push(db);
                    failed = Some(error);
                }
                continue;
            }
            if let Some(id) = db.id() {
                self.announcer.catalog(&CatalogChange::Named { id, name: new });
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// On a replica only the daemon changes which databases there are.
    fn check_replica_change(&self, db: &Database, origin: Origin) -> Result<(), OpError> {
        let refused =
            origin == Origin::Application && db.id().is_some() && !self.shared.is_primary();
        if refused { Err(OpError::NotPrimary(db.name())) } else { Ok(()) }
    }
}
