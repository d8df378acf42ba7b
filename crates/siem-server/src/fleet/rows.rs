//! Rows of one machine: which epochs belong together, and which problems they have.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use siem_protocol::{Identity, statement::DeviceState};

use super::{Cursor, FleetProblem, FleetThresholds, Heartbeat};
use crate::{clock, trust::DeviceKey};

/// Facts about an epoch.
#[derive(Clone, Debug)]
pub(crate) struct EpochFacts<'a> {
    pub(crate) id: &'a str,
    /// Sender of the last batch.
    pub(crate) identity: &'a Arc<Identity>,
    /// Host of the first batch.
    pub(crate) first_host: &'a str,
    pub(crate) first_seen: &'a str,
    pub(crate) last_seen: &'a str,
    /// Time of the last new entries.
    pub(crate) grew_at: &'a str,
    /// Key by which the epochs of a machine are ordered by their beginnings.
    pub(crate) began: (u64, &'a str),
    pub(crate) device: Option<DeviceFacts>,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) missing: u64,
    pub(crate) holes: u64,
    pub(crate) breaks: u64,
    pub(crate) unexplained: bool,
    /// A sign that its outbox was copied.
    pub(crate) cloned: bool,
    pub(crate) heartbeat: Option<&'a Heartbeat>,
}

impl EpochFacts<'_> {
    /// Reports whether both epochs have the same user, device and host.
    fn is_of_row(&self, other: &Self) -> bool {
        let root = |epoch: &Self| epoch.device.map(|device| device.root);
        let (own, others) = (self.identity, other.identity);
        // Most share it, and it need not be read then.
        let is_same = Arc::ptr_eq(own, others)
            || (own.user == others.user && own.hostname == others.hostname);
        is_same && root(self) == root(other)
    }
}

/// Facts about the device that owns an epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceFacts {
    pub(crate) key: DeviceKey,
    /// First key of its lineage.
    pub(crate) root: DeviceKey,
    pub(crate) state: DeviceState,
    pub(crate) cloned: bool,
}

/// Epochs of a row, as indexes, the current one first.
#[derive(Debug)]
pub(super) struct RowEpochs {
    pub(super) epochs: Vec<usize>,
    pub(super) shares_machine_id: bool,
    pub(super) replaced: bool,
}

impl RowEpochs {
    fn new(current: usize) -> Self {
        Self { epochs: vec![current], shares_machine_id: false, replaced: false }
    }
}

/// Arranges the epochs of a machine into rows, in the order of their cursors. The time that it takes
/// grows with the number of epochs, not with its square: senders choose the names.
///
/// Epochs of a user and device on one host are a row. A host that was renamed is the same: an epoch
/// ended before one began that names its host first.
pub(super) fn arrange(facts: &[EpochFacts<'_>]) -> Vec<RowEpochs> {
    match facts.len() {
        0 => return Vec::new(),
        // So it is for most machines.
        1 => return vec![RowEpochs::new(0)],
        _ => {}
    }
    let mut latest: Vec<usize> = (0..facts.len()).collect();
    let age = |at: &usize| (facts[*at].grew_at, facts[*at].began, facts[*at].id);
    latest.sort_by(|a, b| age(b).cmp(&age(a)));
    if facts.windows(2).all(|pair| pair[0].is_of_row(&pair[1])) {
        return vec![RowEpochs { epochs: latest, ..RowEpochs::new(0) }];
    }
    let mut rows = Rows::default();
    latest.into_iter().for_each(|at| rows.add(facts, at));
    let mut rows = rows.rows;
    mark(facts, &mut rows);
    rows.sort_by_cached_key(|row| cursor("", facts, row));
    rows
}

/// User, first key of the device, and host.
type RowKey<'a> = (&'a str, Option<DeviceKey>, &'a str);

/// Rows, the latest epochs first.
#[derive(Default)]
struct Rows<'a> {
    rows: Vec<RowEpochs>,
    by_host: HashMap<RowKey<'a>, usize>,
    /// By the host of the first batch of one of their epochs: the row, and the latest time of such a
    /// batch.
    by_first_host: HashMap<RowKey<'a>, (usize, &'a str)>,
}

