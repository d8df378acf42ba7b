//! Comparison of the stored entries with the agent's totals.
//!
//! The last heartbeat carries totals that cover exactly the numbers below its own. So the
//! receiver's files contain both: the entries, and how many there should be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufReader},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use super::stats::size;
use crate::Failure;

/// Content of a receiver's store.
#[derive(Default)]
pub(super) struct Tally {
    epochs: Vec<(PathBuf, Epoch)>,
}

/// Entries of one outbox.
#[derive(Default)]
struct Epoch {
    /// Files that the records come from.
    sources: BTreeSet<String>,
    /// Records, by sequence number.
    records: Vec<u64>,
    events: u64,
    /// The last heartbeat and its number.
    heartbeat: Option<(u64, Heartbeat)>,
}

/// Data of a heartbeat.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
struct Heartbeat {
    #[serde(default)]
    totals: Totals,
    #[serde(default)]
    unread_bytes: u64,
}

/// Totals of a heartbeat.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
struct Totals {
    shipped: Count,
    parts: Parts,
    endings: u64,
    filtered: BTreeMap<String, BTreeMap<String, Count>>,
    blank: Count,
    cut: BTreeMap<String, u64>,
}

/// Parts of large lines.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
struct Parts {
    lines: u64,
    bytes: u64,
}

/// Lines and bytes.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
struct Count {
    lines: u64,
    bytes: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.lines += other.lines;
        self.bytes += other.bytes;
    }
}

/// Members of an entry that are counted here.
#[derive(Deserialize)]
struct Entry {
    seq: u64,
    kind: String,
    path: Option<String>,
    #[serde(default)]
    last: bool,
    event: Option<String>,
    data: Option<Value>,
}

impl Tally {
    /// Counts the entries in a receiver's directory.
    pub(super) fn of(directory: &Path) -> Result<Self, Failure> {
        let mut files = Vec::new();
        find(directory, &mut files)?;
        files.sort();
        let mut tally = Self::default();
        for path in files {
            let epoch = Epoch::read(BufReader::with_capacity(1 << 20, File::open(&path)?))
                .map_err(|error| format!("cannot read `{}`: {error}", path.display()))?;
            tally.epochs.push((path, epoch));
        }
        Ok(tally)
    }

    /// Files that records come from.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        self.epochs.iter().map(|(path, _)| path.as_path())
    }

    /// Table of the lines that were read, and their treatment.
    pub(super) fn table(&self) -> String {
        let totals = self.totals();
        let mut read = totals.blank;
        let sent = Count {
            lines: totals.shipped.lines + totals.parts.lines,
            bytes: totals.shipped.bytes + totals.parts.bytes + totals.endings,
        };
        read += sent;
        totals.filtered.values().flat_map(BTreeMap::values).for_each(|count| read += *count);
        let sources: BTreeSet<_> =
            self.epochs.iter().flat_map(|(_, epoch)| &epoch.sources).collect();
        let events: u64 = self.epochs.iter().map(|(_, epoch)| epoch.events).sum();
        let stored: u64 = self.epochs.iter().map(|(_, epoch)| epoch.records.len() as u64).sum();

        let mut rows = vec![row("read", read)];
        for (stage, reasons) in &totals.filtered {
            for (reason, count) in reasons {
                rows.push(row(&format!("  dropped by {stage}: {reason}"), *count));
            }
        }
        rows.push(row("  blank", totals.blank));
        rows.push(row("shipped", sent));
        for (stage, bytes) in &totals.cut {
            rows.push(bytes_row(&format!("  cut out by {stage}"), *bytes));
        }
        let from = format!("stored, from {} files", sources.len());
        rows.push(format!("{from:<44} {stored:>9} lines"));
        rows.push(format!("{:<44} {events:>9} events", "  and what the agent reported"));
        rows.push(bytes_row("not read: no newline yet", self.unread()));
        rows.join("\n") + "\n"
    }

    /// Describes the first difference between sent and stored entries.
    pub(super) fn complaint(&self) -> Option<String> {
        let mut seen = false;
        for (path, epoch) in &self.epochs {
            let Some((seq, Heartbeat { totals, .. })) = &epoch.heartbeat else { continue };
            seen = true;
            let shipped = totals.shipped.lines + totals.parts.lines;
            let stored = epoch.records.iter().filter(|record| *record < seq).count() as u64;
            if shipped != stored {
                let path = path.display();
                return Some(format!("{shipped} lines were shipped, {stored} are in `{path}`"));
            }
        }
        (!seen).then(|| "no totals of the agent have arrived".to_owned())
    }

    fn unread(&self) -> u64 {
        self.heartbeats().map(|heartbeat| heartbeat.unread_bytes).sum()
    }

    fn heartbeats(&self) -> impl Iterator<Item = &Heartbeat> {
        self.epochs.iter().filter_map(|(_, epoch)| Some(&epoch.heartbeat.as_ref()?.1))
    }

    fn totals(&self) -> Totals {
        let mut sum = Totals::default();
        for Heartbeat { totals, .. } in self.heartbeats() {
            sum.shipped += totals.shipped;
            sum.parts.lines += totals.parts.lines;
            sum.parts.bytes += totals.parts.bytes;
            sum.endings += totals.endings;
            sum.blank += totals.blank;
            for (stage, reasons) in &totals.filtered {
                let sum = sum.filtered.entry(stage.clone()).or_default();
                for (reason, count) in reasons {
                    *sum.entry(reason.clone()).or_default() += *count;
                }
            }
            for (stage, bytes) in &totals.cut {
                *sum.cut.entry(stage.clone()).or_default() += bytes;
            }
        }
        sum
    }
}

