//! Assembles the next batch from the entries in the outbox.

use std::{error::Error, ops::ControlFlow, time::Duration};

use siem_protocol::{BatchHeader, Chain, ChainPoint, DeadLettered, Digest, Identity};

use super::{
    super::outbox::{Cursor, Outbox, OutboxError, ReadBlocks, Snapshot},
    DecidedEntries,
    schedule::{SendRule, Waiting},
};
use crate::{
    config::ShippingSettings,
    frame::{Codec, Encoder, Frame, FrameError, FrameHead},
    platform::{Clock, Timestamp},
    stages::sink::{Batch, Custody, StoredFrames},
};

/// The next batch, if there is one.
#[derive(Debug)]
pub enum NextBatch {
    /// The outbox has no entries for the sink.
    Nothing,
    /// Entries wait to fill a batch, at most for this time.
    Waiting(Duration),
    /// All entries were sent, and the first counts as delivered after this time.
    InTransit(Duration),
    /// A batch that is due.
    Ready {
        /// The batch.
        batch: Box<Batch>,
        /// Position of the cursor after it.
        end: ChainPoint,
        /// True if no more entries would fit.
        is_full: bool,
    },
}

/// Reason that a batch cannot be assembled.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// The outbox cannot be read.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The entries of a batch cannot be read back.
    #[error(transparent)]
    Batch(#[from] Box<dyn Error + Send + Sync>),
    /// A frame in the outbox is damaged.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Assembles batches for one sink.
pub struct Assembler<'a> {
    /// The outbox with the entries.
    pub snapshot: &'a Snapshot<'a>,
    /// Instance name of the sink.
    pub sink: &'a str,
    /// Encoding of frames that the sink requires.
    pub codec: Codec,
    /// Identity of the agent.
    pub identity: &'a Identity,
    /// Limits of batches.
    pub shipping: ShippingSettings,
    /// The clock that dates entries and batches.
    pub clock: &'a dyn Clock,
    /// Entries after the cursor that are left out.
    pub decided: &'a DecidedEntries,
}

impl Assembler<'_> {
    /// Assembles the next batch after `cursor`, up to `border`, if it is due according to `rule`.
    ///
    /// # Errors
    /// [`AssembleError`]: the caller retries later.
    pub fn next(
        &self,
        cursor: &Cursor,
        border: Option<u64>,
        rule: &SendRule,
    ) -> Result<NextBatch, AssembleError> {
        let first = cursor.acknowledged.seq + 1;
        let head = self.snapshot.head();
        if head.last_seq < first {
            return Ok(NextBatch::Nothing);
        }
        let sent_through = rule.sent.map_or(0, |sent| sent.through);
        let new_fill =
            || BatchFill { shipping: self.shipping, border, sent_through, ..BatchFill::default() };
        let (mut fit, mut oldest) = (new_fill(), None);
        let first_unsent = first.max(sent_through.saturating_add(1));
        let mut add = |head: &FrameHead| {
            fit.add(head, first)?;
            if head.last_seq() >= first_unsent {
                oldest.get_or_insert(head.sealed_at);
            }
            ControlFlow::Continue(())
        };
        // Only heads are looked at first: most of the time entries wait, and nothing is copied. For a few
        // entries that costs more than it saves.
        let is_small = head.last_group.is_small() && head.last_group.after_seq + 1 == first;
        let found = if is_small {
            Found::Copied(self.snapshot.frames(first, add)?)
        } else {
            Found::Read(self.snapshot.blocks(first, |head| add(&head))?)
        };
        let Some(oldest) = oldest else {
            let in_transit = rule.sent.map(|sent| NextBatch::InTransit(sent.recheck));
            return Ok(in_transit.unwrap_or(NextBatch::Nothing));
        };
        // After the entries, or one that was stored meanwhile would be newer than `now`.
        let now = self.clock.now();
        let waiting = Waiting {
            first_seq: first_unsent,
            // A clock that was set back must not keep entries until it catches up.
            age: if oldest > now { Duration::MAX } else { now - oldest },
            is_full: fit.full,
            is_urgent: head.urgent_seq >= first_unsent,
            is_reduced: border.is_some(),
        };
        let wait = rule.wait(&waiting);
        if !wait.is_zero() {
            return Ok(NextBatch::Waiting(wait));
        }
        let frames = match found {
            Found::Copied(frames) => frames,
            Found::Read(blocks) => {
                fit = new_fill();
                blocks.frames(first, |head| fit.add(head, first))?
            }
        };
        let dead =
            self.snapshot.dead_letters_after(self.sink, &cursor.epoch, cursor.acknowledged.seq)?;
        let (batch, end) = self.batch(cursor, frames, border, &dead, now)?;
        Ok(NextBatch::Ready { batch: Box::new(batch), end, is_full: fit.full })
    }

    fn batch(
        &self,
        cursor: &Cursor,
        frames: Vec<Frame>,
        border: Option<u64>,
        dead: &[DeadLettered],
        now: Timestamp,
    ) -> Result<(Batch, ChainPoint), AssembleError> {
        let first = cursor.acknowledged.seq + 1;
        let config = frames.first().map_or(Digest::ZERO, |frame| frame.head.config);
        let mut encoder = Encoder::new(self.codec);
        let mut end = cursor.acknowledged;
        let mut whole = Vec::with_capacity(frames.len());
        for frame in frames {
            let from = frame.head.first_seq.max(first);
            let mut last = self.last(&frame.head, from, border);
            if frame.head.raw as u64 > self.shipping.room() && last > from {
                last = last.min(frame.last_fitting(from, self.shipping.room())?);
            }
            let is_left_out = |seq| {
                self.decided.contains(&cursor.epoch, seq)
                    || dead.iter().any(|letter| letter.seq == seq)
            };
            let untouched = from == frame.head.first_seq
                && last == frame.head.last_seq()
                && !(from..=last).any(is_left_out);
            if untouched {
                end = ChainPoint { seq: last, hash: frame.head.after };
                whole.push(frame);
            } else {
                let cut = frame.slice(from..=last, |seq| !is_left_out(seq), &mut encoder)?;
                end = ChainPoint { seq: last, hash: cut.after };
                whole.extend(cut.frame);
            }
        }
        let whole = Frame::join_small(whole, &mut encoder)?;
        let sent_at = now.to_string();
        let header = BatchHeader {
            first_seq: Some(first),
            last_seq: Some(end.seq),
            count: whole.iter().map(|frame| frame.head.count).sum(),
            dead_lettered: dead.iter().filter(|letter| letter.seq <= end.seq).cloned().collect(),
            chain: Some(Chain { before: cursor.acknowledged.hash, after: end.hash }),
            base: cursor.base,
            previous_epoch: cursor.previous_epoch.clone(),
            ..BatchHeader::new(self.identity, cursor.epoch.clone(), config, sent_at)
        };
        let custody =
            Custody { sink: self.sink.to_owned(), held: None, receipt: cursor.receipt.clone() };
        Ok((Batch::new(header, StoredFrames::new(whole, custody)), end))
    }

    /// Returns the last entry to include of a frame that is too large for a batch or crosses the
    /// border.
    fn last(&self, head: &FrameHead, from: u64, border: Option<u64>) -> u64 {
        let most = from + self.shipping.batch_size as u64 - 1;
        head.last_seq().min(most).min(border.unwrap_or(u64::MAX))
    }
}

