//! `cargo xtask test`: every check, with one command.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use clap::Args;

use crate::{
    Failure, cross,
    instructions::{self, NotCounted},
    language,
    public_api::{self, Compared},
    sh, shared,
};

/// Runs every check, as CI does.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Runs the lints and tests for the other systems too, and more of what can go on for ever: 2000
    /// power cuts, 1000 worlds, 100 kills, a line and a store of 1 GiB.
    #[arg(long)]
    full: bool,
}

/// How much more the tests do in a full run: power cuts, simulated worlds, kills, the size of a line
/// and of a store.
const FULL: [(&str, &str); 5] = [
    ("AI_AGENT_POWER_CUTS", "2000"),
    ("AI_AGENT_WORLDS", "1000"),
    ("AI_AGENT_KILLS", "100"),
    ("AI_AGENT_LINE_MIB", "1024"),
    ("AI_AGENT_STORE_MIB", "1024"),
];

/// Whether a phrase of the language check fails the run.
const LANGUAGE_IS_ENFORCED: bool = false;

/// A check and how it ended.
struct Step {
    name: &'static str,
    outcome: Outcome,
    took: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// It passed; with a remark, where there is one to make.
    Ok(Option<String>),
    /// It could not be made here.
    Skipped(String),
    /// It failed.
    Failed(String),
    /// Another one had failed before.
    NotRun,
}

