//! Names of databases: checked paths below the mount point.

use std::borrow::Borrow;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

/// A path relative to the mount point, as bytes: no empty, `.` or `..` component, no leading `/`.
///
/// An external name becomes a path only through this type, so it cannot leave the data directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DbName(Arc<[u8]>);

/// Why bytes are not a name below the mount point.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    /// Nothing there.
    #[error("the name is empty")]
    Empty,
    /// Longer than `PATH_MAX` allows.
    #[error("the name has {0} bytes, 4000 are allowed")]
    TooLong(usize),
    /// A component that is empty, `.` or `..`, or longer than 255 bytes.
    #[error("the name has a component that is empty, '.', '..' or longer than 255 bytes")]
    Component,
    /// A NUL byte.
    #[error("the name has a NUL byte")]
    Nul,
}

impl DbName {
    /// Checks the bytes of a path relative to the mount point.
    ///
    /// # Errors
    /// [`NameError`] says which rule is broken.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        if bytes.len() > 4000 {
            return Err(NameError::TooLong(bytes.len()));
        }
        if bytes.contains(&0) {
            return Err(NameError::Nul);
        }
        for part in bytes.split(|b| *b == b'/') {
            if part.is_empty() || part == b"." || part == b".." || part.len() > 255 {
                return Err(NameError::Component);
            }
        }
        Ok(Self(bytes.into()))
    }

    /// The bytes of the path.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name as a relative path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// How the last component begins while a file is brought in: it becomes a database when it gets another name.
    pub const IMPORT: &'static str = ".weir-import-";

    /// Whether a file of this name is still being brought in, and is no database yet whatever it holds.
    #[must_use]
    pub fn is_being_imported(&self) -> bool {
        let last = self.0.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        last.starts_with(Self::IMPORT.as_bytes())
    }

    /// The name with a suffix such as `-wal`; `None` if that would be too long for a file name.
    #[must_use]
    pub fn with_suffix(&self, suffix: &str) -> Option<Self> {
        Self::new(&[&self.0, suffix.as_bytes()].concat()).ok()
    }
}

/// Names are looked up and compared by their bytes.
impl Borrow<[u8]> for DbName {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for DbName {
    /// The name for people: bytes that are not printable UTF-8 are escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    write!(f, "{c}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for DbName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_mount() {
        let cases: [(&[u8], NameError); 7] = [
            (b"", NameError::Empty),
            (b"/etc/passwd", NameError::Component),
            (b"../x", NameError::Component),
            (b"a/../../x", NameError::Component),
            (b"a//b", NameError::Component),
            (b"a/.", NameError::Component),
            (b"a\0b", NameError::Nul),
        ];
        for (bytes, error) in cases {
            assert_eq!(DbName::new(bytes), Err(error), "{bytes:?}");
        }
        assert_eq!(DbName::new(&[b'x'; 256]), Err(NameError::Component));
        assert_eq!(DbName::new(&[b'x'; 4001]), Err(NameError::TooLong(4001)));
    }

    #[test]
    fn only_the_last_component_says_that_a_file_is_being_imported() {
        let check = |name: &str, expected| {
            let name = DbName::new(name.as_bytes()).unwrap();
            assert_eq!(name.is_being_imported(), expected, "{name}");
        };
        check(".weir-import-1", true);
        check("a/.weir-import-1-journal", true);
        check(".weir-import-1/a", false);
        check("a.weir-import-1", false);
    }

    #[test]
    fn strange_names_are_printed_without_harm() {
        let name = DbName::new(b"a b/\xffc\n.db").unwrap();
        assert_eq!(name.to_string(), "a b/\\xffc\\n.db");
    }
}
