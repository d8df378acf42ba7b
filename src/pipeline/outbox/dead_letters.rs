//! Entries that a sink refused for good: kept with the reason until somebody decides.

use data_encoding::BASE64;
use redb::{ReadableTable as _, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use siem_protocol::{DeadLettered, Digest};

use super::{Cursor, Outbox, OutboxError, from_json, json};

/// By sink, epoch and sequence number: a number alone comes again in the next epoch.
pub(super) const DEAD_LETTERS: TableDefinition<'_, (&str, &str, u64), &[u8]> =
    TableDefinition::new("dead_letters");

/// Which dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadLetterId {
    /// The sink that refused it.
    pub sink: String,
    /// The epoch that numbered it.
    pub epoch: String,
    /// Its number.
    pub seq: u64,
}

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

/// What a sink refused for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buried {
    /// How many entries.
    pub entries: u64,
    /// Bytes of their lines.
    pub bytes: u64,
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
    pub fn bury(&self, id: &DeadLetterId, letter: &DeadLetter) -> Result<(), OutboxError> {
        self.write("keep a dead letter in", |transaction, state| {
            let mut letters = transaction.open_table(DEAD_LETTERS)?;
            let is_new = letters.insert(key(id), json(letter).as_slice())?.is_none();
            if is_new && id.epoch == state.epoch {
                let buried = state.dead_lettered.entry(id.sink.clone()).or_default();
                buried.entries += 1;
                buried.bytes += letter.line().map_or(0, |line| line.len() as u64);
            }
            Ok(Ok(()))
        })
    }

    /// Deletes a dead letter: it was delivered after all, or nobody wants it.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed.
    pub fn dig_out(&self, id: &DeadLetterId) -> Result<(), OutboxError> {
        self.write("delete a dead letter of", |transaction, _| {
            transaction.open_table(DEAD_LETTERS)?.remove(key(id))?;
            Ok(Ok(()))
        })
    }

    /// All dead letters, by sink, epoch and number.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a letter in it is damaged.
    pub fn dead_letters(&self) -> Result<Vec<(DeadLetterId, DeadLetter)>, OutboxError> {
        let letters = self.read("read", |transaction| {
            let mut all = Vec::new();
            for row in transaction.open_table(DEAD_LETTERS)?.iter()? {
                let (key, row) = row?;
                let (sink, epoch, seq) = key.value();
                let Some(letter) = from_json(row.value()) else { return Ok(None) };
                let id = DeadLetterId { sink: sink.to_owned(), epoch: epoch.to_owned(), seq };
                all.push((id, letter));
            }
            Ok(Some(all))
        })?;
        letters.ok_or_else(|| self.damaged("a dead letter"))
    }

    /// The entries after `seq` of `epoch` that `sink` refused for good, in order.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn dead_after(
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
                if let Some(letter) = from_json::<DeadLetter>(row.value()) {
                    let (_, _, seq) = key.value();
                    dead.push(DeadLettered { seq, line_sha256: letter.line_sha256 });
                }
            }
            Ok(dead)
        })
    }
}

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
