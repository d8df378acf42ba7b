//! A page of rows, and the totals of all rows.

use std::cmp::Ordering;

use siem_protocol::statement::TrustLevel;

use super::{
    Cursor, FleetProblem, FleetRow, FleetTotals, StatsQuery,
    rows::{self, EpochFacts, Limits, RowEpochs},
};

/// Number of versions that are counted each.
const MAX_VERSIONS: usize = 100;

/// Rows that a query asks for, and the totals.
#[derive(Debug)]
pub(crate) struct Page {
    /// Totals of all rows.
    pub(crate) totals: FleetTotals,
    /// Totals of the rows that meet the conditions of the query, on all pages.
    pub(crate) matching: FleetTotals,
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
        let (totals, matching) = Default::default();
        Self {
            query,
            limits: Limits::new(query.thresholds, query.now),
            page: Page {
                totals,
                matching,
                rows: Vec::new(),
                next: None,
                #[cfg(test)]
                cursors: Vec::new(),
            },
            last: None,
        }
    }

    /// Adds the epochs of a machine. Machines are added in ascending order. Returns for each row of
    /// the page its current epoch and all of its epochs, as indexes.
    pub(crate) fn add(
        &mut self,
        machine: &str,
        facts: &[EpochFacts<'_>],
        level_of: impl Fn(usize) -> Option<TrustLevel>,
    ) -> Vec<Vec<usize>> {
        let mut shown = Vec::new();
        let mut matches = 0;
        let rows = rows::arrange(facts);
        self.page.totals.machines += u64::from(!rows.is_empty());
        for row in rows {
            let problems = self.limits.problems(facts, &row);
            count(&mut self.page.totals, facts, &row, &problems);
            if !self.is_match(machine, facts, &row, &problems) {
                continue;
            }
            matches += 1;
            count(&mut self.page.matching, facts, &row, &problems);
            if self.page.next.is_some() || self.is_before(machine, facts, &row) {
                continue;
            }
            if self.page.rows.len() >= self.query.limit {
                self.page.next = self.last.clone();
                continue;
            }
            let level = level_of(row.epochs[0]);
            self.page.rows.push(fleet_row(machine, facts, &row, level, problems));
            self.last = Some(rows::cursor(machine, facts, &row));
            #[cfg(test)]
            self.page.cursors.extend(self.last.clone());
            shown.push(row.epochs);
        }
        self.page.matching.machines += u64::from(matches > 0);
        shown
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

fn count(
    totals: &mut FleetTotals,
    facts: &[EpochFacts<'_>],
    row: &RowEpochs,
    problems: &[FleetProblem],
) {
    totals.rows += 1;
    totals.epochs += row.epochs.len() as u64;
    for epoch in row.epochs.iter().map(|at| &facts[*at]) {
        totals.entries += epoch.entries;
        totals.bytes += epoch.bytes;
        totals.missing = totals.missing.saturating_add(epoch.missing);
    }
    totals.healthy += u64::from(problems.is_empty());
    for problem in problems {
        *totals.problems.entry(*problem).or_default() += 1;
    }
    if !row.replaced {
        count_version(totals, &facts[row.epochs[0]].identity.agent_version);
    }
}

pub(super) fn count_version(totals: &mut FleetTotals, version: &str) {
    if let Some(rows) = totals.versions.get_mut(version) {
        *rows += 1;
        return;
    }
    let version = if totals.versions.len() < MAX_VERSIONS { version } else { "other" };
    *totals.versions.entry(version.to_owned()).or_default() += 1;
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
