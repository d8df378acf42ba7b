//! Memory budgets for bodies and batches, reserved before the memory is used.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Unit of a reservation in bytes: the weight of a semaphore permit has only 32 bits.
const UNIT: usize = 1024;

/// Reserved memory, released on drop.
#[derive(Debug, Default)]
pub(crate) struct Reserved(Option<OwnedSemaphorePermit>);

impl Reserved {
    /// Releases all but `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        if let Some(permit) = &mut self.0 {
            let surplus = permit.num_permits().saturating_sub(units(bytes));
            drop(permit.split(surplus));
        }
    }

    /// Size in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) * UNIT
    }

    /// Adds memory of the same budget.
    pub(crate) fn add(&mut self, more: Self) {
        match (&mut self.0, more.0) {
            (Some(permit), Some(more)) => permit.merge(more),
            (none, more) => *none = more,
        }
    }
}

/// Memory budget that all requests share. Requests for more than is free wait in order.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    semaphore: Arc<Semaphore>,
    total: usize,
    patience: Duration,
}

impl Budget {
    /// Creates a budget of `bytes`, for which a request waits at most `patience`.
    pub(crate) fn new(bytes: usize, patience: Duration) -> Self {
        let total = units(bytes).min(Semaphore::MAX_PERMITS);
        Self { semaphore: Arc::new(Semaphore::new(total)), total, patience }
    }

    /// Reserves `bytes`; returns `None` if they do not become free in time. A request for more than
    /// the whole budget reserves the whole budget, and so runs alone.
    pub(crate) async fn reserve(&self, bytes: usize) -> Option<Reserved> {
        let units = u32::try_from(units(bytes).min(self.total)).ok()?;
        let permit = self.semaphore.clone().acquire_many_owned(units);
        let permit = tokio::time::timeout(self.patience, permit).await.ok()?.ok()?;
        Some(Reserved(Some(permit)))
    }

    /// Size in bytes.
    pub(crate) fn total(&self) -> usize {
        self.total * UNIT
    }

    /// Size of what is reserved, in bytes.
    pub(crate) fn reserved(&self) -> usize {
        (self.total - self.semaphore.available_permits().min(self.total)) * UNIT
    }

    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.semaphore.available_permits() * UNIT
    }
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dropped_and_unneeded_memory_is_released() {
        let budget = Budget::new(10 * UNIT, Duration::from_millis(1));
        let mut first = budget.reserve(8 * UNIT).await.unwrap();
        assert!(budget.reserve(3 * UNIT).await.is_none());
        first.shrink_to(2 * UNIT + 1);
        assert_eq!(budget.free(), 7 * UNIT);
        first.add(budget.reserve(2 * UNIT).await.unwrap());
        assert_eq!((first.bytes(), budget.free()), (5 * UNIT, 5 * UNIT));
        drop(first);
        assert_eq!(budget.free(), 10 * UNIT);
    }

    #[tokio::test]
    async fn request_over_the_budget_takes_all_of_it() {
        let budget = Budget::new(2 * UNIT, Duration::from_millis(1));
        let all = budget.reserve(100 * UNIT).await.unwrap();
        assert_eq!(budget.free(), 0);
        drop(all);
    }
}
