//! A page of rows.

use std::cmp::Ordering;

use siem_protocol::statement::TrustLevel;

use super::{
    Cursor, FleetProblem, FleetRow, StatsQuery,
    rows::{self, EpochFacts, Limits, RowEpochs},
};

/// Rows that a query asks for.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) rows: Vec<FleetRow>,
    /// Position for the next page; none if this is the last one.
    pub(crate) next: Option<Cursor>,
    /// Position after each row.
    #[cfg(test)]
    pub(super) cursors: Vec<Cursor>,
}

/// Collects a page, machine by machine.
#[derive(Debug)]
pub(crate) struct PageBuilder<'q> {
    query: &'q StatsQuery,
    limits: Limits,
    page: Page,
    /// Position after the last row of the page.
    last: Option<Cursor>,
}

impl<'q> PageBuilder<'q> {
    pub(crate) fn new(query: &'q StatsQuery) -> Self {
        let limits = Limits::new(query.thresholds, query.now);
        Self { query, limits, page: Page::default(), last: None }
    }

    /// Adds the epochs of a machine. Machines are added in ascending order; those without a row that
    /// meets the conditions may be left out. Returns for each row of the page its current epoch and all of
    /// its epochs, as indexes.
    pub(crate) fn add(
        &mut self,
        machine: &str,
        facts: &[EpochFacts<'_>],
        level_of: impl Fn(usize) -> Option<TrustLevel>,
    ) -> Vec<Vec<usize>> {
        let mut shown = Vec::new();
        for row in rows::arrange(facts) {
            let problems = self.limits.problems(facts, &row);
            let is_match = self.is_match(machine, facts, &row, &problems);
            if !is_match || self.is_before(machine, facts, &row) {
                continue;
            }
            if self.page.rows.len() >= self.query.limit {
                self.page.next = self.last.clone();
                break;
            }
            let level = level_of(row.epochs[0]);
            self.page.rows.push(fleet_row(machine, facts, &row, level, problems));
            self.last = Some(rows::cursor(machine, facts, &row));
            #[cfg(test)]
            self.page.cursors.extend(self.last.clone());
            shown.push(row.epochs);
        }
        shown
    }

    /// Reports whether no machine has to be added any more.
    pub(crate) fn is_complete(&self) -> bool {
        self.page.next.is_some() || self.query.limit == 0
    }

    /// Reports whether a row is on an earlier page.
    fn is_before(&self, machine: &str, facts: &[EpochFacts<'_>], row: &RowEpochs) -> bool {
        self.query.after.as_ref().is_some_and(|after| match machine.cmp(&after.machine) {
            Ordering::Less => true,
            Ordering::Equal => rows::cursor(machine, facts, row) <= *after,
            Ordering::Greater => false,
        })
    }

    fn is_match(
        &self,
        machine: &str,
        facts: &[EpochFacts<'_>],
        row: &RowEpochs,
        problems: &[FleetProblem],
    ) -> bool {
        let is = |wanted: &Option<String>, found: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == found)
        };
        is(&self.query.machine, machine)
            && is(&self.query.user, &facts[row.epochs[0]].identity.user)
            && self.query.problem.is_none_or(|problem| problems.contains(&problem))
    }

    pub(crate) fn finish(self) -> Page {
        self.page
    }
}

fn fleet_row(
    machine: &str,
    facts: &[EpochFacts<'_>],
    row: &RowEpochs,
    level: Option<TrustLevel>,
    problems: Vec<FleetProblem>,
) -> FleetRow {
    let current = &facts[row.epochs[0]];
    let sum = |figure: fn(&EpochFacts<'_>) -> u64| {
        row.epochs.iter().map(|at| figure(&facts[*at])).fold(0, u64::saturating_add)
    };
    let identity = current.identity;
    FleetRow {
        machine: machine.to_owned(),
        user: identity.user.clone(),
        host: identity.hostname.clone(),
        os: identity.os.clone(),
        arch: identity.arch.clone(),
        agent_version: identity.agent_version.clone(),
        device: current.device.map(|device| device.key.short()),
        device_state: current.device.map(|device| device.state),
        level,
        epoch: current.id.to_owned(),
        epochs: row.epochs.len() as u64,
        first_seen: rows::first_seen(facts, row).to_owned(),
        last_seen: rows::last_seen(facts, row).to_owned(),
        entries: sum(|epoch| epoch.entries),
        bytes: sum(|epoch| epoch.bytes),
        missing: sum(|epoch| epoch.missing),
        holes: sum(|epoch| epoch.holes),
        breaks: sum(|epoch| epoch.breaks),
        shared_machine_id: row.shares_machine_id,
        replaced: row.replaced,
        heartbeat: rows::heartbeat(facts, row).cloned(),
        problems,
    }
}