/// A check: says how it ended.
type Check = Box<dyn FnOnce() -> Outcome>;

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let began = Instant::now();
        let full = self.full;
        // Those that end within seconds come first, and one of them may fail without ending all.
        let quick: [(&'static str, Check); 6] = [
            ("format", Box::new(|| subcommand("fmt", &["--all", "--check"]))),
            ("language", Box::new(language)),
            ("dependencies", Box::new(dependencies)),
            ("real client", Box::new(real_client)),
            ("service", Box::new(service)),
            ("real auditd", Box::new(real_auditd)),
        ];
        let mut slow: Vec<(&'static str, Check)> = vec![
            ("lints", Box::new(lints)),
            ("tests", Box::new(move || tests(full))),
            (
                "examples in docs",
                Box::new(|| run(&mut sh::cargo(["test", "--doc", "--workspace"]))),
            ),
            ("docs", Box::new(docs)),
            ("public items", Box::new(public_items)),
            ("instruction counts", Box::new(instruction_counts)),
        ];
        if full {
            slow.push(("other systems", Box::new(other_systems)));
        }
        let mut steps = Vec::new();
        for (name, check) in quick {
            steps.push(step(name, check));
        }
        for (name, check) in slow {
            let stopped = steps
                .iter()
                .any(|step| matches!(step.outcome, Outcome::Failed(_)) && step.name != "format");
            let check = if stopped { Box::new(|| Outcome::NotRun) as Check } else { check };
            steps.push(step(name, check));
        }
        println!("\n{}", table(&steps));
        let failed = steps.iter().any(|step| matches!(step.outcome, Outcome::Failed(_)));
        let word = if failed { "failed" } else { "passed" };
        println!("{word}, {:.1} s in all", began.elapsed().as_secs_f64());
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn step(name: &'static str, check: Check) -> Step {
    println!("── {name}");
    let began = Instant::now();
    let outcome = check();
    let step = Step { name, outcome, took: began.elapsed() };
    println!("── {}\n", row(&step));
    step
}

/// One line for each step.
fn table(steps: &[Step]) -> String {
    steps.iter().map(|step| row(step) + "\n").collect()
}

fn row(step: &Step) -> String {
    let outcome = match &step.outcome {
        Outcome::Ok(None) => "ok".to_owned(),
        Outcome::Ok(Some(remark)) => format!("ok ({remark})"),
        Outcome::Skipped(why) => format!("skipped: {why}"),
        Outcome::Failed(why) => format!("FAILED: {why}"),
        Outcome::NotRun => "not run: a step before it failed".to_owned(),
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

/// What a missing tool means: in CI a failure.
fn missing(what: &str) -> Outcome {
    missing_where(what, shared::in_ci())
}

fn missing_where(what: &str, in_ci: bool) -> Outcome {
    if in_ci { Outcome::Failed(what.to_owned()) } else { Outcome::Skipped(what.to_owned()) }
}

/// Runs a subcommand of cargo that not every installation has.
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

/// Looks for words that this workspace does not use.
fn language() -> Outcome {
    match language::check() {
        Ok(findings) if findings.is_empty() => Outcome::Ok(None),
        Ok(findings) => {
            println!("{}", findings.join("\n"));
            let count = format!("{} phrases to replace", findings.len());
            if LANGUAGE_IS_ENFORCED { Outcome::Failed(count) } else { Outcome::Ok(Some(count)) }
        }
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

fn lints() -> Outcome {
    subcommand("clippy", &["--workspace", "--all-targets", "--", "-D", "warnings"])
}

fn tests(full: bool) -> Outcome {
    let nextest = sh::has_subcommand("nextest");
    let mut command = if nextest {
        sh::cargo(["nextest", "run", "--workspace", "--no-fail-fast"])
    } else {
        sh::cargo(["test", "--workspace", "--lib", "--bins", "--tests"])
    };
    if full {
        command.envs(FULL);
    }
    let mut remarks = Vec::new();
    if !nextest {
        remarks.push("by cargo test: cargo-nextest is not installed".to_owned());
    }
    if let Err(why) = shared::find() {
        remarks.push(format!("without real sessions: {why}"));
    }
    match run(&mut command) {
        Outcome::Ok(_) if !remarks.is_empty() => Outcome::Ok(Some(remarks.join("; "))),
        outcome => outcome,
    }
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

/// Whether the hot paths take as many instructions as they did.
fn instruction_counts() -> Outcome {
    match instructions::check() {
        Ok(said) => Outcome::Ok(Some(said)),
        Err(NotCounted::Missing(what)) => missing(what),
        Err(NotCounted::Elsewhere) => Outcome::Skipped(instructions::ELSEWHERE.to_owned()),
        Err(NotCounted::Failed(error)) => Outcome::Failed(error.to_string()),
    }
}

/// The lints for Windows and macOS, and the tests that run on Windows too, under wine.
fn other_systems() -> Outcome {
    let cross = match shared::find() {
        Ok(shared) => shared.join("tools/cross"),
        Err(why) => return Outcome::Skipped(why),
    };
    if !cfg!(target_os = "linux") || !cross.is_file() {
        return Outcome::Skipped(format!("`{}` is for Linux, or not there", cross.display()));
    }
    match cross::check(&cross) {
        Ok(said) => Outcome::Ok(Some(said)),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// Sees to what the tests of the real client need. They run with all others.
fn real_client() -> Outcome {
    if !cfg!(target_os = "linux") {
        return Outcome::Skipped("the client is run on Linux only".to_owned());
    }
    let client = match shared::find() {
        Err(why) => return Outcome::Skipped(why),
        Ok(shared) if !shared.join("realclient/run.sh").is_file() => {
            return Outcome::Skipped(format!("no realclient in `{}`", shared.display()));
        }
        Ok(shared) => shared.join("realclient"),
    };
    let needed = ["npm", "python3", "tmux", "strace"];
    let lacking = || needed.into_iter().filter(|name| !sh::has_program(name)).collect::<Vec<_>>();
    let before = lacking();
    if !before.is_empty() && sh::apt_install(&before) {
        println!("installed {}", before.join(", "));
    }
    match lacking().as_slice() {
        [] => {
            let (cache, is_cached) = client_cache();
            if !is_cached && !registry_answers() {
                return Outcome::Skipped("the npm registry, which has the client, is away".into());
            }
            let there = if is_cached { Ok(()) } else { download_client(&client, &cache) };
            match there {
                Ok(()) => Outcome::Ok(Some("the client is there, its tests run below".to_owned())),
                Err(error) => Outcome::Failed(error.to_string()),
            }
        }
        lacking => missing(&format!("{} not installed", lacking.join(" and "))),
    }
}

/// The directory that the tests of the client keep it in, and whether it is there.
fn client_cache() -> (PathBuf, bool) {
    let cache = env::var_os("RC_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let home = env::var_os("HOME").map_or_else(env::temp_dir, PathBuf::from);
        home.join(".cache/ai-agent-realclient")
    });
    let files = sh::files_below(&cache).unwrap_or_default();
    (cache, files.iter().any(|path| path.ends_with("claude")))
}

/// Runs the client once, which downloads it into `cache`.
fn download_client(client: &Path, cache: &Path) -> Result<(), Failure> {
    let work = sh::target_directory()?.join("realclient");
    let mut run = Command::new(client.join("run.sh"));
    run.arg(client.join("scenarios/text.json")).env("RC_CACHE", cache).env("RC_WORK", &work);
    sh::succeed(run.stdout(Stdio::null()).stderr(Stdio::null()))?;
    fs::remove_dir_all(work)?;
    probe_again()
}

/// Lets `test-requires` probe the machine again, since something was installed.
fn probe_again() -> Result<(), Failure> {
    let probe = sh::workspace().join("crates/test-requires/build.rs");
    Ok(fs::write(&probe, fs::read(&probe)?)?)
}

/// Sees to what the test of the service needs, against a real systemd. It runs with all others.
fn service() -> Outcome {
    if !cfg!(target_os = "linux") {
        return Outcome::Skipped("systemd is of Linux only".to_owned());
    }
    if !sh::is_root() {
        return Outcome::Skipped("only root can make a user with a systemd of its own".to_owned());
    }
    match shared::find() {
        Err(why) => return Outcome::Skipped(why),
        Ok(shared) if !shared.join("tools/with-systemd-user").is_file() => {
            let shared = shared.display();
            return Outcome::Skipped(format!("no tools/with-systemd-user in `{shared}`"));
        }
        Ok(_) => {}
    }
    let needed = ["systemctl", "dbus-run-session", "setpriv"];
    let lacking = || needed.into_iter().filter(|name| !sh::has_program(name)).collect::<Vec<_>>();
    if !lacking().is_empty() {
        sh::apt_install(&["systemd", "dbus", "dbus-user-session", "util-linux"]);
    }
    match lacking().as_slice() {
        [] => Outcome::Ok(Some("systemd is there, the test runs below".to_owned())),
        lacking => missing(&format!("{} not installed", lacking.join(" and "))),
    }
}

/// Says whether the test of the real auditd will run, with all others.
fn real_auditd() -> Outcome {
    if !cfg!(target_os = "linux") {
        return Outcome::Skipped("the audit system is Linux's".to_owned());
    }
    let tool = match shared::find() {
        Err(why) => return Outcome::Skipped(why),
        Ok(shared) => shared.join("tools/with-auditd"),
    };
    if !tool.is_file() {
        return missing(&format!("`{}` is not there", tool.display()));
    }
    if !sh::is_root() {
        return Outcome::Skipped("the audit system takes root".to_owned());
    }
    // It installs auditd, and says by 77 that the kernel has no audit system.
    match Command::new(tool).arg("true").stdout(Stdio::null()).status().map(|it| it.code()) {
        Ok(Some(0)) => Outcome::Ok(Some("auditd runs here, the test runs below".to_owned())),
        Ok(Some(77)) => Outcome::Skipped("this kernel has no audit system".to_owned()),
        Ok(code) => missing(&format!("auditd does not run, with-auditd ended with {code:?}")),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// Whether the client can be fetched.
fn registry_answers() -> bool {
    let mut npm = Command::new("npm");
    npm.args(["view", "@anthropic-ai/claude-code", "version"]);
    npm.args(["--fetch-retries=0", "--fetch-timeout=20000"]);
    npm.stdout(Stdio::null()).stderr(Stdio::null());
    npm.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_how_each_step_ended() {
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
docs                   1.2 s  not run: a step before it failed
";
        assert_eq!(table(&steps), expected);
    }

    #[test]
    fn a_missing_tool_is_a_failure_in_ci_only() {
        assert_eq!(missing_where("npm", true), Outcome::Failed("npm".into()));
        assert_eq!(missing_where("npm", false), Outcome::Skipped("npm".into()));
    }

    #[test]
    fn a_command_that_is_not_there_fails_its_step() {
        assert!(matches!(run(&mut Command::new("/nowhere/at-all")), Outcome::Failed(_)));
    }
}
