//! `ai-agent deadletter`: entries that a receiver refused for good.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde_json::json;
use siem_protocol::names::event;

use super::{Failure, print, setup::Surroundings, store::Store};
use crate::{
    config::Shipping,
    event::Event,
    frame::Codec,
    pipeline::{
        assembly,
        delivery::redeliver,
        group::Filling,
        outbox::{DeadLetter, DeadLetterId},
    },
    platform::private,
    stages::sink::{Delivery, gist},
};

/// Entries that a receiver refused for good. The agent must not run meanwhile.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
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
        to: PathBuf,
        #[command(flatten)]
        which: Which,
    },
    /// Deletes them for good. The SIEM is told so.
    Purge(Which),
}

/// Which dead letters.
#[derive(Args)]
struct Which {
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

type Letters = Vec<(DeadLetterId, DeadLetter)>;

/// Dead letters that the receiver knows of.
struct Announced {
    letters: Letters,
    /// How many of those that were asked for are left out, since it does not know of them.
    left_out: usize,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let surroundings = Surroundings::look()?;
        let loaded = surroundings.load(explicit)?;
        let store = Store::open(&surroundings, loaded, "its dead letters can be had")?;
        let all = store.outbox.dead_letters().map_err(Failure::failed)?;
        match &self.action {
            Action::List { json } => list(&all, *json),
            Action::Show(which) => write(&which.of(all)?, &mut io::stdout().lock()),
            Action::Retry(which) => store.retry(store.announced(which, all)?),
            Action::Export { to, which } => export(&which.of(all)?, to),
            Action::Purge(which) => store.purge(&store.announced(which, all)?),
        }
    }
}

