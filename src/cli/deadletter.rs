//! `ai-agent deadletter`: entries that a receiver refused for good.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::json;
use siem_protocol::{AgentEvent, event::PurgeReason};

use super::{
    Failure,
    control::{self, Say, wire::Request},
    export::Lines,
    store::Store,
};
use crate::{
    pipeline::{
        assembly,
        delivery::{RetryOutcome, retry_dead_letter},
        outbox::{DeadLetter, DeadLetterId},
        runner::RetryError,
    },
    stages::{Context, sink::gist},
    text::counted,
};

/// Entries that a receiver refused for good, whether the agent runs or not.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

/// What is to be done. Travels to the agent that runs.
#[derive(Clone, Debug, Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Action {
    /// Lists them: number, sink, reason and status, time, attempts, and the receiver's words.
    List {
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Shows the entries themselves, as they would travel.
    Show(Which),
    /// Sends them again; what the receiver takes is deleted here.
    Retry(Which),
    /// Writes them to a file, one entry a line, and keeps them.
    Export {
        /// The file; it must not be there yet. `-` is standard output.
        #[arg(long, value_name = "FILE", default_value = "-")]
        #[serde(skip)]
        to: PathBuf,
        #[command(flatten)]
        which: Which,
    },
    /// Deletes them for good. The SIEM is told so.
    Purge(Which),
}

/// Which dead letters.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    /// Their numbers, as `list` shows them.
    #[arg(value_name = "NUMBER", required_unless_present = "all")]
    numbers: Vec<u64>,
    /// All of them.
    #[arg(long, conflicts_with = "numbers")]
    all: bool,
    /// Only those of this sink.
    #[arg(long)]
    sink: Option<String>,
    /// Only those of this epoch.
    #[arg(long)]
    epoch: Option<String>,
}

/// Dead letters that the receiver knows of.
struct Announced {
    letters: Vec<DeadLetterId>,
    /// How many of those that were asked for are left out, since it does not know of them.
    left_out: usize,
}

impl Arguments {
    pub(super) fn execute(self, explicit: Option<&Path>) -> Result<(), Failure> {
        let mut lines = match &self.action {
            Action::Export { to, .. } => Lines::to(to)?,
            _ => Lines::printed(),
        };
        let request = Request::Deadletter(self.action.clone());
        let local = |store: &Store, say: Say<'_>| act(store, &self.action, say);
        let done = control::on_store(explicit, &request, &mut |line| lines.write(line), local);
        lines.finish(done)
    }
}

/// Does it on this store. One letter at a time: all of them may be many bytes.
pub(crate) fn act(store: &Store, action: &Action, say: Say<'_>) -> Result<(), Failure> {
    let all = store.outbox.dead_letter_ids().map_err(Failure::failed)?;
    match action {
        Action::List { json } => list(store, &all, *json, say),
        Action::Show(which) | Action::Export { which, .. } => show(store, &which.of(all)?, say),
        Action::Retry(which) => retry(store, announced(store, which, all)?, say),
        Action::Purge(which) => purge(store, announced(store, which, all)?, say),
    }
}

impl Which {
    fn of(&self, letters: Vec<DeadLetterId>) -> Result<Vec<DeadLetterId>, Failure> {
        let wanted = |wanted: &Option<String>, name: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == name)
        };
        let letters: Vec<DeadLetterId> = letters
            .into_iter()
            .filter(|id| wanted(&self.sink, &id.sink) && wanted(&self.epoch, &id.epoch))
            .filter(|id| self.all || self.numbers.contains(&id.seq))
            .collect();
        for number in &self.numbers {
            match letters.iter().filter(|id| id.seq == *number).count() {
                1 => {}
                0 => {
                    let message = format!("there is no dead letter {number}: see `list`");
                    return Err(Failure::usage(message));
                }
                _ => {
                    let message = format!(
                        "several dead letters have the number {number}: say which with `--sink` \
                         or `--epoch`, see `list`"
                    );
                    return Err(Failure::usage(message));
                }
            }
        }
        Ok(letters)
    }
}

/// Those that are asked for, without those that no header has named yet: their entries would be
/// sent once more if they were deleted, and the receiver has no hole for them. One that is asked for
/// by its number is refused.
fn announced(store: &Store, which: &Which, all: Vec<DeadLetterId>) -> Result<Announced, Failure> {
    let unnamed = store.outbox.unreported_dead_letters().map_err(Failure::failed)?;
    let (left_out, letters): (Vec<_>, Vec<_>) =
        which.of(all)?.into_iter().partition(|id| unnamed.contains(id));
    match left_out.first() {
        Some(id) if !which.all => Err(Failure::failed(format!(
            "dead letter {} has not been announced to the receiver yet: start the agent first, or \
             wait until it delivers again",
            id.seq
        ))),
        _ => Ok(Announced { letters, left_out: left_out.len() }),
    }
}

