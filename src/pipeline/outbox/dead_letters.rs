//! Entries that a sink refused permanently, kept with the reason until an administrator retries or
//! purges them.
//!
//! The next batch header reports the sequence number of a dead letter, so that the receiver does not
//! see a gap. Until that batch is acknowledged the dead letter is *unreported* and must be kept:
//! without it, its entry would be sent again.

use redb::{ReadableTable, WriteTransaction};
use siem_protocol::{
    DeadLettered,
    agent_event::{DeadLetterId, DeadLetterTotals},
};

use super::{
    super::group::Group,
    Cursor, DeadLetter, Outbox, OutboxError, Snapshot,
    append::append_group,
    checksum::{protect_json, verify_json},
    cursor_rows::{open_cursor, read_cursors},
    tables::{CURSORS, DEAD_LETTERS},
};

/// Largest number of dead letters that are kept, regardless of their size.
const MAX_ENTRIES: u64 = 10_000;

/// Dead letters that were deleted to make room for another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Deleted dead letters, the oldest first.
    pub letters: Vec<DeadLetterId>,
    /// Bytes that they occupied.
    pub bytes: u64,
    /// Totals since the store was created, including these: a report that was lost shows as a
    /// difference in the next one.
    pub total: DeadLetterTotals,
}

impl Outbox {
    /// Stores a dead letter, or replaces it. The next batch header reports its sequence number.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed; the entry is sent again.
    pub fn store_dead_letter(
        &self,
        id: &DeadLetterId,
        letter: &DeadLetter,
    ) -> Result<(), OutboxError> {
        self.write_dead_letters(&[(id, letter)], |refusals| refusals.saturating_add(1), u64::MAX)
            .map(drop)
    }

    /// Stores dead letters as [`Outbox::store_dead_letter`] does, all in one transaction. `refusals`
    /// is the number of permanent refusals since the last delivered entry. The same transaction
    /// deletes the oldest dead letters while all of them occupy more than `max_bytes`, or are more
    /// than 10,000. These are kept, and so are unreported ones.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed; the entries are sent again.
    pub fn store_dead_letters(
        &self,
        letters: &[(DeadLetterId, DeadLetter)],
        refusals: u32,
        max_bytes: u64,
    ) -> Result<Purged, OutboxError> {
        let letters: Vec<_> = letters.iter().map(|(id, letter)| (id, letter)).collect();
        self.write_dead_letters(&letters, |_| refusals, max_bytes)
    }

    fn write_dead_letters(
        &self,
        added: &[(&DeadLetterId, &DeadLetter)],
        refusals: impl Fn(u32) -> u32,
        max_bytes: u64,
    ) -> Result<Purged, OutboxError> {
        let mut purged = Purged::default();
        self.write("store a dead letter in", |transaction, state| {
            let mut letters = transaction.open_table(DEAD_LETTERS)?;
            let mut cursors = transaction.open_table(CURSORS)?;
            for (id, letter) in added {
                let row = protect_json(key(id), letter);
                let is_new = letters.insert(key(id), row.as_slice())?.is_none();
                if is_new && id.epoch == state.epoch {
                    let totals = state.dead_lettered.entry(id.sink.clone()).or_default();
                    totals.entries += 1;
                    totals.bytes += letter.line().map_or(0, |line| line.len() as u64);
                    set_refusals(&mut cursors, &id.sink, &refusals)?;
                }
            }
            let is_reported = reported(&cursors)?;
            let is_added = |other: &DeadLetterId| added.iter().any(|(id, _)| *id == other);
            purged = purge_oldest(&mut letters, max_bytes, |other| {
                !is_added(other) && is_reported(other)
            })?;
            state.purged.entries += purged.letters.len() as u64;
            state.purged.bytes += purged.bytes;
            purged.total = state.purged;
            Ok(Ok(()))
        })?;
        Ok(purged)
    }

    /// Deletes a dead letter after it was delivered or given up.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed.
    pub fn remove_dead_letter(&self, id: &DeadLetterId) -> Result<(), OutboxError> {
        self.write("delete a dead letter from", |transaction, _| {
            transaction.open_table(DEAD_LETTERS)?.remove(key(id))?;
            Ok(Ok(()))
        })
    }

    /// Deletes dead letters and appends the group that reports it, in one transaction. None of them
    /// may be [unreported](Self::unreported_dead_letters), and the group holds only events.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed.
    pub fn purge(&self, ids: &[DeadLetterId], group: &Group) -> Result<(), OutboxError> {
        self.write("delete dead letters from", |transaction, state| {
            let mut letters = transaction.open_table(DEAD_LETTERS)?;
            for id in ids {
                letters.remove(key(id))?;
            }
            append_group(transaction, state, group)
        })
    }

