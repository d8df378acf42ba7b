//! Figures of all rows, which are kept between requests: the totals of a large fleet are sums over them,
//! and do not need its epochs.

use std::{
    collections::{BTreeMap, HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    iter,
    ops::Bound,
    sync::Arc,
};

use siem_protocol::Identity;

use super::{
    EpochFacts, FleetProblem, FleetThresholds, FleetTotals, StatsQuery,
    rows::{self, Limits, RowEpochs},
};

/// Number of versions that are counted each.
const MAX_VERSIONS: usize = 100;
/// Number of names of versions that are kept for each machine, and in any case.
const NAMES_OF_MACHINE: usize = 2;
const NAMES: usize = 1000;

/// Figures of the rows of all machines.
///
/// They do not depend on the current time: whether a row is quiet is decided by each request. They do
/// depend on the thresholds, and on the epochs and devices of their machine: [`set`](Self::set) replaces
/// them after a change.
#[derive(Debug)]
pub(crate) struct FleetFigures {
    thresholds: FleetThresholds,
    machines: BTreeMap<String, MachineFigures>,
    names: Names,
}

/// Sums over the rows, for a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FleetSums {
    /// Totals of all rows.
    pub(crate) totals: FleetTotals,
    /// Totals of the rows that meet the conditions of the query, on all pages.
    pub(crate) matching: FleetTotals,
    /// Number of epochs with an unexplained difference.
    pub(crate) unexplained: u64,
}

/// Figures of a machine. Most have one row.
#[derive(Debug)]
struct MachineFigures {
    unexplained: u64,
    first: RowFigures,
    others: Vec<RowFigures>,
}

/// Figures of a row, without what pages show only.
#[derive(Debug)]
struct RowFigures {
    epochs: u64,
    entries: u64,
    bytes: u64,
    missing: u64,
    /// Time of the last batch.
    last_seen: TimeText,
    /// Problems other than that the row is quiet.
    problems: ProblemSet,
    /// It is quiet if the last batch is old enough.
    may_be_quiet: bool,
    replaced: bool,
    /// Index of the agent's version among the names.
    version: u32,
    /// Hash of the user's name: most rows are of another one, and their identity need not be read.
    user: u64,
    identity: Arc<Identity>,
}

/// A time in the form of [`clock::text`](crate::clock::text). Any other text is cut off or filled with
/// NUL, which does not change on which side of such a time it is.
type TimeText = [u8; 24];

fn time_text(text: &str) -> TimeText {
    let mut time = TimeText::default();
    iter::zip(&mut time, text.bytes()).for_each(|(to, from)| *to = from);
    time
}

/// A set of problems: bit n is problem n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ProblemSet(u16);

const _: () = assert!(FleetProblem::ALL.len() <= u16::BITS as usize);

impl ProblemSet {
    fn insert(&mut self, problem: FleetProblem) {
        self.0 |= 1 << problem as u16;
    }

