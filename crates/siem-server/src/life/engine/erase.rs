//! Erasure of entries.

use std::{collections::BTreeMap, fs, io, time::SystemTime};

use siem_protocol::note::NoteSigner;
use tracing::info;

use super::{Engine, Stop};
use crate::{
    EpochKey, clock,
    life::{
        AccessAction, ErasedEpoch, Erasure, Hold, Holds, LifeResponse, Mention, Reason, counted,
        erasures, lock_removals, long_lines::LongLines, remains::Remains, session::Relation,
        subject::Subject,
    },
    store::LineToErase,
};

/// Number of lines, and their size in bytes, that one durable step erases, and that are in memory.
const CHUNK: (usize, u64) = (4096, 8 << 20);

/// Maximum number of sessions whose mentions are counted apart, and of those that are returned.
const MENTIONS: usize = 10_000;
const SHOWN_MENTIONS: usize = 100;

/// What an erasure will do.
#[derive(Default)]
struct Survey {
    entries: u64,
    /// The first hold that covers a selected line, and where.
    held: Option<(u64, String)>,
    /// Number of the lines of others that mention the session, by their machine and session.
    mentions: BTreeMap<(String, String), u64>,
    /// Lines that arrived in parts of which one is selected.
    long_lines: LongLines,
    /// Number of those that are not in `mentions`, which has only so many rows.
    others: u64,
}

impl Engine {
    /// Erases the entries of a subject, and lists that. What an earlier attempt with the same id erased is
    /// listed, too.
    pub(super) fn erase(
        &self,
        id: &str,
        subject: &Subject,
        reason: &Reason,
        now: SystemTime,
    ) -> Result<LifeResponse, Stop> {
        let mut has_begun = false;
        let erased = self.try_erase(id, subject, (reason, now), &mut has_begun);
        erased.map_err(|stop| match stop {
            Stop::Io(error) if self.is_incomplete(id, subject, has_begun) => {
                Stop::Incomplete(error)
            }
            stop => stop,
        })
    }

    /// Reports whether entries were erased under an id that is not listed. `has_begun` counts if that cannot
    /// be read.
    fn is_incomplete(&self, id: &str, subject: &Subject, has_begun: bool) -> bool {
        if erasures::is_listed(&self.data, id).unwrap_or(false) {
            return false;
        }
        self.erased(id, subject).map_or(has_begun, |erased| !erased.is_empty())
    }

