//! Reasons why a file is not accepted as a secret.

use std::{io, path::PathBuf};

/// Reason why a file is not accepted as a secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// The file cannot be read.
    #[error("cannot read the secret file `{}`", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
    /// The path is a directory, a FIFO or a device.
    #[error("the secret file `{}` is not a regular file", path.display())]
    NoFile {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file is too long for a secret.
    #[error("the secret file `{}` is longer than 64 KiB", path.display())]
    TooLong {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file belongs to another user.
    #[error(
        "the secret file `{path}` belongs to {owner}, who could change it: it must belong to \
         {allowed_owner}, fix it with {remedy}",
        path = path.display()
    )]
    Owner {
        /// Path of the file.
        path: PathBuf,
        /// Owner of the file, as the system names it.
        owner: String,
        /// Permitted owners.
        allowed_owner: &'static str,
        /// Command that fixes the owner.
        remedy: String,
    },
    /// Other users may read or change the file.
    #[error("the secret file `{path}` {open}: fix it with {remedy}", path = path.display())]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// Access of other users.
        open: String,
        /// Command that fixes the access.
        remedy: String,
    },
}

impl SecretFileError {
    /// Returns whether the file does not exist.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        let Self::Read { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
    }
}