impl<'a> Rows<'a> {
    fn add(&mut self, facts: &[EpochFacts<'a>], at: usize) {
        let epoch = &facts[at];
        let root = epoch.device.map(|device| device.root);
        let key = |host| (epoch.identity.user.as_str(), root, host);
        let host = key(epoch.identity.hostname.as_str());
        let renamed = self.by_first_host.get(&host).filter(|(_, began)| epoch.grew_at <= *began);
        let row = self.by_host.get(&host).copied().or(renamed.map(|(row, _)| *row));
        let row = match row {
            Some(row) => {
                self.rows[row].epochs.push(at);
                row
            }
            None => {
                self.rows.push(RowEpochs::new(at));
                self.by_host.insert(host, self.rows.len() - 1);
                self.rows.len() - 1
            }
        };
        let began = self.by_first_host.entry(key(epoch.first_host)).or_insert((row, ""));
        if began.1 < epoch.first_seen {
            *began = (row, epoch.first_seen);
        }
    }
}

fn mark(facts: &[EpochFacts<'_>], rows: &mut [RowEpochs]) {
    let Some(host) = rows.first().map(|row| &current(facts, row).identity.hostname) else { return };
    let shares = rows.iter().any(|row| current(facts, row).identity.hostname != *host);
    // The latest start of a row of a user and host, for each grade of trust.
    let mut starts: HashMap<_, [&str; GRADES]> = HashMap::new();
    for row in rows.iter() {
        let epoch = current(facts, row);
        let latest = starts.entry((&epoch.identity.user, &epoch.identity.hostname)).or_default();
        let start = &mut latest[trust(epoch)];
        *start = (*start).max(first_seen(facts, row));
    }
    for row in rows {
        let epoch = current(facts, row);
        let latest = &starts[&(&epoch.identity.user, &epoch.identity.hostname)];
        let end = last_seen(facts, row);
        // Otherwise anyone with an enrollment token could hide that a machine is quiet.
        let trusted = &latest[trust(epoch).max(1)..];
        row.replaced = trusted.iter().any(|start| *start > end);
        row.shares_machine_id = shares;
    }
}

/// Number of grades of [`trust`].
const GRADES: usize = 3;

/// Grade of the trust in the sender of an epoch: unconfirmed key, no key, confirmed key.
fn trust(epoch: &EpochFacts<'_>) -> usize {
    match epoch.device.map(|device| device.state) {
        Some(DeviceState::Confirmed) => 2,
        None => 1,
        Some(_) => 0,
    }
}

/// Current epoch of a row.
fn current<'f, 'a>(facts: &'f [EpochFacts<'a>], row: &RowEpochs) -> &'f EpochFacts<'a> {
    &facts[row.epochs[0]]
}

/// Time of the first batch of a row.
pub(super) fn first_seen<'a>(facts: &[EpochFacts<'a>], row: &RowEpochs) -> &'a str {
    row.epochs.iter().map(|at| facts[*at].first_seen).min().unwrap_or_default()
}

/// Time of the last batch of a row.
pub(super) fn last_seen<'a>(facts: &[EpochFacts<'a>], row: &RowEpochs) -> &'a str {
    row.epochs.iter().map(|at| facts[*at].last_seen).max().unwrap_or_default()
}

/// The last heartbeat of the current epoch, or of the last one that has any.
pub(super) fn heartbeat<'a>(facts: &[EpochFacts<'a>], row: &RowEpochs) -> Option<&'a Heartbeat> {
    row.epochs.iter().find_map(|at| facts[*at].heartbeat)
}