    /// Returns the dead letters that no acknowledged batch header has reported. Their gaps are
    /// unknown to the receiver, and without these letters their entries would be sent again.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn unreported_dead_letters(&self) -> Result<Vec<DeadLetterId>, OutboxError> {
        self.read("read", |transaction| {
            let is_reported = reported(&transaction.open_table(CURSORS)?)?;
            let mut unreported = Vec::new();
            for row in transaction.open_table(DEAD_LETTERS)?.iter()? {
                let (key, _) = row?;
                let id = to_id(key.value());
                if !is_reported(&id) {
                    unreported.push(id);
                }
            }
            Ok(unreported)
        })
    }

    /// Returns all dead letters, ordered by sink, epoch and sequence number.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a letter in it is damaged.
    #[cfg(any(test, feature = "internals"))]
    pub fn dead_letters(&self) -> Result<Vec<(DeadLetterId, DeadLetter)>, OutboxError> {
        self.read("read", |transaction| {
            let mut all = Vec::new();
            for row in transaction.open_table(DEAD_LETTERS)?.iter()? {
                let (key, row) = row?;
                let letter = open_letter(key.value(), row.value())?;
                all.push((to_id(key.value()), letter));
            }
            Ok(all)
        })
    }

    /// Returns the keys of all dead letters, in order.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn dead_letter_ids(&self) -> Result<Vec<DeadLetterId>, OutboxError> {
        self.read("read", |transaction| {
            let mut all = Vec::new();
            for row in transaction.open_table(DEAD_LETTERS)?.iter()? {
                let (key, _) = row?;
                all.push(to_id(key.value()));
            }
            Ok(all)
        })
    }

    /// Returns one dead letter; `None` when it does not exist.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or the letter is damaged.
    pub fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetter>, OutboxError> {
        self.read("read", |transaction| {
            let row = transaction.open_table(DEAD_LETTERS)?.get(key(id))?;
            row.map(|row| open_letter(key(id), row.value())).transpose()
        })
    }

    /// Returns the entries after `seq` of `epoch` that `sink` refused permanently, in order.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    #[cfg(test)]
    pub fn dead_letters_after(
        &self,
        sink: &str,
        epoch: &str,
        seq: u64,
    ) -> Result<Vec<DeadLettered>, OutboxError> {
        self.snapshot()?.dead_letters_after(sink, epoch, seq)
    }
}

impl Snapshot<'_> {
    /// Returns the entries after `seq` of `epoch` that `sink` refused permanently, in order.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn dead_letters_after(
        &self,
        sink: &str,
        epoch: &str,
        seq: u64,
    ) -> Result<Vec<DeadLettered>, OutboxError> {
        self.read(|transaction| {
            let letters = transaction.open_table(DEAD_LETTERS)?;
            let mut dead = Vec::new();
            for row in letters.range((sink, epoch, seq + 1)..=(sink, epoch, u64::MAX))? {
                let (key, row) = row?;
                let letter = open_letter(key.value(), row.value())?;
                let (_, _, seq) = key.value();
                dead.push(DeadLettered { seq, line_sha256: letter.line_sha256 });
            }
            Ok(dead)
        })
    }
}

pub(super) fn open_letter(key: (&str, &str, u64), row: &[u8]) -> Result<DeadLetter, redb::Error> {
    verify_json(key, row, "a dead letter")
}

/// Returns a predicate that tells whether an acknowledged batch header has reported a dead letter.
pub(super) fn reported<T: ReadableTable<&'static str, &'static [u8]>>(
    rows: &T,
) -> Result<impl Fn(&DeadLetterId) -> bool + use<T>, redb::Error> {
    let cursors = read_cursors(rows)?;
    Ok(move |id: &DeadLetterId| {
        !cursors.iter().any(|(sink, cursor)| {
            *sink == id.sink && cursor.epoch == id.epoch && cursor.acknowledged.seq < id.seq
        })
    })
}

/// Changes the number of refusals in a cursor.
fn set_refusals(
    cursors: &mut redb::Table<'_, &'static str, &'static [u8]>,
    sink: &str,
    refusals: impl Fn(u32) -> u32,
) -> Result<(), redb::Error> {
    let known = cursors.get(sink)?.map(|row| open_cursor(sink, row.value()));
    if let Some(mut cursor) = known.transpose()? {
        cursor.refusals = refusals(cursor.refusals);
        cursors.insert(sink, protect_json(sink, &cursor).as_slice())?;
    }
    Ok(())
}

