//! Statistics about the entries held.

use std::collections::HashSet;

use siem_protocol::statement::DeviceState;

use super::{Catalog, Epoch, Key, Owner};
use crate::{
    fleet::{DeviceFacts, EpochFacts, PageBuilder, StatsQuery},
    ledger::{Difference, Range},
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
            let facts = epochs.iter().map(|(key, epoch)| {
                let cloned = cloned.contains(key.1.as_str());
                EpochFacts { cloned, ..epoch.facts(key, standings) }
            });
            let facts: Vec<_> = facts.collect();
            unexplained += facts.iter().filter(|epoch| epoch.unexplained).count() as u64;
            let level = |at: usize| epochs[at].1.owner.as_ref().map(|owner| owner.level);
            let rows = page.add(machine, &facts, level);
            if rows.is_empty() {
                continue;
            }
            let mut stats = MachineStats::new(&first.sender.identity, clones.to_vec());
            let mut shown: Vec<_> =
                rows.iter().flat_map(|row| row.iter().map(|at| (*at, *at == row[0]))).collect();
            shown.sort_unstable();
            for (at, current) in shown {
                let ((_, id), epoch) = epochs[at];
                stats.add(epoch.stats(id, current, standings), &epoch.sender.identity);
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
    fn facts<'a>(&'a self, (machine, id): &'a Key, standings: &Standings<'_>) -> EpochFacts<'a> {
        let comparison = self.ledger.comparison();
        EpochFacts {
            id,
            identity: &self.sender.identity,
            first_host: &self.first_host,
            first_seen: &self.first_seen,
            last_seen: &self.last_seen,
            grew_at: if self.grew_at.is_empty() { &self.last_seen } else { &self.grew_at },
            began: self.began(),
            device: self.owner.as_ref().map(|owner| {
                let found = self.standing(machine, owner, standings);
                let DeviceStanding { state, root, cloned } = found;
                DeviceFacts { key: owner.key, root, state, cloned }
            }),
            entries: self.ledger.held(),
            bytes: self.lines_end - self.lines_from,
            missing: self.ledger.missing(),
            holes: self.ledger.holes().count() as u64,
            breaks: self.ledger.breaks().len() as u64,
            unexplained: comparison.is_some_and(|it| it.difference == Difference::Unexplained),
            cloned: false,
            heartbeat: self.heartbeat.as_deref(),
        }
    }

    fn standing(&self, machine: &str, owner: &Owner, standings: &Standings<'_>) -> DeviceStanding {
        let found = standings(&owner.key, (machine, &self.sender.identity.user));
        found.unwrap_or_else(|| {
            let state = match owner.mark {
                Mark::Confirmed => DeviceState::Confirmed,
                _ => DeviceState::Unconfirmed,
            };
            DeviceStanding { state, root: owner.key, cloned: false }
        })
    }

    fn stats(&self, id: &str, current: bool, standings: &Standings<'_>) -> EpochStats {
        let mut holes: Vec<Range> = Vec::new();
        for hole in self.ledger.holes() {
            match holes.last_mut() {
                Some(range) if range.last + 1 == hole.seq => range.last = hole.seq,
                _ => holes.push(Range { first: hole.seq, last: hole.seq }),
            }
        }
        EpochStats {
            epoch: id.to_owned(),
            previous_epoch: self.sender.previous_epoch.clone(),
            current,
            user: self.sender.identity.user.clone(),
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
            holes,
            breaks: self.ledger.breaks().to_vec(),
            claims: self.ledger.comparison(),
            device: self.owner.as_ref().map(|owner| EpochDevice {
                key: format!("{:.16}", owner.key),
                state: self.standing(&self.sender.identity.machine_id, owner, standings).state,
                level: owner.level,
                adopted_at: owner.adopted_at,
                sealed: self.notes.sealed(),
            }),
        }
    }
}
