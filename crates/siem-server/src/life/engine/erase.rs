//! Erasure of entries.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use memchr::memmem;
use siem_protocol::note::NoteSigner;
use tracing::{info, warn};

use super::{Engine, Stop};
use crate::{
    EpochKey, clock,
    life::{
        AccessAction, ErasedEpoch, Erasure, Hold, Holds, LifeResponse, Reason, erasures,
        lock_removals, private, subject::Subject,
    },
    store::{EpochLines, LineToErase},
};

/// Number of lines, and their size in bytes, that one durable step erases, and that are in memory.
const CHUNK: (usize, u64) = (4096, 8 << 20);

/// What an erasure will do.
#[derive(Default)]
struct Survey {
    entries: u64,
    /// The first hold that covers a selected line, and where.
    held: Option<(u64, String)>,
}

/// Erased entries of an epoch.
type Erased = (PathBuf, ErasedEpoch);

impl Engine {
    pub(super) fn erase(
        &self,
        id: &str,
        subject: &Subject,
        reason: &Reason,
        now: SystemTime,
    ) -> Result<LifeResponse, Stop> {
        let key = self.registry.as_ref().and_then(|registry| registry.receiver_key());
        let key = key.ok_or_else(|| {
            Stop::Refuse("the receiver has no key to sign the erasure; make one with `siem-server keys new --name NAME`".into())
        })?;
        let key: &dyn NoteSigner = &*key;
        self.store.settle()?;
        let _removals = lock_removals(&self.data)?;
        let holds = Holds::read(&self.data)?;
        let survey = self.survey(subject, &holds)?;
        let record = |erased: &[Erased], stopped_by_hold| {
            let epochs: Vec<_> = erased.iter().map(|(_, epoch)| epoch.clone()).collect();
            let entries = epochs.iter().flat_map(|epoch| &epoch.seqs).map(|it| it.count()).sum();
            Erasure {
                id: id.to_owned(),
                at: clock::text(now),
                selector: subject.selector.clone(),
                reason: reason.why.clone(),
                who: reason.who.clone(),
                entries,
                repeats: subject.of.clone(),
                stopped_by_hold,
                epochs,
            }
        };
        if let Some((hold, place)) = survey.held {
            // The process may have ended in the middle, and a hold been added since.
            let erasure = record(&self.erased(id, subject)?, Some(hold));
            let before = match erasure.entries {
                0 => "nothing was erased".to_owned(),
                entries => {
                    erasures::append(&self.data, &erasure, key)?;
                    format!("{entries} entries were erased before it was added, no others")
                }
            };
            return Err(Stop::Refuse(format!("hold {hold} covers {place}: {before}")));
        }
        let what = format!("{}: {} entries", subject.selector, survey.entries);
        self.log(reason, now, AccessAction::Erase, &what)?;
        let replaced = self.replace(id, &clock::text(now), subject, &holds);
        let replaced = replaced.and_then(|()| self.store.settle());
        let erased = self.erased(id, subject)?;
        let completed = match replaced.and_then(|()| self.remove_remains(subject, &holds, &erased))
        {
            Err(error) if erased.is_empty() => return Err(error.into()),
            // The part that was erased is listed: another attempt has another id.
            completed => completed,
        };
        let erasure = record(&erased, None);
        erasures::append(&self.data, &erasure, key)?;
        completed?;
        let (entries, epochs) = (erasure.entries, erasure.epochs.len());
        info!(erasure = id, entries, "erased entries");
        Ok(LifeResponse::Erased { id: id.to_owned(), entries, epochs })
    }

    /// Counts the entries, and looks for holds that cover one of them.
    fn survey(&self, subject: &Subject, holds: &Holds) -> Result<Survey, Stop> {
        let mut survey = Survey::default();
        for epoch in self.store.epochs(subject.epochs.as_deref())? {
            let epoch = epoch?;
            let Some(key) = epoch.key() else { continue };
            epoch.each_line(|line| {
                if subject.selects(&key.machine, line.user, line.text) {
                    survey.entries += 1;
                    let place = || format!("entry {} of epoch `{}`", line.seq, key.epoch);
                    survey.hold(holds.covers(&key.machine, line.user, line.text), place);
                }
                Ok::<_, io::Error>(())
            })?;
            let aside = epoch.surplus();
            if !holds.list().is_empty() && aside.try_exists()? {
                let selects = selects_any(subject, &epoch, &key);
                has_line(&aside, |line| {
                    let hold = selects(line).then(|| covers_any(holds, &epoch, &key, line));
                    survey.hold(hold.flatten(), || format!("a line in `{}`", aside.display()));
                    survey.held.is_some()
                })?;
            }
        }
        for path in self.damaged_journals()? {
            if names(&path, subject.selector.text())? {
                let hold = held_journal(&path, holds)?;
                survey.hold(hold, || format!("`{}`, which may hold such lines", path.display()));
            }
        }
        Ok(survey)
    }

