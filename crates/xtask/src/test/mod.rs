//! `cargo xtask test`: all checks, with one command.

mod prerequisites;
mod release_0_1;

use std::{
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use clap::Args;

use crate::{
    Failure, cross,
    dist::{
        self,
        lifecycle::{self, Format},
        msi,
    },
    instructions::{self, NotCounted},
    language, machine,
    public_api::{self, Compared},
    sh, shared,
};

/// Run all checks, as CI does.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Also lint and test for the other systems, and run the randomised tests longer (2000 power
    /// cuts, 1000 simulations, 100 kills, 480 hostile files, responses and managed configurations
    /// each, a line and an outbox of 1 GiB)
    #[arg(long)]
    full: bool,
}

/// Longer settings of the tests for a full run: power cuts, simulations, kills, hostile cases, size of a
/// line and of an outbox, agents that return after an outage.
const FULL: [(&str, &str); 7] = [
    ("AI_AGENT_POWER_CUTS", "2000"),
    ("AI_AGENT_WORLDS", "1000"),
    ("AI_AGENT_KILLS", "100"),
    ("AI_AGENT_HOSTILE_CASES", "480"),
    ("AI_AGENT_LINE_MIB", "1024"),
    ("AI_AGENT_STORE_MIB", "1024"),
    ("AI_AGENT_RETURNING_AGENTS", "20000"),
];

/// Time that each step takes at most from a cold clone on two cores that compute well, in seconds: about
/// 1.5 times what was measured. A step that takes longer is marked, and fails at [`LIMIT`] times that:
/// machines differ by a factor of two. Lower a figure when CI shows that a step takes less. A step without a
/// figure runs only with `--full`.
const EXPECTED: [(&str, u64); 14] = [
    ("format", 30),
    ("language", 30),
    ("dependencies", 60),
    ("real client", 300),
    ("service", 180),
    ("real auditd", 180),
    ("servers", 180),
    ("lints", 250),
    ("tests", 975),
    ("packages", 40),
    ("examples in docs", 60),
    ("docs", 90),
    ("public items", 90),
    ("instruction counts", 700),
];

/// Time that all steps together take at most on such a machine, in seconds.
const EXPECTED_TOTAL: u64 = 30 * 60;

/// A step fails that takes so many times what is expected.
const LIMIT: u64 = 3;

/// Seconds that all steps together may take in CI, which ends the run after 90 minutes.
const TOTAL_LIMIT: u64 = 80 * 60;

/// A check and its result.
struct Step {
    name: &'static str,
    outcome: Outcome,
    took: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// Passed, with an optional remark.
    Ok(Option<String>),
    /// Not possible on this machine.
    Skipped(String),
    Failed(String),
    /// An earlier step failed.
    NotRun,
}

