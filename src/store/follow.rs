//! What a replica does with the primary's catalog and copies; and what it knows of the primary.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::{Role, Store};
use crate::client::{Answer, Pool, Request};
use crate::database::{Database, Image, OpError};
use crate::disk::{self, clock};
use crate::types::{DbId, DbName, NodeId, Pos, Txid};

impl Store {
    /// On a replica: makes or renames a database as the primary has it. A local file in the way moves
    /// to `lost+found`. Blocks on the mount.
    ///
    /// # Errors
    /// The log's directory could not be made, or the rename failed.
    pub fn adopt(&self, id: DbId, name: &DbName) -> Result<Arc<Database>, OpError> {
        if let Some(other) = self.by_name(name)
            && let Some(other_id) = other.id()
            && other_id != id
        {
            self.forget(other_id)?;
        }
        if let Some(db) = self.by_id(id) {
            // An apply under way would bring the file back under its old name.
            let _claim = self.to_apply.claim(id);
            let before = db.name();
            if before != *name {
                self.clear_the_way(name)?;
                if self.shared.files.join(before.as_path()).exists() {
                    self.call(&db, Request::MakeParents { name: name.clone() })?;
                    self.check_parents(name)?;
                    self.call(&db, Request::Rename { from: before, to: name.clone() })?;
                } else {
                    db.will_rename(name)?;
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
    fn check_parents(&self, name: &DbName) -> Result<(), OpError> {
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
        } else {
            let base = name.as_path().file_name().unwrap_or(name.as_path().as_os_str());
            let mut kept = std::ffi::OsString::from(format!("{}-", clock::wall_ms()));
            kept.push(base);
            let kept = self.lost_and_found.join(kept);
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

    /// On a replica: removes a database the primary does not have. Blocks on the mount.
    ///
    /// # Errors
    /// A file could not be removed.
    pub fn forget(&self, id: DbId) -> Result<(), OpError> {
        let Some(db) = self.by_id(id) else { return Ok(()) };
        // An apply under way would bring the file back.
        let _claim = self.to_apply.claim(id);
        let name = db.name();
        if self.shared.files.join(name.as_path()).exists() {
            self.call(&db, Request::Remove { name: name.clone() })?;
        }
        db.removed();
        self.fenced.lock().remove(&id);
        self.used.lock().remove(&id);
        info!(db = %name, %id, "removed, as on the primary");
        Ok(())
    }

    /// On a replica: replaces a database's content by a complete image that `Snapshot`s gave, checked
    /// against the position's checksum first. Readers see either state. Blocks for long.
    ///
    /// # Errors
    /// The image does not match the position, or a file could not be written.
    pub fn install(&self, db: &Database, image: &Path, pos: Pos) -> Result<(), OpError> {
        let image = Image::check(db, image, pos)?;
        let id = db.id().ok_or_else(|| OpError::NotTracked(db.name()))?;
        let _claim = self.to_apply.claim(id);
        let is_used = db.begin_install()?;
        let result = self.put_image(db, id, &image, is_used);
        db.end_install();
        result
    }

    fn put_image(
        &self,
        db: &Database,
        id: DbId,
        image: &Image,
        is_used: bool,
    ) -> Result<(), OpError> {
        let name = db.name();
        let pos = image.pos;
        let path = self.shared.files.join(name.as_path());
        if path.exists() && is_used {
            let change = db.difference(image)?;
            let pages = change.pages.len();
            let answer = self.call(db, Request::Apply { name, change })?;
            info!(db = %db.name(), pages, %pos, "brought level with the primary's copy");
            let is_in_the_file = matches!(answer, Answer::State(state) if state.is_written_back());
            db.installed(image, is_in_the_file)
        } else {
            self.replace_file(db, id, image, &path)?;
            info!(db = %db.name(), %pos, "took the primary's copy");
            db.installed(image, true)
        }
    }

    /// Puts the image in the place of a file that no application has open.
    fn replace_file(
        &self,
        db: &Database,
        id: DbId,
        image: &Image,
        path: &Path,
    ) -> Result<(), OpError> {
        let name = db.name();
        if let Some(client) = self.shared.client() {
            self.detach(db, id, client);
        }
        self.call(db, Request::MakeParents { name: name.clone() })?;
        self.check_parents(&name)?;
        let fail = |step, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| OpError::Disk { step, path: path.clone(), source }
        };
        for suffix in ["-wal", "-shm", "-journal"] {
            if let Some(companion) = name.with_suffix(suffix)
                && self.by_name(&companion).is_none()
            {
                let path = self.shared.files.join(companion.as_path());
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(fail("remove companion", &path)(error));
                    }
                    Ok(()) | Err(_) => self.invalidate(&companion),
                }
            }
        }
        if let Ok(old) = fs::metadata(path) {
            drop(fs::set_permissions(&image.path, old.permissions()));
        }
        fs::File::open(&image.path)
            .and_then(|file| file.sync_all())
            .map_err(fail("sync copy", &image.path))?;
        #[allow(
            clippy::disallowed_methods,
            reason = "the image is synced above, the directory below"
        )]
        fs::rename(&image.path, path).map_err(fail("put copy in place", path))?;
        if let Some(parent) = path.parent() {
            disk::sync_dir(parent).map_err(fail("sync directory", parent))?;
        }
        self.invalidate(&name);
        Ok(())
    }

