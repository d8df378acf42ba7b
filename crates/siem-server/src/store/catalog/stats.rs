//! Statistics about the entries held.

use std::{collections::HashSet, sync::Arc};

use siem_protocol::statement::DeviceState;

use super::{Catalog, Epoch, Owner};
use crate::{
    fleet::{DeviceFacts, EpochFacts, PageBuilder, StatsQuery},
    ledger::Range,
    stats::{EpochDevice, EpochStats, MachineStats, Stats},
    trust::{DeviceStanding, Registry, Standings, policy::Mark},
};

impl Catalog {
    /// Statistics about all entries held, and the page of rows that `query` asks for.
    pub(in crate::store) fn stats(&self, query: &StatsQuery, registry: Option<&Registry>) -> Stats {
        let mut stats = match registry {
            Some(registry) => registry.read_standings(|standings| self.page(query, standings)),
            None => self.page(query, &|_, _| None),
        };
        stats.level = registry.map(Registry::level);
        stats.events = registry.map(Registry::event_counts).unwrap_or_default();
        stats
    }

    fn page(&self, query: &StatsQuery, standings: &Standings<'_>) -> Stats {
        let mut page = PageBuilder::new(query);
        let (mut machines, mut unexplained) = (Vec::new(), 0);
        let epochs: Vec<_> = self.epochs.iter().collect();
        for epochs in epochs.chunk_by(|((a, _), _), ((b, _), _)| a == b) {
            let Some(((machine, _), first)) = epochs.first() else { continue };
            let clones = self.clones.get(machine).map(Vec::as_slice).unwrap_or_default();
            let cloned: HashSet<_> = clones.iter().map(|clone| clone.epoch.as_str()).collect();
            let mut facts: Vec<EpochFacts<'_>> = Vec::with_capacity(epochs.len());
            let mut before = None;
            for (key, epoch) in epochs {
                // One lookup in the registry for the epochs of a device.
                let before = before.replace(&**epoch).zip(facts.last().map(|it| it.device));
                let same = before.filter(|(before, _)| before.has_owner_of(epoch));
                let device = match same {
                    Some((_, device)) => device,
                    None => {
                        epoch.owner.as_ref().map(|owner| epoch.device(machine, owner, standings))
                    }
                };
                let cloned = cloned.contains(key.1.as_str());
                let lost = self.gap_before(machine, epoch).map_or(0, Range::count);
                let own = epoch.facts(&key.1, device);
                facts.push(EpochFacts { cloned, missing: own.missing + lost, ..own });
            }
            unexplained += facts.iter().filter(|epoch| epoch.unexplained).count() as u64;
            let level = |at: usize| epochs[at].1.owner.as_ref().map(|owner| owner.level);
            let rows = page.add(machine, &facts, level);
            if rows.is_empty() {
                continue;
            }
            let mut stats = MachineStats::new(&first.identity, clones.to_vec());
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
            machines.push(stats);
        }
        let page = page.finish();
        Stats {
            unexplained,
            level: None,
            events: Default::default(),
            totals: page.totals,
            matching: page.matching,
            rows: page.rows,
            next: page.next.map(|next| next.to_string()),
            config: None,
            machines,
        }
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