type Check = Box<dyn FnOnce() -> Outcome>;

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let started = Instant::now();
        let full = self.full;
        // Quick checks come first; all of them run even if one fails.
        let quick: [(&'static str, Check); 7] = [
            ("format", Box::new(|| subcommand("fmt", &["--all", "--check"]))),
            ("language", Box::new(language)),
            ("dependencies", Box::new(dependencies)),
            ("real client", Box::new(prerequisites::real_client)),
            ("service", Box::new(prerequisites::service)),
            ("real auditd", Box::new(prerequisites::real_auditd)),
            ("servers", Box::new(prerequisites::servers)),
        ];
        let mut slow: Vec<(&'static str, Check)> = Vec::new();
        if full {
            slow.push(("release 0.1", Box::new(release_0_1::build)));
        }
        slow.extend::<[(&'static str, Check); 7]>([
            ("lints", Box::new(lints)),
            ("tests", Box::new(move || tests(full))),
            ("packages", Box::new(move || packages(full))),
            ("examples in docs", Box::new(doc_examples)),
            ("docs", Box::new(docs)),
            ("public items", Box::new(public_items)),
            ("instruction counts", Box::new(instruction_counts)),
        ]);
        if full {
            slow.push(("other systems", Box::new(other_systems)));
        }
        let is_compared = shared::in_ci() && !full;
        let mut steps = Vec::new();
        for (name, check) in quick {
            steps.push(run_step(name, check, is_compared));
        }
        for (name, check) in slow {
            let stopped = steps
                .iter()
                .any(|step| matches!(step.outcome, Outcome::Failed(_)) && step.name != "format");
            let check = if stopped { Box::new(|| Outcome::NotRun) as Check } else { check };
            steps.push(run_step(name, check, is_compared));
        }
        println!("\n{}", table(&steps));
        let mut failed = steps.iter().any(|step| matches!(step.outcome, Outcome::Failed(_)));
        let took = started.elapsed();
        if is_compared && took > Duration::from_secs(EXPECTED_TOTAL) {
            println!("slow: all steps together are expected to take at most {EXPECTED_TOTAL} s");
        }
        if is_compared && took > Duration::from_secs(TOTAL_LIMIT) {
            println!("FAILED: all steps together may take {TOTAL_LIMIT} s");
            failed = true;
        }
        let result = if failed { "failed" } else { "passed" };
        println!("{result}, {:.1} s in total", took.as_secs_f64());
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn run_step(name: &'static str, check: Check, is_compared: bool) -> Step {
    println!("── {name}");
    let started = Instant::now();
    let outcome = check();
    let took = started.elapsed();
    let outcome = if is_compared { compared(name, outcome, took) } else { outcome };
    let step = Step { name, outcome, took };
    println!("── {}\n", row(&step));
    step
}

/// Adds a remark to a success that took longer than expected, or turns it into a failure if it took far
/// longer.
fn compared(name: &str, outcome: Outcome, took: Duration) -> Outcome {
    let expected = EXPECTED.iter().find(|(step, _)| *step == name).map(|(_, seconds)| *seconds);
    match (outcome, expected) {
        (Outcome::Ok(_), Some(seconds)) if took > Duration::from_secs(LIMIT * seconds) => {
            Outcome::Failed(format!(
                "took {:.0} s, at most {seconds} s are expected, and {LIMIT} times that is the limit (make \
                 it faster, or move a part to `--full`; limits: crates/xtask/src/test/mod.rs)",
                took.as_secs_f64()
            ))
        }
        (Outcome::Ok(remark), Some(seconds)) if took > Duration::from_secs(seconds) => {
            let slow = format!("slow: at most {seconds} s are expected");
            Outcome::Ok(Some(remark.map_or(slow.clone(), |remark| format!("{remark}; {slow}"))))
        }
        (outcome, _) => outcome,
    }
}

/// Formats one line for each step.
fn table(steps: &[Step]) -> String {
    steps.iter().map(|step| row(step) + "\n").collect()
}

fn row(step: &Step) -> String {
    let outcome = match &step.outcome {
        Outcome::Ok(None) => "ok".to_owned(),
        Outcome::Ok(Some(remark)) => format!("ok ({remark})"),
        Outcome::Skipped(reason) => format!("skipped: {reason}"),
        Outcome::Failed(reason) => format!("FAILED: {reason}"),
        Outcome::NotRun => "not run: an earlier step failed".to_owned(),
    };
    format!("{:<18} {:>7.1} s  {outcome}", step.name, step.took.as_secs_f64())
}

fn run(command: &mut Command) -> Outcome {
    match command.status() {
        Ok(status) if status.success() => Outcome::Ok(None),
        Ok(status) => Outcome::Failed(status.to_string()),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// Returns the outcome of a step whose tool is missing: a failure in CI, skipped elsewhere.
fn missing(what: &str) -> Outcome {
    missing_where(what, shared::in_ci())
}

fn missing_where(what: &str, in_ci: bool) -> Outcome {
    if in_ci { Outcome::Failed(what.to_owned()) } else { Outcome::Skipped(what.to_owned()) }
}

/// Runs a subcommand of cargo that may not be installed.
fn subcommand(name: &str, arguments: &[&str]) -> Outcome {
    if !sh::has_subcommand(name) {
        return missing(&format!("cargo {name} is not installed"));
    }
    run(sh::cargo([name]).args(arguments))
}

fn dependencies() -> Outcome {
    if !sh::has_subcommand("deny") {
        return Outcome::Skipped("cargo-deny is not installed".to_owned());
    }
    run(&mut sh::cargo([
        "deny",
        "--workspace",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ]))
}

/// Searches for words that this workspace does not use.
fn language() -> Outcome {
    match language::check() {
        Ok(findings) if findings.is_empty() => Outcome::Ok(None),
        Ok(findings) => {
            println!("{}", findings.join("\n"));
            Outcome::Failed(format!("{} phrases to replace", findings.len()))
        }
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

fn lints() -> Outcome {
    let all = subcommand("clippy", &["--workspace", "--all-targets", "--", "-D", "warnings"]);
    if !matches!(all, Outcome::Ok(_)) {
        return all;
    }
    // The agent's library as it is released, without the feature `internals`, with which all of its items
    // are exported, so that unused ones are not reported. Tests and benches enable it. The dependencies
    // are those that the step `docs` needs too.
    let released =
        ["--workspace", "--exclude", "ai-agent-benches", "--lib", "--", "-D", "warnings"];
    subcommand("clippy", &released)
}

fn tests(full: bool) -> Outcome {
    let nextest = sh::has_subcommand("nextest");
    let mut command = if nextest {
        let mut nextest = sh::cargo(["nextest", "run", "--workspace", "--no-fail-fast"]);
        // Most tests wait for other processes; those that compute count twice, see `.config/nextest.toml`.
        let cores = thread::available_parallelism().map_or(2, usize::from);
        nextest.args(["--test-threads", &(2 * cores).to_string()]);
        nextest
    } else {
        sh::cargo(["test", "--workspace", "--lib", "--bins", "--tests"])
    };
    if full {
        command.envs(FULL);
        if let Some(programs) = release_0_1::programs() {
            command.env(release_0_1::VARIABLE, programs);
        }
    }
    let shared = shared::find();
    if let Ok(shared) = &shared {
        command.env(shared::VARIABLE, shared);
    }
    let mut remarks = Vec::new();
    if !nextest {
        remarks.push("by cargo test: cargo-nextest is not installed".to_owned());
    }
    if let Err(reason) = shared {
        remarks.push(format!("without real sessions: {reason}"));
    }
    match run(&mut command) {
        Outcome::Ok(_) if !remarks.is_empty() => Outcome::Ok(Some(remarks.join("; "))),
        outcome => outcome,
    }
}

/// Installs, upgrades and removes the packages of the programs that the tests were run with.
fn packages(full: bool) -> Outcome {
    if let Some(why) = machine::lacking() {
        return Outcome::Skipped(why.to_owned());
    }
    if full && !sh::has_program("rpmbuild") {
        sh::apt_install(&["rpm"]);
    }
    let formats: &[Format] = if full { &[Format::Deb, Format::Rpm] } else { &[Format::Deb] };
    match lifecycle::check_debug_build(formats) {
        Ok(checked) => Outcome::Ok(Some(format!("{checked:?}"))),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

fn doc_examples() -> Outcome {
    run(&mut sh::cargo(["test", "--doc", "--workspace"]))
}

fn docs() -> Outcome {
    let mut command = sh::cargo(["doc", "--no-deps", "--workspace"]);
    run(command.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Compares the public items of the libraries with their listings.
fn public_items() -> Outcome {
    match public_api::check() {
        Ok(Compared::Equal(counts)) => Outcome::Ok(Some(counts)),
        Ok(Compared::OtherFormat(reason)) => missing(&reason),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// Compares the number of instructions on the hot paths with the stored counts.
fn instruction_counts() -> Outcome {
    match instructions::check() {
        Ok(summary) => Outcome::Ok(Some(summary)),
        Err(NotCounted::Missing(what)) => missing(what),
        Err(NotCounted::Elsewhere) => Outcome::Skipped(instructions::ELSEWHERE.to_owned()),
        Err(NotCounted::Failed(error)) => Outcome::Failed(error.to_string()),
    }
}

/// Runs the lints for Windows and macOS, and under wine the tests that run on Windows.
fn other_systems() -> Outcome {
    let cross = match shared::find() {
        Ok(shared) => shared.join("tools/cross"),
        Err(reason) => return Outcome::Skipped(reason),
    };
    if !cfg!(target_os = "linux") || !cross.is_file() {
        return Outcome::Skipped(format!(
            "`{}` is missing or not for this system",
            cross.display()
        ));
    }
    let checked = cross::check(&cross).and_then(|summary| {
        // The tests are built with the program.
        let program = cross::target()?.join(cross::TARGET).join("debug/ai-agent.exe");
        let skipped = msi::check(&program, &dist::version()?)?;
        let installer = skipped.map_or_else(
            || "installer checked".to_owned(),
            |why| format!("installer not checked: {why}"),
        );
        Ok(format!("{summary}; {installer}"))
    });
    match checked {
        Ok(summary) => Outcome::Ok(Some(summary)),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_shows_the_outcome_of_each_step() {
        let step = |name, outcome| Step { name, outcome, took: Duration::from_millis(1250) };
        let steps = [
            step("format", Outcome::Ok(None)),
            step("dependencies", Outcome::Skipped("cargo-deny is not installed".into())),
            step("tests", Outcome::Failed("exit status: 100".into())),
            step("docs", Outcome::NotRun),
        ];
        let expected = "\
format                 1.2 s  ok
dependencies           1.2 s  skipped: cargo-deny is not installed
tests                  1.2 s  FAILED: exit status: 100
docs                   1.2 s  not run: an earlier step failed
";
        assert_eq!(table(&steps), expected);
    }

    #[test]
    fn missing_tool_fails_in_ci_only() {
        assert_eq!(missing_where("npm", true), Outcome::Failed("npm".into()));
        assert_eq!(missing_where("npm", false), Outcome::Skipped("npm".into()));
    }

    #[test]
    fn missing_command_fails_its_step() {
        assert!(matches!(run(&mut Command::new("/nowhere/at-all")), Outcome::Failed(_)));
    }

    #[test]
    fn slow_step_is_marked_and_keeps_its_remark() {
        let after = |remark: Option<&str>, seconds| {
            compared("format", Outcome::Ok(remark.map(Into::into)), Duration::from_secs(seconds))
        };
        assert_eq!(after(None, 30), Outcome::Ok(None));
        assert!(matches!(after(None, 31), Outcome::Ok(Some(remark)) if remark.contains("30 s")));
        assert!(
            matches!(after(Some("ran"), 31), Outcome::Ok(Some(remark)) if remark.starts_with("ran; slow"))
        );
    }

    #[test]
    fn step_over_its_limit_fails() {
        let after = |seconds| compared("format", Outcome::Ok(None), Duration::from_secs(seconds));
        assert!(matches!(after(90), Outcome::Ok(Some(_))));
        assert!(matches!(after(91), Outcome::Failed(reason) if reason.contains("30 s")));
    }

    #[test]
    fn slow_failure_and_skipped_step_stay() {
        for outcome in [Outcome::Skipped("no tool".into()), Outcome::Failed("2 tests".into())] {
            assert_eq!(compared("format", outcome.clone(), Duration::from_secs(99)), outcome);
        }
    }
}
