//! Hostile files, servers and managed configurations against the running agent: it keeps running, in
//! bounded memory, and live records arrive afterwards.
//!
//! Each harness goes through its kinds in a random order, with choices from a fixed seed, or from
//! `AI_AGENT_SEED`. `AI_AGENT_HOSTILE_CASES` is the number of cases of each. The last line that a failed
//! test prints names the case. The kinds, how often each was tried, and the peak memory are written to
//! `target/tmp/hostile-NAME.md`.
#![cfg(target_os = "linux")]

mod configs;
mod files;
mod servers;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::support::{agent::Agent, home::Home, receiver::Receiver, within};

const SEED: u64 = 1;
/// Time in which a live record must arrive after a case.
const LIVE: Duration = Duration::from_secs(30);
/// Maximum memory of the agent, a debug build.
const MAX_MEMORY: u64 = 192 << 20;

/// Cases of one harness.
struct Plan {
    seed: u64,
    /// Index of the kind of each case.
    order: Vec<usize>,
}

impl Plan {
    /// Plans `cases` cases, or as many as the environment says, with each of the kinds in turn.
    fn new(kinds: usize, cases: usize) -> Self {
        let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
        let seed = number("AI_AGENT_SEED").unwrap_or(SEED);
        let cases = number("AI_AGENT_HOSTILE_CASES").map_or(cases, |cases| cases as usize);
        let mut kinds: Vec<usize> = (0..kinds).collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut kinds);
        Self { seed, order: kinds.into_iter().cycle().take(cases).collect() }
    }

    /// Returns the number of each case, its kind and its random numbers.
    fn cases(&self) -> impl Iterator<Item = (usize, usize, fastrand::Rng)> {
        let random =
            |case: usize| fastrand::Rng::with_seed(self.seed.wrapping_mul(1 << 20) + case as u64);
        self.order.iter().enumerate().map(move |(case, kind)| (case, *kind, random(case)))
    }

    fn announce(&self, case: usize, what: &str) {
        eprintln!("AI_AGENT_SEED={} case {case}: {what}", self.seed);
    }
}

/// Kinds that were tried, how often, and the peak memory.
struct Report {
    name: &'static str,
    rows: BTreeMap<&'static str, (usize, u64)>,
}

impl Report {
    fn new(name: &'static str) -> Self {
        Self { name, rows: BTreeMap::new() }
    }

    fn add(&mut self, kind: &'static str, peak: u64) {
        let (tried, most) = self.rows.entry(kind).or_default();
        *tried += 1;
        *most = peak.max(*most);
        if peak > MAX_MEMORY {
            eprintln!("{kind}: {} MiB", peak >> 20);
        }
    }

    /// Writes the table, prints its totals, and fails if a kind took too much memory.
    #[track_caller]
    fn finish(self) {
        let mut table =
            format!("| {} | tried | peak memory, MiB |\n| --- | --- | --- |\n", self.name);
        for (kind, (tried, peak)) in &self.rows {
            table.push_str(&format!("| {kind} | {tried} | {} |\n", peak >> 20));
        }
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hostile-{}.md", self.name));
        fs::write(&path, &table).unwrap();
        let tried: usize = self.rows.values().map(|(tried, _)| tried).sum();
        let peak = self.rows.values().map(|(_, peak)| peak >> 20).max().unwrap_or_default();
        let large: Vec<_> = self.rows.iter().filter(|(_, (_, peak))| *peak > MAX_MEMORY).collect();
        eprintln!(
            "{tried} hostile {}, {} kinds, peak {peak} MiB: {}",
            self.name,
            self.rows.len(),
            path.display()
        );
        assert!(large.is_empty(), "more than {} MiB: {large:?}", MAX_MEMORY >> 20);
    }
}

/// Peak memory of a process.
fn peak(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = line.trim().strip_suffix("kB").unwrap().trim().parse().unwrap();
    kib << 10
}

/// Starts to measure the peak memory again, where the system can.
fn reset_peak(agent: &Agent) {
    drop(fs::write(format!("/proc/{}/clear_refs", agent.pid()), "5"));
}

/// Live records: written to a session, and searched in what the receiver stores.
#[derive(Default)]
struct LiveRecords {
    written: usize,
    arrived: BTreeSet<usize>,
    /// Number of bytes of each file of the receiver that were searched.
    searched: BTreeMap<PathBuf, u64>,
}

const MARK: &str = "\"live\":";

impl LiveRecords {
    /// Appends a record, and returns its number.
    fn write(&mut self, home: &Home) -> usize {
        self.written += 1;
        let session = self.written / 50;
        let line = format!("{{\"type\":\"user\",{MARK}{}}}\n", self.written);
        home.append(&format!("-live/{session}.jsonl"), line);
        self.written
    }

    /// Waits until a record has arrived.
    #[track_caller]
    fn wait_for(&mut self, number: usize, receiver: &Receiver, what: &str) {
        within(LIVE, what, || {
            self.search(receiver);
            self.arrived.contains(&number).then_some(())
        });
    }

    /// Searches what the receiver has stored since the last time.
    fn search(&mut self, receiver: &Receiver) {
        // The receiver writes its files before it answers.
        drop(receiver.stats());
        let machines = receiver.data().join("machines");
        for path in crate::support::files_below(&machines) {
            if path.extension().is_none_or(|extension| extension != "ndjson") {
                continue;
            }
            let start = self.searched.entry(path.clone()).or_default();
            let mut file = File::open(path).unwrap();
            file.seek(SeekFrom::Start(*start)).unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            *start += whole as u64;
            for line in bytes[..whole].split(|byte| *byte == b'\n').filter(|line| line.len() < 4096)
            {
                self.arrived.extend(number_of(&String::from_utf8_lossy(line)));
            }
        }
    }

    /// Fails unless all records have arrived.
    #[track_caller]
    fn assert_complete(&mut self, receiver: &Receiver) {
        self.search(receiver);
        let missing: Vec<_> = (1..=self.written).filter(|it| !self.arrived.contains(it)).collect();
        assert!(missing.is_empty(), "live records are missing: {missing:?}");
    }
}

/// Number of the live record in a line.
fn number_of(line: &str) -> Option<usize> {
    let (_, rest) = line.split_once(MARK)?;
    rest.split_once('}')?.0.parse().ok()
}