fn retry(
    store: &Store,
    Announced { letters, left_out }: Announced,
    say: Say<'_>,
) -> Result<(), Failure> {
    if let Some(missing) = store.loaded.missing_for_delivery() {
        return Err(Failure::usage(missing));
    }
    tell_left_out(left_out, say)?;
    let mut sinks = match store.running() {
        Some(_) => Vec::new(),
        None => assembly::sinks(&store.loaded, &store.context).map_err(Failure::usage)?,
    };
    let mut left = left_out;
    for id in letters {
        let seq = id.seq;
        let outcome = match store.running() {
            Some(view) => store.wait(view.retry_dead_letter(id))?,
            None => match sinks.iter_mut().find(|(name, _)| *name == id.sink) {
                None => Err(RetryError::NoSink(id.sink)),
                Some((_, sink)) => {
                    let Context { identity, clock, .. } = &store.context;
                    let retried =
                        retry_dead_letter(&mut **sink, &store.outbox, identity, &**clock, id);
                    store.wait(retried)?.map_err(RetryError::Outbox)
                }
            },
        };
        let line = match outcome {
            // Sent or deleted meanwhile.
            Ok(RetryOutcome::Missing) => continue,
            Ok(RetryOutcome::Delivered) => format!("{seq}: delivered"),
            Ok(RetryOutcome::Refused { status }) => {
                left += 1;
                format!("{seq}: refused again with {status}")
            }
            Ok(RetryOutcome::NotDelivered { reason }) => {
                left += 1;
                format!("{seq}: not delivered: {reason}")
            }
            Ok(RetryOutcome::Conflict) => {
                left += 1;
                format!("{seq}: the receiver holds another entry there")
            }
            Err(RetryError::Outbox(error)) => return Err(Failure::failed(error)),
            Err(error) => {
                left += 1;
                format!("{seq}: not sent: {error}")
            }
        };
        say(&line).map_err(Failure::failed)?;
    }
    if left == 0 {
        return Ok(());
    }
    let left = counted(left as u64, "dead letter is", "dead letters are");
    Err(Failure::failed(format!("{left} still here")))
}

fn purge(
    store: &Store,
    Announced { letters, left_out }: Announced,
    say: Say<'_>,
) -> Result<(), Failure> {
    tell_left_out(left_out, say)?;
    if letters.is_empty() {
        return if left_out > 0 { Ok(()) } else { say("there are none").map_err(Failure::failed) };
    }
    let count = letters.len();
    let purged = AgentEvent::DeadLettersPurged {
        reason: PurgeReason::Command,
        count: count as u64,
        letters: letters.clone(),
        bytes: None,
        total: None,
    };
    store.report_with(purged.into(), move |outbox, group| outbox.purge(&letters, group))?;
    say(&format!("{count} deleted")).map_err(Failure::failed)
}

fn tell_left_out(count: usize, say: Say<'_>) -> Result<(), Failure> {
    if count == 0 {
        return Ok(());
    }
    say(&format!("{count} left out, not announced to the receiver yet: start the agent first"))
        .map_err(Failure::failed)
}

fn list(store: &Store, all: &[DeadLetterId], is_json: bool, say: Say<'_>) -> Result<(), Failure> {
    for id in all {
        let Some(letter) = letter(store, id)? else { continue };
        let line = if is_json { json_of(id, &letter) } else { words_of(id, &letter) };
        say(&line).map_err(Failure::failed)?;
    }
    if all.is_empty() && !is_json {
        say("there are none").map_err(Failure::failed)?;
    }
    Ok(())
}

fn json_of(id: &DeadLetterId, letter: &DeadLetter) -> String {
    json!({
        "seq": id.seq, "sink": id.sink, "epoch": id.epoch,
        "reason": reason(letter.status), "status": letter.status,
        "at": letter.at, "attempts": letter.attempts, "answer": letter.answer,
        "line_sha256": letter.line_sha256,
    })
    .to_string()
}

fn words_of(id: &DeadLetterId, letter: &DeadLetter) -> String {
    let words = gist(letter.answer.as_bytes()).unwrap_or_else(|| letter.answer.clone());
    let words: String = words.split_whitespace().collect::<Vec<_>>().join(" ");
    let words: String =
        words.chars().filter(|character| !character.is_control()).take(80).collect();
    format!(
        "{:>8}  {}  {} ({})  {}  {} attempts  {}  {words}",
        id.seq,
        id.sink,
        reason(letter.status),
        letter.status,
        letter.at,
        letter.attempts,
        id.epoch
    )
}

/// What a status says of an entry that stood alone.
fn reason(status: u16) -> &'static str {
    match status {
        413 => "too large",
        _ => "refused",
    }
}

fn show(store: &Store, ids: &[DeadLetterId], say: Say<'_>) -> Result<(), Failure> {
    for id in ids {
        let Some(letter) = letter(store, id)? else { continue };
        let line = letter.line().and_then(|line| String::from_utf8(line).ok());
        let Some(line) = line else {
            return Err(Failure::failed(format!("dead letter {} cannot be read back", id.seq)));
        };
        say(&line).map_err(Failure::failed)?;
    }
    Ok(())
}

fn letter(store: &Store, id: &DeadLetterId) -> Result<Option<DeadLetter>, Failure> {
    store.outbox.dead_letter(id).map_err(Failure::failed)
}
