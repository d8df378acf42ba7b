//! Backup of a data directory, also while a receiver appends to it, and its restoration.
//!
//! The copy is what a crash could have left behind, so that opening it repairs it like any other data
//! directory. Each acknowledged entry is in a journal until its content is synced in the files of its
//! epoch, so:
//!
//! 1. The journals are opened first, and again while files are copied, so that none is deleted unread.
//! 2. The files of the epochs are copied. What is in them is complete, or in an opened journal.
//! 3. The journals are copied, and the damaged ones that a start kept.
//! 4. Then erasures are copied: of one that is completed meanwhile, or goes on, the files of epochs may have
//!    lines still. It is among those in force or the requests, and the receiver compares all lines of the
//!    copy with these when it starts: up to where it compared them before is left out.
//! 5. What is known of devices is copied last: no entry is of a device that the copy does not know.
//!
//! The receiver is never paused. Only the registry of devices is locked, while its files are copied.

mod copy;
mod damage;
mod manifest;
mod releases;
mod restore;
mod verify;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tracing::warn;

use self::{
    copy::{Journals, Writer, regular_files},
    manifest::{MANIFEST, Manifest},
    releases::Releases,
};
pub use self::{
    damage::{DamagedFile, damage},
    restore::restore,
    verify::{DamagedEntries, Verification, verify},
};
pub use crate::store::EntryProblem;
use crate::{
    clock::{self, Clock},
    regular_file::read_whole_file,
    trust::{JournalError, RegistryLock},
};

/// Directory with the private keys of the receiver, below the data directory.
const KEYS: &str = "trust/keys";
/// Requests of commands, below the data directory.
const REQUESTS: &str = "life/requests";
/// File that says up to where lines were compared with the erasures in force.
const COMPARED: &str = "life/swept.json";
/// Number of attempts while the receiver deletes journals before they can be copied.
const ATTEMPTS: u32 = 5;

/// Options of a backup.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackupOptions {
    /// Copy the private keys of the receiver too.
    pub with_keys: bool,
}

/// A complete backup, or what was restored from it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupSummary {
    /// Time at which the backup began, RFC 3339: every entry acknowledged before is in it.
    pub created_at: String,
    /// Number of files.
    pub files: u64,
    /// Sum of their sizes in bytes.
    pub bytes: u64,
    /// True if the private keys of the receiver are in it.
    pub with_keys: bool,
}

/// Reason why a backup or a restoration failed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The target has content.
    #[error("`{0}` is not empty: nothing is overwritten")]
    NotEmpty(PathBuf),
    /// The target is inside of the source.
    #[error("`{0}` is in the data directory: choose a directory outside of it")]
    Inside(PathBuf),
    /// The directory is no data directory.
    #[error("`{0}` is not the data directory of a receiver: it has no file `format`")]
    NoData(PathBuf),
    /// The directory is no complete backup.
    #[error("`{0}` is not a complete backup: it has no file `{MANIFEST}`")]
    Incomplete(PathBuf),
    /// The list of files cannot be parsed.
    #[error("`{MANIFEST}` of the backup is damaged, or of a later release")]
    Manifest(#[source] serde_json::Error),
    /// A file differs from what was backed up.
    #[error("`{0}` of the backup is damaged: its size or its hash differs")]
    Damaged(String),
    /// A path in the list leads out of the backup, or is not text.
    #[error("`{0}` is not a path of a backup")]
    Path(PathBuf),
    /// Two links lead to one directory, or one leads to a directory above itself.
    #[error(
        "`{0}` leads to a directory to which another link leads, or it leads in a circle: remove it"
    )]
    Linked(PathBuf),
    /// A journal was created and deleted before it could be copied.
    #[error(
        "the receiver deleted a journal before it could be copied, {ATTEMPTS} times: run the backup \
         again while less is sent"
    )]
    Overtaken,
    /// The releases of the agent were changed each time they were read.
    #[error("the releases in `dist` changed meanwhile: run the backup again")]
    ReleasesChanged,
    /// The data directory was converted, or another level of trust was chosen.
    #[error("the file `format` of the data directory changed meanwhile: run the backup again")]
    Changed,
    /// The registry cannot be locked.
    #[error(transparent)]
    Registry(#[from] JournalError),
    /// A file cannot be read or written.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What failed.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

impl BackupError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// Copies a data directory into `target`, which must be empty or missing. A receiver may append to it
/// at the same time. A target without the list of its files, which is written last, is incomplete.
///
/// # Errors
/// [`BackupError`].
pub fn backup(
    data: &Path,
    target: &Path,
    options: BackupOptions,
    clock: &dyn Clock,
) -> Result<BackupSummary, BackupError> {
    copy_in_steps(data, target, options, clock, &mut |_| {})
}

/// Moment of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The journals of this attempt are open.
    Begun(u32),
    /// The epochs and the journals are copied.
    EntriesCopied,
}

