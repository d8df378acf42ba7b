//! Erasure of lines and removal of epochs in the store in files, and what the requests of
//! [`life`](crate::life) need to know about its lines.

use std::{collections::BTreeSet, fs, io, path::PathBuf};

use siem_protocol::{DeadLettered, Digest};
use tokio::sync::{mpsc, oneshot};

use super::{
    EpochKey, EpochLines,
    catalog::{self, Key},
    epoch::Stem,
    note::ErasureNote,
    note_index::OldLines,
    recover,
    writer::Job,
};
use crate::{fleet::StatsQuery, stats::Stats};

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

    /// Returns a line of which only the size, without the newline, and the hash are known.
    pub(super) fn noted(seq: u64, bytes: u64, digest: Digest) -> Self {
        Self { seq, at: 0, bytes, digest }
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

/// Oldest lines of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OldPart {
    pub(crate) key: EpochKey,
    /// Position of the first line behind them.
    pub(crate) end: u64,
    pub(crate) bytes: u64,
    /// Time of their last batch, RFC 3339.
    pub(crate) last_seen: String,
}

impl OldPart {
    pub(super) fn new(((machine, epoch), old, bytes): (Key, OldLines, u64)) -> Self {
        let key = EpochKey { machine, epoch };
        Self { key, end: old.end, bytes, last_seen: old.last_at }
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

    /// Returns the oldest lines of epochs whose batches are all from before a time, RFC 3339.
    pub(crate) fn older(&self, time: String) -> io::Result<Vec<OldPart>> {
        let older = self.request(|to| Job::Older(time, to))?.into_iter();
        Ok(older.map(OldPart::new).collect())
    }

    /// Removes the lines of epochs before a position, and keeps their ledgers. `at` is the time, RFC 3339.
    pub(crate) fn remove_before(&self, ends: Vec<(EpochKey, u64)>, at: String) -> io::Result<()> {
        let ends = ends.into_iter().map(|(key, end)| (key.into_key(), end)).collect();
        self.request(|to| Job::RemoveBefore(ends, at, to))?
    }

    /// Waits until no journal holds what was written before.
    pub(crate) fn rotate(&self) -> io::Result<()> {
        self.request(Job::Rotate)?.blocking_recv().map_err(io::Error::other)?
    }

    /// Returns all epochs, or only those in `of`, from their files. Each is read when the iterator reaches
    /// it: those of a large fleet do not fit in memory together.
    pub(crate) fn epochs(
        &self,
        of: Option<&[EpochKey]>,
    ) -> io::Result<impl Iterator<Item = io::Result<EpochLines>>> {
        let stems = match of {
            Some(keys) => keys.iter().map(|key| catalog::stem(&key.clone().into_key())).collect(),
            None => recover::stems(&self.machines)?,
        };
        let stems: BTreeSet<Stem> = stems;
        Ok(stems.into_iter().map(move |stem| EpochLines::read(&self.machines, &stem, 0)))
    }

    /// Returns the epochs beside whose lines a recovery left others.
    pub(crate) fn with_surplus(&self) -> io::Result<impl Iterator<Item = io::Result<EpochLines>>> {
        let stems = recover::stems(&self.machines)?;
        Ok(stems.into_iter().filter_map(move |stem| {
            match stem.path(&self.machines, "surplus").try_exists() {
                Ok(false) => None,
                Ok(true) => Some(EpochLines::read(&self.machines, &stem, 0)),
                Err(error) => Some(Err(error)),
            }
        }))
    }

    /// Returns the epochs whose index is longer than `known` says by their names, each with the lines
    /// of the records behind.
    pub(crate) fn grown(
        &self,
        known: impl Fn(&str) -> u64,
    ) -> io::Result<impl Iterator<Item = io::Result<EpochLines>>> {
        let stems = recover::stems(&self.machines)?;
        Ok(stems.into_iter().filter_map(move |stem| {
            let from = known(&stem.name());
            match fs::metadata(stem.index(&self.machines)) {
                Ok(index) if index.len() == from => None,
                // It was replaced by a shorter one.
                Ok(index) if index.len() < from => Some(EpochLines::read(&self.machines, &stem, 0)),
                Ok(_) => Some(EpochLines::read(&self.machines, &stem, from)),
                Err(error) => Some(Err(error)),
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::seq_of;

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
