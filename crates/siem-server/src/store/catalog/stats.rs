//! Statistics about the entries held.

use std::{collections::HashSet, sync::Arc};

use siem_protocol::statement::DeviceState;

use super::{Catalog, Epoch, Key, MachineEpochs, Owner};
use crate::{
    fleet::{DeviceFacts, EpochFacts, FleetSums, PageBuilder, StatsQuery},
    ledger::Range,
    stats::{EpochDevice, EpochStats, MachineStats, Stats},
    trust::{DeviceStanding, Registry, Standings, StandingsVersion, policy::Mark},
};

impl Catalog {
    /// Statistics about all entries held, and the page of rows that `query` asks for.
    ///
    /// Takes time for the rows of the page, for the machines that have changed since the last request, and very
    /// little for each other row; after a change of the registry, for all epochs.
    pub(in crate::store) fn stats(&self, query: &StatsQuery, registry: Option<&Registry>) -> Stats {
        let mut stats = match registry {
            Some(registry) => registry
                .read_standings(|standings, version| self.page(query, Some(version), standings)),
            None => self.page(query, None, &|_, _| None),
        };
        stats.level = registry.map(Registry::level);
        stats.events = registry.map(Registry::event_counts).unwrap_or_default();
        stats
    }

    pub(super) fn page(
        &self,
        query: &StatsQuery,
        version: Option<StandingsVersion>,
        standings: &Standings<'_>,
    ) -> Stats {
        let mut kept = self.figures.lock();
        let figures = self.figures(&mut kept, query.thresholds, version, standings);
        let FleetSums { totals, matching, unexplained } = figures.sums(query);
        let mut page = PageBuilder::new(query);
        let mut machines = Vec::new();
        for machine in figures.matching(query) {
            if page.is_complete() {
                break;
            }
            let epochs: MachineEpochs<'_> = self.of_machine(machine).collect();
            let facts = self.facts(&epochs, standings);
            let level = |at: usize| epochs[at].1.owner.as_ref().map(|owner| owner.level);
            let rows = page.add(machine, &facts, level);
            if !rows.is_empty() {
                machines.extend(self.machine_stats(&epochs, &facts, &rows));
            }
        }
        let page = page.finish();
        let stats = Stats {
            unexplained,
            level: None,
            events: Default::default(),
            totals,
            matching,
            rows: page.rows,
            next: page.next.map(|next| next.to_string()),
            config: None,
            machines,
        };
        #[cfg(test)]
        assert_eq!(stats, self.counted_again(query, standings));
        stats
    }

    /// Facts about the epochs of a machine, which are all of it.
    pub(super) fn facts<'a>(
        &self,
        epochs: &[(&'a Key, &'a Epoch)],
        standings: &Standings<'_>,
    ) -> Vec<EpochFacts<'a>> {
        let mut facts: Vec<EpochFacts<'a>> = Vec::with_capacity(epochs.len());
        let Some(((machine, _), _)) = epochs.first() else { return facts };
        let cloned: HashSet<_> = self.clones_of(machine).iter().map(|it| &it.epoch[..]).collect();
        let mut before = None;
        for (key, epoch) in epochs {
            // One lookup in the registry for the epochs of a device.
            let before = before.replace(*epoch).zip(facts.last().map(|it| it.device));
            let same = before.filter(|(before, _)| before.has_owner_of(epoch));
            let device = match same {
                Some((_, device)) => device,
                None => epoch.owner.as_ref().map(|owner| epoch.device(machine, owner, standings)),
            };
            let cloned = cloned.contains(key.1.as_str());
            let lost = self.gap_before(machine, epoch).map_or(0, Range::count);
            let own = epoch.facts(&key.1, device);
            facts.push(EpochFacts { cloned, missing: own.missing.saturating_add(lost), ..own });
        }
        facts
    }

    /// Statistics about the epochs of a machine that are in rows.
    pub(super) fn machine_stats(
        &self,
        epochs: &[(&Key, &Epoch)],
        facts: &[EpochFacts<'_>],
        rows: &[Vec<usize>],
    ) -> Option<MachineStats> {
        let ((machine, _), first) = epochs.first()?;
        let mut stats = MachineStats::new(&first.identity, self.clones_of(machine).to_vec());
        let mut shown: Vec<_> =
            rows.iter().flat_map(|row| row.iter().map(|at| (*at, *at == row[0]))).collect();
        shown.sort_unstable();
        stats.epochs.reserve_exact(shown.len());
        for (at, current) in shown {
            let ((_, id), epoch) = epochs[at];
            let state = facts[at].device.map(|device| device.state);
            let gap_before = self.gap_before(machine, epoch);
            let found = EpochStats { gap_before, ..epoch.stats(id, current, state) };
            stats.add(found, &epoch.identity);
        }
        Some(stats)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&Key, &Epoch)> {
        self.epochs.iter().map(|(key, epoch)| (key, &**epoch))
    }
}