/// Backs up, and starts again if the receiver was faster. `step` is called at some moments.
pub(crate) fn copy_in_steps(
    data: &Path,
    target: &Path,
    options: BackupOptions,
    clock: &dyn Clock,
    step: &mut dyn FnMut(Step),
) -> Result<BackupSummary, BackupError> {
    if !data.join("format").is_file() {
        return Err(BackupError::NoData(data.to_owned()));
    }
    check_outside(data, target)?;
    create_empty(target)?;
    let mut attempt = 1;
    loop {
        match copy_all(data, target, options, clock, attempt, step) {
            Err(BackupError::Overtaken) if attempt < ATTEMPTS => {
                warn!(
                    code = "backup_overtaken",
                    attempt,
                    "the receiver deleted a journal before it could be copied, starting again"
                );
                remove_content(target)?;
                attempt += 1;
            }
            result => return result,
        }
    }
}

fn copy_all(
    data: &Path,
    target: &Path,
    options: BackupOptions,
    clock: &dyn Clock,
    attempt: u32,
    step: &mut dyn FnMut(Step),
) -> Result<BackupSummary, BackupError> {
    let created_at = clock::text(clock.now());
    let path = data.join("format");
    let read_format = || read_whole_file(&path).map_err(BackupError::io("read", &path));
    let format = read_format()?;
    let mut journals = Journals::pin(data)?;
    let releases = Releases::pin(data)?;
    step(Step::Begun(attempt));
    let mut writer = Writer::new(data, target);
    let pinned = releases.paths();
    let skip = |path: &Path| is_copied_apart(data, path) || pinned.contains(path);
    for path in regular_files(data, &skip)? {
        writer.copy(&path, &mut journals)?;
    }
    releases.copy_to(&mut writer, &mut || journals.refresh())?;
    journals.refresh()?;
    journals.copy_to(&mut writer)?;
    // What a start could not read may be the only copy of acknowledged batches.
    let is_other = |path: &Path| path.extension().is_none_or(|ending| ending != "damaged");
    for path in regular_files(&data.join("journal"), &is_other)? {
        writer.copy(&path, &mut journals)?;
    }
    step(Step::EntriesCopied);
    // A request is removed once its erasure is listed.
    let (life, requests) = (data.join("life"), data.join(REQUESTS));
    let compared = data.join(COMPARED);
    let mut pending = regular_files(&requests, &|_| false)?;
    pending.extend(regular_files(&life, &|path| path == requests || path == compared)?);
    for path in pending {
        writer.copy(&path, &mut journals)?;
    }
    let keys = data.join(KEYS);
    {
        // Its files fit to each other.
        let trust = data.join("trust");
        let _lock = trust.is_dir().then(|| RegistryLock::hold(&trust)).transpose()?;
        for path in regular_files(&trust, &|path| path == keys && !options.with_keys)? {
            writer.copy(&path, &mut journals)?;
        }
    }
    // A conversion replaces the files of all epochs.
    if read_format()? != format {
        return Err(BackupError::Changed);
    }
    let summary = BackupSummary {
        created_at,
        files: writer.files.len() as u64,
        bytes: writer.files.iter().map(|file| file.size).sum(),
        with_keys: options.with_keys,
    };
    Manifest { summary: summary.clone(), files: writer.files }.write(target)?;
    Ok(summary)
}

/// Removes what an attempt wrote into a directory that was empty.
fn remove_content(target: &Path) -> Result<(), BackupError> {
    for entry in fs::read_dir(target).map_err(BackupError::io("read", target))? {
        let path = entry.map_err(BackupError::io("read", target))?.path();
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(BackupError::io("remove", &path))?;
    }
    Ok(())
}

fn is_copied_apart(data: &Path, path: &Path) -> bool {
    ["journal", "life", "trust"].iter().any(|name| path == data.join(name))
}

/// Creates a directory for the owner only, or checks that it is empty.
fn create_empty(path: &Path) -> Result<(), BackupError> {
    match fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(BackupError::NotEmpty(path.to_owned())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            crate::store::create_private(path).map_err(BackupError::io("create", path))
        }
        Err(error) => Err(BackupError::io("read", path)(error)),
    }
}

/// Checks that a backup does not copy itself.
fn check_outside(data: &Path, target: &Path) -> Result<(), BackupError> {
    let data = fs::canonicalize(data).map_err(BackupError::io("read", data))?;
    let absolute = std::path::absolute(target).map_err(BackupError::io("read", target))?;
    // The target may be missing, and the directories above it too.
    let existing = absolute.ancestors().find_map(|path| fs::canonicalize(path).ok());
    if existing.is_some_and(|existing| existing.starts_with(&data)) {
        return Err(BackupError::Inside(target.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
