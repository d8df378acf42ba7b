//! Entries that a sink refused for good: kept with the reason until somebody decides.

use data_encoding::BASE64;
use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
pub use siem_protocol::event::{DeadLetterId, DeadLetterTotals};
use siem_protocol::{DeadLettered, Digest};

use super::{
    CURSORS, Cursor, Group, Outbox, OutboxError, append_group,
    checksum::{open_json, seal_json},
    cursors::{open_cursor, read_cursors},
};

/// By sink, epoch and sequence number: a number alone comes again in the next epoch.
pub(super) const DEAD_LETTERS: TableDefinition<'_, (&str, &str, u64), &[u8]> =
    TableDefinition::new("dead_letters");

/// An entry that a sink refused for good, kept with the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// SHA-256 of its line.
    pub line_sha256: Digest,
    /// Its line, in base64.
    pub line: String,
    /// The configuration under which it was made.
    pub config: Digest,
    /// The HTTP status that refused it.
    pub status: u16,
    /// The receiver's words, at most 4 KiB.
    pub answer: String,
    /// When it was refused last, RFC 3339.
    pub at: String,
    /// How often it was refused while it stood alone.
    pub attempts: u32,
}

/// How many dead letters are kept, whatever their size.
const MOST_ENTRIES: u64 = 10_000;

/// Dead letters that had to go, since there is room for so many only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Which, the oldest first.
    pub letters: Vec<DeadLetterId>,
    /// Bytes that they took.
    pub bytes: u64,
    /// All that ever had to go, these included: a report that was lost shows in the next.
    pub total: DeadLetterTotals,
}

impl DeadLetter {
    /// A letter about `line`, refused for the first time.
    #[must_use]
    pub fn new(line: &[u8], config: Digest, status: u16, answer: String, at: String) -> Self {
        let (line_sha256, line) = (Digest::of(line), BASE64.encode(line));
        Self { line_sha256, line, config, status, answer, at, attempts: 1 }
    }

    /// The entry's line; `None` when it can't be read back.
    #[must_use]
    pub fn line(&self) -> Option<Vec<u8>> {
        BASE64.decode(self.line.as_bytes()).ok()
    }
}

impl Outbox {
    /// Keeps a dead letter, or what is new about one. Its number is named in the next header.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed; the entry will be sent again.
    pub fn store_dead_letter(
        &self,
        id: &DeadLetterId,
        letter: &DeadLetter,
    ) -> Result<(), OutboxError> {
        self.store_dead_letter_within(id, letter, u64::MAX).map(drop)
    }

    /// Keeps a dead letter as [`Outbox::store_dead_letter`] does, and in the same transaction deletes the oldest
    /// ones as long as all of them take more than `most` bytes, or are more than 10,000. This one
    /// stays, and those that no header has named yet.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed; the entry will be sent again.
    pub fn store_dead_letter_within(
        &self,
        id: &DeadLetterId,
        letter: &DeadLetter,
        most: u64,
    ) -> Result<Purged, OutboxError> {
        let mut purged = Purged::default();
        self.write("keep a dead letter in", |transaction, state| {
            let mut letters = transaction.open_table(DEAD_LETTERS)?;
            let row = seal_json(key(id), letter);
            let is_new = letters.insert(key(id), row.as_slice())?.is_none();
            let mut cursors = transaction.open_table(CURSORS)?;
            if is_new && id.epoch == state.epoch {
                let buried = state.dead_lettered.entry(id.sink.clone()).or_default();
                buried.entries += 1;
                buried.bytes += letter.line().map_or(0, |line| line.len() as u64);
                let sink = id.sink.as_str();
                let known = cursors.get(sink)?.map(|row| open_cursor(sink, row.value()));
                if let Some(mut cursor) = known.transpose()? {
                    cursor.refusals = cursor.refusals.saturating_add(1);
                    cursors.insert(sink, seal_json(sink, &cursor).as_slice())?;
                }
            }
            let is_reported = reported(&cursors)?;
            purged = make_room(&mut letters, most, |other| other != id && is_reported(other))?;
            state.purged.entries += purged.letters.len() as u64;
            state.purged.bytes += purged.bytes;
            purged.total = state.purged;
            Ok(Ok(()))
        })?;
        Ok(purged)
    }

