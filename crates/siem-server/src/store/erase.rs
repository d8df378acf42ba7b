//! Erasure of lines and removal of epochs in the store in files, and what the requests of
//! [`life`](crate::life) need to know about its lines.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use siem_protocol::{DeadLettered, Digest};
use tokio::sync::{mpsc, oneshot};

use super::{
    EpochKey,
    catalog::Key,
    epoch::Stem,
    index_record::scan,
    note::{ErasureNote, Note},
    recover,
    writer::Job,
};
use crate::{batch::seq_of, fleet::StatsQuery, stats::Stats};

/// A line to replace by a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LineToErase {
    seq: u64,
    /// Position in the file of lines.
    at: u64,
    /// Size in bytes, without the newline.
    bytes: u64,
    digest: Digest,
}

impl LineToErase {
    pub(crate) fn new(seq: u64, at: u64, line: &[u8]) -> Self {
        Self { seq, at, bytes: line.len() as u64, digest: Digest::of(line) }
    }

    /// Size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Position and size of the line with its newline.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.at, self.bytes + 1)
    }

    /// Returns what is stored in its place, as long as the line, with a newline: positions stay the
    /// same. The hash of a line that is too short for it is only in the note.
    pub(super) fn tombstone(&self, erasure: &str) -> Vec<u8> {
        let (seq, digest) = (self.seq, self.digest);
        let forms = [
            format!(
                r#"{{"seq":{seq},"kind":"erased","line_sha256":"{digest}","erasure":"{erasure}"}}"#
            ),
            format!(r#"{{"seq":{seq},"kind":"erased","line_sha256":"{digest}"}}"#),
            format!(r#"{{"seq":{seq},"kind":"erased"}}"#),
            // No entry is shorter.
            format!(r#"{{"seq":{seq},"kind":"-"}}"#),
        ];
        let length = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        let form = forms.into_iter().find(|form| form.len() <= length).unwrap_or_default();
        let mut text = form.into_bytes();
        text.resize(length, b' ');
        text.push(b'\n');
        text
    }
}

/// Erasure of some lines of an epoch.
#[derive(Debug)]
pub(super) struct EraseLines {
    pub(super) key: Key,
    pub(super) erasure: String,
    /// Time, RFC 3339.
    pub(super) at: String,
    pub(super) lines: Vec<LineToErase>,
}

impl EraseLines {
    /// Returns what the note of the erasure says.
    pub(super) fn note(&self) -> ErasureNote {
        let lines = self.lines.iter();
        let lines = lines.map(|line| DeadLettered { seq: line.seq, line_sha256: line.digest });
        ErasureNote { id: self.erasure.clone(), lines: lines.collect() }
    }
}

/// Sends requests to the writer of a store, as long as the store is open.
#[derive(Clone, Debug)]
pub(crate) struct StoreHandle {
    pub(super) jobs: mpsc::WeakSender<Job>,
    pub(super) machines: PathBuf,
}

impl StoreHandle {
    fn request<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> io::Result<T> {
        let closed = || io::Error::other("the store is closed");
        let (responder, response) = oneshot::channel();
        let jobs = self.jobs.upgrade().ok_or_else(closed)?;
        jobs.blocking_send(job(responder)).map_err(|_| closed())?;
        response.blocking_recv().map_err(|_| closed())
    }

    /// Waits until all acknowledged lines are in the files of the epochs.
    pub(crate) fn settle(&self) -> io::Result<()> {
        self.request(Job::Settle)?
    }

    pub(crate) fn stats(&self, query: StatsQuery) -> io::Result<Stats> {
        self.request(|to| Job::Stats(Box::new(query), to))
    }

    /// Replaces lines by tombstones in one durable step. The journals still hold the lines.
    pub(crate) fn erase(
        &self,
        key: EpochKey,
        erasure: String,
        at: String,
        lines: Vec<LineToErase>,
    ) -> io::Result<()> {
        let erase = EraseLines { key: key.into_key(), erasure, at, lines };
        self.request(|to| Job::Erase(Box::new(erase), to))?
    }

    /// Removes the lines of epochs, and keeps their ledgers. An epoch that has another size than given
    /// with its key has changed since: it stays. `at` is the time, RFC 3339. Returns the epochs whose
    /// lines were removed.
    pub(crate) fn remove(
        &self,
        epochs: Vec<(EpochKey, u64)>,
        at: String,
    ) -> io::Result<Vec<EpochKey>> {
        let epochs = epochs.into_iter().map(|(key, bytes)| (key.into_key(), bytes)).collect();
        let removed = self.request(|to| Job::Remove(epochs, at, to))??;
        Ok(removed.into_iter().map(|(machine, epoch)| EpochKey { machine, epoch }).collect())
    }

    /// Waits until no journal holds what was written before.
    pub(crate) fn rotate(&self) -> io::Result<()> {
        self.request(Job::Rotate)?.blocking_recv().map_err(io::Error::other)?
    }

    /// Returns all epochs, from their files. Each is read when the iterator reaches it: those of a large fleet
    /// do not fit in memory together.
    pub(crate) fn epochs(&self) -> io::Result<impl Iterator<Item = io::Result<EpochLines>>> {
        let stems = recover::stems(&self.machines)?;
        Ok(stems.into_iter().map(move |stem| EpochLines::read(&self.machines, &stem)))
    }
}

/// Where the lines of an epoch are, and who sent them.
#[derive(Debug)]
pub(crate) struct EpochLines {
    path: PathBuf,
    key: Option<EpochKey>,
    runs: Vec<Run>,
    erasures: Vec<ErasureNote>,
    users: BTreeSet<String>,
}

/// Lines of one batch.
#[derive(Debug)]
struct Run {
    at: u64,
    bytes: u64,
    user: String,
}

/// Ends the last runs where a note begins, and covers bytes before it of which no note is left.
fn continue_runs(runs: &mut Vec<Run>, lines_at: u64, user: &str) {
    // A repair found the file shorter than the notes say.
    while let Some(run) = runs.pop_if(|run| run.at + run.bytes > lines_at) {
        if run.at < lines_at {
            runs.push(Run { bytes: lines_at - run.at, ..run });
        }
    }
    let end = runs.last().map_or(0, |run| run.at + run.bytes);
    if end < lines_at {
        runs.push(Run { at: end, bytes: lines_at - end, user: user.to_owned() });
    }
}

/// Reports whether a line is a tombstone.
fn is_tombstone(seq: u64, line: &[u8]) -> bool {
    let starts =
        [format!(r#"{{"seq":{seq},"kind":"erased""#), format!(r#"{{"seq":{seq},"kind":"-"}}"#)];
    starts.iter().any(|start| line.starts_with(start.as_bytes()))
}

impl EpochLines {
    fn read(machines: &Path, stem: &Stem) -> io::Result<Self> {
        let index = File::open(stem.index(machines))?;
        let (path, key, runs) = (stem.lines(machines), None, Vec::new());
        let mut epoch = Self { path, key, runs, erasures: Vec::new(), users: BTreeSet::new() };
        let mut user = String::new();
        scan(&index, 0, |_, _, text| {
            // What cannot be read was reported when the store was opened.
            let Ok(note) = serde_json::from_slice::<Note>(text) else { return Ok(()) };
            if note.removed {
                epoch.runs.clear();
            }
            continue_runs(&mut epoch.runs, note.lines_at, &user);
            if let Some(sender) = note.sender {
                if user != sender.identity.user {
                    user.clone_from(&sender.identity.user);
                    epoch.users.insert(sender.identity.user);
                }
                let machine = sender.identity.machine_id;
                epoch.key.get_or_insert(EpochKey { machine, epoch: sender.epoch });
            }
            epoch.erasures.extend(note.erased);
            if note.bytes > 0 {
                epoch.runs.push(Run { at: note.lines_at, bytes: note.bytes, user: user.clone() });
            }
            Ok(())
        })?;
        Ok(epoch)
    }

    /// Key of the epoch; `None` if none of its batches was acknowledged.
    pub(crate) fn key(&self) -> Option<EpochKey> {
        self.key.clone()
    }

    /// Users who sent it.
    pub(crate) fn users(&self) -> impl Iterator<Item = &str> {
        self.users.iter().map(String::as_str)
    }

    /// Path of its lines.
    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Numbers that were erased under an id.
    pub(crate) fn erased_under(&self, id: &str) -> impl Iterator<Item = u64> {
        let erasures = self.erasures.iter().filter(move |erasure| erasure.id == id);
        erasures.flat_map(|erasure| erasure.lines.iter().map(|line| line.seq))
    }

    /// Passes user, position, number and bytes of each line to `show`, without those that were
    /// erased.
    pub(crate) fn each_line(&self, mut show: impl FnMut(&str, u64, u64, &[u8])) -> io::Result<()> {
        if self.runs.is_empty() {
            return Ok(());
        }
        let erased = self.erasures.iter().flat_map(|erasure| &erasure.lines);
        let erased: BTreeSet<u64> = erased.map(|line| line.seq).collect();
        let mut file = File::open(&self.path)?;
        for run in &self.runs {
            let mut text = Vec::new();
            file.seek(SeekFrom::Start(run.at))?;
            file.by_ref().take(run.bytes).read_to_end(&mut text)?;
            let mut at = run.at;
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                let start = at;
                at += line.len() as u64;
                // Damage may have left a part of a line.
                let Some(line) = line.strip_suffix(b"\n") else { continue };
                // A line that was lost and sent again after its erasure is no tombstone.
                let is_left = |seq: &u64| !erased.contains(seq) || !is_tombstone(*seq, line);
                if let Some(seq) = seq_of(line).filter(is_left) {
                    show(&run.user, start, seq, line);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_bytes_without_a_note_and_end_where_a_repair_cut() {
        let run = |at, bytes| Run { at, bytes, user: String::new() };
        let mut runs = vec![run(0, 10), run(10, 5), run(15, 5)];
        continue_runs(&mut runs, 12, "u");
        let found = |runs: &[Run]| runs.iter().map(|it| (it.at, it.bytes)).collect::<Vec<_>>();
        assert_eq!(found(&runs), [(0, 10), (10, 2)]);
        continue_runs(&mut runs, 20, "u");
        assert_eq!(found(&runs), [(0, 10), (10, 2), (12, 8)]);
        continue_runs(&mut runs, 20, "u");
        assert_eq!(runs.len(), 3);
    }

    #[test]
    fn tombstone_is_an_entry_as_long_as_the_line() {
        for length in 0..300 {
            let mut line = r#"{"seq":12,"kind":"x"#.to_owned() + &"x".repeat(length) + "\"}";
            assert_eq!(seq_of(line.as_bytes()), Some(12));
            let erase = LineToErase::new(12, 0, line.as_bytes());
            let tombstone = String::from_utf8(erase.tombstone("00ff00ff00ff00ff")).unwrap();
            line.push('\n');
            assert_eq!(tombstone.len(), line.len(), "{length}");
            assert_eq!(seq_of(tombstone.trim_end_matches('\n').as_bytes()), Some(12), "{length}");
            assert_eq!(tombstone.contains("line_sha256"), length >= 86, "{length}");
        }
    }
}