    fn contains(self, problem: FleetProblem) -> bool {
        self.0 & (1 << problem as u16) != 0
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Names of versions, each once, and hashes of users.
#[derive(Debug, Default)]
struct Names {
    versions: Vec<Arc<str>>,
    indexes: HashMap<Arc<str>, u32>,
    /// With random keys: senders choose the names.
    hasher: RandomState,
}

impl Names {
    fn version(&mut self, name: &str) -> u32 {
        if let Some(index) = self.indexes.get(name) {
            return *index;
        }
        let index = u32::try_from(self.versions.len()).expect("names are forgotten before");
        let name: Arc<str> = name.into();
        self.versions.push(name.clone());
        self.indexes.insert(name, index);
        index
    }
}

impl FleetFigures {
    /// Computes the figures of all machines, which come in ascending order, each once.
    pub(crate) fn new<'a>(
        thresholds: FleetThresholds,
        machines: impl Iterator<Item = (&'a str, Vec<EpochFacts<'a>>)>,
    ) -> Self {
        let limits = Limits::of(thresholds);
        let mut names = Names::default();
        // A map that is collected has full nodes, other than one to which is added in order.
        let machines = machines.filter_map(|(machine, facts)| {
            Some((machine.to_owned(), MachineFigures::new(&facts, &limits, &mut names)?))
        });
        let machines = machines.collect();
        Self { thresholds, machines, names }
    }

    /// Reports whether the figures can be used for these thresholds. If they cannot, and once they keep
    /// many names that no row has any more, they have to be computed again.
    pub(crate) fn is_usable(&self, thresholds: FleetThresholds) -> bool {
        let names = NAMES.max(self.machines.len().saturating_mul(NAMES_OF_MACHINE));
        self.thresholds == thresholds && self.names.versions.len() <= names
    }

    /// Computes the figures of a machine again, from all of its epochs.
    pub(crate) fn set(&mut self, machine: &str, facts: &[EpochFacts<'_>]) {
        let limits = Limits::of(self.thresholds);
        match MachineFigures::new(facts, &limits, &mut self.names) {
            None => drop(self.machines.remove(machine)),
            Some(figures) => match self.machines.get_mut(machine) {
                Some(known) => *known = figures,
                None => drop(self.machines.insert(machine.to_owned(), figures)),
            },
        }
    }

    /// Returns the sums for a query with the same thresholds.
    pub(crate) fn sums(&self, query: &StatsQuery) -> FleetSums {
        let condition = Condition::new(self, query);
        let (mut all, mut matching) = (Sums::new(self), Sums::new(self));
        let mut unexplained = 0;
        for (machine, figures) in &self.machines {
            unexplained += figures.unexplained;
            all.totals.machines += 1;
            let mut is_matching = false;
            for row in figures.rows() {
                let problems = condition.problems(row);
                all.add(row, problems);
                if !condition.is_always && condition.is_met(machine, row, problems) {
                    matching.add(row, problems);
                    is_matching = true;
                }
            }
            matching.totals.machines += u64::from(is_matching);
        }
        let totals = all.finish(&self.names);
        let matching = match condition.is_always {
            true => totals.clone(),
            false => matching.finish(&self.names),
        };
        FleetSums { totals, matching, unexplained }
    }

    /// Returns the machines with a row that meets the conditions of a query with the same thresholds, in
    /// order, from the one of the query's position on.
    pub(crate) fn matching<'f>(&'f self, query: &'f StatsQuery) -> impl Iterator<Item = &'f str> {
        let condition = Condition::new(self, query);
        let after = query.after.as_ref().map(|after| after.machine.as_str());
        let bound = |machine: Option<&'f str>| machine.map_or(Bound::Unbounded, Bound::Included);
        let (wanted, machines) = (condition.machine, &self.machines);
        let machines = machines.range::<str, _>((bound(wanted.or(after)), bound(wanted)));
        let machines = machines.filter(move |(machine, figures)| {
            let is_met = |row| condition.is_met(machine, row, condition.problems(row));
            figures.rows().any(is_met)
        });
        machines.map(|(machine, _)| machine.as_str())
    }
}

impl MachineFigures {
    /// Returns `None` for a machine without an epoch.
    fn new(facts: &[EpochFacts<'_>], limits: &Limits, names: &mut Names) -> Option<Self> {
        let mut rows = rows::arrange(facts).into_iter();
        let mut figures = |row| RowFigures::new(facts, &row, limits, names);
        let first = figures(rows.next()?);
        let unexplained = facts.iter().filter(|epoch| epoch.unexplained).count() as u64;
        Some(Self { unexplained, first, others: rows.map(figures).collect() })
    }

    fn rows(&self) -> impl Iterator<Item = &RowFigures> {
        iter::once(&self.first).chain(&self.others)
    }
}

impl RowFigures {
    fn new(facts: &[EpochFacts<'_>], row: &RowEpochs, limits: &Limits, names: &mut Names) -> Self {
        let sum = |figure: fn(&EpochFacts<'_>) -> u64| {
            row.epochs.iter().map(|at| figure(&facts[*at])).fold(0, u64::saturating_add)
        };
        let mut problems = ProblemSet::default();
        for problem in limits.lasting_problems(facts, row) {
            problems.insert(problem);
        }
        let identity = facts[row.epochs[0]].identity;
        Self {
            epochs: row.epochs.len() as u64,
            entries: sum(|epoch| epoch.entries),
            bytes: sum(|epoch| epoch.bytes),
            missing: sum(|epoch| epoch.missing),
            last_seen: time_text(rows::last_seen(facts, row)),
            problems,
            may_be_quiet: rows::may_be_quiet(facts, row),
            replaced: row.replaced,
            version: names.version(&identity.agent_version),
            user: names.hasher.hash_one(&identity.user),
            identity: identity.clone(),
        }
    }
}

/// Conditions and time of a query.
struct Condition<'q> {
    quiet_before: TimeText,
    machine: Option<&'q str>,
    /// Name and hash.
    user: Option<(&'q str, u64)>,
    problem: Option<FleetProblem>,
    /// Every row meets the conditions.
    is_always: bool,
}

impl<'q> Condition<'q> {
    fn new(figures: &FleetFigures, query: &'q StatsQuery) -> Self {
        let (machine, problem) = (query.machine.as_deref(), query.problem);
        let user = query.user.as_deref();
        Self {
            quiet_before: time_text(&rows::quiet_before(query.thresholds, query.now)),
            machine,
            user: user.map(|user| (user, figures.names.hasher.hash_one(user))),
            problem,
            is_always: machine.is_none() && user.is_none() && problem.is_none(),
        }
    }

    /// Returns the problems that a row has at the time of the query.
    fn problems(&self, row: &RowFigures) -> ProblemSet {
        let mut problems = row.problems;
        if row.may_be_quiet && row.last_seen < self.quiet_before {
            problems.insert(FleetProblem::Quiet);
        }
        problems
    }

    fn is_met(&self, machine: &str, row: &RowFigures, problems: ProblemSet) -> bool {
        self.problem.is_none_or(|problem| problems.contains(problem))
            && self.machine.is_none_or(|wanted| wanted == machine)
            && self.user.is_none_or(|(name, hash)| row.user == hash && row.identity.user == name)
    }
}

/// Sums over rows, which are added in order.
struct Sums {
    totals: FleetTotals,
    problems: [u64; FleetProblem::ALL.len()],
    /// Number of rows with each version.
    versions: Vec<u64>,
    /// Versions that occur, in the order of their first rows.
    occurring: Vec<u32>,
}

impl Sums {
    fn new(figures: &FleetFigures) -> Self {
        Self {
            totals: FleetTotals::default(),
            problems: Default::default(),
            versions: vec![0; figures.names.versions.len()],
            occurring: Vec::new(),
        }
    }

    fn add(&mut self, row: &RowFigures, problems: ProblemSet) {
        self.totals.rows += 1;
        self.totals.epochs += row.epochs;
        self.totals.entries += row.entries;
        self.totals.bytes += row.bytes;
        self.totals.missing = self.totals.missing.saturating_add(row.missing);
        self.totals.healthy += u64::from(problems.is_empty());
        if !problems.is_empty() {
            for (rows, problem) in iter::zip(&mut self.problems, FleetProblem::ALL) {
                *rows += u64::from(problems.contains(problem));
            }
        }
        if row.replaced {
            return;
        }
        let rows = &mut self.versions[row.version as usize];
        if *rows == 0 {
            self.occurring.push(row.version);
        }
        *rows += 1;
    }

    fn finish(self, names: &Names) -> FleetTotals {
        let mut totals = self.totals;
        let problems = iter::zip(FleetProblem::ALL, self.problems);
        totals.problems = problems.filter(|(_, rows)| *rows > 0).collect();
        for version in self.occurring {
            let version = version as usize;
            count_version(&mut totals, &names.versions[version], self.versions[version]);
        }
        totals
    }
}

/// Counts rows with a version of the agent.
pub(super) fn count_version(totals: &mut FleetTotals, version: &str, rows: u64) {
    if let Some(known) = totals.versions.get_mut(version) {
        *known += rows;
        return;
    }
    let version = if totals.versions.len() < MAX_VERSIONS { version } else { "other" };
    *totals.versions.entry(version.to_owned()).or_default() += rows;
}

/// Counts rows from what pages show of them.
#[cfg(test)]
pub(crate) fn totals_of<'r>(rows: impl Iterator<Item = &'r super::FleetRow>) -> FleetTotals {
    let mut totals = FleetTotals::default();
    let mut machines = std::collections::BTreeSet::new();
    for row in rows {
        machines.insert(&row.machine);
        totals.rows += 1;
        totals.epochs += row.epochs;
        totals.entries += row.entries;
        totals.bytes += row.bytes;
        totals.missing = totals.missing.saturating_add(row.missing);
        totals.healthy += u64::from(row.problems.is_empty());
        for problem in &row.problems {
            *totals.problems.entry(*problem).or_default() += 1;
        }
        if !row.replaced {
            count_version(&mut totals, &row.agent_version, 1);
        }
    }
    totals.machines = machines.len() as u64;
    totals
}
