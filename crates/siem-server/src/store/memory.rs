//! Store in memory, for tests and trials.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use siem_protocol::{Digest, Receipt};

use super::{
    Answer, EpochKey, Storage, StoreError, StoredBatch, StoredLine, admission,
    catalog::{self, Catalog, Key},
};
use crate::{
    batch::Batch,
    fleet::StatsQuery,
    ledger::{Ledger, Range, Refusal},
    stats::Stats,
    trust::policy::Denial,
};

/// Stores batches in memory. It knows no devices: all batches count as unsealed.
///
/// Clones share their content, so that a clone shows what a later process would find.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    catalog: Catalog,
    epochs: BTreeMap<Key, HeldEpoch>,
}

/// Content of an epoch besides its ledger.
#[derive(Debug, Default)]
struct HeldEpoch {
    /// Values of the chain, in the order in which they were added.
    values: Vec<Digest>,
    lines: BTreeMap<u64, StoredLine>,
}

impl MemoryStore {
    /// Creates an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn store(&mut self, batch: &Batch) -> Result<StoredBatch, StoreError> {
        let key = catalog::key(&batch.header);
        let admission = admission::admit(&self.catalog, None, batch, &key);
        let admission = admission.map_err(|refused| match refused.denial {
            Denial::Renumber => {
                let expected_seq = self.catalog.epoch(&key).map_or(1, |epoch| epoch.next_seq);
                StoreError::Conflict { expected_seq }
            }
            denial => StoreError::Denied(denial),
        })?;
        if batch.header.redelivery && self.catalog.ledger(&key).is_none() {
            // An unknown epoch cannot have a hole.
            let accepted_seqs = Some(Vec::new());
            let receipt = Receipt { accepted_seqs, ..Receipt::default() };
            return Ok(StoredBatch { receipt, point: None });
        }
        let none = Vec::new();
        let mut values = self.epochs.get(&key).map_or(&none, |held| &held.values).as_slice();
        let planned = match self.catalog.plan(batch, &admission, &mut values) {
            Ok(planned) => planned,
            Err(Refusal::Conflict { expected_seq }) => {
                if self.catalog.ledger(&key).is_some() {
                    let (note, _) = self.catalog.conflict(batch);
                    self.catalog.record(&key, &note, 0);
                }
                return Err(StoreError::Conflict { expected_seq });
            }
            Err(Refusal::Values(error)) => match error {},
        };
        let held = self.epochs.entry(key.clone()).or_default();
        for new in &planned.note.change.new {
            held.values.extend_from_slice(batch.chain(new.first, new.last));
        }
        for line in planned.store.iter().map(|index| &batch.lines()[*index]) {
            let (seq, received_at) = (line.seq, planned.note.at.clone());
            let line = batch.bytes(line).to_vec();
            held.lines.insert(seq, StoredLine { seq, received_at, line });
        }
        self.catalog.record(&key, &planned.note, 0);
        Ok(StoredBatch { receipt: planned.receipt, point: None })
    }

    fn read(&self, epoch: EpochKey, range: Range, max_bytes: u64) -> Vec<StoredLine> {
        if range.first > range.last {
            return Vec::new();
        }
        let mut bytes = 0;
        let lines = self.epochs.get(&epoch.into_key()).map(|held| &held.lines);
        let lines = lines.into_iter().flat_map(|lines| lines.range(range.first..=range.last));
        let fits = |line: &&StoredLine| {
            let fits = bytes < max_bytes;
            bytes += line.line.len() as u64;
            fits
        };
        lines.map(|(_, line)| line).take_while(fits).cloned().collect()
    }
}

/// The future of a result that is there at once.
fn ready<'a, T: Send + 'a>(result: Result<T, StoreError>) -> Answer<'a, T> {
    Box::pin(std::future::ready(result))
}

impl Storage for MemoryStore {
    fn store(&self, batch: Batch) -> Answer<'_, StoredBatch> {
        ready(self.state().store(&batch))
    }

    fn read(&self, epoch: EpochKey, range: Range, max_bytes: u64) -> Answer<'_, Vec<StoredLine>> {
        ready(Ok(self.state().read(epoch, range, max_bytes)))
    }

    fn ledger(&self, epoch: EpochKey) -> Answer<'_, Option<Ledger>> {
        ready(Ok(self.state().catalog.ledger(&epoch.into_key()).cloned()))
    }

    fn scan(&self, after: Option<EpochKey>, limit: usize) -> Answer<'_, Vec<EpochKey>> {
        ready(Ok(self.state().catalog.scan(after, limit)))
    }

    fn stats(&self, query: StatsQuery) -> Answer<'_, Stats> {
        ready(Ok(self.state().catalog.stats(&query, None)))
    }
}