/// Deletes the oldest letters for which `may_delete` is true until the limits are met.
fn purge_oldest(
    letters: &mut Letters<'_>,
    max_bytes: u64,
    may_delete: impl Fn(&DeadLetterId) -> bool,
) -> Result<Purged, redb::Error> {
    let (mut entries, mut bytes) = (0, 0);
    for row in letters.iter()? {
        entries += 1;
        bytes += row?.1.value().len() as u64;
    }
    let mut purged = Purged::default();
    if entries <= MAX_ENTRIES && bytes <= max_bytes {
        return Ok(purged);
    }
    for (id, size) in oldest_first(letters)? {
        if entries <= MAX_ENTRIES && bytes <= max_bytes {
            break;
        }
        if may_delete(&id) {
            letters.remove(key(&id))?;
            (entries, bytes) = (entries - 1, bytes - size);
            purged.bytes += size;
            purged.letters.push(id);
        }
    }
    Ok(purged)
}

/// Returns the keys and sizes of all letters, ordered by the time of the last refusal.
fn oldest_first(letters: &Letters<'_>) -> Result<Vec<(DeadLetterId, u64)>, redb::Error> {
    let mut oldest = Vec::new();
    for row in letters.iter()? {
        let (id, row) = row?;
        let id = to_id(id.value());
        oldest.push((open_letter(key(&id), row.value())?.at, id, row.value().len() as u64));
    }
    oldest.sort_by(|(at, id, _), (other_at, other, _)| {
        (at, &id.epoch, id.seq).cmp(&(other_at, &other.epoch, other.seq))
    });
    Ok(oldest.into_iter().map(|(_, id, size)| (id, size)).collect())
}

type Letters<'a> = redb::Table<'a, (&'static str, &'static str, u64), &'static [u8]>;

fn key(id: &DeadLetterId) -> (&str, &str, u64) {
    (&id.sink, &id.epoch, id.seq)
}

pub(super) fn to_id((sink, epoch, seq): (&str, &str, u64)) -> DeadLetterId {
    DeadLetterId { sink: sink.to_owned(), epoch: epoch.to_owned(), seq }
}

/// Deletes the unreported dead letters of `epoch`: they become ordinary entries again.
pub(super) fn revert_unreported(
    transaction: &WriteTransaction,
    epoch: &str,
    cursors: &[(String, Cursor)],
) -> Result<(), redb::Error> {
    transaction.open_table(DEAD_LETTERS)?.retain(|(sink, of_epoch, seq), _| {
        let is_reported =
            |(name, cursor): &(String, Cursor)| name != sink || seq <= cursor.acknowledged.seq;
        of_epoch != epoch || cursors.iter().all(is_reported)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use siem_protocol::Digest;

    use super::{super::SinkRegistration, *};

    fn id(seq: u64) -> DeadLetterId {
        DeadLetterId { sink: "siem".into(), epoch: "e".into(), seq }
    }

    fn letter(minute: u64, size: usize) -> DeadLetter {
        let at = format!("2026-11-21T20:{minute:02}:00.000Z");
        DeadLetter::new(&vec![b'x'; size], Digest::ZERO, 422, "no".into(), at)
    }

    fn remaining(outbox: &Outbox) -> Vec<u64> {
        outbox.dead_letters().unwrap().into_iter().map(|(id, _)| id.seq).collect()
    }

    #[test]
    fn purge_deletes_the_oldest_but_no_unreported_letter() {
        let folder = tempfile::tempdir().unwrap();
        let registration = SinkRegistration { name: "siem".into(), ..SinkRegistration::default() };
        let path = folder.path().join("outbox.redb");
        let outbox = Outbox::open(&path, &[registration], || "e".into()).unwrap();
        for (seq, minute) in [(1, 5), (2, 4), (3, 3), (4, 2)] {
            outbox.store_dead_letter(&id(seq), &letter(minute, 300)).unwrap();
        }
        // No header has reported any of them yet.
        let purged = outbox.store_dead_letters(&[(id(5), letter(6, 300))], 1, 1).unwrap();
        assert_eq!(purged, Purged::default());
        let third = siem_protocol::ChainPoint { seq: 3, hash: Digest::ZERO };
        outbox.acknowledge("siem", "e", third).unwrap();
        let size = protect_json(key(&id(1)), &letter(0, 300)).len() as u64;
        let purged = outbox.store_dead_letters(&[(id(6), letter(7, 300))], 1, 4 * size).unwrap();
        assert_eq!(outbox.unreported_dead_letters().unwrap(), [id(4), id(5), id(6)]);
        assert_eq!(purged.letters, [id(3), id(2)], "ordered by the time of the refusal");
        assert_eq!((purged.bytes, purged.total.entries), (2 * size, 2));
        assert_eq!(remaining(&outbox), [1, 4, 5, 6]);
        // A letter that exceeds the limit by itself is kept, and others are deleted for it.
        let purged = outbox.store_dead_letters(&[(id(7), letter(8, 9000))], 1, 4 * size).unwrap();
        assert_eq!((purged.letters, purged.total.entries), (vec![id(1)], 3));
        assert_eq!(remaining(&outbox), [4, 5, 6, 7]);
    }
}