fn row(what: &str, Count { lines, bytes }: Count) -> String {
    format!("{what:<44} {lines:>9} lines {:>11}", size(bytes))
}

fn bytes_row(what: &str, bytes: u64) -> String {
    format!("{what:<44} {:>15} {:>11}", "", size(bytes))
}

impl Epoch {
    fn read(mut lines: impl io::BufRead) -> Result<Self, Failure> {
        let mut epoch = Self::default();
        let mut line = Vec::new();
        loop {
            line.clear();
            if lines.read_until(b'\n', &mut line)? == 0 {
                return Ok(epoch);
            }
            epoch.count(serde_json::from_slice(&line)?)?;
        }
    }

    fn count(&mut self, entry: Entry) -> Result<(), Failure> {
        match entry.kind.as_str() {
            "event" => {
                self.events += 1;
                let newest = self.heartbeat.as_ref().is_none_or(|(seq, _)| *seq < entry.seq);
                if newest && entry.event.as_deref() == Some("heartbeat") {
                    let heartbeat = serde_json::from_value(entry.data.unwrap_or_default())?;
                    self.heartbeat = Some((entry.seq, heartbeat));
                }
            }
            "record_part" if !entry.last => {}
            _ => self.records.push(entry.seq),
        }
        self.sources.extend(entry.path);
        Ok(())
    }
}

/// Returns the files with entries, at any depth.
fn find(directory: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            find(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "ndjson") {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORED: &str = r#"{"seq":1,"kind":"event","source":"agent","event":"agent_started","data":{"version":"1"}}
{"seq":2,"kind":"record","source":"claude-sessions","path":"/p/a.jsonl","record":{"path":"/not/this","event":"x"}}
{"seq":3,"kind":"record_part","source":"claude-sessions","path":"/p/b.jsonl","part":1,"raw_base64":"eA=="}
{"seq":4,"kind":"record_part","source":"claude-sessions","path":"/p/b.jsonl","part":2,"last":true,"raw_base64":"eA=="}
{"seq":5,"kind":"event","source":"agent","event":"heartbeat","data":{"totals":{"shipped":{"lines":1,"bytes":40},"parts":{"lines":1,"bytes":2048},"filtered":{"ignore-types":{"ignored_type":{"lines":3,"bytes":300}}},"blank":{"lines":1,"bytes":1},"cut":{"tool-call":512},"events":1},"unread_bytes":18}}
{"seq":6,"kind":"record","source":"claude-sessions","path":"/p/a.jsonl","raw":"later"}
"#;

    fn tally(stored: &str) -> Tally {
        let epoch = Epoch::read(stored.as_bytes()).unwrap();
        Tally { epochs: vec![(PathBuf::from("/s/e.ndjson"), epoch)] }
    }

    #[test]
    fn table_accounts_for_every_line() {
        let expected = "\
read                                                 6 lines     2.3 KiB
  dropped by ignore-types: ignored_type              3 lines       300 B
  blank                                              1 lines         1 B
shipped                                              2 lines     2.0 KiB
  cut out by tool-call                                             512 B
stored, from 2 files                                 3 lines
  and what the agent reported                        2 events
not read: no newline yet                                            18 B
";
        assert_eq!(tally(STORED).table(), expected);
    }

    #[test]
    fn entries_after_the_heartbeat_are_no_fault() {
        assert_eq!(tally(STORED).complaint(), None);
    }

    #[test]
    fn missing_line_is_a_fault() {
        let less: String = STORED
            .lines()
            .filter(|line| !line.contains(r#""seq":2"#))
            .map(|line| line.to_owned() + "\n")
            .collect();
        let complaint = tally(&less).complaint().unwrap();
        assert_eq!(complaint, "2 lines were shipped, 1 are in `/s/e.ndjson`");
    }

    #[test]
    fn missing_totals_are_a_fault() {
        assert_eq!(tally("").complaint().unwrap(), "no totals of the agent have arrived");
        assert!(Tally::default().complaint().is_some());
    }
}
