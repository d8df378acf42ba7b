//! What hooks saw, on its way to the daemon: one small file for each call.
//!
//! A hook has no time for more: it writes a file and renames it, without a sync. The daemon takes the
//! files up when it runs, so their number is bounded; the oldest stay, and those that had to be left
//! out are counted.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use siem_protocol::Digest;
use ulid::Ulid;

use super::{
    account::SignedInAccount,
    policy::{PolicyFinding, UndecidedRule},
};
use crate::platform::{Timestamp, secure_file};

/// The spool in the state directory.
const FOLDER: &str = "spool";
/// So many reports wait for the daemon.
const MOST: usize = 1000;
/// A report is no longer than this: all of them take 16 MiB at most.
pub const LONGEST: usize = 16 << 10;
/// One byte for each report that was left out.
const DROPPED: &str = "dropped";
/// How reports end, and what is not one yet.
const ENDING: &str = "json";

/// What a hook saw and answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpooledReport {
    /// When it was called.
    pub at: Timestamp,
    /// What for: the client's name of the event.
    pub hook: String,
    /// What was decided: `allowed`, `warned` or `blocked`.
    pub decision: String,
    /// How long that took, in microseconds.
    pub latency_us: u64,
    /// The session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Where its records will be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transcript_path: Option<PathBuf>,
    /// The folder that it works in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// How it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// SignedInAccount is signed in, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<SignedInAccount>,
    /// What is wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<PolicyFinding>,
    /// What nobody knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<UndecidedRule>,
    /// The configuration that the policy is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_hash: Option<Digest>,
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpoolOutcome {
    /// It waits for the daemon.
    Spooled,
    /// There was no room: it is counted.
    Dropped,
}

/// A folder of reports.
#[derive(Clone, Debug)]
pub struct Spool {
    folder: PathBuf,
}

impl Spool {
    /// The one in `state_dir`.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        Self { folder: state_dir.join(FOLDER) }
    }

    /// Adds a report, whole or not at all.
    ///
    /// # Errors
    /// What the system says.
    pub fn add(&self, report: &SpooledReport, random: u128) -> io::Result<SpoolOutcome> {
        let bytes = serde_json::to_vec(report)?;
        let waiting = match fs::read_dir(&self.folder) {
            Ok(entries) => entries.count(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                secure_file::create_dir(&self.folder)?;
                0
            }
            Err(error) => return Err(error),
        };
        if waiting >= MOST || bytes.len() > LONGEST {
            let dropped = self.folder.join(DROPPED);
            secure_file::options().append(true).open(dropped)?.write_all(b".")?;
            return Ok(SpoolOutcome::Dropped);
        }
        let name = Ulid::from_parts(report.at.0, random).to_string();
        let unnamed = self.folder.join(format!("{name}.new"));
        let mut file = secure_file::options().create_new(true).open(&unnamed)?;
        let written = file
            .write_all(&bytes)
            .and_then(|()| fs::rename(&unnamed, self.folder.join(format!("{name}.{ENDING}"))));
        if let Err(error) = written {
            drop(fs::remove_file(&unnamed));
            return Err(error);
        }
        Ok(SpoolOutcome::Spooled)
    }

    /// The names of the reports that wait, the oldest first.
    ///
    /// # Errors
    /// What the system says; a spool that nobody has used yet is empty.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            let path = PathBuf::from(entry?.file_name());
            let name = path.file_stem().and_then(|name| name.to_str());
            if let Some(name) = name.filter(|name| Ulid::from_string(name).is_ok())
                && path.extension().is_some_and(|ending| ending == ENDING)
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// A report that waits; `None` when what lies there is none.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(&self, name: &str) -> io::Result<Option<SpooledReport>> {
        use std::io::Read as _;

        let Some((file, _)) = crate::platform::file::open_regular(&self.path(name))? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(LONGEST as u64 + 1).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes).ok())
    }

    /// Deletes a report that was taken up.
    ///
    /// # Errors
    /// What the system says; one that is gone is none.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// How many reports were ever left out.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        fs::metadata(self.folder.join(DROPPED)).map_or(0, |file| file.len())
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

    #[test]
    fn reports_are_taken_up_in_the_order_of_time() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::of(folder.path());
        assert_eq!(spool.names().unwrap(), [""; 0]);
        for (at, random) in [(3, 0), (1, u128::MAX), (2, 7), (1 << 40, 0)] {
            assert_eq!(spool.add(&report(at), random).unwrap(), SpoolOutcome::Spooled);
        }
        fs::write(folder.path().join(FOLDER).join("01ARZ3NDEKTSV4RRFFQ69G5FAV.new"), "{").unwrap();
        fs::write(folder.path().join(FOLDER).join("notes.json"), "{}").unwrap();
        let names = spool.names().unwrap();
        let times: Vec<u64> =
            names.iter().map(|name| spool.read(name).unwrap().unwrap().at.0).collect();
        assert_eq!(times, [1, 2, 3, 1 << 40]);
        spool.remove(&names[0]).unwrap();
        spool.remove(&names[0]).unwrap();
        assert_eq!(spool.names().unwrap(), names[1..]);
    }

    #[test]
    fn a_spool_that_nobody_empties_keeps_the_oldest_and_counts_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::of(folder.path());
        let all = MOST as u64 + 20;
        let put = (0..all).map(|at| spool.add(&report(at), u128::from(at)).unwrap());
        let dropped = put.filter(|put| *put == SpoolOutcome::Dropped).count() as u64;
        assert!((20..=22).contains(&dropped), "{dropped}");
        assert_eq!(spool.dropped(), dropped);
        let names = spool.names().unwrap();
        assert_eq!(names.len() as u64 + dropped, all);
        assert_eq!(spool.read(&names[0]).unwrap().unwrap().at.0, 0);
    }

    #[test]
    fn a_report_that_is_too_long_or_no_report_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::of(folder.path());
        let long = SpooledReport { cwd: Some("x".repeat(LONGEST)), ..report(1) };
        assert_eq!(spool.add(&long, 1).unwrap(), SpoolOutcome::Dropped);
        spool.add(&report(1), 2).unwrap();
        let name = &spool.names().unwrap()[0];
        fs::write(spool.path(name), "[]").unwrap();
        assert_eq!(spool.read(name).unwrap(), None);
    }
}
