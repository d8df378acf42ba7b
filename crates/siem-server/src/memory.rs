//! Memory for bodies, set aside before it is used.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Semaphores count in these, since a permit's weight is 32 bits wide.
const UNIT: usize = 1024;

/// Memory that was set aside; given back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Reserved(Option<OwnedSemaphorePermit>);

impl Reserved {
    /// Gives back all but `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        if let Some(permit) = &mut self.0 {
            let surplus = permit.num_permits().saturating_sub(units(bytes));
            drop(permit.split(surplus));
        }
    }
}

/// A budget that all requests share. Who asks for more than is free waits, in order.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    semaphore: Arc<Semaphore>,
    total: usize,
    patience: Duration,
}

impl Budget {
    /// A budget of `bytes`, for which a request waits no longer than `patience`.
    pub(crate) fn new(bytes: usize, patience: Duration) -> Self {
        let total = units(bytes).min(Semaphore::MAX_PERMITS);
        Self { semaphore: Arc::new(Semaphore::new(total)), total, patience }
    }

    /// Sets `bytes` aside; `None` when they were not free in time. More than the whole budget
    /// counts as the whole: such a request then runs alone.
    pub(crate) async fn reserve(&self, bytes: usize) -> Option<Reserved> {
        let units = u32::try_from(units(bytes).min(self.total)).ok()?;
        let permit = self.semaphore.clone().acquire_many_owned(units);
        let permit = tokio::time::timeout(self.patience, permit).await.ok()?.ok()?;
        Some(Reserved(Some(permit)))
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
    async fn gives_back_what_is_dropped_or_not_needed() {
        let budget = Budget::new(10 * UNIT, Duration::from_millis(1));
        let mut first = budget.reserve(8 * UNIT).await.unwrap();
        assert!(budget.reserve(3 * UNIT).await.is_none());
        first.shrink_to(2 * UNIT + 1);
        assert_eq!(budget.free(), 7 * UNIT);
        drop(first);
        assert_eq!(budget.free(), 10 * UNIT);
    }

    #[tokio::test]
    async fn more_than_all_is_all() {
        let budget = Budget::new(2 * UNIT, Duration::from_millis(1));
        let all = budget.reserve(100 * UNIT).await.unwrap();
        assert_eq!(budget.free(), 0);
        drop(all);
    }
}
