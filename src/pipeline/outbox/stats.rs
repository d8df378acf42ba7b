//! Size of the outbox, and backlog of each sink.

use std::{fs, ops::ControlFlow};

use redb::ReadableTableMetadata as _;

use super::{
    Outbox, OutboxError,
    cursor_rows::read_cursors,
    rows::{Cursor, EndedEpoch},
    tables::{CURSORS, DEAD_LETTERS},
};
use crate::platform::Timestamp;

/// Size and backlog of an outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxStats {
    /// Current epoch.
    pub epoch: String,
    /// Sequence number of the last entry.
    pub last_seq: u64,
    /// Number of entries that some sink has not acknowledged.
    pub entries: u64,
    /// Total size of the stored blocks, in bytes.
    pub bytes: u64,
    /// Size of the store's file, in bytes.
    pub file_bytes: u64,
    /// Number of dead letters.
    pub dead_letters: u64,
    /// Backlog of every sink with a cursor.
    pub sinks: Vec<SinkStats>,
}

/// Backlog of a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkStats {
    /// Instance name of the sink.
    pub name: String,
    /// Destination of the sink, if known.
    pub destination: Option<String>,
    /// Last sequence number that it acknowledged.
    pub acknowledged: u64,
    /// Number of entries that it has not acknowledged.
    pub entries: u64,
    /// Time at which the oldest of these was sealed in a frame.
    pub oldest: Option<Timestamp>,
    /// Note of the last receipt for the current epoch.
    pub receipt: Option<String>,
    /// The last epochs before the current one, the latest last.
    pub ended: Vec<EndedEpoch>,
}

impl Outbox {
    /// Returns the size of the outbox and the backlog of each sink.
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
        let mut sinks = Vec::with_capacity(names.len());
        for name in names {
            // Includes acknowledgements that are not stored yet.
            let cursor = self.cursor(&name)?;
            let acknowledged = cursor.acknowledged.seq;
            let entries = last_seq.saturating_sub(acknowledged);
            let oldest = if entries > 0 { self.sealed_at(acknowledged + 1)? } else { None };
            let Cursor { destination, receipt, ended, .. } = cursor;
            sinks.push(SinkStats {
                name,
                destination,
                acknowledged,
                entries,
                oldest,
                receipt,
                ended,
            });
        }
        let entries = sinks.iter().map(|sink| sink.entries).max().unwrap_or(last_seq);
        let file_bytes = fs::metadata(&self.path).map_or(0, |file| file.len());
        Ok(OutboxStats { epoch, last_seq, entries, bytes, file_bytes, dead_letters, sinks })
    }

    /// Returns the time at which the frame with `seq`, or the next stored one, was sealed.
    fn sealed_at(&self, seq: u64) -> Result<Option<Timestamp>, OutboxError> {
        let mut sealed_at = None;
        self.snapshot()?.heads(seq, |head| {
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
    fn stats_include_acknowledgements_that_are_not_stored() {
        let store = store();
        store.outbox.register_sinks(&registrations(&["siem", "archive"])).unwrap();
        let group = commit(&store.outbox, 5);
        let point = ChainPoint { seq: 5, hash: group.frames[0].head.after };
        store.outbox.advance("siem", "epoch-1", point, 0);
        let stats = store.outbox.stats().unwrap();
        assert_eq!((stats.entries, stats.last_seq, stats.dead_letters), (5, 5, 0));
        assert!(stats.bytes > 0 && stats.file_bytes > stats.bytes);
        let sinks: Vec<_> = stats
            .sinks
            .iter()
            .map(|sink| (&*sink.name, sink.acknowledged, sink.entries, sink.oldest))
            .collect();
        let sealed_at = Some(Timestamp(1));
        assert_eq!(sinks, [("archive", 0, 5, sealed_at), ("siem", 5, 0, None)]);
    }

    #[test]
    fn stats_of_a_new_outbox_are_zero() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = open(&folder.path().join("outbox.redb"), &["siem"]).unwrap();
        let stats = outbox.stats().unwrap();
        assert_eq!((stats.entries, stats.last_seq, stats.bytes), (0, 0, 0));
    }
}
