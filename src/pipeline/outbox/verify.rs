//! Verification of sequence numbers, checksums and the hash chain.

use siem_protocol::Digest;

use super::{Outbox, OutboxError};
use crate::frame::{Frame, FrameError};

/// Result of a successful verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Sequence number of the first entry; 0 without entries.
    pub first_seq: u64,
    /// Sequence number of the last entry.
    pub last_seq: u64,
    /// Number of entries.
    pub entries: u64,
    /// Size of the entries before compression, in bytes.
    pub bytes: u64,
    /// Number of dead letters.
    pub dead_letters: u64,
}

/// Error of a verification.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The store cannot be read.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// A frame cannot be decoded.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Entries are missing between two others.
    #[error("entries {expected} to {before} are missing", before = found - 1)]
    Missing {
        /// First missing sequence number.
        expected: u64,
        /// Next sequence number that exists.
        found: u64,
    },
    /// Entries are missing at the end.
    #[error("the last entry is {found}, expected {expected}")]
    Short {
        /// Sequence number of the last entry according to the state row.
        expected: u64,
        /// Sequence number of the last entry that exists.
        found: u64,
    },
    /// The hash chain over the entries differs from the stored one.
    #[error("entries {first} to {last} were changed: their hash chain does not match")]
    Chain {
        /// First entry of the frame.
        first: u64,
        /// Last entry of the frame.
        last: u64,
    },
    /// The line of a dead letter does not match its hash.
    #[error("dead letter {seq} of sink `{sink}` was changed: its hash does not match")]
    DeadLetter {
        /// Sink that refused the entry.
        sink: String,
        /// Sequence number of the entry.
        seq: u64,
    },
    /// A new epoch started during the verification.
    #[error("a new epoch started during the verification: try again")]
    Renumbered,
}

/// Position of the verification.
struct ChainPosition {
    next_seq: u64,
    chain: Digest,
}

impl Outbox {
    /// Verifies sequence numbers, checksums and the hash chain of every entry, and the hashes of
    /// dead letters.
    ///
    /// # Errors
    /// `VerifyError` describes the first problem that was found.
    pub fn verify(&self) -> Result<Verified, VerifyError> {
        let epoch = self.epoch();
        self.verify_entries().and_then(|verified| self.verify_dead_letters(verified)).map_err(
            |error| match error {
                VerifyError::Missing { .. }
                | VerifyError::Short { .. }
                | VerifyError::Chain { .. }
                    if self.epoch() != epoch =>
                {
                    VerifyError::Renumbered
                }
                error => error,
            },
        )
    }

    fn verify_entries(&self) -> Result<Verified, VerifyError> {
        let end = self.end();
        let mut verified = Verified::default();
        let mut position: Option<ChainPosition> = None;
        while position.as_ref().is_none_or(|position| position.next_seq < end.seq) {
            let from = position.as_ref().map_or(0, |position| position.next_seq);
            let frames = self.frame_chunk(from)?;
            if frames.is_empty() {
                break;
            }
            for frame in frames {
                position = Some(verify_frame(&frame, position, &mut verified)?);
            }
        }
        verified.last_seq = position.as_ref().map_or(end.seq - 1, |position| position.next_seq - 1);
        if verified.last_seq + 1 < end.seq {
            return Err(VerifyError::Short { expected: end.seq - 1, found: verified.last_seq });
        }
        let is_at_end = verified.last_seq + 1 == end.seq;
        if is_at_end && position.is_some_and(|position| position.chain != end.chain) {
            return Err(VerifyError::Chain { first: verified.last_seq, last: verified.last_seq });
        }
        Ok(verified)
    }

    fn verify_dead_letters(&self, mut verified: Verified) -> Result<Verified, VerifyError> {
        for id in self.dead_letter_ids()? {
            let Some(letter) = self.dead_letter(&id)? else { continue };
            let is_unchanged =
                letter.line().is_some_and(|line| Digest::of(&line) == letter.line_sha256);
            if !is_unchanged {
                return Err(VerifyError::DeadLetter { sink: id.sink, seq: id.seq });
            }
            verified.dead_letters += 1;
        }
        Ok(verified)
    }
}

/// Verifies that a frame continues the numbers and the chain, and counts its entries.
fn verify_frame(
    frame: &Frame,
    position: Option<ChainPosition>,
    verified: &mut Verified,
) -> Result<ChainPosition, VerifyError> {
    let head = &frame.head;
    let ChainPosition { next_seq, chain } =
        position.unwrap_or(ChainPosition { next_seq: head.first_seq, chain: head.before });
    if head.first_seq != next_seq {
        return Err(VerifyError::Missing { expected: next_seq, found: head.first_seq });
    }
    let raw = frame.decode()?;
    let lines = raw.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let after = lines.fold(chain, |chain, line| chain.chain(Digest::of(line)));
    let last = head.last_seq();
    if head.before != chain || head.after != after {
        return Err(VerifyError::Chain { first: next_seq, last });
    }
    if verified.entries == 0 {
        verified.first_seq = next_seq;
    }
    verified.entries += head.count;
    verified.bytes += raw.len() as u64;
    Ok(ChainPosition { next_seq: last + 1, chain: after })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            DeadLetter, DeadLetterId,
            tests::{commit, group, store},
        },
        *,
    };

    #[test]
    fn intact_outbox_is_verified() {
        let store = store();
        assert_eq!(store.outbox.verify().unwrap(), Verified::default());
        commit(&store.outbox, 700);
        commit(&store.outbox, 3);
        let verified = store.outbox.verify().unwrap();
        assert_eq!((verified.first_seq, verified.last_seq, verified.entries), (1, 703, 703));
    }

    #[test]
    fn changed_entries_are_detected() {
        let store = store();
        commit(&store.outbox, 3);
        let mut wrong = group(&store.outbox, 2);
        wrong.frames[0].head.before = Digest::ZERO;
        store.outbox.commit(&wrong).unwrap();
        let error = store.outbox.verify().unwrap_err();
        assert!(matches!(error, VerifyError::Chain { first: 4, last: 5 }), "{error}");
    }

    #[test]
    fn missing_entries_are_detected() {
        let store = store();
        commit(&store.outbox, 3);
        let mut wrong = group(&store.outbox, 2);
        wrong.frames[0].head.first_seq += 4;
        store.outbox.commit(&wrong).unwrap();
        let error = store.outbox.verify().unwrap_err();
        assert!(matches!(error, VerifyError::Missing { expected: 4, found: 8 }), "{error}");
    }

    #[test]
    fn changed_dead_letter_is_detected() {
        let store = store();
        let id = DeadLetterId { sink: "siem".into(), epoch: "e".into(), seq: 7 };
        let mut letter = DeadLetter::new(b"{}", Digest::ZERO, 422, String::new(), String::new());
        store.outbox.store_dead_letter(&id, &letter).unwrap();
        assert_eq!(store.outbox.verify().unwrap().dead_letters, 1);
        letter.line_sha256 = Digest::ZERO;
        store.outbox.store_dead_letter(&id, &letter).unwrap();
        let error = store.outbox.verify().unwrap_err();
        assert!(matches!(error, VerifyError::DeadLetter { seq: 7, .. }), "{error}");
    }
}
