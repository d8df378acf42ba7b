//! What the retention removes: whole epochs, and the oldest entries of others.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Holds, remains::Remains};
use crate::{
    EpochKey, clock,
    fleet::StatsQuery,
    stats::Stats,
    store::{EpochLines, OldPart, ReadError, ReadOnlyStore},
};

/// Step of the time before which entries are removed because of the size.
const STEP: Duration = Duration::from_secs(60);

/// Limits of what is kept. Without a limit everything is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionPolicy {
    /// Time for which entries are kept. Those of an epoch that goes on are removed in steps of some
    /// hundred batches.
    pub max_age: Option<Duration>,
    /// Size of all entries in bytes. Beyond it, the oldest entries are removed.
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

/// What a plan reads of a store.
pub(crate) trait RetainedEpochs {
    fn stats(&self, query: StatsQuery) -> io::Result<Stats>;

    /// Returns the oldest lines of epochs whose batches are all from before a time, RFC 3339.
    fn older(&self, time: String) -> io::Result<Vec<OldPart>>;

    fn lines(&self) -> io::Result<Box<dyn Iterator<Item = io::Result<EpochLines>> + '_>>;
}

/// Returns what the retention would remove from the data directory `data` now. Changes nothing, also beside a
/// running receiver; what only its journal has is not considered.
///
/// # Errors
/// If a file cannot be read.
pub fn plan(
    data: &Path,
    policy: &RetentionPolicy,
    now: SystemTime,
) -> Result<Vec<Removal>, ReadError> {
    let failed = |source| ReadError { path: data.to_owned(), source };
    let (store, holds) = (ReadOnlyStore::open(data)?, Holds::read(data).map_err(failed)?);
    plan_of(&store, &holds, policy, now).map_err(failed)
}