    fn try_erase(
        &self,
        id: &str,
        subject: &Subject,
        (reason, now): (&Reason, SystemTime),
        has_begun: &mut bool,
    ) -> Result<LifeResponse, Stop> {
        let key = self.registry.as_ref().and_then(|registry| registry.receiver_key());
        let key = key.ok_or_else(|| {
            Stop::Refuse("the receiver has no key to sign the erasure; make one with `siem-server keys new --name NAME`".into())
        })?;
        let key: &dyn NoteSigner = &*key;
        self.store.settle()?;
        let _removals = lock_removals(&self.data)?;
        let holds = Holds::read(&self.data)?;
        let mut subject = subject.clone();
        let of = subject.of.clone().unwrap_or_else(|| id.to_owned());
        subject.long_lines.extend(&LongLines::read(&self.data, &of)?);
        let mut survey = self.survey(&subject, &holds)?;
        // The other parts of a line may come before the one that names the session.
        if subject.long_lines.extend(&survey.long_lines) {
            survey = self.survey(&subject, &holds)?;
        }
        let subject = &subject;
        let record = |epochs: Vec<ErasedEpoch>, stopped_by_hold| {
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
        if let Some((hold, place)) = &survey.held {
            // The process may have ended in the middle, and a hold been added since.
            let erasure = record(self.erased(id, subject)?, Some(*hold));
            let before = match erasure.entries {
                0 => "nothing was erased".to_owned(),
                entries => {
                    erasures::append(&self.data, &erasure, key)?;
                    let were = counted(entries, "entry was", "entries were");
                    format!("{were} erased before it was added, no others")
                }
            };
            return Err(Stop::Refuse(format!("hold {hold} covers {place}: {before}")));
        }
        let entries = counted(survey.entries, "entry", "entries");
        let what = format!("{}: {entries}", subject.selector);
        self.log(reason, now, AccessAction::Erase, &what)?;
        // The text that names the session is erased next.
        if !survey.long_lines.is_empty() {
            survey.long_lines.write(&self.data, &of)?;
        }
        *has_begun = true;
        let replaced = self.replace(id, &clock::text(now), subject, &holds);
        let replaced = replaced.and_then(|()| self.store.settle());
        let erased = self.erased(id, subject)?;
        let completed = match replaced.and_then(|()| self.erase_remains(subject, &holds)) {
            Err(error) if erased.is_empty() => return Err(error.into()),
            // The part that was erased is listed: another attempt has another id.
            completed => completed,
        };
        let erasure = record(erased, None);
        erasures::append(&self.data, &erasure, key)?;
        completed?;
        let (entries, epochs) = (erasure.entries, erasure.epochs.len());
        info!(erasure = id, entries, "erased entries");
        let (mentions, mentioned) = survey.mentions();
        Ok(LifeResponse::Erased { id: id.to_owned(), entries, epochs, mentions, mentioned })
    }

    /// Counts the entries, and looks for holds that cover one of them.
    fn survey(&self, subject: &Subject, holds: &Holds) -> Result<Survey, Stop> {
        let mut survey = Survey::default();
        for epoch in self.store.epochs(subject.epochs.as_deref())? {
            let epoch = epoch?;
            let Some(key) = epoch.key() else { continue };
            epoch.each_line(|line| {
                match subject.relation(&key.machine, line.user, line.text) {
                    Relation::None => {}
                    Relation::Mention(of) => survey.mention(&key.machine, of),
                    Relation::Part => {
                        survey.entries += 1;
                        if subject.has_long_lines() {
                            survey.long_lines.add_line_of(&key.machine, line.user, line.text);
                        }
                        let place = || format!("entry {} of epoch `{}`", line.seq, key.epoch);
                        survey.hold(subject.hold(holds, &key.machine, line.user, line.text), place);
                    }
                }
                Ok::<_, io::Error>(())
            })?;
        }
        // A repetition leaves held lines there, and must not leave what arrived in the epochs.
        if holds.list().is_empty() || subject.of.is_some() {
            return Ok(survey);
        }
        for remains in self.remains()? {
            let remains = remains?;
            remains.each(|piece| {
                if piece.is_selected(subject)? {
                    let place = || format!("a line in `{}`", remains.path().display());
                    survey.hold(piece.hold(holds)?, place);
                }
                Ok(survey.held.is_none())
            })?;
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
                let is_held = || subject.hold(holds, &key.machine, line.user, line.text).is_some();
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

    /// Removes selected lines from the files of recoveries. Those that a hold covers stay.
    fn erase_remains(&self, subject: &Subject, holds: &Holds) -> io::Result<()> {
        for remains in self.remains()? {
            remains?.erase(subject, holds)?;
        }
        Ok(())
    }

    /// Returns the files that recoveries left. The index of an epoch with one is read when the iterator
    /// reaches it.
    pub(super) fn remains(&self) -> io::Result<impl Iterator<Item = io::Result<Remains>>> {
        let mut journals = Vec::new();
        for entry in fs::read_dir(self.data.join("journal"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "damaged") {
                journals.push(Ok(Remains::Journal(path)));
            }
        }
        let surplus = self.store.with_surplus()?.map(|epoch| epoch.map(Remains::Surplus));
        Ok(surplus.chain(journals))
    }

    /// Returns what was erased under an id, also before an interruption.
    fn erased(&self, id: &str, subject: &Subject) -> io::Result<Vec<ErasedEpoch>> {
        let mut erased = Vec::new();
        for epoch in self.store.epochs(subject.epochs.as_deref())? {
            let epoch = epoch?;
            let seqs = epoch.erased_under(id);
            if let Some(EpochKey { machine, epoch }) = epoch.key().filter(|_| !seqs.is_empty()) {
                erased.push(ErasedEpoch { machine, epoch, seqs });
            }
        }
        Ok(erased)
    }
}

impl Survey {
    fn mention(&mut self, machine: &str, of: String) {
        let key = (machine.to_owned(), of);
        let is_full = self.mentions.len() >= MENTIONS && !self.mentions.contains_key(&key);
        let count = if is_full { &mut self.others } else { self.mentions.entry(key).or_default() };
        *count += 1;
    }

    /// Returns the most frequent mentions, and the number of all.
    fn mentions(self) -> (Vec<Mention>, u64) {
        let mentioned = self.mentions.values().sum::<u64>() + self.others;
        let mention = |((machine, of), entries)| Mention { machine, of, entries };
        let mut mentions: Vec<_> = self.mentions.into_iter().map(mention).collect();
        mentions.sort_by_key(|it| std::cmp::Reverse(it.entries));
        mentions.truncate(SHOWN_MENTIONS);
        (mentions, mentioned)
    }

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

#[cfg(test)]
mod tests {
    use super::*;

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
