//! Reading frames back.

use std::ops::ControlFlow;

use redb::AccessGuard;

use super::{Outbox, OutboxError, Snapshot, block, tables::BLOCKS};
use crate::frame::{Frame, FrameHead};

/// Size of the bodies that [`Outbox::frame_chunk`] reads at once. No transaction stays open between
/// two chunks, so a slow consumer blocks nothing.
const CHUNK_BYTES: usize = 1 << 20;

impl Outbox {
    /// Reads frames in order, starting with the one that holds `seq`, until `want` breaks.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a block in it is damaged.
    pub fn frames(
        &self,
        seq: u64,
        want: impl FnMut(&FrameHead) -> ControlFlow<()>,
    ) -> Result<Vec<Frame>, OutboxError> {
        self.snapshot()?.frames(seq, want)
    }

    /// Reads about 1 MiB of frames in order, starting with the one that holds `seq`; at least one
    /// frame if there is one.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a block in it is damaged.
    pub fn frame_chunk(&self, seq: u64) -> Result<Vec<Frame>, OutboxError> {
        let mut bytes = 0;
        self.frames(seq, |head| {
            if bytes > 0 && bytes + head.stored > CHUNK_BYTES {
                return ControlFlow::Break(());
            }
            bytes += head.stored;
            ControlFlow::Continue(())
        })
    }
}

/// A block as redb holds it.
type StoredBlock = AccessGuard<'static, &'static [u8]>;

/// Consecutive blocks of a snapshot, read and not yet copied.
pub struct ReadBlocks<'a> {
    snapshot: &'a Snapshot<'a>,
    blocks: Vec<StoredBlock>,
}

impl ReadBlocks<'_> {
    /// Copies frames in order, starting with the one that holds `seq`, until `want` breaks or the
    /// blocks end.
    ///
    /// # Errors
    /// [`OutboxError`] when a block is damaged.
    pub fn frames(
        self,
        seq: u64,
        mut want: impl FnMut(&FrameHead) -> ControlFlow<()>,
    ) -> Result<Vec<Frame>, OutboxError> {
        let mut frames = Vec::new();
        for block in self.blocks {
            let Some(decoded) = block::decode(block.value()) else {
                return Err(self.snapshot.damaged_block());
            };
            for (head, body) in decoded.filter(|(head, _)| head.last_seq() >= seq) {
                if want(&head).is_break() {
                    return Ok(frames);
                }
                frames.push(Frame { head, body: body.to_vec() });
            }
        }
        Ok(frames)
    }
}

impl Snapshot<'_> {
    /// Reads frames in order, starting with the one that holds `seq`, until `want` breaks.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a block in it is damaged.
    pub fn frames(
        &self,
        seq: u64,
        mut want: impl FnMut(&FrameHead) -> ControlFlow<()>,
    ) -> Result<Vec<Frame>, OutboxError> {
        let mut frames = Vec::new();
        self.visit(seq, |head, body| {
            want(&head)?;
            frames.push(Frame { head, body: body.to_vec() });
            ControlFlow::Continue(())
        })?;
        Ok(frames)
    }

    /// Reads the blocks whose frames `want` sees the heads of, in order, starting with the frame that
    /// holds `seq`, until `want` breaks. Block checksums are verified when frames are copied.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a head in it is damaged.
    pub fn blocks(
        &self,
        seq: u64,
        mut want: impl FnMut(FrameHead) -> ControlFlow<()>,
    ) -> Result<ReadBlocks<'_>, OutboxError> {
        let mut blocks = Vec::new();
        self.visit_blocks(seq, |block| {
            let flow = visit_heads(block.value(), seq, &mut want);
            blocks.push(block);
            flow
        })?;
        Ok(ReadBlocks { snapshot: self, blocks })
    }

    /// Passes the heads of frames to `visit` in order, starting with the frame that holds `seq`,
    /// until it breaks. Block checksums are not verified: a caller that relies on a head reads the
    /// frame as well.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a head in it is damaged.
    pub fn heads(
        &self,
        seq: u64,
        mut visit: impl FnMut(FrameHead) -> ControlFlow<()>,
    ) -> Result<(), OutboxError> {
        self.visit_blocks(seq, |block| visit_heads(block.value(), seq, &mut visit))
    }

    /// Passes frames to `visit` in order, starting with the one that holds `seq`, until it breaks.
    ///
    /// # Errors
    /// [`OutboxError`] when the store cannot be read or a block in it is damaged.
    pub fn visit(
        &self,
        seq: u64,
        mut visit: impl FnMut(FrameHead, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), OutboxError> {
        self.visit_blocks(seq, |block| {
            let mut frames =
                block::decode(block.value())?.filter(|(head, _)| head.last_seq() >= seq);
            Some(frames.try_for_each(|(head, body)| visit(head, body)))
        })
    }

    /// Passes blocks to `visit` in order, starting with the one that may hold `seq`, until it
    /// breaks or returns `None` for a damaged block.
    fn visit_blocks(
        &self,
        seq: u64,
        mut visit: impl FnMut(StoredBlock) -> Option<ControlFlow<()>>,
    ) -> Result<(), OutboxError> {
        let is_intact = self.read(|transaction| {
            let blocks = transaction.open_table(BLOCKS)?;
            let holder = blocks.range(..=seq)?.next_back();
            // Not again the one that was just read: it may be too large for redb's cache.
            for row in holder.into_iter().chain(blocks.range(seq.saturating_add(1)..)?) {
                match visit(row?.1) {
                    Some(ControlFlow::Continue(())) => {}
                    Some(ControlFlow::Break(())) => return Ok(true),
                    None => return Ok(false),
                }
            }
            Ok(true)
        })?;
        if is_intact { Ok(()) } else { Err(self.damaged_block()) }
    }

    fn damaged_block(&self) -> OutboxError {
        self.outbox.damaged("a block cannot be decoded")
    }
}

/// Passes the heads of a block from `seq` on to `visit` until it breaks; `None` when they are damaged.
fn visit_heads(
    block: &[u8],
    seq: u64,
    visit: impl FnMut(FrameHead) -> ControlFlow<()>,
) -> Option<ControlFlow<()>> {
    let heads = block::heads(block)?.into_iter();
    Some(heads.filter(|head| head.last_seq() >= seq).try_for_each(visit))
}