/// Returns what the retention removes.
///
/// Age removes all entries before a time. If the rest is larger than the limit, the same is done with the first
/// time that makes it small enough, except that the current epoch of a machine's user is never removed as a
/// whole: its agent continues it.
pub(super) fn plan_of(
    store: &impl RetainedEpochs,
    holds: &Holds,
    policy: &RetentionPolicy,
    now: SystemTime,
) -> io::Result<Vec<Removal>> {
    let epochs = epochs(store, holds, now)?;
    let age = policy.max_age.and_then(|age| now.checked_sub(age));
    let left = |removals: &[Removal]| {
        let stored: u64 = epochs.iter().map(|epoch| epoch.bytes).sum();
        stored.saturating_sub(removals.iter().map(|removal| removal.bytes).sum())
    };
    let by_age = removals(store, &epochs, age, None)?;
    let Some(max) = policy.max_bytes.filter(|max| left(&by_age) > *max) else { return Ok(by_age) };
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (mut low, mut high) =
        (0, u32::try_from(since.as_secs() / STEP.as_secs() + 1).unwrap_or(u32::MAX));
    while low < high {
        let middle = low + (high - low) / 2;
        if left(&removals(store, &epochs, age, Some(UNIX_EPOCH + STEP * middle))?) <= max {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    let removals = removals(store, &epochs, age, Some(UNIX_EPOCH + STEP * low))?;
    let bytes = left(&removals);
    if bytes > max {
        warn!(
            code = "retention_limit_not_met",
            bytes, max, "what must stay is larger than the limit of the retention"
        );
    }
    Ok(removals)
}

/// Returns the epochs and oldest entries to remove before a time because of their age, and before another one
/// because of the size of all.
fn removals(
    store: &impl RetainedEpochs,
    epochs: &[RetainedEpoch],
    age: Option<SystemTime>,
    size: Option<SystemTime>,
) -> io::Result<Vec<Removal>> {
    let mut removals = whole(age, size, epochs);
    let Some(limit) = age.max(size).filter(|limit| *limit > UNIX_EPOCH) else {
        return Ok(removals);
    };
    let free = epochs.iter().filter(|epoch| epoch.hold.is_none()).map(|epoch| &epoch.key);
    let mut others: BTreeSet<&EpochKey> = free.collect();
    for removal in &removals {
        others.remove(&removal.key());
    }
    let parts = store.older(clock::text(limit))?.into_iter();
    let age = age.map(clock::text);
    let parts = parts.filter(|part| others.contains(&part.key)).map(|part| Removal {
        cause: match age.as_ref().is_some_and(|age| part.last_seen < *age) {
            true => RemovalCause::Age,
            false => RemovalCause::Size,
        },
        machine: part.key.machine,
        epoch: part.key.epoch,
        last_seen: part.last_seen,
        bytes: part.bytes,
        before: Some(part.end),
    });
    let parts: Vec<_> = parts.collect();
    removals.extend(parts);
    Ok(removals)
}

/// Returns the epochs that ended before a time, the first one at first. A held epoch stays, and its bytes
/// count. An epoch without bytes is not named.
fn whole(
    age: Option<SystemTime>,
    size: Option<SystemTime>,
    epochs: &[RetainedEpoch],
) -> Vec<Removal> {
    let mut candidates: Vec<_> =
        epochs.iter().filter(|epoch| epoch.bytes > 0 && epoch.hold.is_none()).collect();
    candidates.sort_by(|a, b| (a.last_seen, &a.key).cmp(&(b.last_seen, &b.key)));
    let mut removals = Vec::new();
    for epoch in candidates {
        let is_before = |limit: SystemTime| epoch.last_seen < limit;
        let cause = match (age.is_some_and(is_before), size.is_some_and(is_before)) {
            (true, _) => RemovalCause::Age,
            (false, true) if !epoch.is_current => RemovalCause::Size,
            _ => continue,
        };
        removals.push(Removal {
            machine: epoch.key.machine.clone(),
            epoch: epoch.key.epoch.clone(),
            last_seen: clock::text(epoch.last_seen),
            bytes: epoch.bytes,
            before: None,
            cause,
        });
    }
    removals
}

impl Removal {
    pub(super) fn key(&self) -> EpochKey {
        EpochKey { machine: self.machine.clone(), epoch: self.epoch.clone() }
    }
}

/// Returns all epochs, with the holds that cover them.
fn epochs(
    store: &impl RetainedEpochs,
    holds: &Holds,
    now: SystemTime,
) -> io::Result<Vec<RetainedEpoch>> {
    let stats = store.stats(StatsQuery::all(now))?;
    let mut held: BTreeMap<EpochKey, u64> = BTreeMap::new();
    if !holds.list().is_empty() {
        for epoch in store.lines()? {
            let epoch = epoch?;
            let key = epoch.key();
            held.extend(key.zip(hold_of(epoch, holds)?));
        }
    }
    let mut found = Vec::new();
    for machine in &stats.machines {
        let id = &machine.identity.machine_id;
        let epochs: Vec<_> = machine.all_epochs().collect();
        for epoch in &epochs {
            let of_user = epochs.iter().filter(|other| other.user == epoch.user);
            let last = of_user.map(|other| &other.last_seen).max();
            let key = EpochKey { machine: id.clone(), epoch: epoch.epoch.clone() };
            let last_seen = humantime::parse_rfc3339(&epoch.last_seen).map_err(io::Error::other)?;
            found.push(RetainedEpoch {
                hold: held.get(&key).copied(),
                key,
                last_seen,
                bytes: epoch.bytes,
                is_current: last == Some(&epoch.last_seen),
            });
        }
    }
    Ok(found)
}

/// Returns the hold that covers a part of an epoch, or of what a repair moved aside.
fn hold_of(epoch: EpochLines, holds: &Holds) -> io::Result<Option<u64>> {
    let Some(key) = epoch.key() else { return Ok(None) };
    let mut found = None;
    epoch.each_line(|line| {
        if found.is_none() {
            found = holds.covers(&key.machine, line.user, line.text).map(|hold| hold.id);
        }
        Ok::<_, io::Error>(())
    })?;
    if found.is_none() {
        Remains::Surplus(epoch).each(|piece| {
            found = piece.hold(holds)?.map(|hold| hold.id);
            Ok(found.is_none())
        })?;
    }
    Ok(found)
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

    fn removed(
        age: Option<u32>,
        size: Option<u32>,
        epochs: &[RetainedEpoch],
    ) -> Vec<(String, RemovalCause)> {
        let [age, size] = [age, size].map(|day| day.map(|day| UNIX_EPOCH + DAY * day));
        let removals = whole(age, size, epochs).into_iter();
        removals.map(|removal| (removal.epoch, removal.cause)).collect()
    }

    #[test]
    fn age_removes_what_ended_before_the_limit() {
        let mut epochs = [epoch("a", 10, 5), epoch("b", 9, 5), epoch("c", 11, 5), epoch("d", 1, 0)];
        assert_eq!(removed(Some(10), None, &epochs), [("b".into(), RemovalCause::Age)]);
        epochs[1].hold = Some(1);
        assert_eq!(removed(Some(10), None, &epochs), []);
        assert_eq!(removed(None, None, &epochs), []);
    }

    #[test]
    fn size_removes_the_oldest_but_no_current_epoch_as_a_whole() {
        let mut epochs = [epoch("a", 3, 10), epoch("b", 1, 10), epoch("c", 2, 10)];
        let size = RemovalCause::Size;
        assert_eq!(removed(None, Some(3), &epochs), [("b".into(), size), ("c".into(), size)]);
        epochs[1].is_current = true;
        assert_eq!(removed(None, Some(4), &epochs), [("c".into(), size), ("a".into(), size)]);
        assert_eq!(removed(Some(2), Some(3), &epochs)[0], ("b".into(), RemovalCause::Age));
        epochs[2].hold = Some(7);
        assert_eq!(removed(None, Some(4), &epochs), [("a".into(), size)]);
    }
}