/// Position after a row of `machine`.
pub(super) fn cursor(machine: &str, facts: &[EpochFacts<'_>], row: &RowEpochs) -> Cursor {
    let current = &facts[row.epochs[0]];
    let first = row.epochs.iter().min_by_key(|at| (facts[**at].began, facts[**at].id));
    Cursor {
        machine: machine.to_owned(),
        user: current.identity.user.clone(),
        device: current.device.map(|device| device.root),
        first_epoch: first.map_or(current.id, |at| facts[*at].id).to_owned(),
    }
}

/// Reports whether a row is quiet if its last batch is old enough.
pub(super) fn may_be_quiet(facts: &[EpochFacts<'_>], row: &RowEpochs) -> bool {
    let state = facts[row.epochs[0]].device.map(|device| device.state);
    !row.replaced && state != Some(DeviceState::Revoked)
}

/// Time at `now` before which the last batch of a quiet row arrived, as text.
pub(super) fn quiet_before(thresholds: FleetThresholds, now: SystemTime) -> String {
    let before = now.checked_sub(thresholds.quiet_after).unwrap_or(now);
    // Earlier times cannot be formatted.
    clock::text(before.max(UNIX_EPOCH))
}

/// Thresholds, and the time that decides which rows are quiet.
#[derive(Debug)]
pub(super) struct Limits {
    thresholds: FleetThresholds,
    /// A row whose last batch is older is quiet; empty if no time is known.
    quiet_before: String,
}

impl Limits {
    pub(super) fn new(thresholds: FleetThresholds, now: SystemTime) -> Self {
        Self { thresholds, quiet_before: quiet_before(thresholds, now) }
    }

    /// Limits at no time, when no row is quiet.
    pub(super) fn of(thresholds: FleetThresholds) -> Self {
        Self { thresholds, quiet_before: String::new() }
    }

    /// Returns the problems of a row, in the documented order.
    pub(super) fn problems(&self, facts: &[EpochFacts<'_>], row: &RowEpochs) -> Vec<FleetProblem> {
        let is = |problem: &FleetProblem| self.has(*problem, facts, row);
        FleetProblem::ALL.into_iter().filter(is).collect()
    }

    /// Returns the problems of a row that it has at any time, in the documented order: all but that it is
    /// quiet.
    pub(super) fn lasting_problems(
        &self,
        facts: &[EpochFacts<'_>],
        row: &RowEpochs,
    ) -> impl Iterator<Item = FleetProblem> {
        let lasting = FleetProblem::ALL.into_iter().filter(|it| *it != FleetProblem::Quiet);
        lasting.filter(|problem| self.has(*problem, facts, row))
    }

    fn has(&self, problem: FleetProblem, facts: &[EpochFacts<'_>], row: &RowEpochs) -> bool {
        use FleetProblem as P;
        let epochs = || row.epochs.iter().map(|at| &facts[*at]);
        let device = facts[row.epochs[0]].device;
        let state = device.map(|device| device.state);
        let beat = heartbeat(facts, row);
        match problem {
            P::Quiet => {
                may_be_quiet(facts, row) && last_seen(facts, row) < self.quiet_before.as_str()
            }
            P::NoHeartbeat => self.lacks_heartbeat(facts, row, beat),
            P::Behind => !row.replaced && beat.is_some_and(|beat| self.is_behind(beat)),
            P::Gap => epochs().any(|epoch| epoch.missing > 0),
            P::Break => epochs().any(|epoch| epoch.breaks > 0),
            P::Unexplained => epochs().any(|epoch| epoch.unexplained),
            P::DeadLetter => {
                epochs().any(|epoch| epoch.holes > 0)
                    || beat.is_some_and(|beat| beat.dead_lettered > 0)
            }
            P::Unconfirmed => {
                matches!(state, Some(DeviceState::Unconfirmed | DeviceState::Pending))
            }
            P::Revoked => state == Some(DeviceState::Revoked),
            P::Refused => beat.is_some_and(|beat| beat.refused.is_some()),
            P::Clone => {
                device.is_some_and(|device| device.cloned) || epochs().any(|epoch| epoch.cloned)
            }
            P::SharedMachineId => row.shares_machine_id,
            P::Plain => beat.is_some_and(Heartbeat::is_plain),
            P::Unreadable => beat.is_some_and(|beat| beat.unreadable > 0),
            P::Untrusted => beat.is_some_and(Heartbeat::is_untrusted),
            P::UpdateFailed => beat.is_some_and(Heartbeat::is_update_failed),
        }
    }

    /// Reports whether a row has sent for `quiet_after` since its last heartbeat, or since its
    /// first batch if there was none.
    fn lacks_heartbeat(
        &self,
        facts: &[EpochFacts<'_>],
        row: &RowEpochs,
        beat: Option<&Heartbeat>,
    ) -> bool {
        let since = beat.map_or_else(|| first_seen(facts, row), |beat| &beat.received_at);
        let last = last_seen(facts, row);
        if last <= since {
            return false;
        }
        let times = clock::parse(since).zip(clock::parse(last));
        times.is_some_and(|(since, last)| {
            last.duration_since(since).unwrap_or_default() > self.thresholds.quiet_after
        })
    }

    fn is_behind(&self, beat: &Heartbeat) -> bool {
        beat.lag_seconds > self.thresholds.behind_after.as_secs()
            || beat.backlog_bytes.saturating_add(beat.unread_bytes) > self.thresholds.behind_bytes
    }
}
