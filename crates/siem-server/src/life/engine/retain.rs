//! Removal of what the retention no longer keeps.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{SystemTime, UNIX_EPOCH},
};

use tracing::info;

use super::{Engine, Stop, erase::has_line};
use crate::{
    EpochKey, clock,
    fleet::StatsQuery,
    life::{
        AccessAction, Holds, LifeResponse, Reason, Removal, RemovalCause, RetainedEpoch,
        RetentionPolicy, lock_removals, retention,
    },
    store::EpochLines,
};

impl Engine {
    /// Returns what the retention removes now.
    pub(super) fn plan(
        &self,
        policy: &RetentionPolicy,
        now: SystemTime,
    ) -> Result<Vec<Removal>, Stop> {
        self.store.settle()?;
        let facts = self.facts(now)?;
        let mut removals = retention::plan(policy, now, &facts);
        removals.extend(self.plan_parts(policy, now, &facts, &removals)?);
        Ok(removals)
    }

    /// Returns the oldest entries, beyond the age limit, of epochs that are not removed as a whole.
    fn plan_parts(
        &self,
        policy: &RetentionPolicy,
        now: SystemTime,
        facts: &[RetainedEpoch],
        removals: &[Removal],
    ) -> Result<Vec<Removal>, Stop> {
        let limit = policy.max_age.and_then(|age| now.checked_sub(age));
        let Some(limit) = limit.filter(|limit| *limit > UNIX_EPOCH) else { return Ok(Vec::new()) };
        let mut others: BTreeSet<&EpochKey> =
            facts.iter().filter(|epoch| epoch.hold.is_none()).map(|epoch| &epoch.key).collect();
        for removal in removals {
            others.remove(&key_of(removal));
        }
        let parts = self.store.older(clock::text(limit))?.into_iter();
        let parts = parts.filter(|part| others.contains(&part.key)).map(|part| Removal {
            machine: part.key.machine,
            epoch: part.key.epoch,
            last_seen: part.last_seen,
            bytes: part.bytes,
            before: Some(part.end),
            cause: RemovalCause::Age,
        });
        Ok(parts.collect())
    }

    pub(super) fn retain(
        &self,
        policy: &RetentionPolicy,
        reason: &Reason,
        now: SystemTime,
    ) -> Result<LifeResponse, Stop> {
        let _removals = lock_removals(&self.data)?;
        let mut removals = self.plan(policy, now)?;
        if removals.is_empty() {
            return Ok(LifeResponse::Removals(removals));
        }
        let bytes: u64 = removals.iter().map(|removal| removal.bytes).sum();
        let what = format!("{} epochs, {bytes} bytes", removals.len());
        self.log(reason, now, AccessAction::Retention, &what)?;
        let (parts, whole): (Vec<_>, Vec<_>) =
            removals.iter().partition(|removal| removal.before.is_some());
        let epochs = whole.iter().map(|removal| (key_of(removal), removal.bytes)).collect();
        let ends: Vec<_> =
            parts.iter().filter_map(|part| Some((key_of(part), part.before?))).collect();
        let removed = self.store.remove(epochs, clock::text(now))?;
        if !ends.is_empty() {
            self.store.remove_before(ends, clock::text(now))?;
        }
        self.store.rotate()?;
        // An epoch to which a batch was added meanwhile stays.
        let removed: BTreeSet<EpochKey> = removed.into_iter().collect();
        removals.retain(|it| it.before.is_some() || removed.contains(&key_of(it)));
        let bytes: u64 = removals.iter().map(|removal| removal.bytes).sum();
        info!(epochs = removals.len(), bytes, "the retention removed epochs");
        Ok(LifeResponse::Removals(removals))
    }

    fn facts(&self, now: SystemTime) -> Result<Vec<RetainedEpoch>, Stop> {
        let holds = Holds::read(&self.data)?;
        let stats = self.store.stats(StatsQuery::all(now))?;
        let mut held: BTreeMap<EpochKey, u64> = BTreeMap::new();
        if !holds.list().is_empty() {
            for epoch in self.store.epochs(None)? {
                let epoch = epoch?;
                let hold = hold_of(&epoch, &holds)?;
                held.extend(epoch.key().zip(hold));
            }
        }
        let mut facts = Vec::new();
        for machine in &stats.machines {
            let id = &machine.identity.machine_id;
            let epochs: Vec<_> = machine.all_epochs().collect();
            for epoch in &epochs {
                let of_user = epochs.iter().filter(|other| other.user == epoch.user);
                let last = of_user.map(|other| &other.last_seen).max();
                let key = EpochKey { machine: id.clone(), epoch: epoch.epoch.clone() };
                let last_seen = humantime::parse_rfc3339(&epoch.last_seen)
                    .map_err(|error| Stop::Io(io::Error::other(error)))?;
                facts.push(RetainedEpoch {
                    hold: held.get(&key).copied(),
                    key,
                    last_seen,
                    bytes: epoch.bytes,
                    is_current: last == Some(&epoch.last_seen),
                });
            }
        }
        Ok(facts)
    }
}

fn key_of(removal: &Removal) -> EpochKey {
    EpochKey { machine: removal.machine.clone(), epoch: removal.epoch.clone() }
}

/// Returns the hold that covers a part of an epoch, or of what a repair moved aside.
fn hold_of(epoch: &EpochLines, holds: &Holds) -> io::Result<Option<u64>> {
    let Some(key) = epoch.key() else { return Ok(None) };
    let mut found = None;
    epoch.each_line(|line| {
        if found.is_none() {
            found = holds.covers(&key.machine, line.user, line.text).map(|hold| hold.id);
        }
        Ok::<_, io::Error>(())
    })?;
    let surplus = epoch.surplus();
    if found.is_none() && surplus.try_exists()? {
        has_line(&surplus, |line| {
            let hold = |user| holds.covers(&key.machine, user, line);
            found = epoch.users().find_map(hold).map(|hold| hold.id);
            found.is_some()
        })?;
    }
    Ok(found)
}
