//! Quotas on what a token and a device may send. Pure: the time comes from outside.
//!
//! Each quota is a bucket that refills evenly: a token may begin `machines_per_hour` new machines at once,
//! and as many again in each hour. Counts are kept in memory, and a restart begins with full buckets. A
//! machine of which entries are held is not new, also after a restart.

mod bucket;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    time::Duration,
};

use bucket::{Bucket, Buckets};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Quotas. Zero is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaLimits {
    /// New machines that a token may begin in an hour.
    pub machines_per_hour: u64,
    /// Bytes of decoded batches that a device may send in a day.
    pub device_bytes_per_day: u64,
    /// Bytes of decoded batches that all senders with a token may send in a day.
    pub token_bytes_per_day: u64,
}

impl Default for QuotaLimits {
    /// 20,000 agents with one token can start at once, and each may send a backlog of months.
    fn default() -> Self {
        Self { machines_per_hour: 50_000, device_bytes_per_day: 32 << 30, token_bytes_per_day: 0 }
    }
}

/// A batch and its sender. All but the size are hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SentBatch {
    pub(crate) token: u64,
    /// The device key if the batch has a valid seal, otherwise token, machine and user.
    pub(crate) device: u64,
    pub(crate) machine: u64,
    /// Size of the decoded batch.
    pub(crate) bytes: u64,
}

/// A batch that was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CountedBatch {
    sent: SentBatch,
    /// True if its machine was counted as a new one.
    has_new_machine: bool,
}

/// A quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum QuotaKind {
    Machines,
    DeviceBytes,
    TokenBytes,
}

impl QuotaKind {
    /// All quotas.
    pub(crate) const ALL: [Self; 3] = [Self::Machines, Self::DeviceBytes, Self::TokenBytes];

    /// Returns the name, as in metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Machines => "machines",
            Self::DeviceBytes => "device_bytes",
            Self::TokenBytes => "token_bytes",
        }
    }
}

impl fmt::Display for QuotaKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machines => "new machines of the token in an hour",
            Self::DeviceBytes => "bytes of the device in a day",
            Self::TokenBytes => "bytes of the token in a day",
        })
    }
}

/// A batch is over a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the quota of {quota} is used up")]
pub(crate) struct QuotaExceeded {
    pub(crate) quota: QuotaKind,
    /// Time after which the sender should try again: at least a second, at most an hour.
    pub(crate) retry_after: Duration,
}

/// What was sent, as far as the quotas need it.
#[derive(Debug)]
pub(crate) struct Quotas {
    limits: QuotaLimits,
    /// Machines that are not new.
    known: HashSet<u64>,
    /// True once these include the machines of the store.
    is_learned: bool,
    machines: HashMap<u64, NewMachines>,
    devices: Buckets,
    tokens: Buckets,
}

/// New machines of a token.
#[derive(Clone, Copy, Debug, Default)]
struct NewMachines {
    bucket: Bucket,
    /// Time at which the last refused machine may return.
    last_place: Duration,
}

impl Quotas {
    pub(crate) fn new(limits: QuotaLimits) -> Self {
        let (devices, tokens) = (Buckets::default(), Buckets::default());
        let (known, machines) = (HashSet::new(), HashMap::new());
        Self { limits, known, is_learned: false, machines, devices, tokens }
    }

    /// Reports whether the machines of the store are still to be [learned](Self::learn).
    pub(crate) fn needs_machines(&self) -> bool {
        !self.is_learned && self.limits.machines_per_hour > 0
    }

    /// Adds machines that are not new. No machine that sends before the first call counts as new.
    pub(crate) fn learn(&mut self, machines: impl IntoIterator<Item = u64>) {
        self.known.extend(machines);
        self.is_learned = true;
    }

    /// Counts a batch, unless it is over a quota. `now` is a time since any start that never goes back.
    ///
    /// A batch is admitted if anything is left, so that one larger than a quota is not refused for ever.
    ///
    /// # Errors
    /// The quota; nothing was counted.
    pub(crate) fn admit(
        &mut self,
        sent: SentBatch,
        now: Duration,
    ) -> Result<CountedBatch, QuotaExceeded> {
        let QuotaLimits { device_bytes_per_day, token_bytes_per_day, .. } = self.limits;
        let exceeded =
            |quota| move |wait: Duration| QuotaExceeded { quota, retry_after: bounded(wait) };
        let device = self.devices.check(sent.device, device_bytes_per_day, DAY, now);
        device.map_err(exceeded(QuotaKind::DeviceBytes))?;
        let token = self.tokens.check(sent.token, token_bytes_per_day, DAY, now);
        token.map_err(exceeded(QuotaKind::TokenBytes))?;
        let machine = self.admit_machine(sent, now);
        let has_new_machine = machine.map_err(exceeded(QuotaKind::Machines))?;
        self.devices.charge(sent.device, sent.bytes, device_bytes_per_day, DAY, now);
        self.tokens.charge(sent.token, sent.bytes, token_bytes_per_day, DAY, now);
        Ok(CountedBatch { sent, has_new_machine })
    }

    /// Takes back a batch that the receiver did not store. If its machine was new, it is again.
    pub(crate) fn refund(&mut self, counted: CountedBatch) {
        let CountedBatch { sent, has_new_machine } = counted;
        let QuotaLimits { device_bytes_per_day, token_bytes_per_day, .. } = self.limits;
        self.devices.refund(sent.device, sent.bytes, device_bytes_per_day, DAY);
        self.tokens.refund(sent.token, sent.bytes, token_bytes_per_day, DAY);
        if has_new_machine {
            self.known.remove(&sent.machine);
            if let Some(of_token) = self.machines.get_mut(&sent.token) {
                of_token.bucket.refund(bucket::cost(1, self.limits.machines_per_hour, HOUR));
            }
        }
    }

    /// Counts the machine of a batch if it is new, and reports whether it is.
    ///
    /// # Errors
    /// The time to wait.
    fn admit_machine(&mut self, sent: SentBatch, now: Duration) -> Result<bool, Duration> {
        let limit = self.limits.machines_per_hour;
        if limit == 0 || self.known.contains(&sent.machine) {
            return Ok(false);
        }
        if !self.is_learned {
            // It may be a machine of the store, and is not new later.
            self.known.insert(sent.machine);
            return Ok(false);
        }
        let step = bucket::cost(1, limit, HOUR);
        // Tokens are few: each was made by an operator.
        let of_token = self.machines.entry(sent.token).or_default();
        match of_token.bucket.check(HOUR, now) {
            Ok(()) => {
                of_token.bucket.charge(step, now);
                self.known.insert(sent.machine);
                Ok(true)
            }
            Err(wait) => {
                // Each has a time of its own, at which the bucket has one more.
                let place = of_token.last_place.max(now + wait) + step;
                of_token.last_place = if place > now + HOUR { now + wait } else { place };
                Err(of_token.last_place - now)
            }
        }
    }
}

fn bounded(wait: Duration) -> Duration {
    // Whole seconds, as in `Retry-After`, and not a moment too early.
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    Duration::from_secs(seconds).clamp(Duration::from_secs(1), HOUR)
}

#[cfg(test)]
mod tests;
