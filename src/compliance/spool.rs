//! Spool of hook reports for the daemon: one small file per call.
//!
//! A hook has little time: it writes and renames a file, without a sync. The daemon reads the files
//! when it runs, so their number is limited; the oldest are kept, and reports that were dropped are
//! counted.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use siem_protocol::{Digest, agent_event::PolicySource};
use ulid::Ulid;

use super::{
    account::SignedInAccount,
    policy::{PolicyFinding, UndecidedRule},
};
use crate::platform::{
    Timestamp, secure_file,
    state_dir::{self, DirUse},
};

/// Spool directory in the state directory.
const FOLDER: &str = "spool";
/// Maximum number of waiting reports.
const MOST: usize = 1000;
/// Maximum number of entries of the directory that are listed: hooks write far fewer, and a directory may
/// have millions.
const MAX_LISTED: usize = 10 * MOST;
/// Maximum size of a report in bytes: all of them take 16 MiB at most.
pub const LONGEST: usize = 16 << 10;
/// File with one byte for each dropped report.
const DROPPED: &str = "dropped";
/// Extension of reports; a report that is being written has another one.
const ENDING: &str = "json";

/// Report of one hook call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpooledReport {
    /// Time of the call.
    pub at: Timestamp,
    /// Client's name of the event.
    pub hook: String,
    /// Decision: `allowed`, `warned` or `blocked`.
    pub decision: String,
    /// Duration of the call in microseconds.
    pub latency_us: u64,
    /// Session id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Path of the session file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transcript_path: Option<PathBuf>,
    /// Working directory of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Trigger of the session start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Account, as far as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<SignedInAccount>,
    /// Violated rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<PolicyFinding>,
    /// Rules that could not be evaluated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<UndecidedRule>,
    /// Hash of the configuration that contains the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_hash: Option<Digest>,
    /// Hash of the policy that was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_hash: Option<Digest>,
    /// Origin of that policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_source: Option<PolicySource>,
    /// Reason why the policy that comes first was not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_problem: Option<String>,
}

/// Result of adding a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpoolOutcome {
    /// The report waits for the daemon.
    Spooled,
    /// The spool is full; the report is counted as dropped.
    Dropped,
}

/// Reports found in the spool.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SpoolListing {
    /// Names of the reports, the oldest first.
    pub names: Vec<String>,
    /// Number of directories, links and other entries that have the name of a report.
    pub irregular: u64,
    /// False if the directory has more entries than are listed.
    pub is_complete: bool,
}

/// Directory of reports.
#[derive(Clone, Debug)]
pub struct Spool {
    folder: PathBuf,
}

