//! Replacement of the program by a new one, and of the new one by the previous one.
//!
//! After a power cut at any moment the program in place is one of the two, whole. The record is written
//! before a program is renamed, so that whichever program starts next knows what was intended.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use siem_protocol::Digest;

use super::{
    child::{self, ChildEnd, ChildError},
    program_files::{ProgramFiles, UpdateLock, digest_of},
    record::{RollbackReason, UpdateRecord, UpdateState},
    steps::{Reach, Step},
};
use crate::{
    platform::{Timestamp, own_program},
    text::causes,
};

/// Longest time that a program may take to print its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(20);

/// A verified program to install.
#[derive(Debug)]
pub(crate) struct NewProgram<'a> {
    /// File with the program.
    pub(crate) staged: &'a Path,
    /// SHA-256 of the file, as verified.
    pub(crate) sha256: Digest,
    /// Version of the running program.
    pub(crate) from: &'a str,
    /// Version of the new program.
    pub(crate) to: &'a str,
    pub(crate) at: Timestamp,
}

/// Reason why a program was not installed. The program in place is the one that was there before, or the
/// record says that the update is not confirmed, so that a guard or the supervisor puts it back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error("the update to {to} has not been confirmed yet")]
    InProgress { to: String },
    #[error("the program in place is the same file already")]
    Same,
    #[error("{0} is in place, which another program has installed")]
    Foreign(String),
    #[error("the downloaded file has changed since it was verified")]
    Changed,
    #[error("the new program does not run: {0}")]
    NotExecutable(String),
    #[error("cannot start the process that would bring the previous program back")]
    NoSupervisor(#[source] io::Error),
    #[error("cannot {action} `{}`", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Reason why the previous program was not put back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error("there is no previous program to go back to")]
    NoPrevious,
    #[error("`{}` is not the previous program: it was changed", .0.display())]
    Changed(PathBuf),
    #[error("cannot put the previous program back")]
    Io(#[from] io::Error),
}

/// Reason why a program does not print the version that it is to have.
#[derive(Debug, thiserror::Error)]
enum VersionError {
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error("`--version` ended with {0}")]
    Failed(ExitStatus),
    #[error("it prints `{printed}` as its version, in place of {expected}")]
    Other { printed: String, expected: String },
}

impl VersionError {
    /// Returns the error of the system if another program holds the file: it may be whole.
    fn busy(self) -> Option<io::Error> {
        match self {
            Self::Child(ChildError::NotStarted(error)) if own_program::is_busy(&error) => {
                Some(error)
            }
            _ => None,
        }
    }
}

