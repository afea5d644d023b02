//! Group commit: one `fdatasync` for all who wait.

use super::LogError;
use crate::types::Pos;

/// Makes a log durable; shared by all threads that commit.
#[derive(Debug)]
pub struct LogSync {}

impl LogSync {
    /// Everything appended before the call is durable when it returns. Returns the durable position.
    ///
    /// # Errors
    /// [`LogError::Disk`] for those who waited for the `fdatasync` that failed, [`LogError::Failed`] for all later calls.
    pub fn sync(&self) -> Result<Pos, LogError> {
        unimplemented!()
    }

    /// What is known to be durable. After opening a log that is its base until the first [`LogSync::sync`].
    #[must_use]
    pub fn durable(&self) -> Pos {
        unimplemented!()
    }
}
