//! `ai-agent outbox`: arguments and rendering.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use super::{context::CliContext, failure::Failure, output::LineOutput, terminal::plain};
use crate::{
    control::{
        self, Request, Response,
        protocol::{EntrySummary, ForgottenSink, OutboxRequest, OutboxStatus, Verification},
    },
    text::counted,
};
use config_text::Size;

/// Inspect queued entries, whether the agent is running or not
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show the number of queued entries for each sink
    Status {
        /// Also show the last signed receipt of each receiver
        #[arg(long)]
        receipt: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List queued entries without their content: number, time, source and location
    List {
        /// First number to list; by default the first that a sink has not acknowledged
        #[arg(long, value_name = "NUMBER")]
        from: Option<u64>,
        /// Maximum number of entries
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        limit: u64,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Print entries as they are sent
    Show {
        /// Numbers of the entries, as `list` shows them
        #[arg(value_name = "NUMBER", required = true)]
        numbers: Vec<u64>,
    },
    /// Write all queued entries to a file, one per line, and keep them
    Export {
        /// New file to write to; `-` is standard output
        #[arg(long, value_name = "FILE", default_value = "-")]
        to: PathBuf,
        /// First number to export; by default the first that a sink has not acknowledged
        #[arg(long, value_name = "NUMBER")]
        from: Option<u64>,
    },
    /// Verify sequence numbers, checksums and the hash chain of every queued entry
    Verify,
    /// Remove a sink that is no longer configured, and drop entries that only it was waiting for
    ///
    /// The SIEM receives an event about that. Dead letters of the sink stay.
    ForgetSink {
        /// Name of the sink, such as `siem` in `[sink.siem]`
        #[arg(value_name = "NAME")]
        name: String,
    },
}

impl Arguments {
    /// Returns true if the command changes nothing in the outbox.
    pub(super) fn is_read_only(&self) -> bool {
        !matches!(self.action, Action::ForgetSink { .. })
    }

    pub(super) fn execute(self, explicit: Option<&Path>) -> Result<(), Failure> {
        let mut output = match &self.action {
            Action::Export { to, .. } => LineOutput::create(to)?,
            _ => LineOutput::Stdout,
        };
        let json = matches!(
            self.action,
            Action::Status { json: true, .. } | Action::List { json: true, .. }
        );
        let receipts = matches!(self.action, Action::Status { receipt: true, .. });
        let is_list = matches!(self.action, Action::List { .. });
        let mut count = 0;
        let sources = CliContext::new(explicit)?.sources;
        let request = Request::Outbox(self.action.into());
        let done = control::execute(&sources, &request, &mut |response| {
            count += 1;
            render(response, Format { json, receipts }, &mut |line| output.write(line))
        });
        if done.is_ok() && is_list && count == 0 && !json {
            output.write("nothing is queued").map_err(Failure::failed)?;
        }
        match done.map_err(Failure::from) {
            Err(failure) if failure.is_broken_pipe() => output.finish(Ok(())),
            done => output.finish(done),
        }
    }
}

impl From<Action> for OutboxRequest {
    fn from(action: Action) -> Self {
        match action {
            Action::Status { .. } => Self::Status,
            Action::List { from, limit, .. } => Self::List { from, limit },
            Action::Show { numbers } => Self::Show { numbers },
            Action::Export { from, .. } => Self::Export { from },
            Action::Verify => Self::Verify,
            Action::ForgetSink { name } => Self::ForgetSink { name },
        }
    }
}

/// What to print of a response.
#[derive(Clone, Copy)]
struct Format {
    json: bool,
    receipts: bool,
}

fn render(
    response: Response,
    Format { json, receipts }: Format,
    write: &mut dyn FnMut(&str) -> io::Result<()>,
) -> io::Result<()> {
    match response {
        Response::OutboxStatus(status) if json => {
            write(&format!("{:#}", serde_json::to_value(status)?))
        }
        Response::OutboxStatus(status) => {
            let mut lines = status_lines(&status);
            if receipts {
                lines.extend(receipt_lines(&status));
            }
            lines.iter().try_for_each(|line| write(line))
        }
        Response::Entry(entry) if json => write(&serde_json::to_value(entry)?.to_string()),
        Response::Entry(entry) => write(&entry_line(&entry)),
        Response::UnreadableEntry { seq } => write(&format!("{seq:>8}  cannot be read")),
        Response::MoreEntries { .. } if json => Ok(()),
        Response::MoreEntries { next } => {
            write(&format!("more entries follow: `--from {next}` lists them"))
        }
        Response::Line(line) => write(&line),
        Response::Verified(verified) => write(&verification_line(&verified)),
        Response::SinkForgotten(sink) => {
            forgotten_lines(&sink).iter().try_for_each(|line| write(line))
        }
        _ => Ok(()),
    }
}

fn status_lines(status: &OutboxStatus) -> Vec<String> {
    let mut lines = vec![
        format!("epoch         {}, last entry {}", status.epoch, status.last_seq),
        format!(
            "queued        {}; {} of at most {}, in a file of {}",
            counted(status.entries, "entry", "entries"),
            Size(status.bytes),
            Size(status.max_bytes),
            Size(status.file_bytes)
        ),
        format!("dead letters  {}", status.dead_letters),
    ];
    lines.extend(status.sinks.iter().map(|sink| {
        let orphaned = if sink.configured { "" } else { ", no longer configured" };
        format!(
            "sink          {}: acknowledged up to {}, {} queued{orphaned}",
            sink.name, sink.acknowledged, sink.entries
        )
    }));
    lines
}

/// Returns the notes of the receivers, as they were received: each can be verified by itself.
fn receipt_lines(status: &OutboxStatus) -> Vec<String> {
    let mut lines = Vec::new();
    for sink in &status.sinks {
        let earlier = sink.earlier_receipts.iter().map(|it| (&it.epoch, &it.receipt));
        let current = sink.receipt.iter().map(|receipt| (&status.epoch, receipt));
        let before = lines.len();
        for (epoch, receipt) in earlier.chain(current) {
            lines.push(format!("\nreceipt of sink {} for epoch {epoch}:", sink.name));
            lines.extend(receipt.lines().map(plain));
        }
        if lines.len() == before {
            lines.push(format!("receipt       {}: none", sink.name));
        }
    }
    lines
}

fn entry_line(entry: &EntrySummary) -> String {
    let at = entry.at.as_deref().unwrap_or_default();
    let what = match (&entry.event, &entry.path, entry.offset) {
        (Some(event), ..) => event.clone(),
        (None, Some(path), Some(offset)) => format!("{path} at {offset}"),
        (None, path, _) => path.clone().unwrap_or_default(),
    };
    let length = entry.length.map(|length| format!(", {}", counted(length, "byte", "bytes")));
    let length = length.unwrap_or_default();
    plain(&format!("{:>8}  {at}  {}  {what}{length}", entry.seq, entry.source))
}

fn verification_line(verified: &Verification) -> String {
    let mut line = match verified.entries {
        0 => format!("the outbox is intact and empty; the last entry was {}", verified.last_seq),
        count => format!(
            "the outbox is intact: {}, {} to {}, {} before compression",
            counted(count, "entry", "entries"),
            verified.first_seq,
            verified.last_seq,
            Size(verified.bytes)
        ),
    };
    if verified.dead_letters > 0 {
        line += &format!("; {}", counted(verified.dead_letters, "dead letter", "dead letters"));
    }
    line
}

fn forgotten_lines(sink: &ForgottenSink) -> Vec<String> {
    let ForgottenSink { name, acknowledged, undelivered, freed_bytes, dead_letters } = sink;
    let mut lines = vec![format!(
        "removed sink `{name}`: it had acknowledged entries up to {acknowledged}, and not {}; freed \
         {} of the outbox",
        counted(*undelivered, "entry", "entries"),
        Size(*freed_bytes)
    )];
    if *dead_letters > 0 {
        lines.push(format!(
            "{} of it still stored: `ai-agent deadletter export --all --sink {name}` exports them, \
             `purge` deletes them",
            counted(*dead_letters, "dead letter is", "dead letters are")
        ));
    }
    lines
}