    fn call(&self, db: &Database, request: Request) -> Result<Answer, OpError> {
        let (Some(client), Some(id)) = (self.shared.client(), db.id()) else {
            return Err(OpError::NotTracked(db.name()));
        };
        self.used_through_mount(id);
        Pool::call(client, id, request).map_err(|source| OpError::Client {
            db: db.name(),
            step: "work",
            source,
        })
    }

    /// On a replica: contact with the primary, for `.primary` and `.lag`. `level_at` is when every
    /// position that the primary had reported by then was applied here, on `clock::boottime`.
    pub fn heard_from_primary(&self, name: &str, level_at: Option<Duration>) {
        let mut role = self.role.write();
        if let Role::Replica { primary } = &mut *role
            && primary.as_deref() != Some(name)
        {
            *primary = Some(name.to_owned());
        }
        drop(role);
        let mut level = self.level_at.lock();
        *level = level_at.max(*level);
    }

    /// On a replica: the stream to the primary broke.
    pub fn lost_primary(&self) {
        if let Role::Replica { primary } = &mut *self.role.write() {
            *primary = None;
        }
    }

    /// Milliseconds since this node was last known to be level with the primary: 0 on the primary,
    /// `i32::MAX` before the first contact. The content of `.lag`.
    #[must_use]
    pub fn lag_ms(&self) -> i64 {
        if self.shared.is_primary() {
            return 0;
        }
        let never = i64::from(i32::MAX);
        match *self.level_at.lock() {
            None => never,
            Some(at) => {
                let lag = clock::boottime().saturating_sub(at).as_millis();
                i64::try_from(lag).unwrap_or(never).min(never)
            }
        }
    }

    /// A replica is connected and needs the log of a database from this position on.
    pub fn follower_needs(&self, peer: NodeId, db: DbId, pos: Pos) {
        self.followers.lock().entry(peer).or_default().insert(db, pos.txid);
    }

    /// A replica is gone: the log is no longer kept for it.
    pub fn follower_gone(&self, peer: NodeId) {
        self.followers.lock().remove(&peer);
    }

    /// The oldest transaction behind which a connected replica still needs the log.
    pub(super) fn needed_by_followers(&self, id: DbId) -> Option<Txid> {
        let followers = self.followers.lock();
        followers
            .values()
            .filter_map(|dbs| dbs.get(&id))
            .map(|txid| txid.unwrap_or(Txid::FIRST))
            .min()
    }
}
