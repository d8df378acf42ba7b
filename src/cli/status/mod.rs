//! `ai-agent status`: how the agent is doing, whether it runs or not.

mod local;
mod problems;
mod render;
mod report;
mod words;

use std::{
    io::{self, IsTerminal as _},
    path::Path,
    thread,
    time::Duration,
};

use clap::Args;
pub(crate) use local::compliance;
pub(crate) use report::{Agent, Phase, Reading, Seen};
use report::{Level, Report, State};

use self::render::{Colours, render};
use super::{
    Failure,
    control::{
        Reached, reach, unless_gone,
        wire::{Reply, Request},
    },
    print, service,
    setup::Surroundings,
};
use crate::platform::{Clock as _, LockRole, StateLock, SystemClock};

/// How long the agent may take to say how it is doing.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often `--watch` looks.
const WATCH: Duration = Duration::from_secs(1);

/// How the agent is doing: what waits, what was delivered, what is wrong and what to do about it.
#[derive(Args)]
pub(super) struct Arguments {
    /// One JSON object, as `docs/status.md` describes it.
    #[arg(long)]
    json: bool,
    /// Goes on looking until it is stopped; with `--json` one object a line.
    #[arg(long)]
    watch: bool,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let surroundings = Surroundings::look()?;
        if self.watch {
            return self.watch(&surroundings, explicit).or_else(unless_gone);
        }
        let report = look(&surroundings, explicit, Depth::Store)?;
        self.show(&report)?;
        match report.state {
            State::Running => Ok(()),
            State::Silent => Err(Failure::failed("the agent does not answer")),
            State::Stopped => Err(Failure::failed("the agent does not run")),
        }
    }

    fn watch(&self, surroundings: &Surroundings, explicit: Option<&Path>) -> Result<(), Failure> {
        let clears = !self.json && io::stdout().is_terminal();
        loop {
            let report = look(surroundings, explicit, Depth::Agent)?;
            if clears {
                // To the top, and away with what was there.
                write("\x1b[H\x1b[2J")?;
            }
            self.show(&report)?;
            thread::sleep(WATCH);
        }
    }

    fn show(&self, report: &Report) -> Result<(), Failure> {
        if self.json {
            let json = report.json();
            let text = if self.watch { format!("{json}\n") } else { format!("{json:#}\n") };
            return write(&text);
        }
        write(&format!("{}\n", render(report, SystemClock.now(), colours()).trim_end()))
    }
}

/// Writes all of it; a reader that is gone is an error, so that watching ends.
fn write(text: &str) -> Result<(), Failure> {
    use io::Write as _;

    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Failure::failed)
}

fn colours() -> Colours {
    // https://no-color.org
    let is_unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if io::stdout().is_terminal() && !is_unwanted && !is_dumb {
        Colours::Shown
    } else {
        Colours::None
    }
}

/// How far is looked when no agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// At what it left in small files.
    Agent,
    /// Into its store, which takes its lock for a moment.
    Store,
}

/// Asks the agent that runs, or looks at what one that does not run has left.
fn look(
    surroundings: &Surroundings,
    explicit: Option<&Path>,
    depth: Depth,
) -> Result<Report, Failure> {
    let loaded = surroundings.load_managed(explicit, None).ok();
    let state_dir = surroundings.state_dir_of(loaded.as_ref());
    let mut report = Report {
        at: SystemClock.now().to_string(),
        state_dir: state_dir.display().to_string(),
        hooks: local::hooks(surroundings),
        service: service::standing(surroundings).ok().flatten(),
        ..Report::default()
    };
    match reach(&state_dir)? {
        Reached::Agent(client) => {
            let asked = client.ask(&Request::Status, PATIENCE, &mut |reply| {
                if let Reply::Status(seen) = reply {
                    report.pid = Some(seen.agent.pid);
                    report.seen = *seen;
                    report.state = State::Running;
                }
                Ok(())
            });
            if let Err(failure) = asked {
                report.state = State::Silent;
                report.silence = Some(failure.words());
                report.pid =
                    StateLock::current_holder(&state_dir).ok().flatten().and_then(|it| it.pid);
                report.seen.config = local::config(&state_dir);
            }
        }
        Reached::Silent { holder, why } => {
            match holder.role {
                LockRole::Agent => {
                    report.state = State::Silent;
                    report.silence = Some(format!("{why}: its log says what it is at"));
                }
                LockRole::Command => report.is_busy = true,
            }
            report.pid = holder.pid;
            report.seen.config = local::config(&state_dir);
        }
        Reached::Nobody if depth == Depth::Store => {
            report.seen = local::left(surroundings, &state_dir, loaded);
        }
        Reached::Nobody => report.seen.config = local::config(&state_dir),
    }
    if report.seen.compliance.is_none() {
        let (paths, environment) = (surroundings.paths(), surroundings.environment());
        report.seen.compliance = Some(compliance(&state_dir, paths, environment, &[]));
    }
    report.problems = problems::problems(&report);
    Ok(report)
}

/// What is wrong with the agent, in sentences.
pub(super) struct Examined {
    pub(super) is_running: bool,
    pub(super) failing: Vec<String>,
    pub(super) warnings: Vec<String>,
}

/// Looks whether the agent runs, and what a person should look at.
pub(super) fn examine(
    surroundings: &Surroundings,
    explicit: Option<&Path>,
) -> Result<Examined, Failure> {
    let report = look(surroundings, explicit, Depth::Store)?;
    let of = |level: Level| {
        let problems = report.problems.iter().filter(|problem| problem.level == level);
        problems.map(|problem| format!("{}; {}", problem.what, problem.remedy)).collect()
    };
    Ok(Examined {
        is_running: report.state == State::Running,
        failing: of(Level::Failing),
        warnings: of(Level::Warning),
    })
}

/// Whether the agent runs and gets on; what it fails at, if not.
pub(super) fn check(explicit: Option<&Path>) -> Result<(), Failure> {
    let report = look(&Surroundings::look()?, explicit, Depth::Agent)?;
    let failing = report.problems.iter().filter(|problem| problem.level == Level::Failing);
    let failing: Vec<String> =
        failing.map(|problem| format!("{} ({})", problem.what, problem.remedy)).collect();
    match (failing.is_empty(), report.pid) {
        (true, Some(pid)) => print(format_args!("ai-agent is running (PID {pid}) and gets on")),
        (true, None) => print(format_args!("ai-agent is running and gets on")),
        (false, _) => Err(Failure::failed(failing.join("; "))),
    }
}