/// Puts a verified program into place and records it as unconfirmed. `supervise` starts the process that
/// brings the previous one back if the new one is not confirmed.
///
/// # Errors
/// [`InstallError`].
pub(crate) fn install(
    lock: &UpdateLock,
    new: &NewProgram<'_>,
    supervise: &dyn Fn() -> io::Result<()>,
    reach: Reach<'_>,
) -> Result<UpdateRecord, InstallError> {
    let files = lock.files();
    if let Some(record) = recover(lock).filter(UpdateRecord::is_pending) {
        return Err(InstallError::InProgress { to: record.to });
    }
    let from = digest_of(files.program()).map_err(failed("read", files.program()))?;
    if from == new.sha256 {
        return Err(InstallError::Same);
    }
    check_replaced(files.program(), new.from)?;
    let next = files.next();
    let placed = copy(files, new, reach)
        .and_then(|()| keep_previous(files, reach))
        .and_then(|()| record(files, from, new, reach))
        .and_then(|record| put_into_place(files, record, supervise, reach));
    let record = placed.inspect_err(|_| {
        // In an empty place, the file shows later that the release was never there, and is not to blame.
        if files.program().try_exists().unwrap_or(false) {
            drop(own_program::remove_if_present(&next));
        }
    })?;
    let runs = reach(Step::RunNew).map_err(|error| ChildError::NotStarted(error).into());
    let Err(error) = runs.and_then(|()| check_runs(files.program(), new.to)) else {
        return Ok(record);
    };
    let why = causes(&error);
    match error.busy() {
        // It is not known if it runs: the next check installs it again.
        Some(source) => {
            drop(restore(lock, record, RollbackReason::Interrupted, &why, reach));
            Err(failed("run", files.program())(source))
        }
        None => {
            let restored = restore(lock, record, RollbackReason::NotExecutable, &why, reach);
            let also = restored.err().map(|error| format!("; {}", causes(&error)));
            Err(InstallError::NotExecutable(why + &also.unwrap_or_default()))
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> InstallError + use<> {
    let path = path.to_owned();
    move |source| InstallError::Io { action, path: path.clone(), source }
}

/// Copies the new program beside the running one.
fn copy(files: &ProgramFiles, new: &NewProgram<'_>, reach: Reach<'_>) -> Result<(), InstallError> {
    let next = files.next();
    let copied = || {
        reach(Step::CopyNew)?;
        own_program::copy(new.staged, &next)?;
        digest_of(&next)
    };
    match copied().map_err(failed("write", &next))? {
        digest if digest == new.sha256 => Ok(()),
        _ => Err(InstallError::Changed),
    }
}

fn keep_previous(files: &ProgramFiles, reach: Reach<'_>) -> Result<(), InstallError> {
    let previous = files.previous();
    reach(Step::KeepPrevious)
        .and_then(|()| own_program::link_or_copy(files.program(), &previous))
        .map_err(failed("write", &previous))
}

fn record(
    files: &ProgramFiles,
    from: Digest,
    new: &NewProgram<'_>,
    reach: Reach<'_>,
) -> Result<UpdateRecord, InstallError> {
    let record = UpdateRecord::new((new.from, from), (new.to, new.sha256), new.at);
    reach(Step::WriteRecord)
        .and_then(|()| record.write(files))
        .map_err(failed("write", &files.record()))?;
    Ok(record)
}

fn put_into_place(
    files: &ProgramFiles,
    mut record: UpdateRecord,
    supervise: &dyn Fn() -> io::Result<()>,
    reach: Reach<'_>,
) -> Result<UpdateRecord, InstallError> {
    let started = reach(Step::StartSupervisor).and_then(|()| supervise());
    let placed = started.map_err(InstallError::NoSupervisor).and_then(|()| {
        reach(Step::Swap)
            .and_then(|()| own_program::replace(&files.next(), files.program()))
            .map_err(failed("replace", files.program()))
    });
    let Err(error) = placed else { return Ok(record) };
    match in_place(files, &record) {
        // It was renamed, and only the directory could not be synced: a power cut leaves one of the two.
        Some(InPlace::New) => Ok(record),
        Some(InPlace::Previous) => {
            record.state = UpdateState::Interrupted;
            record.failed(RollbackReason::Interrupted, &causes(&error));
            // If this fails, the next start of the program finds that it was not replaced.
            drop(record.write(files));
            Err(error)
        }
        // The place is empty, or it is not known what is there: the update stays pending, and is completed by
        // whichever process comes next.
        _ => Err(error),
    }
}

/// Checks that a program is `version`, or does not run: an administrator may have installed another one
/// since this process was started.
///
/// # Errors
/// It is another version, or held by another program.
fn check_replaced(program: &Path, version: &str) -> Result<(), InstallError> {
    match check_runs(program, version) {
        Err(VersionError::Other { printed, .. }) => Err(InstallError::Foreign(printed)),
        checked => match checked.err().and_then(VersionError::busy) {
            Some(source) => Err(failed("run", program)(source)),
            None => Ok(()),
        },
    }
}

/// Checks that a program runs and prints `version`.
///
/// # Errors
/// [`VersionError`].
fn check_runs(program: &Path, version: &str) -> Result<(), VersionError> {
    match printed_version(program)? {
        printed if printed == line(version) => Ok(()),
        printed => Err(VersionError::Other { printed, expected: version.to_owned() }),
    }
}

fn line(version: &str) -> String {
    format!("ai-agent {version}")
}

/// Runs a program and returns what it prints as its version, at most 80 characters.
///
/// # Errors
/// [`VersionError`].
fn printed_version(program: &Path) -> Result<String, VersionError> {
    let ended = child::run(Command::new(program).arg("--version"), VERSION_TIMEOUT);
    let ChildEnd { status, stdout, .. } = ended?;
    match status.success() {
        true => Ok(stdout.trim().chars().take(80).collect()),
        false => Err(VersionError::Failed(status)),
    }
}

/// Program in the place of the service's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InPlace {
    Previous,
    New,
    /// Neither: it was put there by other means, or is damaged.
    Other,
    /// Windows has renamed one program away and not the other one to its place.
    None,
}

/// Returns which program of an update is in place; `None` if the file cannot be read.
pub(super) fn in_place(files: &ProgramFiles, record: &UpdateRecord) -> Option<InPlace> {
    match digest_of(files.program()) {
        Ok(digest) if digest == record.to_sha256 => Some(InPlace::New),
        Ok(digest) if digest == record.from_sha256 => Some(InPlace::Previous),
        Ok(_) => Some(InPlace::Other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(InPlace::None),
        // A symlink.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Some(InPlace::Other),
        Err(_) => None,
    }
}

/// Returns the record of the last update, after completing one whose process ended in between. Only an
/// update whose new program is in place is then still pending.
pub(super) fn recover(lock: &UpdateLock) -> Option<UpdateRecord> {
    let files = lock.files();
    let mut record = UpdateRecord::read(files)?;
    if !record.is_pending() {
        return Some(record);
    }
    match in_place(files, &record)? {
        InPlace::New => return Some(record),
        InPlace::Previous => record = ended(files, record),
        InPlace::Other if runs(files.program())? => record.state = UpdateState::Replaced,
        InPlace::Other | InPlace::None => {
            // Windows has renamed one program away, and not the new one into its place.
            let is_unplaced = is_whole(&files.next(), record.to_sha256);
            if fill_place(files, &record).ok()? == InPlace::New {
                return Some(record);
            }
            record.state = UpdateState::RolledBack;
            match record.reason {
                Some(_) => {}
                None if is_unplaced => {
                    let detail = "the process that put it into place has ended";
                    record.failed(RollbackReason::Interrupted, detail);
                }
                None => {
                    let detail = "no program that runs was in place";
                    record.failed(RollbackReason::NotExecutable, detail);
                }
            }
        }
    }
    // If this fails, the next start does the same again.
    drop(record.write(files));
    drop(own_program::remove_if_present(&files.next()));
    Some(record)
}

/// Returns whether a program runs; `None` if another program holds it.
fn runs(program: &Path) -> Option<bool> {
    match printed_version(program) {
        Ok(_) => Some(true),
        Err(error) => error.busy().is_none().then_some(false),
    }
}

/// Returns a pending record with the state that it has, since the previous program is in place.
fn ended(files: &ProgramFiles, mut record: UpdateRecord) -> UpdateRecord {
    // A rollback renames the previous program into place; an installation that did not get so far has it
    // twice. On a full disk, the record says neither.
    let is_back = !files.previous().try_exists().unwrap_or(true);
    if record.state == UpdateState::RollingBack {
        record.state = UpdateState::RolledBack;
    } else if is_back {
        record.state = UpdateState::RolledBack;
        record.failed(RollbackReason::NotConfirmed, "the reason could not be stored");
    } else {
        record.state = UpdateState::Interrupted;
        record.failed(RollbackReason::Interrupted, "the process that installed it has ended");
    }
    record
}

/// Returns the record of the last update as [`recover`] does, if no other process holds the lock, and
/// otherwise as it is.
pub(crate) fn settle(files: &ProgramFiles) -> Option<UpdateRecord> {
    let record = UpdateRecord::read(files)?;
    if !record.is_pending() {
        return Some(record);
    }
    match UpdateLock::try_take(files) {
        Ok(lock) => recover(&lock),
        // The sandbox of an agent that installs nothing does not permit to write here.
        Err(_) => look(files),
    }
}

/// Returns the record of the last update. If its process has ended in between and the previous program is
/// in place, its state is what [`recover`] would make of it. Writes nothing.
pub(crate) fn look(files: &ProgramFiles) -> Option<UpdateRecord> {
    let is_locked = UpdateLock::is_taken(files);
    let record = UpdateRecord::read(files)?;
    let is_left = record.is_pending() && !is_locked;
    match is_left && in_place(files, &record) == Some(InPlace::Previous) {
        true => Some(ended(files, record)),
        false => Some(record),
    }
}

/// Puts the previous program into the empty place, or if it is lost too, the new one.
fn fill_place(files: &ProgramFiles, record: &UpdateRecord) -> io::Result<InPlace> {
    let programs = [
        (files.previous(), record.from_sha256, InPlace::Previous),
        (files.next(), record.to_sha256, InPlace::New),
    ];
    let whole = programs.iter().find(|(path, digest, _)| is_whole(path, *digest));
    let (path, _, which) = whole.ok_or(io::ErrorKind::NotFound)?;
    own_program::replace(path, files.program())?;
    Ok(*which)
}

fn is_whole(path: &Path, digest: Digest) -> bool {
    digest_of(path).is_ok_and(|found| found == digest)
}

/// Puts the previous program back.
///
/// # Errors
/// [`RestoreError`]; the new program is in place, or none if Windows has renamed it away.
pub(super) fn restore(
    lock: &UpdateLock,
    mut record: UpdateRecord,
    reason: RollbackReason,
    detail: &str,
    reach: Reach<'_>,
) -> Result<UpdateRecord, RestoreError> {
    let files = lock.files();
    let previous = files.previous();
    let lost = match digest_of(&previous) {
        Ok(digest) if digest == record.from_sha256 => None,
        Ok(_) => Some(RestoreError::Changed(previous.clone())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(RestoreError::NoPrevious),
        Err(error) => return Err(error.into()),
    };
    if let Some(lost) = lost {
        if record.state == UpdateState::RollingBack {
            // The new program is all there is: it can be confirmed, and updated again.
            record.state = UpdateState::Unconfirmed;
            drop(record.write(files));
        }
        return Err(lost);
    }
    record.state = UpdateState::RollingBack;
    record.failed(reason, detail);
    // A full disk must not keep the previous program away: a rename needs no space.
    drop(reach(Step::WriteRecord).and_then(|()| record.write(files)));
    let replaced =
        reach(Step::Restore).and_then(|()| own_program::replace(&previous, files.program()));
    if let Err(error) = replaced
        && in_place(files, &record) != Some(InPlace::Previous)
    {
        return Err(error.into());
    }
    record.state = UpdateState::RolledBack;
    drop(reach(Step::WriteRecord).and_then(|()| record.write(files)));
    Ok(record)
}

/// Puts the previous program back at the request of a person.
///
/// # Errors
/// [`RestoreError`]; the program in place is unchanged.
pub(crate) fn roll_back_by_hand(
    lock: &UpdateLock,
    reach: Reach<'_>,
) -> Result<UpdateRecord, RestoreError> {
    let record = recover(lock).ok_or(RestoreError::NoPrevious)?;
    if in_place(lock.files(), &record) != Some(InPlace::New) {
        return Err(RestoreError::NoPrevious);
    }
    restore(lock, record, RollbackReason::ByHand, "`ai-agent update rollback`", reach)
}

/// Marks the last update as reported: its event is stored.
///
/// # Errors
/// The error of the system: the event will be repeated.
pub(crate) fn mark_reported(files: &ProgramFiles) -> io::Result<()> {
    let lock = UpdateLock::try_take(files)?;
    match UpdateRecord::read(files) {
        Some(mut record) if !record.is_pending() && !record.reported => {
            record.reported = true;
            record.write(lock.files())
        }
        _ => Ok(()),
    }
}

/// Installs a program as an update does, without a supervisor.
#[cfg(feature = "internals")]
pub(crate) fn install_for_test(
    program: &Path,
    staged: &Path,
    from: &str,
    to: &str,
) -> Result<(), String> {
    let lock = UpdateLock::try_take(&ProgramFiles::of(program)).map_err(|error| causes(&error))?;
    let sha256 = digest_of(staged).map_err(|error| causes(&error))?;
    let new = NewProgram { staged, sha256, from, to, at: Timestamp(1) };
    let installed = install(&lock, &new, &|| Ok(()), &super::steps::reach);
    installed.map(drop).map_err(|error| causes(&error))
}