impl Epoch {
    fn facts<'a>(&'a self, id: &'a str, device: Option<DeviceFacts>) -> EpochFacts<'a> {
        EpochFacts {
            id,
            identity: &self.identity,
            first_host: &self.first.hostname,
            first_seen: &self.first_seen,
            last_seen: &self.last_seen,
            grew_at: if self.grew_at.is_empty() { &self.last_seen } else { &self.grew_at },
            began: self.began(),
            device,
            entries: self.ledger.held(),
            bytes: self.lines_end - self.lines_from,
            missing: self.ledger.missing(),
            holes: self.ledger.hole_count(),
            breaks: self.ledger.breaks().len() as u64,
            unexplained: self.ledger.is_unexplained(),
            cloned: false,
            heartbeat: self.heartbeat.as_deref(),
        }
    }

    /// Reports whether what counts for the devices of both epochs, of one machine, is the same.
    fn has_owner_of(&self, other: &Self) -> bool {
        let owner = |epoch: &Self| epoch.owner.as_ref().map(|owner| (owner.key, owner.mark));
        let same_user = Arc::ptr_eq(&self.identity, &other.identity)
            || self.identity.user == other.identity.user;
        same_user && owner(self) == owner(other)
    }

    fn device(&self, machine: &str, owner: &Owner, standings: &Standings<'_>) -> DeviceFacts {
        let found = standings(&owner.key, (machine, &self.identity.user));
        let DeviceStanding { state, root, cloned } = found.unwrap_or_else(|| {
            let state = match owner.mark {
                Mark::Confirmed => DeviceState::Confirmed,
                _ => DeviceState::Unconfirmed,
            };
            DeviceStanding { state, root: owner.key, cloned: false }
        });
        DeviceFacts { key: owner.key, root, state, cloned }
    }

    fn stats(&self, id: &str, current: bool, state: Option<DeviceState>) -> EpochStats {
        let mut holes: Vec<Range> = Vec::new();
        for hole in self.ledger.holes() {
            match holes.last_mut() {
                Some(range) if range.last + 1 == hole.seq => range.last = hole.seq,
                _ => holes.push(Range { first: hole.seq, last: hole.seq }),
            }
        }
        EpochStats {
            epoch: id.to_owned(),
            previous_epoch: self.previous_epoch.clone(),
            current,
            user: self.identity.user.clone(),
            first_seen: self.first_seen.clone(),
            last_seen: self.last_seen.clone(),
            entries: self.ledger.held(),
            bytes: self.lines_end - self.lines_from,
            next_seq: self.ledger.next_seq(),
            begins_at: self.ledger.begins_at(),
            duplicates: self.ledger.duplicates(),
            repetitions: self.repetitions,
            conflicts: self.conflicts,
            gaps: self.ledger.gaps(),
            gap_before: None,
            holes,
            breaks: self.ledger.breaks().to_vec(),
            claims: self.ledger.comparison(),
            device: self.owner.as_ref().zip(state).map(|(owner, state)| EpochDevice {
                key: owner.key.short(),
                state,
                level: owner.level,
                adopted_at: owner.adopted_at,
                sealed: self.notes.sealed(),
            }),
        }
    }
}