/// Returns the position of the cursor after the entry `seq`; `None` if the outbox has no such entry.
pub(super) fn chain_point(outbox: &Outbox, seq: u64) -> Result<Option<ChainPoint>, AssembleError> {
    let mut is_read = false;
    let holder = outbox.frames(seq, |_| match std::mem::replace(&mut is_read, true) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    })?;
    let Some(frame) = holder.first().filter(|frame| frame.head.first_seq <= seq) else {
        return Ok(None);
    };
    let range = frame.head.first_seq..=seq;
    let hash = frame.slice(range, |_| false, &mut Encoder::new(Codec::Plain))?.after;
    Ok(Some(ChainPoint { seq, hash }))
}

/// Entries that may make the next batch.
enum Found<'a> {
    Copied(Vec<Frame>),
    /// Copied only if the batch is due.
    Read(ReadBlocks<'a>),
}

/// Decides how many frames make a batch. Frames are included whole; one is cut only if it does not
/// fit by itself (since the batch size was lowered) or crosses the border.
#[derive(Default)]
struct BatchFill {
    shipping: ShippingSettings,
    border: Option<u64>,
    /// Number up to which entries were sent without an acknowledgement. They take no space from the
    /// entries that follow, which would otherwise wait for them.
    sent_through: u64,
    in_transit: u64,
    in_transit_bytes: u64,
    config: Option<Digest>,
    entries: u64,
    bytes: u64,
    full: bool,
}

/// Largest number of entries in transit that take no space in a batch.
const MAX_IN_TRANSIT: u64 = 10_000;

impl BatchFill {
    fn add(&mut self, head: &FrameHead, first: u64) -> ControlFlow<()> {
        if self.full || self.border.is_some_and(|border| head.first_seq > border) {
            return ControlFlow::Break(());
        }
        let entries = head.last_seq() - head.first_seq.max(first) + 1;
        let other = self.config.is_some_and(|config| config != head.config);
        let most = self.shipping.batch_size as u64;
        let too_many = self.entries + entries > most;
        let too_large = self.bytes + head.raw as u64 > self.shipping.room();
        if other || self.entries > 0 && (too_many || too_large) {
            // The next frame belongs to another batch: this one is complete.
            self.full = true;
            return ControlFlow::Break(());
        }
        self.config = Some(head.config);
        if head.last_seq() <= self.sent_through
            && self.in_transit + entries <= MAX_IN_TRANSIT
            && self.in_transit_bytes + head.raw as u64 <= self.shipping.room()
        {
            self.in_transit += entries;
            self.in_transit_bytes += head.raw as u64;
            return ControlFlow::Continue(());
        }
        self.entries += entries;
        self.bytes += head.raw as u64;
        self.full = self.entries >= most || self.bytes >= self.shipping.room();
        ControlFlow::Continue(())
    }
}
