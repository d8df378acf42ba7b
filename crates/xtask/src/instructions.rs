//! Instruction counts: they show a slow-down without a clock, on a machine that also does other
//! work.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use clap::Args;
use serde::Deserialize;

use crate::{Failure, sh};

/// Count the instructions of fixed workloads, and compare them with
/// `benches/instructions.toml`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Store the counts, after a change that is meant to cost or to save instructions
    #[arg(long)]
    store: bool,
}

/// The workloads of `benches/src/bin/instructions.rs`.
const WORKLOADS: [&str; 4] = ["activity", "filter", "frame", "sweep"];
/// Numbers of rounds: the difference of two runs is the cost of a round, without the start.
const ROUNDS: [u64; 2] = [1, 5];
/// Largest accepted difference of a count. Repeated counts differ by less than a tenth of it.
const TOLERANCE: f64 = 0.05;

/// Counts of one round, by workload.
type Counts = BTreeMap<String, u64>;

#[derive(Deserialize)]
struct Stored {
    rustc: String,
    counts: Counts,
}

/// Reason why no instructions were counted.
pub(crate) enum NotCounted {
    /// A tool is missing and could not be installed.
    Missing(&'static str),
    /// Counts on this system cannot be compared with the stored ones.
    Elsewhere,
    /// The attempt failed.
    Failed(Failure),
}

impl<E: Into<Failure>> From<E> for NotCounted {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let done =
            if self.store { count().and_then(|counts| Ok(store(&counts)?)) } else { check() };
        match done {
            Ok(report) => {
                println!("{report}");
                Ok(ExitCode::SUCCESS)
            }
            Err(NotCounted::Missing(what)) => Err(what.into()),
            Err(NotCounted::Elsewhere) => Err(ELSEWHERE.into()),
            Err(NotCounted::Failed(error)) => Err(error),
        }
    }
}

/// Message on systems whose counts cannot be compared.
pub(crate) const ELSEWHERE: &str = "the stored counts are for x86-64 Linux";

/// Compares the counts with the stored ones; returns the differences.
pub(crate) fn check() -> Result<String, NotCounted> {
    let stored: Stored = toml::from_str(&fs::read_to_string(file())?)?;
    let counts = count()?;
    let compared = compare(&stored.counts, &counts);
    let rustc = rustc()?;
    let other = match stored.rustc == rustc {
        true => String::new(),
        false => format!(" (stored with rustc {}, this is {rustc})", stored.rustc),
    };
    match compared {
        Ok(report) => Ok(format!("{report}{other}")),
        Err(report) => Err(format!(
            "{report}{other}: fix the cause, or run `cargo xtask instructions --store`"
        )
        .into()),
    }
}

/// Checks both directions: an improvement that is not stored could be lost unnoticed.
fn compare(stored: &Counts, counts: &Counts) -> Result<String, String> {
    let mut report = Vec::new();
    let mut is_within = stored.len() == counts.len();
    for (name, count) in counts {
        let Some(before) = stored.get(name) else {
            report.push(format!("{name} is not stored"));
            is_within = false;
            continue;
        };
        let change = *count as f64 / *before as f64 - 1.0;
        is_within &= count.abs_diff(*before) as f64 <= TOLERANCE * *before as f64;
        report.push(format!("{name} {:+.1} %", change * 100.0));
    }
    let report = report.join(", ");
    if is_within { Ok(report) } else { Err(report) }
}

