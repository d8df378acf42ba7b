//! Errors of the outbox.

use std::{io, path::PathBuf};

use super::tables::SCHEMA;

/// Error of an operation on the outbox.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The store could not be opened, read or written.
    #[error("cannot {action} the outbox `{}`", path.display())]
    Store {
        /// Operation that failed, as a verb.
        action: &'static str,
        /// The store's file.
        path: PathBuf,
        /// Error of the database.
        #[source]
        source: Box<redb::Error>,
    },
    /// The store was written by a newer agent.
    #[error(
        "the outbox `{}` has schema {found}, and this agent supports up to {SCHEMA}: run the newer \
         agent again, or use another state directory", path.display()
    )]
    Newer {
        /// The store's file.
        path: PathBuf,
        /// Schema version of the store.
        found: u32,
    },
    /// The store holds data that cannot have been written by the agent.
    #[error("the outbox `{}` is damaged: {what}", path.display())]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// Description of the damage.
        what: &'static str,
    },
    /// The open file is no longer at the store's path.
    #[error("the file of the outbox `{}` {what} while it was open", path.display())]
    Misplaced {
        /// The path of the store.
        path: PathBuf,
        /// Change that was detected.
        what: &'static str,
    },
    /// The group does not start where the outbox ends.
    #[error("cannot append a group that starts at {found}: the outbox continues at {expected}")]
    Stale {
        /// Epoch and first sequence number of the group.
        found: String,
        /// Epoch and next sequence number of the outbox.
        expected: String,
    },
}

impl OutboxError {
    /// Returns true if the disk or the quota is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let Self::Store { source, .. } = self else { return false };
        let redb::Error::Io(error) = &**source else { return false };
        matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// Returns true if the store is damaged, as opposed to temporarily inaccessible.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::Misplaced { .. } => true,
            Self::Store { source, path, .. } => match &**source {
                redb::Error::Corrupted(_) => true,
                redb::Error::Io(error) => match error.kind() {
                    io::ErrorKind::InvalidData
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::UnexpectedEof => true,
                    // Error of Windows for a directory that is opened as a file.
                    io::ErrorKind::PermissionDenied => path.is_dir(),
                    _ => false,
                },
                _ => false,
            },
            Self::Newer { .. } | Self::Stale { .. } => false,
        }
    }
}
