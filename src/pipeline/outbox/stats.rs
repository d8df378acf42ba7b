//! How much waits in the outbox, and for whom.

use std::{fs, ops::ControlFlow};

use redb::ReadableTableMetadata as _;

use super::{CURSORS, Outbox, OutboxError, cursors::read_cursors, dead_letters::DEAD_LETTERS};
use crate::platform::Timestamp;

/// How much waits in an outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxStats {
    /// The name of its count.
    pub epoch: String,
    /// The last entry's number.
    pub last_seq: u64,
    /// How many entries a sink has not taken yet.
    pub entries: u64,
    /// Bytes that entries take.
    pub bytes: u64,
    /// Bytes of its file.
    pub file_bytes: u64,
    /// Entries that were refused for good, and are kept.
    pub dead_letters: u64,
    /// Every sink that has a place in it.
    pub places: Vec<SinkStats>,
}

/// A sink's place in an outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkStats {
    /// The sink's name.
    pub name: String,
    /// Where it delivers to, as far as that is known.
    pub destination: Option<String>,
    /// The last number that it acknowledged.
    pub acknowledged: u64,
    /// How many entries it has not taken yet.
    pub entries: u64,
    /// When the oldest of these was checksum.
    pub oldest: Option<Timestamp>,
}

impl Outbox {
    /// How much waits in it.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read.
    pub fn stats(&self) -> Result<OutboxStats, OutboxError> {
        let (epoch, last_seq, bytes) = {
            let state = self.state();
            (state.epoch.clone(), state.next_seq - 1, state.stored)
        };
        let (names, dead_letters) = self.read("read", |transaction| {
            let cursors = read_cursors(&transaction.open_table(CURSORS)?)?;
            let names: Vec<String> = cursors.into_iter().map(|(name, _)| name).collect();
            Ok((names, transaction.open_table(DEAD_LETTERS)?.len()?))
        })?;
        let mut places = Vec::with_capacity(names.len());
        for name in names {
            // With what is acknowledged and not stored yet.
            let cursor = self.cursor(&name)?;
            let acknowledged = cursor.acknowledged.seq;
            let entries = last_seq.saturating_sub(acknowledged);
            let oldest = if entries > 0 { self.sealed_at(acknowledged + 1)? } else { None };
            let destination = cursor.destination;
            places.push(SinkStats { name, destination, acknowledged, entries, oldest });
        }
        let entries = places.iter().map(|place| place.entries).max().unwrap_or(last_seq);
        let file_bytes = fs::metadata(&self.path).map_or(0, |file| file.len());
        Ok(OutboxStats { epoch, last_seq, entries, bytes, file_bytes, dead_letters, places })
    }

    /// When the frame was checksum that holds `seq`, or the next one that is there.
    fn sealed_at(&self, seq: u64) -> Result<Option<Timestamp>, OutboxError> {
        let mut sealed_at = None;
        self.heads(seq, |head| {
            sealed_at = Some(head.sealed_at);
            ControlFlow::Break(())
        })?;
        Ok(sealed_at)
    }
}

#[cfg(test)]
mod tests {
    use siem_protocol::ChainPoint;

    use super::{
        super::tests::{commit, open, registrations, store},
        *,
    };

    #[test]
    fn each_sink_has_its_own_depth_with_what_is_acknowledged_and_not_stored_yet() {
        let store = store();
        store.outbox.register_sinks(&registrations(&["siem", "archive"])).unwrap();
        let group = commit(&store.outbox, 5);
        let point = ChainPoint { seq: 5, hash: group.frames[0].head.after };
        store.outbox.advance("siem", "epoch-1", point, 0);
        let waiting = store.outbox.stats().unwrap();
        assert_eq!((waiting.entries, waiting.last_seq, waiting.dead_letters), (5, 5, 0));
        assert!(waiting.bytes > 0 && waiting.file_bytes > waiting.bytes);
        let places: Vec<_> = waiting
            .places
            .iter()
            .map(|place| (&*place.name, place.acknowledged, place.entries, place.oldest))
            .collect();
        let sealed = Some(Timestamp(1));
        assert_eq!(places, [("archive", 0, 5, sealed), ("siem", 5, 0, None)]);
    }

    #[test]
    fn nothing_waits_in_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = open(&folder.path().join("outbox.redb"), &["siem"]).unwrap();
        let waiting = outbox.stats().unwrap();
        assert_eq!((waiting.entries, waiting.last_seq, waiting.bytes), (0, 0, 0));
    }
}
