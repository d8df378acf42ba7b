//! Checks batches against the quotas of their senders.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use super::{Shared, problem::Rejection, run_blocking, turns::Sender};
use crate::{
    batch::Batch,
    fleet::{Cursor, StatsQuery},
    quotas::{CountedBatch, QuotaLimits, Quotas, SentBatch},
    store::StoreError,
    trust::EventKind,
};

/// Quotas, with the clock that they need.
#[derive(Debug)]
pub(super) struct QuotaCheck {
    quotas: Mutex<Quotas>,
    started: Instant,
    is_learning: AtomicBool,
}

impl QuotaCheck {
    pub(super) fn new(limits: QuotaLimits) -> Self {
        let (quotas, started) = (Mutex::new(Quotas::new(limits)), Instant::now());
        Self { quotas, started, is_learning: AtomicBool::new(false) }
    }

    /// Counts a batch, unless it is over a quota, which is an event.
    pub(super) async fn admit(
        shared: &Arc<Shared>,
        sender: Sender,
        batch: &Batch,
    ) -> Result<CountedBatch, Rejection> {
        let check = &shared.quotas;
        let sent = sent_batch(shared, sender, batch);
        let (admitted, needs_machines) = {
            let mut quotas = check.lock();
            (quotas.admit(sent, check.started.elapsed()), quotas.needs_machines())
        };
        if needs_machines && !check.is_learning.swap(true, Ordering::Relaxed) {
            tokio::spawn(learn(shared.clone()));
        }
        if let Err(exceeded) = &admitted {
            shared.metrics.count_quota(exceeded.quota);
            if let Some(registry) = shared.registry.clone() {
                let mut event = batch.event(EventKind::QuotaExceeded);
                event.detail = Some(exceeded.to_string());
                run_blocking(move || registry.record(event)).await?;
            }
        }
        Ok(admitted?)
    }

    /// Takes back a batch that was not stored.
    pub(super) fn refund(&self, counted: CountedBatch) {
        self.lock().refund(counted);
    }

    fn lock(&self) -> MutexGuard<'_, Quotas> {
        self.quotas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sent_batch(shared: &Shared, sender: Sender, batch: &Batch) -> SentBatch {
    let turns = &shared.intake.turns;
    let (machine, user) = (&batch.header.machine_id, &batch.header.user);
    let device = match batch.seal.valid() {
        Some(seal) => turns.hash(seal.device),
        None => turns.hash((sender.token(), machine, user)),
    };
    let (token, machine) = (sender.token(), turns.hash(machine));
    SentBatch { token, device, machine, bytes: batch.size() as u64 }
}

/// Learns which machines are not new: those of which the store has entries.
async fn learn(shared: Arc<Shared>) {
    let check = &shared.quotas;
    match known_machines(&shared).await {
        Ok(machines) => check.lock().learn(machines),
        // The next batch tries again.
        Err(_) => check.is_learning.store(false, Ordering::Relaxed),
    }
}

/// Returns the hashes of the machines in the store. They are read in pages, since all rows of a large
/// fleet together take much memory.
async fn known_machines(shared: &Shared) -> Result<HashSet<u64>, StoreError> {
    let all = StatsQuery::all(shared.clock.now());
    let mut query = StatsQuery { limit: StatsQuery::MAX_LIMIT, ..all };
    let mut machines = HashSet::new();
    loop {
        let page = shared.storage.stats(query.clone()).await?;
        machines.extend(page.rows.iter().map(|row| shared.intake.turns.hash(&row.machine)));
        let next = page.next.as_deref().map(str::parse::<Cursor>);
        match next.and_then(Result::ok) {
            Some(next) => query.after = Some(next),
            None => return Ok(machines),
        }
    }
}
