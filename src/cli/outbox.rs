//! `ai-agent outbox`: what waits for delivery.

mod entries;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Failure,
    control::{self, Say, wire::Request},
    export::Lines,
    store::Store,
};
use crate::{
    config::did_you_mean,
    pipeline::{
        orphaned_sinks,
        outbox::{OrphanedSink, OutboxStats},
    },
    text::counted,
    units::Size,
};

/// What waits for delivery, whether the agent runs or not.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

/// What is to be done. Travels to the agent that runs.
#[derive(Clone, Debug, Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Action {
    /// How much waits, and for which sink.
    Status {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Lists the entries that wait: number, kind, source, place. Nothing of what is in them.
    List {
        /// From this number on; by default from the first that a sink has not taken.
        #[arg(long, value_name = "NUMBER")]
        from: Option<u64>,
        /// At most so many.
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        limit: u64,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Shows entries themselves, as they would travel.
    Show {
        /// Their numbers, as `list` shows them.
        #[arg(value_name = "NUMBER", required = true)]
        numbers: Vec<u64>,
    },
    /// Writes the entries that wait to a file, one a line, and keeps them.
    Export {
        /// The file; it must not be there yet. `-` is standard output.
        #[arg(long, value_name = "FILE", default_value = "-")]
        #[serde(skip)]
        to: PathBuf,
        /// From this number on; by default from the first that a sink has not taken.
        #[arg(long, value_name = "NUMBER")]
        from: Option<u64>,
    },
    /// Reads everything and holds it against its numbers, its checksums and its chain.
    Verify,
    /// Takes away the place of a sink that is not configured any more: what only it has not taken
    /// is deleted, and the SIEM is told so. Its dead letters stay.
    ForgetSink {
        /// The sink's name: that of its table, as `siem` in `[sink.siem]`.
        #[arg(value_name = "NAME")]
        name: String,
    },
}

impl Arguments {
    pub(super) fn execute(self, explicit: Option<&Path>) -> Result<(), Failure> {
        let mut lines = match &self.action {
            Action::Export { to, .. } => Lines::to(to)?,
            _ => Lines::printed(),
        };
        let request = Request::Outbox(self.action.clone());
        let local = |store: &Store, say: Say<'_>| act(store, &self.action, say);
        let done = control::on_store(explicit, &request, &mut |line| lines.write(line), local);
        lines.finish(done)
    }
}

/// Does it on this store.
pub(crate) fn act(store: &Store, action: &Action, say: Say<'_>) -> Result<(), Failure> {
    match action {
        Action::Status { json } => status(store, *json, say),
        Action::List { from, limit, json } => entries::list(store, *from, *limit, *json, say),
        Action::Show { numbers } => entries::show(store, numbers, say),
        Action::Export { from, .. } => entries::export(store, *from, say),
        Action::Verify => verify(store, say),
        Action::ForgetSink { name } => forget(store, name, say),
    }
}

fn status(store: &Store, is_json: bool, say: Say<'_>) -> Result<(), Failure> {
    let waiting = store.outbox.stats().map_err(Failure::failed)?;
    let OutboxStats { epoch, last_seq, entries, bytes, file_bytes, dead_letters, sinks } = &waiting;
    let now = store.context.clock.now();
    let tables = &store.loaded.settings.pipeline.sinks;
    let is_configured = |name: &str| tables.iter().any(|table| table.name == name);
    let max_bytes = store.loaded.settings.outbox.max_bytes;
    let mut lines = Vec::new();
    if is_json {
        let sinks: Vec<_> = sinks
            .iter()
            .map(|place| {
                json!({
                    "name": place.name, "destination": place.destination,
                    "configured": is_configured(&place.name),
                    "acknowledged": place.acknowledged, "entries": place.entries,
                    "oldest_seconds": place.oldest.map(|at| now.since(at).as_secs()),
                })
            })
            .collect();
        let all = json!({
            "version": 1, "epoch": epoch, "last_seq": last_seq, "entries": entries, "bytes": bytes,
            "file_bytes": file_bytes, "max_bytes": max_bytes, "dead_letters": dead_letters,
            "sinks": sinks,
        });
        lines.push(format!("{all:#}"));
    } else {
        lines.push(format!("epoch         {epoch}, up to entry {last_seq}"));
        lines.push(format!(
            "waiting       {}; {} of at most {}, in a file of {}",
            counted(*entries, "entry", "entries"),
            Size(*bytes),
            Size(max_bytes),
            Size(*file_bytes)
        ));
        lines.push(format!("dead letters  {dead_letters}"));
        for place in sinks {
            let gone = if is_configured(&place.name) { "" } else { ", not configured any more" };
            lines.push(format!(
                "sink          {}: acknowledged up to {}, {} wait{gone}",
                place.name, place.acknowledged, place.entries
            ));
        }
    }
    lines.iter().try_for_each(|line| say(line)).map_err(Failure::failed)
}

fn verify(store: &Store, say: Say<'_>) -> Result<(), Failure> {
    let verified = store.outbox.verify().map_err(Failure::failed)?;
    let mut line = match verified.entries {
        0 => {
            format!("the outbox is whole: no entry lies in it, the last was {}", verified.last_seq)
        }
        count => format!(
            "the outbox is whole: {}, {} to {}, {} before compression",
            counted(count, "entry", "entries"),
            verified.first_seq,
            verified.last_seq,
            Size(verified.bytes)
        ),
    };
    if verified.dead_letters > 0 {
        line += &format!("; {}", counted(verified.dead_letters, "dead letter", "dead letters"));
    }
    say(&line).map_err(Failure::failed)
}

fn forget(store: &Store, name: &str, say: Say<'_>) -> Result<(), Failure> {
    if store.loaded.settings.pipeline.sinks.iter().any(|sink| sink.name == name) {
        return Err(Failure::usage(format!(
            "the sink `{name}` is configured: take it out of `pipeline.sinks` first, or it would \
             begin anew as its `start` says"
        )));
    }
    let places = store.outbox.orphaned_sinks().map_err(Failure::failed)?;
    let Some(sink) = places.iter().find(|place| place.name == name) else {
        return Err(Failure::usage(unknown(name, &places)));
    };
    let before = store.outbox.stored_bytes();
    let gone = name.to_owned();
    store.report_with(orphaned_sinks::removal_event(sink, true), move |outbox, group| {
        outbox.forget_sink(&gone, group)
    })?;
    let freed = Size(before.saturating_sub(store.outbox.stored_bytes()));
    let OrphanedSink { acknowledged, undelivered, .. } = sink;
    say(&format!(
        "sink `{name}` is forgotten: it had taken the entries up to {acknowledged}, and \
         {undelivered} not; {freed} of the outbox are free"
    ))
    .map_err(Failure::failed)?;
    let letters = store.outbox.dead_letter_ids().map_err(Failure::failed)?;
    match letters.iter().filter(|id| id.sink == name).count() {
        0 => Ok(()),
        count => say(&format!(
            "{} of it still here: `ai-agent deadletter export --all --sink {name}` shows them, \
             `purge` deletes them",
            counted(count as u64, "dead letter is", "dead letters are")
        ))
        .map_err(Failure::failed),
    }
}

/// Says which there are instead.
fn unknown(name: &str, places: &[OrphanedSink]) -> String {
    let known: Vec<&str> = places.iter().map(|place| &*place.name).collect();
    let hint = match (did_you_mean(name, &known), known.as_slice()) {
        (Some(near), _) => format!("did you mean `{near}`?"),
        (None, []) => "there is none, see `ai-agent outbox status`".to_owned(),
        (None, known) => format!("there are {}", known.join(", ")),
    };
    format!("the outbox keeps nothing for a sink `{name}` that is not configured any more: {hint}")
}