    /// Replaces lines by tombstones, and deletes the journals that hold the lines.
    fn replace(&self, id: &str, at: &str, subject: &Subject, holds: &Holds) -> io::Result<()> {
        // After a failed sync a journal is copied to the files again. None may be left that holds the
        // lines: that could overwrite tombstones.
        self.store.rotate()?;
        for epoch in self.store.epochs(subject.epochs.as_deref())? {
            let epoch = epoch?;
            let Some(key) = epoch.key() else { continue };
            let erase = |lines| self.store.erase(key.clone(), id.to_owned(), at.to_owned(), lines);
            let mut chunk = Chunk::default();
            epoch.each_line(|line| {
                // One that arrived since the survey may be held.
                let is_held = || holds.covers(&key.machine, line.user, line.text).is_some();
                if subject.selects(&key.machine, line.user, line.text) && !is_held() {
                    let full = chunk.add(LineToErase::new(line.seq, line.at, line.text));
                    full.map_or(Ok(()), &erase)?;
                }
                Ok::<_, io::Error>(())
            })?;
            if !chunk.lines.is_empty() {
                erase(chunk.lines)?;
            }
        }
        // Lines that arrived meanwhile, and the erasure itself, are in the files then.
        self.store.rotate()
    }

    /// Removes what a repair moved aside, if it may hold selected lines: that of epochs whose lines are
    /// in `erased`, and files in which a selected line is found. Lines that a hold covers stay.
    fn remove_remains(
        &self,
        subject: &Subject,
        holds: &Holds,
        erased: &[Erased],
    ) -> io::Result<()> {
        for epoch in self.store.epochs(subject.epochs.as_deref())? {
            let epoch = epoch?;
            let (path, aside) = (epoch.path(), epoch.surplus());
            let key = epoch
                .key()
                .unwrap_or_else(|| EpochKey { machine: String::new(), epoch: String::new() });
            let is_erased = || erased.iter().any(|(of, _)| *of == path);
            let selects = selects_any(subject, &epoch, &key);
            if aside.try_exists()? && (is_erased() || has_line(&aside, &selects)?) {
                remove_but(&aside, |line| covers_any(holds, &epoch, &key, line).is_some())?;
            }
        }
        for path in self.damaged_journals()? {
            let may_hold = !erased.is_empty() || names(&path, subject.selector.text())?;
            if may_hold && held_journal(&path, holds)?.is_none() {
                remove_but(&path, |_| false)?;
            }
        }
        Ok(())
    }

    /// Returns the copies of damaged journals.
    fn damaged_journals(&self) -> io::Result<Vec<PathBuf>> {
        let paths = fs::read_dir(self.data.join("journal"))?.map(|entry| Ok(entry?.path()));
        let mut paths = paths.collect::<io::Result<Vec<_>>>()?;
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "damaged"));
        Ok(paths)
    }

    /// Returns what was erased under an id, also before an interruption, with the path of the lines.
    fn erased(&self, id: &str, subject: &Subject) -> io::Result<Vec<Erased>> {
        let mut erased = Vec::new();
        for epoch in self.store.epochs(subject.epochs.as_deref())? {
            let epoch = epoch?;
            let seqs = epoch.erased_under(id);
            if let Some(key) = epoch.key().filter(|_| !seqs.is_empty()) {
                let (machine, of) = (key.machine, key.epoch);
                erased.push((epoch.path(), ErasedEpoch { machine, epoch: of, seqs }));
            }
        }
        Ok(erased)
    }
}

impl Survey {
    fn hold(&mut self, hold: Option<&Hold>, place: impl FnOnce() -> String) {
        if let (None, Some(hold)) = (&self.held, hold) {
            self.held = Some((hold.id, place()));
        }
    }
}

