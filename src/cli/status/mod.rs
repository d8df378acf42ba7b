//! `ai-agent status`.

pub(super) mod collect;
mod problems;
pub(super) mod render;
pub(super) mod report;
pub(super) mod trust_text;

use std::{
    io::{self, IsTerminal as _},
    path::Path,
    thread,
    time::Duration,
};

use clap::Args;

use self::{
    collect::{Depth, collect},
    render::render,
    report::{State, StatusReport},
};
use super::{
    context::CliContext,
    failure::Failure,
    output::write,
    terminal::{Colours, stdout_width},
};
use crate::platform::{Clock as _, SystemClock};

/// Interval of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Show what is queued and delivered, problems, and what to do about them
///
/// Exits 1 if no agent is running or it does not respond.
#[derive(Args)]
pub(super) struct Arguments {
    /// Print one JSON object, as described in docs/status.md
    #[arg(long)]
    json: bool,
    /// Repeat every second until stopped; with `--json`, print one object per line
    #[arg(long)]
    watch: bool,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let context = CliContext::new(explicit)?;
        if self.watch {
            return match self.watch(&context) {
                Err(failure) if failure.is_broken_pipe() => Ok(()),
                result => result,
            };
        }
        let report = collect(&context, Depth::Outbox)?;
        self.print(&report)?;
        match report.state {
            State::Running => Ok(()),
            State::Silent => Err(Failure::failed("the agent does not respond")),
            State::Stopped => Err(Failure::failed("the agent is not running")),
        }
    }

    fn watch(&self, context: &CliContext) -> Result<(), Failure> {
        let clears = !self.json && io::stdout().is_terminal();
        loop {
            let report = collect(context, Depth::Files)?;
            if clears {
                // Moves the cursor to the top and clears the screen.
                write("\x1b[H\x1b[2J")?;
            }
            self.print(&report)?;
            thread::sleep(WATCH_INTERVAL);
        }
    }

    fn print(&self, report: &StatusReport) -> Result<(), Failure> {
        if self.json {
            let json = report.json();
            let text = if self.watch { format!("{json}\n") } else { format!("{json:#}\n") };
            return write(&text);
        }
        let text = render(report, SystemClock.now(), Colours::of_stdout(), stdout_width());
        write(&format!("{}\n", text.trim_end()))
    }
}
