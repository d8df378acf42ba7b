//! Life of stored data: retention, erasure, legal holds, and the log of who did what.
//!
//! ```text
//! DIR/life/requests/ID.json     requests that no process has completed
//! DIR/life/responses/ID.json    their results, until the command has read them
//! DIR/life/erasures.ndjson      erasures, each signed by the receiver's key
//! DIR/life/ended-erasures.json  ids of erasures that no longer stay in force
//! DIR/life/swept.json           up to where the epochs were compared with erasures in force
//! DIR/life/long-lines.json      lines in parts that erasures erased: their other parts may arrive later
//! DIR/life/holds.json           legal holds
//! DIR/life/access.ndjson        who read or erased what, and why; each line names the hash of the
//!                               one before
//! DIR/life/access-head.json     number of its lines, and hash of the last one
//! DIR/life/retention.json       time at which the retention of the configuration was applied last
//! DIR/life/lock                 held for the time of a change
//! DIR/life/removals             held while lines are removed, so that no hold is added meanwhile
//! ```
//! A command puts a request into the directory, and the process that has the store open executes
//! it: the server, or if none runs, the command itself. A request that was interrupted is executed
//! again when the store is opened.

mod access_log;
mod access_watch;
mod damage;
mod engine;
mod erasures;
mod holds;
mod long_lines;
mod mailbox;
mod remains;
mod retention;
mod retention_clock;
mod selector;
mod session;
mod subject;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use access_log::{AccessAction, AccessEntry, AccessLine, AccessLog, AccessLogError};
pub(crate) use access_watch::AccessWatch;
pub(crate) use damage::damage;
pub(crate) use engine::Engine;
pub use erasures::{ErasedEpoch, Erasure, ErasureView, erasures, unlisted_erasures};
pub use holds::{Hold, Holds};
pub use mailbox::{LifeRequest, LifeResponse, MailboxError, Mention, Reason, execute};
pub(crate) use retention::RetainedEpochs;
pub use retention::{Removal, RemovalCause, RetainedEpoch, RetentionPolicy, plan};
pub(crate) use retention_clock::RetentionClock;
pub use selector::{Selector, SelectorError};
pub use subject::end_erasure;
pub(crate) use subject::forget_swept;

/// Formats a number of things.
fn counted(count: u64, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

/// Directory of the files of this module.
fn directory(data: &Path) -> PathBuf {
    data.join("life")
}

/// Replaces a file, so that a crash leaves the old content or the new one.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let aside = path.with_extension("new");
    let mut file = private(std::fs::OpenOptions::new().write(true).create(true).truncate(true))
        .open(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    path.parent().map_or(Ok(()), crate::store::sync_directory)
}

/// Limits access to a new file to its owner.
fn private(options: &mut std::fs::OpenOptions) -> &mut std::fs::OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

/// Holds the lock of the directory until it is dropped.
fn lock(data: &Path) -> io::Result<std::fs::File> {
    lock_file(data, "lock")
}

/// Holds the lock of removals until it is dropped: a hold that was added covers all that is removed
/// later. It is taken before the lock of the directory.
fn lock_removals(data: &Path) -> io::Result<std::fs::File> {
    lock_file(data, "removals")
}

fn lock_file(data: &Path, name: &str) -> io::Result<std::fs::File> {
    let directory = directory(data);
    crate::store::create_private(&directory)?;
    let mut options = std::fs::OpenOptions::new();
    let file =
        private(options.write(true).create(true).truncate(false)).open(directory.join(name))?;
    file.lock()?;
    Ok(file)
}
