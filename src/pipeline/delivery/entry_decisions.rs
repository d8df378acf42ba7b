//! Executes what a receiver decided about single entries of a batch.

use siem_protocol::AgentEvent;
use tracing::{error, warn};

use super::{
    NextAction, SinkTask,
    ahead::BatchNumbers,
    batch_sender::{AfterBatch, CursorMove, DeliveryState, Sent},
};
use crate::{
    stages::sink::{Batch, EntryResult},
    text::summary,
};

impl SinkTask {
    /// Stores what the receiver decided about single entries. Takes the step `then`.
    pub(super) async fn decide(
        &mut self,
        batch: &Batch,
        numbers: &BatchNumbers,
        entries: Vec<EntryResult>,
        then: NextAction,
        state: &mut DeliveryState,
        max_bytes: u64,
    ) -> Sent {
        let epoch = &batch.header.epoch;
        let seqs_of = |wanted: fn(&EntryResult) -> bool| -> Vec<u64> {
            let all = numbers.seqs.iter().copied().zip(&entries);
            all.filter(|(_, entry)| wanted(entry)).map(|(seq, _)| seq).collect()
        };
        let accepted =
            seqs_of(|entry| !matches!(entry, EntryResult::Refused { .. } | EntryResult::Undecided));
        let has_accepted = !accepted.is_empty();
        self.count_accepted(accepted.len() as u64, batch, numbers, &entries);
        // Remembered before anything can fail: they are not sent again.
        state.decided.add(epoch, accepted);
        let refusals = state.policy.refusals();
        let stored = self.store_dead_letters(batch, numbers, &entries, refusals, max_bytes).await;
        if let Err(failure) = stored {
            return AfterBatch::Wait(self.write_failed(&failure)).into();
        }
        let refused = seqs_of(|entry| matches!(entry, EntryResult::Refused { .. }));
        let dead_before = batch.header.dead_lettered.iter().map(|letter| letter.seq);
        state.decided.add(epoch, refused.into_iter().chain(dead_before));
        let moved = self.move_cursor(batch, state).await;
        if has_accepted && then == NextAction::Again {
            self.clear_solved_problem();
        }
        Sent { after: self.after(batch, then), moved }
    }

    /// Counts entries that are not sent again, and reports which of them may be lost.
    fn count_accepted(
        &self,
        accepted: u64,
        batch: &Batch,
        numbers: &BatchNumbers,
        entries: &[EntryResult],
    ) {
        let misfiled = self.warn_of_misfiled(batch, entries);
        let unidentified = self.report_unidentified_parts(numbers, entries);
        if accepted > 0 {
            let unproven = if self.is_proof() { misfiled + unidentified } else { accepted };
            self.count_delivered(accepted.saturating_sub(unidentified), unproven);
        }
    }

    /// Moves the cursor past the decided entries that follow it.
    async fn move_cursor(
        &mut self,
        batch: &Batch,
        state: &mut DeliveryState,
    ) -> Option<CursorMove> {
        let header = &batch.header;
        let cursor = header.first_seq.unwrap_or(1) - 1;
        let point = self.skip_decided(&header.epoch, cursor, state).await?;
        let seq = point.seq;
        let refusals = state.policy.refusals();
        let is_first = !self.outbox.advance(&self.name, &header.epoch, point, refusals);
        self.progress.send_modify(|progress| progress.acknowledged = seq);
        Some(CursorMove { seq, is_first })
    }

    /// Logs once that entries are not where searches find them. Returns their number.
    fn warn_of_misfiled(&self, batch: &Batch, entries: &[EntryResult]) -> u64 {
        let mut answers = entries.iter().filter_map(|entry| match entry {
            EntryResult::Misfiled { answer } => Some(answer),
            _ => None,
        });
        let Some(answer) = answers.next() else { return 0 };
        let misfiled = 1 + answers.count() as u64;
        let (batch, answer) = (batch.header.id().to_string(), summary(answer));
        warn!(
            code = "entries_misfiled",
            sink = self.name,
            batch,
            misfiled,
            answer,
            "the receiver stored entries where searches do not find them"
        );
        misfiled
    }

    /// Reports parts of the batch in which entries were refused without saying which. Returns the
    /// number of refused entries.
    fn report_unidentified_parts(&self, numbers: &BatchNumbers, entries: &[EntryResult]) -> u64 {
        let mut all = 0;
        for (at, entry) in entries.iter().enumerate() {
            if let EntryResult::Unidentified { refused, among, answer } = entry {
                let end =
                    usize::try_from(*among).map_or(usize::MAX, |among| at.saturating_add(among));
                let seqs = &numbers.seqs[at..end.min(numbers.seqs.len())];
                self.report_unidentified(seqs, *refused, answer);
                all += (*refused).min(seqs.len() as u64);
            }
        }
        all
    }

    /// Reports that some of the entries `seqs` were refused without saying which.
    pub(super) fn report_unidentified(&self, seqs: &[u64], refused: u64, answer: &str) {
        let (Some(first_seq), Some(last_seq)) = (seqs.first(), seqs.last()) else { return };
        error!(
            code = "entries_refused_unidentified",
            sink = self.name,
            refused,
            first_seq,
            last_seq,
            answer = summary(answer),
            "entries refused without saying which: they are not sent again, since that would \
             duplicate the others"
        );
        let count = refused.min(seqs.len() as u64);
        self.progress.send_modify(|progress| progress.refused.unidentified += count);
        let refused = AgentEvent::EntriesRefusedUnidentified {
            sink: self.name.clone(),
            first_seq: *first_seq,
            last_seq: *last_seq,
            entries: seqs.len() as u64,
            refused,
        };
        (self.report)(refused.into());
    }
}
