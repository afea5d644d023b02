//! What a replica does with the primary's catalog: makes, renames and removes databases.
//!
//! `replication::follower` says in which order. Files of this node that are in the way go to `lost+found`.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use tracing::{info, warn};

use super::Store;
use crate::client::Request;
use crate::database::{Database, OpError};
use crate::disk::clock;
use crate::types::{DbId, DbName};

/// So much of a name is kept in `lost+found`, where a number comes before it.
const KEPT_BYTES_MAX: usize = 220;

impl Store {
    /// On a replica: makes or renames a database as the primary has it. A local file in the way moves
    /// to `lost+found`. Blocks on the mount.
    ///
    /// # Errors
    /// [`OpError::NameTaken`] if another database is in the way; the log's directory could not be made; the rename
    /// failed.
    pub fn adopt(&self, id: DbId, name: &DbName) -> Result<Arc<Database>, OpError> {
        self.check_free(id, name)?;
        if let Some(db) = self.by_id(id) {
            // An apply under way would bring the file back under its old name.
            let _claim = self.to_apply.claim(id);
            let before = db.name();
            if before != *name {
                self.clear_the_way(name)?;
                if self.shared.files.join(before.as_path()).exists() {
                    self.call(&db, Request::MakeParents { name: name.clone() })?;
                    self.check_parents(name)?;
                    self.call(&db, Request::Rename { from: before.clone(), to: name.clone() })?;
                } else {
                    db.will_rename(name)?;
                }
                if db.name() != *name {
                    // There was no file, or no mount that has heard of its new name.
                    db.renamed(name)?;
                    let mut catalog = self.catalog.lock();
                    catalog.remove_name(&before);
                    catalog.name(name.clone(), &db);
                }
            }
            return Ok(db);
        }
        self.clear_the_way(name)?;
        let db = Database::adopted(&self.shared, id, name.clone())?;
        self.catalog.lock().track(id, db.clone());
        Ok(db)
    }

    /// No other database has the name, or lies in the directory of that name.
    fn check_free(&self, id: DbId, name: &DbName) -> Result<(), OpError> {
        let path = self.shared.files.join(name.as_path());
        let is_dir = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
        let catalog = self.catalog.lock();
        let there = if is_dir {
            catalog.at_or_below(name)
        } else {
            catalog.by_name(name).map(|db| (name.clone(), db)).into_iter().collect()
        };
        drop(catalog);
        let other = there.iter().filter_map(|(_, db)| db.id()).find(|other| *other != id);
        other.map_or(Ok(()), |other| Err(OpError::NameTaken { db: name.clone(), other }))
    }

    /// Moves what is no replicated database out of the way of one: a file of that name, or anything but a directory
    /// above it. A symbolic link there would lead out of the data directory.
    fn clear_the_way(&self, name: &DbName) -> Result<(), OpError> {
        if let Some(above) = self.no_directory_above(name) {
            self.move_away(&above)?;
        }
        self.move_away(name)
    }

    /// The first component above a name that exists and is not a directory.
    fn no_directory_above(&self, name: &DbName) -> Option<DbName> {
        let bytes = name.as_bytes();
        let slashes = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        slashes.filter_map(|(at, _)| DbName::new(&bytes[..at]).ok()).find(|above| {
            let path = self.shared.files.join(above.as_path());
            fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_dir())
        })
    }

    /// Fails if something came between the directories above a name since the way was cleared.
    pub(super) fn check_parents(&self, name: &DbName) -> Result<(), OpError> {
        match self.no_directory_above(name) {
            None => Ok(()),
            Some(above) => Err(OpError::Disk {
                step: "use as directory",
                path: self.shared.files.join(above.as_path()),
                source: io::ErrorKind::NotADirectory.into(),
            }),
        }
    }

    fn move_away(&self, name: &DbName) -> Result<(), OpError> {
        let path = self.shared.files.join(name.as_path());
        let Ok(metadata) = fs::symlink_metadata(&path) else { return Ok(()) };
        let fail = |step| {
            let path = path.clone();
            move |source| OpError::Disk { step, path: path.clone(), source }
        };
        if metadata.is_file() && metadata.len() == 0 {
            fs::remove_file(&path).map_err(fail("remove empty file"))?;
        } else if metadata.is_dir() && remove_empty_dirs(&path).is_ok() {
            // What other databases left.
        } else {
            let base = name.as_path().file_name().unwrap_or(name.as_path().as_os_str());
            let mut kept = format!("{}-", clock::wall_ms()).into_bytes();
            kept.extend(base.as_bytes().iter().take(KEPT_BYTES_MAX));
            let kept = self.lost_and_found.join(OsStr::from_bytes(&kept));
            #[allow(
                clippy::disallowed_methods,
                reason = "the content is not new; a directory may move too"
            )]
            fs::rename(&path, &kept).map_err(fail("move to lost+found"))?;
            warn!(db = %name, to = %kept.display(), "a local file was in the way of a replicated database");
        }
        self.invalidate(name);
        Ok(())
    }

    /// On a replica: removes a database the primary does not have. `keeps_own` says that transactions which this node
    /// committed itself, as a primary, are kept: nobody says that they were ever anywhere else. Blocks on the mount.
    ///
    /// # Errors
    /// A file could not be kept or removed.
    pub fn forget(&self, id: DbId, keeps_own: bool) -> Result<(), OpError> {
        let Some(db) = self.by_id(id) else { return Ok(()) };
        // An apply under way would bring the file back.
        let _claim = self.to_apply.claim(id);
        let name = db.name();
        if keeps_own {
            self.keep_own_file(&db)?;
        }
        if self.shared.files.join(name.as_path()).exists() {
            self.call(&db, Request::Remove { name: name.clone() })?;
        }
        db.removed();
        self.fenced.lock().remove(&id);
        self.used.lock().remove(&id);
        info!(db = %name, %id, "removed, as on the primary");
        Ok(())
    }
}

/// Removes a directory in which there is nothing but directories.
fn remove_empty_dirs(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        remove_empty_dirs(&entry.path())?;
    }
    fs::remove_dir(path)
}
