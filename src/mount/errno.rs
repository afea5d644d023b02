//! Every way a request can fail, and the number the kernel gets for it.
//!
//! One exhaustive table, so that each choice is made once and can be read in one place.
//! Handlers return [`RequestError`]; `fuse` turns it into a reply and logs what a person must see.

use std::io;

use fuser::Errno;

use crate::database::OpError;
use crate::types::{DbName, NameError};

/// Why a request is answered with an error.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The backing file system said no.
    #[error("{step}")]
    Backing {
        /// Verb and object.
        step: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The store or a database said no.
    #[error(transparent)]
    Op(#[from] OpError),
    /// The name cannot exist below the mount point.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The name belongs to a special file (`.primary`, `.lag`, `<db>-pos`): nobody may make, change,
    /// rename or remove one.
    #[error("the name belongs to a special file")]
    Reserved,
    /// No name leads to the node any more, and nobody has it open.
    #[error("no name leads to the file any more")]
    Stale,
    /// The entry lies on another device than the data directory.
    #[error("the entry lies on another device than the data directory")]
    OtherDevice,
    /// The handle is not, or not of this kind.
    #[error("no such handle")]
    BadHandle,
    /// Device nodes are not served.
    #[error("device nodes are not served")]
    DeviceNode,
    /// A second name for a database would separate it from its journal or WAL.
    #[error("{0}: a database cannot have a second name")]
    SecondName(DbName),
    /// Two databases cannot trade places in one step.
    #[error("{0}: a database cannot be exchanged")]
    ExchangeDatabase(DbName),
    /// The flags of a rename are not known.
    #[error("unknown rename flags {0:#x}")]
    RenameFlags(u32),
    /// A database file can grow, but not have holes punched.
    #[error("{0}: a database file cannot have ranges changed by fallocate")]
    FallocateDatabase(DbName),
    /// The arguments make no sense.
    #[error("invalid argument")]
    Invalid,
    /// The buffer is too small for the extended attribute.
    #[error("the extended attribute is larger than the buffer")]
    Range,
    /// The kernel may do it by itself.
    #[error("left to the kernel")]
    LeftToKernel,
}

impl RequestError {
    /// Wraps an error of the backing file system: `.map_err(RequestError::backing("read file"))`.
    pub(super) fn backing<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Backing { step, source: source.into() }
    }

    /// The number for the kernel.
    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::Backing { source, .. } => {
                Errno::from_i32(source.raw_os_error().unwrap_or(libc::EIO))
            }
            Self::Op(error) => Errno::from_i32(error.errno()),
            Self::Name(NameError::TooLong(_)) => Errno::ENAMETOOLONG,
            Self::Name(NameError::Empty | NameError::Component | NameError::Nul) => Errno::EINVAL,
            Self::Reserved => Errno::EACCES,
            Self::Stale => Errno::ESTALE,
            Self::OtherDevice => Errno::EXDEV,
            Self::BadHandle => Errno::EBADF,
            Self::DeviceNode => Errno::EPERM,
            Self::SecondName(_) => Errno::EPERM,
            Self::ExchangeDatabase(_) => Errno::EINVAL,
            Self::RenameFlags(_) => Errno::EINVAL,
            Self::FallocateDatabase(_) => Errno::EOPNOTSUPP,
            Self::Invalid => Errno::EINVAL,
            Self::Range => Errno::ERANGE,
            Self::LeftToKernel => Errno::ENOSYS,
        }
    }

    /// Whether a person should look: the disk is full or broken. Everything else is an ordinary answer.
    pub(super) fn is_serious(&self) -> bool {
        matches!(
            self.errno().code(),
            libc::EIO | libc::ENOSPC | libc::EDQUOT | libc::EMFILE | libc::ENFILE | libc::ENOMEM
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_errno_table() {
        let name = DbName::new(b"a.db").unwrap();
        let cases = [
            (
                RequestError::backing("read file")(io::Error::from_raw_os_error(libc::ENOSPC)),
                libc::ENOSPC,
            ),
            (RequestError::backing("read file")(io::Error::other("no number")), libc::EIO),
            (RequestError::Op(OpError::NotPrimary(name.clone())), libc::EROFS),
            (RequestError::Op(OpError::Quarantined(name.clone())), libc::EIO),
            (RequestError::Name(NameError::TooLong(5000)), libc::ENAMETOOLONG),
            (RequestError::Name(NameError::Nul), libc::EINVAL),
            (RequestError::Reserved, libc::EACCES),
            (RequestError::OtherDevice, libc::EXDEV),
            (RequestError::ExchangeDatabase(name), libc::EINVAL),
            (RequestError::LeftToKernel, libc::ENOSYS),
        ];
        for (error, expected) in cases {
            assert_eq!(error.errno().code(), expected, "{error}");
        }
    }
}
