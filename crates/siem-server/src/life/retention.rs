//! Which whole epochs the retention removes. Policy only: no files, no clock.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::EpochKey;

/// Limits of what is kept. Without a limit everything is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionPolicy {
    /// Time for which entries are kept. Those of an epoch that goes on are removed in steps of some
    /// hundred batches.
    pub max_age: Option<Duration>,
    /// Size of all entries in bytes. Beyond it, the epochs that ended first are removed.
    pub max_bytes: Option<u64>,
}

/// An epoch, as the retention sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedEpoch {
    /// The epoch.
    pub key: EpochKey,
    /// Time of its last batch.
    pub last_seen: SystemTime,
    /// Size of its entries in bytes.
    pub bytes: u64,
    /// It is the current epoch of a machine, and its agent may continue it.
    pub is_current: bool,
    /// Number of the hold that covers a part of it.
    pub hold: Option<u64>,
}

/// Limit for which an epoch is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemovalCause {
    /// The last batch of the removed entries is older than `max_age`.
    Age,
    /// All epochs together are larger than `max_bytes`.
    Size,
}

/// An epoch to remove, or the oldest entries of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// Id of the machine.
    pub machine: String,
    /// Id of the epoch.
    pub epoch: String,
    /// Time of the last batch of which entries are removed, RFC 3339.
    pub last_seen: String,
    /// Size of the removed entries in bytes.
    pub bytes: u64,
    /// Position in the file of lines up to which they are removed, if only the oldest ones are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
    /// The limit.
    pub cause: RemovalCause,
}

/// Returns the epochs to remove, the one that ended first at first.
///
/// Age removes any epoch; size spares the current epoch of each machine. A held epoch stays, and
/// its bytes count. An epoch without bytes is not named.
#[must_use]
pub fn plan(policy: &RetentionPolicy, now: SystemTime, epochs: &[RetainedEpoch]) -> Vec<Removal> {
    let mut kept: u64 = epochs.iter().map(|epoch| epoch.bytes).sum();
    let mut candidates: Vec<_> =
        epochs.iter().filter(|epoch| epoch.bytes > 0 && epoch.hold.is_none()).collect();
    candidates.sort_by(|a, b| (a.last_seen, &a.key).cmp(&(b.last_seen, &b.key)));
    let mut removals = Vec::new();
    for epoch in candidates {
        let age = now.duration_since(epoch.last_seen).unwrap_or_default();
        let is_old = policy.max_age.is_some_and(|max| age > max);
        let is_over = policy.max_bytes.is_some_and(|max| kept > max) && !epoch.is_current;
        let cause = match (is_old, is_over) {
            (true, _) => RemovalCause::Age,
            (false, true) => RemovalCause::Size,
            (false, false) => continue,
        };
        kept -= epoch.bytes;
        removals.push(Removal {
            machine: epoch.key.machine.clone(),
            epoch: epoch.key.epoch.clone(),
            last_seen: crate::clock::text(epoch.last_seen),
            bytes: epoch.bytes,
            before: None,
            cause,
        });
    }
    removals
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn epoch(name: &str, day: u32, bytes: u64) -> RetainedEpoch {
        RetainedEpoch {
            key: EpochKey { machine: "m".into(), epoch: name.into() },
            last_seen: UNIX_EPOCH + DAY * day,
            bytes,
            is_current: false,
            hold: None,
        }
    }

    fn removed(policy: RetentionPolicy, epochs: &[RetainedEpoch]) -> Vec<(String, RemovalCause)> {
        let plan = plan(&policy, UNIX_EPOCH + DAY * 100, epochs);
        plan.into_iter().map(|removal| (removal.epoch, removal.cause)).collect()
    }

    #[test]
    fn age_removes_what_ended_before_the_limit() {
        let mut epochs = [epoch("a", 10, 5), epoch("b", 9, 5), epoch("c", 11, 5), epoch("d", 1, 0)];
        let policy = RetentionPolicy { max_age: Some(DAY * 90), max_bytes: None };
        assert_eq!(removed(policy, &epochs), [("b".into(), RemovalCause::Age)]);
        epochs[1].hold = Some(1);
        assert_eq!(removed(policy, &epochs), []);
        assert_eq!(removed(RetentionPolicy::default(), &epochs), []);
    }

    #[test]
    fn size_removes_the_oldest_but_no_current_epoch() {
        let mut epochs = [epoch("a", 3, 10), epoch("b", 1, 10), epoch("c", 2, 10)];
        let policy = RetentionPolicy { max_age: None, max_bytes: Some(15) };
        let size = RemovalCause::Size;
        assert_eq!(removed(policy, &epochs), [("b".into(), size), ("c".into(), size)]);
        epochs[1].is_current = true;
        assert_eq!(removed(policy, &epochs), [("c".into(), size), ("a".into(), size)]);
        epochs[2].hold = Some(7);
        assert_eq!(removed(policy, &epochs), [("a".into(), size)]);
    }
}
