//! Buckets that refill evenly.

use std::{collections::HashMap, time::Duration};

/// Number of senders that are counted apart. All others share a bucket.
const MAX_COUNTED: usize = 1_000_000;
/// The bucket of those.
const OTHERS: u64 = 0;

/// Time that it takes to refill `amount` of a bucket that has `limit` in `period`.
pub(super) fn cost(amount: u64, limit: u64, period: Duration) -> Duration {
    let nanos = u128::from(amount) * period.as_nanos() / u128::from(limit.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// A bucket, as the time at which it is full again.
///
/// That is the generic cell rate algorithm: <https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm>.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    full_at: Duration,
}

impl Bucket {
    /// Checks whether anything is left in a bucket that refills in `period`.
    ///
    /// # Errors
    /// The time after which something is.
    pub(super) fn check(&self, period: Duration, now: Duration) -> Result<(), Duration> {
        match self.full_at.checked_sub(now + period) {
            None => Ok(()),
            Some(wait) => Err(wait + Duration::from_nanos(1)),
        }
    }

    /// Takes something that is refilled in `cost`.
    pub(super) fn charge(&mut self, cost: Duration, now: Duration) {
        self.full_at = self.full_at.max(now).saturating_add(cost);
    }

    /// Gives back something that is refilled in `cost`.
    pub(super) fn refund(&mut self, cost: Duration) {
        self.full_at = self.full_at.saturating_sub(cost);
    }
}

/// Buckets by sender. Full ones are forgotten.
#[derive(Debug, Default)]
pub(super) struct Buckets(HashMap<u64, Bucket>);

impl Buckets {
    /// Checks whether a sender has anything left of `limit` in `period`; zero is no limit.
    ///
    /// # Errors
    /// The time after which it has.
    pub(super) fn check(
        &self,
        sender: u64,
        limit: u64,
        period: Duration,
        now: Duration,
    ) -> Result<(), Duration> {
        if limit == 0 {
            return Ok(());
        }
        let bucket = self.0.get(&sender).or_else(|| self.0.get(&OTHERS).filter(|_| self.is_full()));
        bucket.map_or(Ok(()), |bucket| bucket.check(period, now))
    }

    /// Counts `amount` of a sender.
    pub(super) fn charge(
        &mut self,
        sender: u64,
        amount: u64,
        limit: u64,
        period: Duration,
        now: Duration,
    ) {
        if limit == 0 {
            return;
        }
        // A sender that is counted already needs no room.
        if self.0.len() == self.0.capacity() && !self.0.contains_key(&sender) {
            self.0.retain(|_, bucket| bucket.full_at > now);
        }
        let is_counted = self.0.contains_key(&sender) || !self.is_full();
        let sender = if is_counted { sender } else { OTHERS };
        self.0.entry(sender).or_default().charge(cost(amount, limit, period), now);
    }

    /// Takes back `amount` of a sender.
    pub(super) fn refund(&mut self, sender: u64, amount: u64, limit: u64, period: Duration) {
        if let Some(bucket) = self.0.get_mut(&sender) {
            bucket.refund(cost(amount, limit, period));
        }
    }

    fn is_full(&self) -> bool {
        self.0.len() >= MAX_COUNTED
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