impl Spool {
    /// Returns the spool in `state_dir`.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        Self { folder: state_dir.join(FOLDER) }
    }

    /// Adds a report atomically.
    ///
    /// # Errors
    /// The error of the system.
    pub fn add(&self, report: &SpooledReport, random: u128) -> io::Result<SpoolOutcome> {
        let bytes = serde_json::to_vec(report)?;
        let waiting = match self.check().and_then(|()| fs::read_dir(&self.folder)) {
            // An endless directory must not delay the hook.
            Ok(entries) => entries.take(MOST).count(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                secure_file::create_dir(&self.folder)?;
                0
            }
            Err(error) => return Err(error),
        };
        if waiting >= MOST || bytes.len() > LONGEST {
            let dropped = self.folder.join(DROPPED);
            secure_file::open(secure_file::options().append(true), &dropped)?.write_all(b".")?;
            return Ok(SpoolOutcome::Dropped);
        }
        let name = Ulid::from_parts(report.at.0, random).to_string();
        let unnamed = self.folder.join(format!("{name}.new"));
        let mut file = secure_file::create_new(&unnamed)?;
        let written = file.write_all(&bytes);
        // Windows does not rename a file that is opened without sharing.
        drop(file);
        let written = written
            .and_then(|()| fs::rename(&unnamed, self.folder.join(format!("{name}.{ENDING}"))));
        if let Err(error) = written {
            drop(fs::remove_file(&unnamed));
            return Err(error);
        }
        Ok(SpoolOutcome::Spooled)
    }

    /// Lists the waiting reports.
    ///
    /// # Errors
    /// The error of the system; a spool that does not exist yet is empty.
    pub fn list(&self) -> io::Result<SpoolListing> {
        let mut listing = SpoolListing { is_complete: true, ..SpoolListing::default() };
        let entries = match self.check().and_then(|()| fs::read_dir(&self.folder)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(listing),
            Err(error) => return Err(error),
        };
        for (count, entry) in entries.enumerate() {
            if count == MAX_LISTED {
                listing.is_complete = false;
                break;
            }
            let entry = entry?;
            let path = PathBuf::from(entry.file_name());
            let name = path.file_stem().and_then(|name| name.to_str());
            if let Some(name) = name.filter(|name| Ulid::from_string(name).is_ok())
                && path.extension().is_some_and(|ending| ending == ENDING)
            {
                match entry.file_type() {
                    Ok(kind) if kind.is_file() => listing.names.push(name.to_owned()),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    _ => listing.irregular += 1,
                }
            }
        }
        listing.names.sort_unstable();
        Ok(listing)
    }

    /// Returns whether the file of a report exists.
    pub fn contains(&self, name: &str) -> bool {
        let found = fs::symlink_metadata(self.path(name));
        found.map_or_else(|error| error.kind() != io::ErrorKind::NotFound, |file| file.is_file())
    }

    /// Reads a waiting report; `None` if the file is not a valid one.
    ///
    /// # Errors
    /// The error of the system.
    pub fn read(&self, name: &str) -> io::Result<Option<SpooledReport>> {
        use std::io::Read as _;

        let Some((file, _)) = crate::platform::file::open_regular(&self.path(name))? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(LONGEST as u64 + 1).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes).ok())
    }

    /// Deletes a report that was processed.
    ///
    /// # Errors
    /// The error of the system; a report that does not exist is not an error.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns the number of reports dropped so far.
    ///
    /// # Errors
    /// The error of the system. It does not mean that none were dropped.
    pub fn dropped(&self) -> io::Result<u64> {
        match fs::metadata(self.folder.join(DROPPED)) {
            Ok(file) => Ok(file.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Checks that the state directory and the spool can be changed by their user only, and that the
    /// spool is no symlink.
    fn check(&self) -> io::Result<()> {
        if let Some(state_dir) = self.folder.parent() {
            state_dir::check(state_dir, DirUse::Write)
                .map_err(|error| io::Error::new(io::ErrorKind::PermissionDenied, error))?;
        }
        secure_file::check_own_dir(&self.folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.{ENDING}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(at: u64) -> SpooledReport {
        SpooledReport { at: Timestamp(at), hook: "SessionStart".into(), ..SpooledReport::default() }
    }

    fn listing(
        names: impl IntoIterator<Item = impl Into<String>>,
        irregular: u64,
        is_complete: bool,
    ) -> SpoolListing {
        let names = names.into_iter().map(Into::into).collect();
        SpoolListing { names, irregular, is_complete }
    }

    /// The agent opened each of 20,000 directories every few minutes, and remembered their names.
    #[test]
    fn entries_that_are_no_files_are_only_counted() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::of(folder.path());
        spool.add(&report(7), 0).unwrap();
        let name = |number: u64| Ulid::from_parts(number, 1).to_string();
        fs::create_dir(spool.path(&name(1))).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("/dev/null", spool.path(&name(2))).unwrap();
        #[cfg(windows)]
        fs::create_dir(spool.path(&name(2))).unwrap();
        let report = Ulid::from_parts(7, 0).to_string();
        assert_eq!(spool.list().unwrap(), listing([&report], 2, true));
        assert_eq!(
            [&report, &name(1), &name(3)].map(|name| spool.contains(name)),
            [true, false, false]
        );
    }

    #[test]
    fn listing_ends_in_a_directory_of_many_entries() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::of(folder.path());
        spool.add(&report(7), 0).unwrap();
        let existing = spool.path(&Ulid::from_parts(7, 0).to_string());
        for number in 0..MAX_LISTED as u64 {
            fs::hard_link(&existing, spool.path(&Ulid::from_parts(number, 1).to_string())).unwrap();
        }
        let listing = spool.list().unwrap();
        assert_eq!((listing.names.len(), listing.is_complete), (MAX_LISTED, false));
    }

    #[test]
    fn reports_are_listed_in_order_of_time() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::of(folder.path());
        assert_eq!(spool.list().unwrap(), listing([""; 0], 0, true));
        for (at, random) in [(3, 0), (1, u128::MAX), (2, 7), (1 << 40, 0)] {
            assert_eq!(spool.add(&report(at), random).unwrap(), SpoolOutcome::Spooled);
        }
        fs::write(folder.path().join(FOLDER).join("01ARZ3NDEKTSV4RRFFQ69G5FAV.new"), "{").unwrap();
        fs::write(folder.path().join(FOLDER).join("notes.json"), "{}").unwrap();
        let names = spool.list().unwrap().names;
        let times: Vec<u64> =
            names.iter().map(|name| spool.read(name).unwrap().unwrap().at.0).collect();
        assert_eq!(times, [1, 2, 3, 1 << 40]);
        spool.remove(&names[0]).unwrap();
        spool.remove(&names[0]).unwrap();
        assert_eq!(spool.list().unwrap().names, names[1..]);
    }

    #[cfg(unix)]
    #[test]
    fn spool_that_is_a_symlink_or_open_to_others_is_refused() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};

        let folder = tempfile::tempdir().unwrap();
        let (elsewhere, spool) = (folder.path().join("elsewhere"), Spool::of(folder.path()));
        secure_file::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, &spool.folder).unwrap();
        assert!(spool.add(&report(1), 1).is_err() && spool.list().is_err());
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        fs::remove_file(&spool.folder).unwrap();
        spool.add(&report(1), 1).unwrap();
        let precious = folder.path().join("precious");
        symlink(&precious, spool.folder.join(DROPPED)).unwrap();
        let long = SpooledReport { cwd: Some("x".repeat(LONGEST)), ..report(1) };
        assert!(spool.add(&long, 1).is_err() && !precious.try_exists().unwrap());
        for open in [&spool.folder, &folder.path().to_owned()] {
            let mode = |mode| fs::set_permissions(open, fs::Permissions::from_mode(mode)).unwrap();
            mode(0o777);
            let error = spool.add(&report(2), 2).unwrap_err().to_string();
            assert!(error.contains("chmod 700"), "{error}");
            mode(0o700);
        }
        spool.add(&report(2), 2).unwrap();
    }

    /// The hook waited for ever for a reader, and Claude Code let the prompt through after 10 s.
    #[cfg(target_os = "linux")]
    #[test]
    fn fifo_in_place_of_the_count_does_not_block_a_full_spool() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};

        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::of(folder.path());
        spool.add(&report(1), 1).unwrap();
        let fifo = spool.folder.join(DROPPED);
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o600), 0).unwrap();
        for number in 0..MOST {
            fs::write(spool.folder.join(number.to_string()), "").unwrap();
        }
        let error = spool.add(&report(2), 2).unwrap_err().to_string();
        assert!(error.contains("is not a regular file"), "{error}");
    }

    #[test]
    fn full_spool_keeps_the_oldest_and_counts_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::of(folder.path());
        let all = MOST as u64 + 20;
        let put = (0..all).map(|at| spool.add(&report(at), u128::from(at)).unwrap());
        let dropped = put.filter(|put| *put == SpoolOutcome::Dropped).count() as u64;
        assert!((20..=22).contains(&dropped), "{dropped}");
        assert_eq!(spool.dropped().unwrap(), dropped);
        let names = spool.list().unwrap().names;
        assert_eq!(names.len() as u64 + dropped, all);
        assert_eq!(spool.read(&names[0]).unwrap().unwrap().at.0, 0);
    }

    /// A count of 0 after a failure made the agent report all dropped reports once more.
    #[cfg(unix)]
    #[test]
    fn count_of_dropped_reports_that_fails_is_not_zero() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::of(folder.path());
        assert_eq!(spool.dropped().unwrap(), 0, "there is no spool yet");
        let dropped = folder.path().join(FOLDER).join(DROPPED);
        fs::create_dir(dropped.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&dropped, &dropped).unwrap();
        spool.dropped().unwrap_err();
    }

    #[test]
    fn oversized_report_is_dropped_and_invalid_file_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::of(folder.path());
        let long = SpooledReport { cwd: Some("x".repeat(LONGEST)), ..report(1) };
        assert_eq!(spool.add(&long, 1).unwrap(), SpoolOutcome::Dropped);
        spool.add(&report(1), 2).unwrap();
        let name = &spool.list().unwrap().names[0];
        fs::write(spool.path(name), "[]").unwrap();
        assert_eq!(spool.read(name).unwrap(), None);
    }
}