/// Lines that are erased together.
#[derive(Default)]
struct Chunk {
    lines: Vec<LineToErase>,
    bytes: u64,
}

impl Chunk {
    /// Adds a line, and returns all lines if the chunk is full.
    fn add(&mut self, line: LineToErase) -> Option<Vec<LineToErase>> {
        self.bytes += line.bytes();
        self.lines.push(line);
        let is_full = self.lines.len() >= CHUNK.0 || self.bytes >= CHUNK.1;
        is_full.then(|| std::mem::take(self).lines)
    }
}

/// Returns whether a line is selected that any of the epoch's users may have sent.
fn selects_any<'a>(
    subject: &'a Subject,
    epoch: &'a EpochLines,
    key: &'a EpochKey,
) -> impl Fn(&[u8]) -> bool + 'a {
    |line| epoch.users().any(|user| subject.selects(&key.machine, user, line))
}

/// Returns a hold that covers a line that any of the epoch's users may have sent.
fn covers_any<'h>(
    holds: &'h Holds,
    epoch: &EpochLines,
    key: &EpochKey,
    line: &[u8],
) -> Option<&'h Hold> {
    epoch.users().find_map(|user| holds.covers(&key.machine, user, line))
}

/// Reports whether a file contains a text in one of its lines, as it is or as in a JSON string: a name
/// may have characters that are escaped there, such as `CORP\alice`.
fn names(path: &Path, text: &str) -> io::Result<bool> {
    let quoted = serde_json::to_string(text)?;
    let escaped = quoted.strip_prefix('"').and_then(|it| it.strip_suffix('"')).unwrap_or(text);
    let contains = |line: &[u8], text: &str| memmem::find(line, text.as_bytes()).is_some();
    has_line(path, |line| contains(line, text) || contains(line, escaped))
}

/// Returns a hold whose session, user or machine a copy of a journal names.
fn held_journal<'h>(path: &Path, holds: &'h Holds) -> io::Result<Option<&'h Hold>> {
    for hold in holds.list() {
        if names(path, hold.selector.text())? {
            return Ok(Some(hold));
        }
    }
    Ok(None)
}

/// Reports whether a line of a file meets the condition.
pub(super) fn has_line(path: &Path, mut condition: impl FnMut(&[u8]) -> bool) -> io::Result<bool> {
    let mut reader = BufReader::new(fs::File::open(path)?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        if condition(&line) {
            return Ok(true);
        }
        line.clear();
    }
    Ok(false)
}

/// Removes the lines of a file, and the file if none is left. Lines that meet the condition stay.
fn remove_but(path: &Path, stays: impl Fn(&[u8]) -> bool) -> io::Result<()> {
    let mut kept = Vec::new();
    has_line(path, |line| {
        if stays(line) {
            kept.extend_from_slice(line);
        }
        false
    })?;
    let bytes = kept.len();
    if kept.is_empty() {
        fs::remove_file(path)?;
    } else {
        let aside = path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        let mut file = private(options.write(true).create(true).truncate(true)).open(&aside)?;
        file.write_all(&kept)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
    }
    warn!(code = "erasure_removed_remains", file = %path.display(), kept = bytes, "removed the lines in a file of a repair, which may hold erased ones");
    path.parent().map_or(Ok(()), crate::store::sync_directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_with_a_backslash_is_found_as_json() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "{\"user\":\"CORP\\\\alice\"}\n").unwrap();
        assert!(names(file.path(), r"CORP\alice").unwrap());
        assert!(!names(file.path(), r"CORP\bob").unwrap());
    }

    #[test]
    fn chunk_never_holds_more_than_one_step_erases() {
        let mut chunk = Chunk::default();
        let mut steps = Vec::new();
        for seq in 0..10_000 {
            let size = if seq < 9_000 { 10 } else { 100_000 };
            steps.extend(chunk.add(LineToErase::new(seq, 0, &vec![b'x'; size])));
            assert!(chunk.lines.len() < CHUNK.0 && chunk.bytes < CHUNK.1);
        }
        assert_eq!(steps.len(), 13);
        assert_eq!(steps.concat().len() + chunk.lines.len(), 10_000);
    }
}
