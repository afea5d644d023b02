//! What a replica does with the primary's copies; and what it knows of the primary.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use tracing::info;

use super::{Role, Store};
use crate::client::{Answer, Pool, Request};
use crate::database::{Database, Image, OpError};
use crate::disk::{self, clock};
use crate::types::{DbId, NodeId, Pos, Txid};

impl Store {
    /// On a replica: replaces a database's content by a complete image that `Snapshot`s gave, checked
    /// against the position's checksum first. Readers see either state. Blocks for long.
    ///
    /// # Errors
    /// The image does not match the position, or a file could not be written.
    pub fn install(&self, db: &Database, image: &Path, pos: Pos) -> Result<(), OpError> {
        let image = Image::check(db, image, pos)?;
        let id = db.id().ok_or_else(|| OpError::NotTracked(db.name()))?;
        let _claim = self.to_apply.claim(id);
        if self.shared.is_primary() {
            // It was promoted while the image was checked: its own content counts.
            return Err(OpError::NotReplica(db.name()));
        }
        let is_used = db.begin_install()?;
        let result = self.put_image(db, id, &image, is_used);
        if let Err(error) = &result {
            // Perhaps half of it is in the file. As long as that may be, nothing is noted as durable.
            db.quarantine(&format!("the primary's copy could not be put in place: {error}"), true);
        }
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

    pub(super) fn call(&self, db: &Database, request: Request) -> Result<Answer, OpError> {
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
