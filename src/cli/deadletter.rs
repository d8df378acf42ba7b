//! `ai-agent deadletter`: arguments and rendering.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::{ArgGroup, Args, Subcommand};

use super::{context::CliContext, failure::Failure, output::LineOutput};
use crate::{
    control::{
        self, Request, Response,
        protocol::{DeadLetterRequest, DeadLetterSummary, Selection},
    },
    pipeline::delivery::RetryOutcome,
    stages::sink::problem_summary,
    text::counted,
};

/// Inspect, retry or delete entries that a receiver rejected for good
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List dead letters: number, sink, reason and status, time, attempts, epoch and response
    List {
        /// Print one JSON object per line, as described in docs/scripts.md
        #[arg(long)]
        json: bool,
    },
    /// Print the entries as they are sent
    Show(Selected),
    /// Send the entries again; those that the receiver accepts are deleted here
    Retry(Selected),
    /// Write the entries to a file, one per line, and keep them
    Export {
        /// New file to write to; `-` is standard output
        #[arg(long, value_name = "FILE", default_value = "-")]
        to: PathBuf,
        #[command(flatten)]
        selected: Selected,
    },
    /// Delete the entries for good; the SIEM receives an event about that
    Purge(Selected),
}

/// Selection of dead letters.
#[derive(Args)]
#[command(group = ArgGroup::new("selection").required(true))]
struct Selected {
    /// Numbers of the dead letters, as `list` shows them
    #[arg(value_name = "NUMBER", group = "selection")]
    numbers: Vec<u64>,
    /// Select all dead letters
    #[arg(long, group = "selection")]
    all: bool,
    /// Select only those of this sink
    #[arg(long)]
    sink: Option<String>,
    /// Select only those of this epoch
    #[arg(long)]
    epoch: Option<String>,
}

impl Arguments {
    /// Returns true if the command changes no dead letter.
    pub(super) fn is_read_only(&self) -> bool {
        !matches!(self.action, Action::Retry(_) | Action::Purge(_))
    }

    pub(super) fn execute(self, explicit: Option<&Path>) -> Result<(), Failure> {
        let mut output = match &self.action {
            Action::Export { to, .. } => LineOutput::create(to)?,
            _ => LineOutput::Stdout,
        };
        let json = matches!(self.action, Action::List { json: true });
        let is_list = matches!(self.action, Action::List { .. });
        let is_retry = matches!(self.action, Action::Retry(_));
        let (mut count, mut undelivered) = (0, 0);
        let sources = CliContext::new(explicit)?.sources;
        let request = Request::Deadletter(self.action.into());
        let done = control::execute(&sources, &request, &mut |response| {
            count += 1;
            undelivered += undelivered_in(&response);
            render(response, json, &mut |line| output.write(line))
        });
        if done.is_ok() && is_list && count == 0 && !json {
            output.write("there are no dead letters").map_err(Failure::failed)?;
        }
        let done = match done.map_err(Failure::from) {
            Err(failure) if failure.is_broken_pipe() => Ok(()),
            Ok(()) if is_retry && undelivered > 0 => Err(Failure::failed(format!(
                "{} still stored",
                counted(undelivered, "dead letter is", "dead letters are")
            ))),
            done => done,
        };
        output.finish(done)
    }
}

impl From<Action> for DeadLetterRequest {
    fn from(action: Action) -> Self {
        match action {
            Action::List { .. } => Self::List,
            Action::Show(selected) | Action::Export { selected, .. } => Self::Show(selected.into()),
            Action::Retry(selected) => Self::Retry(selected.into()),
            Action::Purge(selected) => Self::Purge(selected.into()),
        }
    }
}

impl From<Selected> for Selection {
    fn from(Selected { numbers, all, sink, epoch }: Selected) -> Self {
        Self { numbers, all, sink, epoch }
    }
}

/// Number of dead letters that a response to `retry` leaves stored.
fn undelivered_in(response: &Response) -> u64 {
    match response {
        Response::Unannounced { count } => *count,
        Response::Retried { outcome, .. } if *outcome != RetryOutcome::Delivered => 1,
        _ => 0,
    }
}

fn render(
    response: Response,
    json: bool,
    write: &mut dyn FnMut(&str) -> io::Result<()>,
) -> io::Result<()> {
    match response {
        Response::DeadLetter(letter) if json => write(&serde_json::to_value(letter)?.to_string()),
        Response::DeadLetter(letter) => write(&letter_line(&letter)),
        Response::Line(line) => write(&line),
        Response::Unannounced { count } => write(&format!(
            "skipped {}, not announced to the receiver yet: start the agent first",
            counted(count, "dead letter", "dead letters")
        )),
        Response::Retried { seq, outcome } => match outcome {
            RetryOutcome::Delivered => write(&format!("{seq}: delivered")),
            RetryOutcome::Refused { status } => {
                write(&format!("{seq}: rejected again with status {status}"))
            }
            RetryOutcome::NotDelivered { reason } => {
                write(&format!("{seq}: not delivered: {reason}"))
            }
            RetryOutcome::Conflict => {
                write(&format!("{seq}: the receiver holds another entry with this number"))
            }
            RetryOutcome::Missing => Ok(()),
        },
        Response::Purged { count: 0 } => write("there are no dead letters"),
        Response::Purged { count } => {
            write(&format!("deleted {}", counted(count, "dead letter", "dead letters")))
        }
        _ => Ok(()),
    }
}

fn letter_line(letter: &DeadLetterSummary) -> String {
    let response =
        problem_summary(letter.answer.as_bytes()).unwrap_or_else(|| letter.answer.clone());
    let response: String = response.split_whitespace().collect::<Vec<_>>().join(" ");
    let response: String =
        response.chars().filter(|character| !character.is_control()).take(80).collect();
    format!(
        "{:>8}  {}  {} ({})  {}  {}  {}  {response}",
        letter.seq,
        letter.sink,
        letter.reason,
        letter.status,
        letter.at,
        counted(letter.attempts.into(), "attempt", "attempts"),
        letter.epoch
    )
}
