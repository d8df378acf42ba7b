//! The record of the last update, in a file beside the program.

use std::io;

use serde::{Deserialize, Serialize};
use siem_protocol::Digest;

use super::program_files::ProgramFiles;
use crate::platform::{Timestamp, file, own_program, secure_file};

/// Version of the format.
const VERSION: u32 = 1;
/// Maximum size of the file, in bytes.
const MAX_SIZE: u64 = 64 << 10;
/// Maximum length of the text about a failure, in characters.
const MAX_DETAIL: usize = 4096;

/// Record of an update, as one line of JSON: the unit of systemd searches it for the states that are not
/// final.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UpdateRecord {
    /// Version of the format.
    v: u32,
    pub(crate) state: UpdateState,
    /// Version of the previous program.
    pub(crate) from: String,
    /// Version of the new program.
    pub(crate) to: String,
    pub(crate) from_sha256: Digest,
    pub(crate) to_sha256: Digest,
    pub(crate) at: Timestamp,
    /// Number of starts of the new program before it was confirmed.
    #[serde(default)]
    pub(crate) starts: u32,
    /// Number of starts that do not count, since the previous program could not have started either.
    #[serde(default)]
    pub(crate) withdrawn: u32,
    /// Invocation of the service that was counted last, where the service manager numbers them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) invocation: Option<String>,
    /// Reason why the previous program is back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<RollbackReason>,
    /// Description of the failure, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
    /// True once the event about the final state is stored.
    #[serde(default)]
    pub(crate) reported: bool,
}

/// State of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UpdateState {
    /// The new program is put into place, or is there and has not proved that it runs.
    Unconfirmed,
    /// The previous program is put back.
    RollingBack,
    /// The new program runs.
    Confirmed,
    /// The previous program is back.
    RolledBack,
    /// The update ended before the new program was put into place.
    Interrupted,
    /// Another program was put into place by other means.
    Replaced,
    /// A state of a newer release.
    #[serde(other)]
    Unknown,
}

/// Reason why the previous program is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RollbackReason {
    /// The new program could not be run at its place.
    NotExecutable,
    /// It was started three times without being confirmed.
    Crashed,
    /// It made no progress in time.
    NotConfirmed,
    /// It was not in place, or it is not known if it runs, since the process that put it there ended, or
    /// another program held it: it is tried again.
    Interrupted,
    /// A person asked for the previous program.
    ByHand,
    /// A reason of a newer release.
    #[serde(other)]
    Unknown,
}

impl UpdateRecord {
    /// Creates the record of an update that has not been confirmed.
    pub(super) fn new(from: (&str, Digest), to: (&str, Digest), at: Timestamp) -> Self {
        Self {
            v: VERSION,
            state: UpdateState::Unconfirmed,
            from: from.0.to_owned(),
            to: to.0.to_owned(),
            from_sha256: from.1,
            to_sha256: to.1,
            at,
            starts: 0,
            withdrawn: 0,
            invocation: None,
            reason: None,
            detail: None,
            reported: false,
        }
    }

    /// Reads the record of the last update; `None` without one, or if it cannot be read: then neither
    /// program is touched.
    pub(crate) fn read(files: &ProgramFiles) -> Option<Self> {
        let bytes = file::read_bounded(&files.record(), MAX_SIZE).ok()?;
        let record: Self = serde_json::from_slice(&bytes).ok()?;
        (record.v == VERSION).then_some(record)
    }

    /// Replaces the record, synced. The caller holds the lock.
    ///
    /// # Errors
    /// The error of the system; the previous record is unchanged.
    pub(super) fn write(&self, files: &ProgramFiles) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        bytes.push(b'\n');
        own_program::retry_busy(|| secure_file::replace(&files.record(), &bytes))
    }

    /// Returns true if the state is not final: a new program may be in place that does not run.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(self.state, UpdateState::Unconfirmed | UpdateState::RollingBack)
    }

    pub(super) fn failed(&mut self, reason: RollbackReason, detail: &str) {
        self.reason = Some(reason);
        self.detail = Some(detail.chars().take(MAX_DETAIL).collect());
        self.reported = false;
    }
}