impl Which {
    fn of(&self, letters: Letters) -> Result<Letters, Failure> {
        let wanted = |wanted: &Option<String>, name: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == name)
        };
        let letters: Letters = letters
            .into_iter()
            .filter(|(id, _)| wanted(&self.sink, &id.sink) && wanted(&self.epoch, &id.epoch))
            .filter(|(id, _)| self.all || self.numbers.contains(&id.seq))
            .collect();
        for number in &self.numbers {
            match letters.iter().filter(|(id, _)| id.seq == *number).count() {
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

impl Store {
    /// Those that are asked for, without those that no header has named yet: their entries would
    /// be sent once more if they were deleted, and the receiver has no hole for them. One that is
    /// asked for by its number is refused.
    fn announced(&self, which: &Which, all: Letters) -> Result<Announced, Failure> {
        let unnamed = self.outbox.unnamed().map_err(Failure::failed)?;
        let (left_out, letters): (Letters, Letters) =
            which.of(all)?.into_iter().partition(|(id, _)| unnamed.contains(id));
        match left_out.first() {
            Some((id, _)) if !which.all => Err(Failure::failed(format!(
                "dead letter {} has not been announced to the receiver yet: start the agent first",
                id.seq
            ))),
            _ => Ok(Announced { letters, left_out: left_out.len() }),
        }
    }

    fn retry(&self, Announced { letters, left_out }: Announced) -> Result<(), Failure> {
        if let Some(missing) = self.loaded.missing_for_delivery() {
            return Err(Failure::usage(missing));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Failure::failed)?;
        let mut sinks = assembly::sinks(&self.loaded, &self.context).map_err(Failure::usage)?;
        tell_left_out(left_out)?;
        let mut left = left_out;
        for (id, mut letter) in letters {
            let Some((_, sink)) = sinks.iter_mut().find(|(name, _)| *name == id.sink) else {
                left += 1;
                print(format_args!("{}: sink `{}` is not configured any more", id.seq, id.sink))?;
                continue;
            };
            let (identity, now) = (&self.context.identity, self.context.clock.now());
            let sent = redeliver(&mut **sink, identity, &id, &letter, now);
            match runtime.block_on(sent) {
                Delivery::Acknowledged => {
                    self.outbox.dig_out(&id).map_err(Failure::failed)?;
                    print(format_args!("{}: delivered", id.seq))?;
                }
                Delivery::Refused { status, answer } => {
                    left += 1;
                    letter.attempts += 1;
                    (letter.status, letter.answer, letter.at) = (status, answer, now.to_string());
                    self.outbox.bury(&id, &letter).map_err(Failure::failed)?;
                    print(format_args!("{}: refused again with {status}", id.seq))?;
                }
                Delivery::Retry { reason, .. }
                | Delivery::Slow { reason, .. }
                | Delivery::Hold { reason, .. } => {
                    left += 1;
                    print(format_args!("{}: not delivered: {reason}", id.seq))?;
                }
                Delivery::Conflict { .. } => {
                    left += 1;
                    print(format_args!("{}: the receiver holds another entry there", id.seq))?;
                }
            }
        }
        if left == 0 {
            return Ok(());
        }
        Err(Failure::failed(format!("{left} dead letters are still here")))
    }

    fn purge(&self, Announced { letters, left_out }: &Announced) -> Result<(), Failure> {
        tell_left_out(*left_out)?;
        if letters.is_empty() {
            return if *left_out > 0 { Ok(()) } else { print(format_args!("there are none")) };
        }
        let ids: Vec<_> = letters.iter().map(|(id, _)| id.clone()).collect();
        let data = json!({ "reason": "command", "count": letters.len(), "letters": ids });
        let config = self.loaded.settings.config_hash();
        let now = self.context.clock.now();
        let mut filling = Filling::new(self.outbox.end(), config, Shipping::default(), Codec::Zstd);
        filling.event(&Event::warning(event::DEAD_LETTERS_PURGED, data), now);
        self.outbox.purge(&ids, &filling.take(now)).map_err(Failure::failed)?;
        print(format_args!("{} deleted", letters.len()))
    }
}

fn tell_left_out(count: usize) -> Result<(), Failure> {
    if count == 0 {
        return Ok(());
    }
    print(format_args!(
        "{count} left out, not announced to the receiver yet: start the agent first"
    ))
}

fn list(letters: &Letters, json: bool) -> Result<(), Failure> {
    for (id, letter) in letters {
        if json {
            let line = json!({
                "seq": id.seq, "sink": id.sink, "epoch": id.epoch,
                "reason": reason(letter.status), "status": letter.status,
                "at": letter.at, "attempts": letter.attempts, "answer": letter.answer,
                "line_sha256": letter.line_sha256,
            });
            print(format_args!("{line}"))?;
            continue;
        }
        let words = gist(letter.answer.as_bytes()).unwrap_or_else(|| letter.answer.clone());
        let words: String = words.split_whitespace().collect::<Vec<_>>().join(" ");
        let words: String =
            words.chars().filter(|character| !character.is_control()).take(80).collect();
        print(format_args!(
            "{:>8}  {}  {} ({})  {}  {} attempts  {}  {words}",
            id.seq,
            id.sink,
            reason(letter.status),
            letter.status,
            letter.at,
            letter.attempts,
            id.epoch
        ))?;
    }
    if letters.is_empty() && !json {
        print(format_args!("there are none"))?;
    }
    Ok(())
}

/// What a status says of an entry that stood alone.
fn reason(status: u16) -> &'static str {
    match status {
        413 => "too large",
        _ => "refused",
    }
}

fn export(letters: &Letters, to: &Path) -> Result<(), Failure> {
    if to == Path::new("-") {
        return write(letters, &mut io::stdout().lock());
    }
    let failed =
        |error: io::Error| Failure::failed(format!("cannot write `{}`: {error}", to.display()));
    let mut file = private::options().create_new(true).open(to).map_err(failed)?;
    let written = write(letters, &mut file).and_then(|()| file.sync_all().map_err(failed));
    if written.is_err() {
        // Half a file would look like a whole one.
        drop(fs::remove_file(to));
    }
    written
}

fn write(letters: &Letters, out: &mut dyn io::Write) -> Result<(), Failure> {
    for (id, letter) in letters {
        let Some(mut line) = letter.line() else {
            return Err(Failure::failed(format!("dead letter {} cannot be read back", id.seq)));
        };
        line.push(b'\n');
        match out.write_all(&line) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            result => result.map_err(Failure::failed)?,
        }
    }
    Ok(())
}
