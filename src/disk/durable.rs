//! Directory and whole-file operations that are durable when they return.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::fault;

/// A directory kept open for `fsync`.
#[derive(Debug)]
pub struct Dir {
    file: File,
    path: PathBuf,
}

impl Dir {
    /// Opens an existing directory.
    ///
    /// # Errors
    /// It is not there or not a directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, path: path.to_owned() })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes creations, renames and removals in it durable.
    ///
    /// # Errors
    /// The disk refused.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// Makes the entries of a directory durable.
///
/// # Errors
/// The directory is missing or the disk refused.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Creates a directory and missing parents, durably. An existing one is fine.
///
/// # Errors
/// The disk refused, or a file is in the way.
pub fn create_dir_durable(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_dir_durable(parent)?;
    }
    match fs::create_dir(path) {
        Ok(()) => sync_dir(parent.unwrap_or(Path::new("."))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Replaces a file's content as a whole: after a crash it is the old or the new one, never a mixture.
///
/// # Errors
/// The disk refused; the old content is still there.
#[allow(clippy::disallowed_methods, reason = "this is the function that the ban points to")]
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let class = class_of(path);
    fault::step(class, "create")?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
    fault::step(class, "write")?;
    file.write_all(content)?;
    fault::step(class, "sync")?;
    file.sync_all()?;
    fault::step(class, "rename")?;
    fs::rename(&temporary, path)?;
    fault::step(class, "dirsync")?;
    sync_dir(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// The class of a file for fault points.
fn class_of(path: &Path) -> &'static str {
    match path.file_name().and_then(|name| name.to_str()) {
        Some("meta.json") => "meta",
        Some("sums") => "sums",
        Some(name) if name.ends_with(".seg") => "log",
        Some(_) | None => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replace_leaves_the_new_content_and_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn create_dir_makes_parents_and_accepts_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c");
        create_dir_durable(&path).unwrap();
        create_dir_durable(&path).unwrap();
        assert!(path.is_dir());
    }
}
