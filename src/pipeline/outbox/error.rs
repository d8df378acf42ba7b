//! Why the outbox cannot do its work.

use std::{io::ErrorKind, path::PathBuf};

use super::SCHEMA;

/// Why the outbox cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The store could not be opened, read or written.
    #[error("cannot {action} the outbox `{}`", path.display())]
    Store {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<redb::Error>,
    },
    /// A newer agent wrote the store.
    #[error(
        "the outbox `{}` was written by a newer agent (schema {found}, this one knows {SCHEMA}): \
         run that agent again, or give this one another state directory", path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u32,
    },
    /// The store holds what it cannot have written.
    #[error("the outbox `{}` is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What cannot be read.
        what: &'static str,
    },
    /// The store's file is not where it was.
    #[error("the file of the outbox `{}` is not the one that is open any more: {what}", path.display())]
    Misplaced {
        /// Where it should be.
        path: PathBuf,
        /// What became of it.
        what: &'static str,
    },
    /// The group does not begin where the outbox ends.
    #[error("a group begins at {found}, the outbox ends before {expected}")]
    Stale {
        /// Where the group begins.
        found: u64,
        /// Where it should.
        expected: u64,
    },
}

impl OutboxError {
    /// Whether there is no room for what was to be written.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let Self::Store { source, .. } = self else { return false };
        let redb::Error::Io(error) = &**source else { return false };
        matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
    }
}
