//! Holds what lies in the outbox against the numbers and the chain that it was stored with.

use std::ops::ControlFlow;

use siem_protocol::Digest;

use super::{Outbox, OutboxError};
use crate::frame::Frame;

/// So much of the store is read at once. Nothing is held between two reads: whoever takes long over
/// one holds nobody up.
const PIECE: usize = 1 << 20;

/// What was found to be right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// The first entry's number; 0 without any.
    pub first_seq: u64,
    /// The last entry's number.
    pub last_seq: u64,
    /// How many entries.
    pub entries: u64,
    /// Their bytes, before compression.
    pub bytes: u64,
    /// How many dead letters.
    pub dead_letters: u64,
}

/// What is wrong with an outbox.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It can't be read.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// A frame can't be decoded.
    #[error(transparent)]
    Frame(#[from] crate::frame::FrameError),
    /// Numbers are missing.
    #[error("entries {expected} to {before} are missing", before = found - 1)]
    Missing {
        /// The first that is.
        expected: u64,
        /// The next that is there.
        found: u64,
    },
    /// It ends too early.
    #[error("the last entry is {found}, and should be {expected}")]
    Short {
        /// The last that should be there.
        expected: u64,
        /// The last that is.
        found: u64,
    },
    /// Bytes are others than those that were chained.
    #[error("the entries {first} to {last} are not those that were stored: their chain is another")]
    Chain {
        /// The first entry of the frame.
        first: u64,
        /// Its last.
        last: u64,
    },
    /// A dead letter is not the line that was refused.
    #[error("dead letter {seq} of sink `{sink}` is not the line that was refused")]
    DeadLetter {
        /// The sink that refused it.
        sink: String,
        /// Its number.
        seq: u64,
    },
    /// Numbers began anew meanwhile.
    #[error("a new epoch began meanwhile: look once more")]
    RenumberOutcome,
}

impl Outbox {
    /// Reads some frames in order, beginning with the one that holds `seq`: at least one where there
    /// is one, and not many bytes at once.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a value in it is damaged.
    pub fn frame_chunk(&self, seq: u64) -> Result<Vec<Frame>, OutboxError> {
        let mut bytes = 0;
        self.frames(seq, |head| {
            if bytes > 0 && bytes + head.stored > PIECE {
                return ControlFlow::Break(());
            }
            bytes += head.stored;
            ControlFlow::Continue(())
        })
    }

    /// Reads everything and holds it against its numbers and its chain.
    ///
    /// # Errors
    /// [`VerifyError`] says what was found first.
    pub fn verify(&self) -> Result<Verified, VerifyError> {
        let (epoch, end) = (self.epoch(), self.end());
        let renumbered =
            || if self.epoch() == epoch { None } else { Some(VerifyError::RenumberOutcome) };
        let mut verified = Verified::default();
        let mut at: Option<(u64, Digest)> = None;
        while at.is_none_or(|(next, _)| next < end.seq) {
            let frames = self.frame_chunk(at.map_or(0, |(next, _)| next))?;
            if frames.is_empty() {
                break;
            }
            for frame in frames {
                let head = &frame.head;
                let (next, chain) = at.unwrap_or((head.first_seq, head.before));
                if head.first_seq != next {
                    let missing = VerifyError::Missing { expected: next, found: head.first_seq };
                    return Err(renumbered().unwrap_or(missing));
                }
                let raw = frame.decode()?;
                let lines = raw.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                let after = lines.fold(chain, |chain, line| chain.chain(Digest::of(line)));
                let last = head.last_seq();
                if head.before != chain || head.after != after {
                    let wrong = VerifyError::Chain { first: next, last };
                    return Err(renumbered().unwrap_or(wrong));
                }
                if verified.entries == 0 {
                    verified.first_seq = next;
                }
                verified.entries += head.count;
                verified.bytes += raw.len() as u64;
                at = Some((last + 1, after));
            }
        }
        verified.last_seq = at.map_or(end.seq - 1, |(next, _)| next - 1);
        if verified.last_seq + 1 < end.seq {
            let wrong = VerifyError::Short { expected: end.seq - 1, found: verified.last_seq };
            return Err(renumbered().unwrap_or(wrong));
        }
        if verified.last_seq + 1 == end.seq && at.is_some_and(|(_, chain)| chain != end.chain) {
            let wrong = VerifyError::Chain { first: verified.last_seq, last: verified.last_seq };
            return Err(renumbered().unwrap_or(wrong));
        }
        for id in self.dead_letter_ids()? {
            let Some(letter) = self.dead_letter(&id)? else { continue };
            let is_right =
                letter.line().is_some_and(|line| Digest::of(&line) == letter.line_sha256);
            if !is_right {
                return Err(VerifyError::DeadLetter { sink: id.sink, seq: id.seq });
            }
            verified.dead_letters += 1;
        }
        Ok(verified)
    }
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
    fn what_was_stored_is_found_whole() {
        let store = store();
        assert_eq!(store.outbox.verify().unwrap(), Verified::default());
        commit(&store.outbox, 700);
        commit(&store.outbox, 3);
        let verified = store.outbox.verify().unwrap();
        assert_eq!((verified.first_seq, verified.last_seq, verified.entries), (1, 703, 703));
    }

    #[test]
    fn entries_that_are_others_than_those_that_were_chained_are_found() {
        let store = store();
        commit(&store.outbox, 3);
        let mut wrong = group(&store.outbox, 2);
        wrong.frames[0].head.before = Digest::ZERO;
        store.outbox.commit(&wrong).unwrap();
        let found = store.outbox.verify().unwrap_err();
        assert!(matches!(found, VerifyError::Chain { first: 4, last: 5 }), "{found}");
    }

    #[test]
    fn entries_that_are_missing_are_found() {
        let store = store();
        commit(&store.outbox, 3);
        let mut wrong = group(&store.outbox, 2);
        wrong.frames[0].head.first_seq += 4;
        store.outbox.commit(&wrong).unwrap();
        let found = store.outbox.verify().unwrap_err();
        assert_eq!(found.to_string(), "entries 4 to 7 are missing");
    }

    #[test]
    fn a_dead_letter_that_is_another_is_found() {
        let store = store();
        let id = DeadLetterId { sink: "siem".into(), epoch: "e".into(), seq: 7 };
        let mut letter = DeadLetter::new(b"{}", Digest::ZERO, 422, String::new(), String::new());
        store.outbox.store_dead_letter(&id, &letter).unwrap();
        assert_eq!(store.outbox.verify().unwrap().dead_letters, 1);
        letter.line_sha256 = Digest::ZERO;
        store.outbox.store_dead_letter(&id, &letter).unwrap();
        let found = store.outbox.verify().unwrap_err();
        assert!(matches!(found, VerifyError::DeadLetter { seq: 7, .. }), "{found}");
    }
}