fn count() -> Result<Counts, NotCounted> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(NotCounted::Elsewhere);
    }
    let has_valgrind = || sh::has_program("valgrind");
    let is_there = has_valgrind() || (sh::apt_install(&["valgrind"]) && has_valgrind());
    if !is_there {
        return Err(NotCounted::Missing("valgrind is not installed"));
    }
    // The profile of `cargo bench`, so that one build serves both.
    let package = ["build", "--profile", "bench", "--package", "ai-agent-benches"];
    let mut build = sh::cargo(package);
    build.args(["--bin", "instructions"]).stdin(Stdio::null());
    if !build.status()?.success() {
        return Err("cannot build the workloads".into());
    }
    let program = sh::target_directory()?.join("release/instructions");
    let mut counts = Counts::new();
    for name in WORKLOADS {
        let [few, many] = ROUNDS.map(|rounds| run(&program, name, rounds));
        let count = (many? - few?) / (ROUNDS[1] - ROUNDS[0]);
        println!("{name}: {count} instructions");
        counts.insert(name.to_owned(), count);
    }
    Ok(counts)
}

/// Returns the total count of a run.
fn run(program: &Path, name: &str, rounds: u64) -> Result<u64, Failure> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    // The hardware instructions for hashing are not supported by valgrind: their replacement takes
    // three quarters of a frame, and would hide the rest.
    valgrind.args(["--toggle-collect=sha2::sha256::compress256*", "--collect-atstart=yes"]);
    valgrind.arg(program).args([name, &rounds.to_string()]);
    // The length of a path is a part of the work, so that the environment is fixed.
    valgrind.env_clear().env("TMPDIR", "/tmp");
    let output = valgrind.stdin(Stdio::null()).output()?;
    let output_text = String::from_utf8_lossy(&output.stderr);
    match collected(&output_text) {
        Some(count) if output.status.success() => Ok(count),
        _ => Err(format!("`{name}` could not be counted:\n{output_text}").into()),
    }
}

/// Reads the count from the output of callgrind.
fn collected(output_text: &str) -> Option<u64> {
    let line = output_text.lines().find_map(|line| line.split_once("Collected :"))?;
    line.1.split_whitespace().next()?.parse().ok()
}

fn store(counts: &Counts) -> Result<String, Failure> {
    let mut text = "\
# Instructions of one round of each workload in benches/src/bin/instructions.rs, counted by callgrind
# on x86-64 Linux, without the hashing itself. `cargo xtask test` fails if one differs by more than 5 %;
# `cargo xtask instructions --store` rewrites this file, in the commit with the reason.
"
    .to_owned();
    writeln!(text, "rustc = \"{}\"\n\n[counts]", rustc()?)?;
    for (name, count) in counts {
        writeln!(text, "{name} = {count}")?;
    }
    fs::write(file(), text)?;
    Ok("stored".to_owned())
}

fn file() -> PathBuf {
    sh::workspace().join("benches/instructions.toml")
}

/// Version of the compiler: another one generates other instructions.
fn rustc() -> Result<String, Failure> {
    let output = Command::new("rustc").arg("--version").output()?;
    let output_text = String::from_utf8_lossy(&output.stdout).into_owned();
    output_text.split_whitespace().nth(1).map(str::to_owned).ok_or("rustc prints no version".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(counts: &[(&str, u64)]) -> Counts {
        counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn change_beyond_the_tolerance_fails_in_both_directions() {
        let stored = counts(&[("a", 1000), ("b", 1000)]);
        let compared = |a, b| compare(&stored, &counts(&[("a", a), ("b", b)]));
        assert_eq!(compared(1050, 950).unwrap(), "a +5.0 %, b -5.0 %");
        assert_eq!(compared(1051, 1000).unwrap_err(), "a +5.1 %, b +0.0 %");
        compared(1000, 949).unwrap_err();
    }

    #[test]
    fn workload_on_one_side_only_fails() {
        let one = counts(&[("a", 1000)]);
        let two = counts(&[("a", 1000), ("b", 1000)]);
        compare(&one, &two).unwrap_err();
        compare(&two, &one).unwrap_err();
    }

    #[test]
    fn callgrind_output_is_parsed() {
        let output_text = "==1== Events    : Ir\n==1== Collected : 69400523\n==1== \n==1== I   refs:      69,400,523\n";
        assert_eq!(collected(output_text), Some(69_400_523));
        assert_eq!(collected("valgrind: command not found"), None);
    }
}
