//! Stores refused entries of a batch as dead letters, and reports them.

use siem_protocol::{AgentEvent, agent_event::PurgeReason};
use tracing::error;

use super::{
    super::outbox::{DeadLetter, DeadLetterId, Purged},
    AssembleError, SinkTask,
    ahead::BatchNumbers,
};
use crate::stages::sink::{Batch, EntryResult, problem_summary};

impl SinkTask {
    /// Stores the refused entries of the batch as dead letters, in one transaction, and reports them.
    /// `refusals` is the number of refusals since the last accepted entry.
    pub(super) async fn store_dead_letters(
        &mut self,
        batch: &Batch,
        numbers: &BatchNumbers,
        entries: &[EntryResult],
        refusals: u32,
        max_bytes: u64,
    ) -> Result<(), AssembleError> {
        let is_refused = |entry: &EntryResult| matches!(entry, EntryResult::Refused { .. });
        if !entries.iter().any(is_refused) {
            return Ok(());
        }
        let letters = self.dead_letters(batch, numbers, entries)?;
        for (id, letter) in &letters {
            error!(
                code = "entry_refused",
                sink = self.name,
                seq = id.seq,
                status = letter.status,
                said = problem_summary(letter.answer.as_bytes()),
                "entry permanently refused and stored as a dead letter: see `ai-agent deadletter \
                 list`"
            );
        }
        let refused: Vec<_> = letters.iter().map(|(id, it)| (id.seq, it.status)).collect();
        let purged = self
            .on_outbox(move |outbox, _| outbox.store_dead_letters(&letters, refusals, max_bytes))
            .await?;
        self.progress.send_modify(|progress| progress.refused.dead_letters += refused.len() as u64);
        for (seq, status) in refused {
            let refused = AgentEvent::EntryDeadLettered { sink: self.name.clone(), seq, status };
            (self.report)(refused.into());
        }
        self.report_purged(&purged);
        Ok(())
    }

    /// Makes dead letters of the refused entries.
    fn dead_letters(
        &self,
        batch: &Batch,
        numbers: &BatchNumbers,
        entries: &[EntryResult],
    ) -> Result<Vec<(DeadLetterId, DeadLetter)>, AssembleError> {
        let (header, lines) = (&batch.header, batch.body.lines()?);
        let lines = lines.split(|byte| *byte == b'\n');
        let at = self.clock.now().to_string();
        let all = numbers.seqs.iter().zip(lines).zip(entries);
        let letter = |((seq, line), entry): ((&u64, &[u8]), &EntryResult)| {
            let EntryResult::Refused { status, answer } = entry else { return None };
            let (answer, at) = (answer.clone(), at.clone());
            let letter = DeadLetter::new(line, header.config_hash, *status, answer, at);
            let (sink, epoch) = (self.name.clone(), header.epoch.clone());
            Some((DeadLetterId { sink, epoch, seq: *seq }, letter))
        };
        Ok(all.filter_map(letter).collect())
    }

    /// Reports the dead letters that were deleted to make space for another.
    fn report_purged(&self, purged: &Purged) {
        /// More would make the event larger than a batch.
        const NAMED: usize = 100;

        let (count, bytes) = (purged.letters.len(), purged.bytes);
        if count == 0 {
            return;
        }
        error!(
            code = "dead_letters_purged",
            count,
            bytes,
            "deleted the oldest dead letters: `max_dead_letter_bytes` is reached, see \
             `ai-agent deadletter export`"
        );
        let purged = AgentEvent::DeadLettersPurged {
            reason: PurgeReason::Cap,
            count: count as u64,
            letters: purged.letters.iter().take(NAMED).cloned().collect(),
            bytes: Some(bytes),
            total: Some(purged.total),
        };
        (self.report)(purged.into());
    }
}
