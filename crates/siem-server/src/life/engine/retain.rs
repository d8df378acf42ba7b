//! Removal of what the retention no longer keeps.

use std::{collections::BTreeSet, io, time::SystemTime};

use tracing::info;

use super::{Engine, Stop};
use crate::{
    EpochKey, clock,
    fleet::StatsQuery,
    life::{
        AccessAction, Holds, LifeResponse, Reason, RetentionPolicy, counted, lock_removals,
        retention::{self, RetainedEpochs},
    },
    stats::Stats,
    store::{EpochLines, OldPart, StoreHandle},
};

impl RetainedEpochs for StoreHandle {
    fn stats(&self, query: StatsQuery) -> io::Result<Stats> {
        Self::stats(self, query)
    }

    fn older(&self, time: String) -> io::Result<Vec<OldPart>> {
        Self::older(self, time)
    }

    fn lines(&self) -> io::Result<Box<dyn Iterator<Item = io::Result<EpochLines>> + '_>> {
        Ok(Box::new(self.epochs(None)?))
    }
}

impl Engine {
    pub(super) fn retain(
        &self,
        policy: &RetentionPolicy,
        reason: &Reason,
        now: SystemTime,
    ) -> Result<LifeResponse, Stop> {
        let _removals = lock_removals(&self.data)?;
        self.store.settle()?;
        let holds = Holds::read(&self.data)?;
        let mut removals = retention::plan_of(&self.store, &holds, policy, now)?;
        if removals.is_empty() {
            return Ok(LifeResponse::Removals(removals));
        }
        let bytes: u64 = removals.iter().map(|removal| removal.bytes).sum();
        let what = format!(
            "{}, {}",
            counted(removals.len() as u64, "epoch", "epochs"),
            counted(bytes, "byte", "bytes")
        );
        self.log(reason, now, AccessAction::Retention, &what)?;
        let (parts, whole): (Vec<_>, Vec<_>) =
            removals.iter().partition(|removal| removal.before.is_some());
        let epochs = whole.iter().map(|removal| (removal.key(), removal.bytes)).collect();
        let ends: Vec<_> =
            parts.iter().filter_map(|part| Some((part.key(), part.before?))).collect();
        let removed = self.store.remove(epochs, clock::text(now))?;
        if !ends.is_empty() {
            self.store.remove_before(ends, clock::text(now))?;
        }
        self.store.rotate()?;
        // An epoch to which a batch was added meanwhile stays.
        let removed: BTreeSet<EpochKey> = removed.into_iter().collect();
        removals.retain(|it| it.before.is_some() || removed.contains(&it.key()));
        let bytes: u64 = removals.iter().map(|removal| removal.bytes).sum();
        info!(epochs = removals.len(), bytes, "the retention removed epochs");
        Ok(LifeResponse::Removals(removals))
    }
}
