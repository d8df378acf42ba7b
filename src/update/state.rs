//! State of updates: what the last check found, stored in the state directory and shown by `status` and
//! heartbeats.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use siem_protocol::{
    Digest,
    agent_event::{UpdateMode, UpdateReason, UpdateState, UpdateSummary},
    update::{UpdateRelease, Version},
};

use super::{
    clean_up::remove_all_downloads,
    download_lock,
    error::rollback_reason,
    record::{self, RollbackReason, UpdateRecord},
};
use crate::platform::{file, secure_file};

/// Directory in the state directory.
const DIR: &str = "update";
/// Name of the file in it.
const FILE: &str = "state.json";
/// Maximum size of the file that is read.
const MAX_BYTES: u64 = 64 << 10;
/// Maximum number of remembered reports; beyond it, a problem is reported again.
const MAX_REPORTED: usize = 64;
/// Maximum number of remembered versions that were rolled back.
const MAX_ROLLED_BACK: usize = 32;

/// Directory of downloads in a state directory.
#[must_use]
pub(crate) fn dir(state_dir: &Path) -> PathBuf {
    state_dir.join(DIR)
}

/// Removes the downloads and the state of updates from a state directory; other files stay.
pub(crate) fn remove_all(state_dir: &Path) {
    let dir = dir(state_dir);
    // A symlink is none of the agent's.
    if fs::symlink_metadata(&dir).is_ok_and(|found| found.is_dir()) {
        remove_all_downloads(&dir);
        // The second one is left by a crash.
        for name in [FILE, "state.json.new", download_lock::FILE] {
            drop(fs::remove_file(dir.join(name)));
        }
        drop(fs::remove_dir(&dir));
    }
}

/// What is known about updates across restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StoredState {
    /// Result of the last check.
    pub(crate) state: UpdateState,
    /// Version that the state is about.
    pub(crate) version: Option<String>,
    /// Reason of the state.
    pub(crate) reason: Option<UpdateReason>,
    /// Explanation of the reason.
    pub(crate) detail: Option<String>,
    /// Time of the last check that the receiver answered, RFC 3339.
    pub(crate) checked_at: Option<String>,
    /// Reports that were made, so that none is made at each check.
    reported: BTreeSet<Digest>,
    /// Versions that were installed here and rolled back, the last one at the end.
    rolled_back: Vec<Version>,
    /// Download that has not ended.
    pub(crate) download: Option<PartialDownload>,
}

/// A download that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartialDownload {
    /// SHA-256 of the whole file.
    pub sha256: Digest,
    /// `ETag` of the file at the receiver.
    pub(crate) etag: String,
}

impl StoredState {
    /// Reads the state in a directory of downloads. A file that is missing or invalid is an empty state.
    #[must_use]
    pub(crate) fn read(dir: &Path) -> Self {
        let read = || {
            let (file, _) = file::open_regular(&dir.join(FILE)).ok()??;
            let mut bytes = Vec::new();
            file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
            serde_json::from_slice(&bytes).ok()
        };
        read().unwrap_or_default()
    }

    /// Writes the state to a directory of downloads, which is created.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        secure_file::create_dir(dir)?;
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        secure_file::replace_without_sync(&dir.join(FILE), &bytes)
    }

    /// Sets the result of a check.
    pub(crate) fn set(&mut self, state: UpdateState, release: Option<&UpdateRelease>) {
        self.state = state;
        self.version = release.map(|release| release.version.to_string());
        (self.reason, self.detail) = (None, None);
    }

    /// Returns true the first time that it is called with this report.
    pub(crate) fn is_new_report(&mut self, report: &str) -> bool {
        if self.reported.len() >= MAX_REPORTED {
            self.reported.clear();
        }
        self.reported.insert(Digest::of(report.as_bytes()))
    }

    /// Adds the outcome of the last update, and returns the versions that were installed here and rolled
    /// back.
    pub(crate) fn rolled_back(&mut self, record: Option<&UpdateRecord>) -> &[Version] {
        use record::UpdateState::{Confirmed, RolledBack};
        let last: Option<(Version, _)> = record.and_then(|record| {
            // If it was interrupted, the release is not to blame.
            let is_final = match record.state {
                RolledBack => record.reason != Some(RollbackReason::Interrupted),
                state => state == Confirmed,
            };
            is_final.then_some((record.to.parse().ok()?, record.state))
        });
        if let Some((version, state)) = last {
            self.rolled_back.retain(|it| *it != version);
            if state == RolledBack {
                if self.rolled_back.len() >= MAX_ROLLED_BACK {
                    self.rolled_back.remove(0);
                }
                self.rolled_back.push(version);
            }
        }
        &self.rolled_back
    }
}

/// Returns the state of updates of an agent of `version`, for heartbeats and `status`.
#[must_use]
pub(crate) fn summary(
    mode: UpdateMode,
    stored: &StoredState,
    record: Option<&UpdateRecord>,
    version: &str,
) -> UpdateSummary {
    let mut summary = UpdateSummary {
        mode,
        state: stored.state,
        version: stored.version.clone(),
        checked_at: stored.checked_at.clone(),
        reason: stored.reason,
    };
    let own: Option<Version> = version.parse().ok();
    let is_installed = |offered: &String| {
        let offered: Option<Version> = offered.parse().ok();
        offered.is_none_or(|offered| own.as_ref().is_some_and(|own| offered <= *own))
    };
    // It was installed since the last check, by the agent or by others.
    if summary.state == UpdateState::Off || summary.version.as_ref().is_some_and(is_installed) {
        summary.state = UpdateState::Current;
        (summary.version, summary.reason) = (None, None);
    }
    if mode == UpdateMode::Off {
        summary.state = UpdateState::Off;
        (summary.version, summary.reason) = (None, None);
    }
    // A command may have installed it, whatever the mode.
    match record {
        Some(record) if record.is_pending() => {
            summary.state = UpdateState::Unconfirmed;
            (summary.version, summary.reason) = (Some(record.to.clone()), None);
        }
        Some(record)
            if record.state == record::UpdateState::RolledBack
                && !is_installed(&record.to)
                && (mode == UpdateMode::Off || summary.version.as_ref() == Some(&record.to)) =>
        {
            summary.state = UpdateState::RolledBack;
            summary.version = Some(record.to.clone());
            summary.reason = record.reason.map(rollback_reason);
        }
        _ => {}
    }
    summary
}