    /// Deletes a dead letter: it was delivered after all, or nobody wants it.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed.
    pub fn remove_dead_letter(&self, id: &DeadLetterId) -> Result<(), OutboxError> {
        self.write("delete a dead letter of", |transaction, _| {
            transaction.open_table(DEAD_LETTERS)?.remove(key(id))?;
            Ok(Ok(()))
        })
    }

    /// Deletes these dead letters for good and appends the group that tells of it, in one
    /// transaction: none goes without a word. They must not be [unreported_dead_letters](Self::unreported_dead_letters), and there
    /// is nothing but events in the group.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed.
    pub fn purge(&self, ids: &[DeadLetterId], group: &Group) -> Result<(), OutboxError> {
        self.write("delete dead letters of", |transaction, state| {
            let mut letters = transaction.open_table(DEAD_LETTERS)?;
            for id in ids {
                letters.remove(key(id))?;
            }
            append_group(transaction, state, group)
        })
    }

    /// The dead letters that no header has named yet. The receiver knows no hole for them, and
    /// without them their entries would be sent once more.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn unreported_dead_letters(&self) -> Result<Vec<DeadLetterId>, OutboxError> {
        self.read("read", |transaction| {
            let is_reported = reported(&transaction.open_table(CURSORS)?)?;
            let mut unreported_dead_letters = Vec::new();
            for row in transaction.open_table(DEAD_LETTERS)?.iter()? {
                let (key, _) = row?;
                let (sink, epoch, seq) = key.value();
                let id = DeadLetterId { sink: sink.to_owned(), epoch: epoch.to_owned(), seq };
                if !is_reported(&id) {
                    unreported_dead_letters.push(id);
                }
            }
            Ok(unreported_dead_letters)
        })
    }

    /// All dead letters, by sink, epoch and number.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a letter in it is damaged.
    pub fn dead_letters(&self) -> Result<Vec<(DeadLetterId, DeadLetter)>, OutboxError> {
        self.read("read", |transaction| {
            let mut all = Vec::new();
            for row in transaction.open_table(DEAD_LETTERS)?.iter()? {
                let (key, row) = row?;
                let letter = open_letter(key.value(), row.value())?;
                let (sink, epoch, seq) = key.value();
                let id = DeadLetterId { sink: sink.to_owned(), epoch: epoch.to_owned(), seq };
                all.push((id, letter));
            }
            Ok(all)
        })
    }

    /// Which dead letters there are, by sink, epoch and number.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn dead_letter_ids(&self) -> Result<Vec<DeadLetterId>, OutboxError> {
        self.read("read", |transaction| {
            let mut all = Vec::new();
            for row in transaction.open_table(DEAD_LETTERS)?.iter()? {
                let (key, _) = row?;
                let (sink, epoch, seq) = key.value();
                all.push(DeadLetterId { sink: sink.to_owned(), epoch: epoch.to_owned(), seq });
            }
            Ok(all)
        })
    }

    /// One dead letter; `None` when it is there no more.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or the letter is damaged.
    pub fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetter>, OutboxError> {
        self.read("read", |transaction| {
            let row = transaction.open_table(DEAD_LETTERS)?.get(key(id))?;
            row.map(|row| open_letter(key(id), row.value())).transpose()
        })
    }

    /// The entries after `seq` of `epoch` that `sink` refused for good, in order.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn dead_letters_after(
        &self,
        sink: &str,
        epoch: &str,
        seq: u64,
    ) -> Result<Vec<DeadLettered>, OutboxError> {
        self.read("read", |transaction| {
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
    open_json(key, row, "a dead letter")
}

/// Says of a dead letter whether a header that was taken has named it. Without it, its entry would
/// be sent once more.
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

/// Deletes the oldest letters that `may_go` until there is room.
fn make_room(
    letters: &mut Letters<'_>,
    most: u64,
    may_go: impl Fn(&DeadLetterId) -> bool,
) -> Result<Purged, redb::Error> {
    let (mut entries, mut bytes) = (0, 0);
    for row in letters.iter()? {
        entries += 1;
        bytes += row?.1.value().len() as u64;
    }
    let mut purged = Purged::default();
    if entries <= MOST_ENTRIES && bytes <= most {
        return Ok(purged);
    }
    let mut oldest = Vec::new();
    for row in letters.iter()? {
        let (id, row) = row?;
        let (sink, epoch, seq) = id.value();
        let id = DeadLetterId { sink: sink.to_owned(), epoch: epoch.to_owned(), seq };
        oldest.push((open_letter(key(&id), row.value())?.at, id, row.value().len() as u64));
    }
    oldest.sort_by(|(at, id, _), (other_at, other, _)| {
        (at, &id.epoch, id.seq).cmp(&(other_at, &other.epoch, other.seq))
    });
    for (_, id, size) in oldest {
        if entries <= MOST_ENTRIES && bytes <= most {
            break;
        }
        if may_go(&id) {
            letters.remove(key(&id))?;
            (entries, bytes) = (entries - 1, bytes - size);
            purged.bytes += size;
            purged.letters.push(id);
        }
    }
    Ok(purged)
}

type Letters<'a> = redb::Table<'a, (&'static str, &'static str, u64), &'static [u8]>;

fn key(id: &DeadLetterId) -> (&str, &str, u64) {
    (&id.sink, &id.epoch, id.seq)
}

/// Takes back the dead letters of `epoch` that no header has named yet: they are entries again.
pub(super) fn take_back_unnamed(
    transaction: &WriteTransaction,
    epoch: &str,
    cursors: &[(String, Cursor)],
) -> Result<(), redb::Error> {
    transaction.open_table(DEAD_LETTERS)?.retain(|(sink, of_epoch, seq), _| {
        let named =
            |(name, cursor): &(String, Cursor)| name != sink || seq <= cursor.acknowledged.seq;
        of_epoch != epoch || cursors.iter().all(named)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::SinkRegistration, *};

    fn id(seq: u64) -> DeadLetterId {
        DeadLetterId { sink: "siem".into(), epoch: "e".into(), seq }
    }

    fn letter(minute: u64, size: usize) -> DeadLetter {
        let at = format!("2026-11-21T20:{minute:02}:00.000Z");
        DeadLetter::new(&vec![b'x'; size], Digest::ZERO, 422, "no".into(), at)
    }

    fn left(outbox: &Outbox) -> Vec<u64> {
        outbox.dead_letters().unwrap().into_iter().map(|(id, _)| id.seq).collect()
    }

    #[test]
    fn the_oldest_go_for_a_new_one_but_none_that_is_not_named() {
        let folder = tempfile::tempdir().unwrap();
        let register_sinks =
            SinkRegistration { name: "siem".into(), ..SinkRegistration::default() };
        let path = folder.path().join("outbox.redb");
        let outbox = Outbox::open(&path, &[register_sinks], || "e".into()).unwrap();
        for (seq, minute) in [(1, 5), (2, 4), (3, 3), (4, 2)] {
            outbox.store_dead_letter(&id(seq), &letter(minute, 300)).unwrap();
        }
        // No header has named any of them yet.
        assert_eq!(
            outbox.store_dead_letter_within(&id(5), &letter(6, 300), 1).unwrap(),
            Purged::default()
        );
        let named = siem_protocol::ChainPoint { seq: 3, hash: Digest::ZERO };
        outbox.acknowledge("siem", "e", named).unwrap();
        let size = seal_json(key(&id(1)), &letter(0, 300)).len() as u64;
        let purged = outbox.store_dead_letter_within(&id(6), &letter(7, 300), 4 * size).unwrap();
        assert_eq!(outbox.unreported_dead_letters().unwrap(), [id(4), id(5), id(6)]);
        assert_eq!(purged.letters, [id(3), id(2)], "by the time when they were refused");
        assert_eq!((purged.bytes, purged.total.entries), (2 * size, 2));
        assert_eq!(left(&outbox), [1, 4, 5, 6]);
        // One that is larger than all the room there is stays, and takes the others' place.
        let purged = outbox.store_dead_letter_within(&id(7), &letter(8, 9000), 4 * size).unwrap();
        assert_eq!((purged.letters, purged.total.entries), (vec![id(1)], 3));
        assert_eq!(left(&outbox), [4, 5, 6, 7]);
    }
}