/// Summary of updates, shared by the parts of the agent that change and report it.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedUpdateSummary(Arc<Mutex<UpdateSummary>>);

impl SharedUpdateSummary {
    /// Returns the summary.
    #[must_use]
    pub(crate) fn get(&self) -> UpdateSummary {
        self.lock().clone()
    }

    /// Replaces the summary.
    pub(crate) fn set(&self, summary: UpdateSummary) {
        *self.lock() = summary;
    }

    fn lock(&self) -> MutexGuard<'_, UpdateSummary> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use siem_protocol::Digest;

    use super::*;
    use crate::platform::Timestamp;

    fn stored(state: UpdateState, version: &str, reason: UpdateReason) -> StoredState {
        StoredState {
            state,
            version: Some(version.to_owned()),
            reason: Some(reason),
            ..StoredState::default()
        }
    }

    fn record(to: &str, state: record::UpdateState) -> UpdateRecord {
        let mut record =
            UpdateRecord::new(("0.2.0", Digest::ZERO), (to, Digest::ZERO), Timestamp(1));
        record.failed(RollbackReason::Crashed, "it ended");
        record.state = state;
        record
    }

    /// Returns the state of an agent 0.2.0 as text.
    fn text(mode: UpdateMode, stored: &StoredState, record: Option<&UpdateRecord>) -> String {
        let UpdateSummary { state, version, reason, .. } = summary(mode, stored, record, "0.2.0");
        let (version, reason) = (version.unwrap_or_default(), reason.map(UpdateReason::as_str));
        format!("{} {version} {}", state.as_str(), reason.unwrap_or_default()).trim_end().to_owned()
    }

    #[test]
    fn summary_follows_mode_last_check_and_record() {
        use record::UpdateState::{Confirmed, RolledBack, Unconfirmed};
        let none = StoredState::default();
        let waiting = stored(UpdateState::Waiting, "0.3.0", UpdateReason::Halted);
        let installed = stored(UpdateState::Unconfirmed, "0.2.0", UpdateReason::Notify);
        let (off, install) = (UpdateMode::Off, UpdateMode::Install);
        let (pending, done) = (record("0.3.0", Unconfirmed), record("0.2.0", Confirmed));
        let (back, old) = (record("0.3.0", RolledBack), record("0.1.0", RolledBack));
        for (mode, stored, record, expected) in [
            (off, &waiting, None, "off"),
            (install, &none, None, "current"),
            (install, &waiting, None, "waiting 0.3.0 halted"),
            // By MDM since the last check, or by the agent.
            (install, &installed, Some(&done), "current"),
            (off, &none, Some(&pending), "unconfirmed 0.3.0"),
            (install, &waiting, Some(&pending), "unconfirmed 0.3.0"),
            (install, &waiting, Some(&back), "rolled_back 0.3.0 crashed"),
            (off, &none, Some(&back), "rolled_back 0.3.0 crashed"),
            (install, &none, Some(&back), "current"),
            (off, &none, Some(&old), "off"),
        ] {
            assert_eq!(text(mode, stored, record), expected, "{mode:?} {stored:?}");
        }
    }

    #[test]
    fn rolled_back_versions_are_kept_until_confirmed() {
        use record::UpdateState::{Confirmed, RolledBack, Unconfirmed};
        let mut state = StoredState::default();
        for (to, outcome, expected) in [
            ("0.3.0", RolledBack, "0.3.0"),
            ("0.3.0", RolledBack, "0.3.0"),
            ("0.3.1", Unconfirmed, "0.3.0"),
            ("0.3.1", RolledBack, "0.3.0 0.3.1"),
            ("0.3.0", Confirmed, "0.3.1"),
        ] {
            let versions = state.rolled_back(Some(&record(to, outcome)));
            let versions: Vec<_> = versions.iter().map(ToString::to_string).collect();
            assert_eq!(versions.join(" "), expected);
        }
    }

    /// Regression: a power cut between two renames on Windows kept a good release away for good.
    #[test]
    fn interrupted_update_is_tried_again() {
        let mut interrupted = record("0.3.0", record::UpdateState::RolledBack);
        interrupted.failed(RollbackReason::Interrupted, "killed");
        let mut state = StoredState::default();
        assert!(state.rolled_back(Some(&interrupted)).is_empty());
        // It was rolled back before, and a person installed it again.
        let crashed = record("0.3.0", record::UpdateState::RolledBack);
        assert_eq!(state.rolled_back(Some(&crashed)).len(), 1);
        assert_eq!(state.rolled_back(Some(&interrupted)).len(), 1);
    }

    #[test]
    fn each_report_is_new_once_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("update");
        let mut state = StoredState::read(&dir);
        assert!(state.is_new_report("a") && !state.is_new_report("a") && state.is_new_report("b"));
        state.write(&dir).unwrap();
        let mut state = StoredState::read(&dir);
        assert!(!state.is_new_report("b"));
        fs::write(dir.join(FILE), "no JSON").unwrap();
        assert_eq!(StoredState::read(&dir), StoredState::default());
    }
}
