//! The entries that lie in the outbox, one by one.

use std::collections::BTreeSet;

use serde_json::json;
use siem_protocol::Entry;

use super::super::{Failure, control::Say, store::Store};
use crate::pipeline::outbox::Outbox;

/// Whether there is to be another.
enum Next {
    More,
    Enough,
}

/// Lists them without their content.
pub(super) fn list(
    store: &Store,
    from: Option<u64>,
    limit: u64,
    is_json: bool,
    say: Say<'_>,
) -> Result<(), Failure> {
    let (mut left, mut more) = (limit, None);
    visit(&store.outbox, first(store, from)?, |seq, line| {
        if left == 0 {
            more = Some(seq);
            return Ok(Next::Enough);
        }
        left -= 1;
        let text = match Entry::parse(line) {
            Ok(entry) if is_json => json_of(&entry),
            Ok(entry) => words_of(&entry),
            Err(_) => format!("{seq:>8}  cannot be read"),
        };
        say(&text).map_err(Failure::failed)?;
        Ok(Next::More)
    })?;
    let end = match more {
        _ if is_json => None,
        Some(next) => Some(format!("there is more: `--from {next}` shows it")),
        None if left == limit => Some("nothing waits".to_owned()),
        None => None,
    };
    if let Some(end) = end {
        say(&end).map_err(Failure::failed)?;
    }
    Ok(())
}

/// Shows them as they would travel.
pub(super) fn show(store: &Store, numbers: &[u64], say: Say<'_>) -> Result<(), Failure> {
    let numbers: BTreeSet<u64> = numbers.iter().copied().collect();
    for number in numbers {
        let mut is_there = false;
        visit(&store.outbox, number, |seq, line| {
            if seq == number {
                is_there = true;
                tell(seq, line, say)?;
            }
            Ok(Next::Enough)
        })?;
        if !is_there {
            return Err(Failure::usage(format!(
                "no entry {number} lies in the outbox: see `outbox list`; what every sink has taken \
                 is gone"
            )));
        }
    }
    Ok(())
}

/// Shows all that a sink has not taken.
pub(super) fn export(store: &Store, from: Option<u64>, say: Say<'_>) -> Result<(), Failure> {
    visit(&store.outbox, first(store, from)?, |seq, line| {
        tell(seq, line, say)?;
        Ok(Next::More)
    })
}

fn tell(seq: u64, line: &[u8], say: Say<'_>) -> Result<(), Failure> {
    let line = std::str::from_utf8(line)
        .map_err(|_| Failure::failed(format!("entry {seq} cannot be read back")))?;
    say(line).map_err(Failure::failed)
}

/// The first entry that somebody wants to see.
fn first(store: &Store, from: Option<u64>) -> Result<u64, Failure> {
    if let Some(from) = from {
        return Ok(from);
    }
    let waiting = store.outbox.stats().map_err(Failure::failed)?;
    Ok(waiting.sinks.iter().map(|place| place.acknowledged + 1).min().unwrap_or_default())
}

/// Shows the entries from `seq` on. The store is not held meanwhile, whoever looks may take long:
/// what is delivered before it is reached is passed over.
fn visit(
    outbox: &Outbox,
    mut seq: u64,
    mut show: impl FnMut(u64, &[u8]) -> Result<Next, Failure>,
) -> Result<(), Failure> {
    loop {
        let frames = outbox.frame_chunk(seq).map_err(Failure::failed)?;
        if frames.is_empty() {
            return Ok(());
        }
        for frame in frames {
            let raw = frame.decode().map_err(Failure::failed)?;
            let lines = raw.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            let first = frame.head.first_seq;
            for (at, line) in (first..).zip(lines).filter(|(at, _)| *at >= seq) {
                if let Next::Enough = show(at, line)? {
                    return Ok(());
                }
            }
            seq = frame.head.last_seq() + 1;
        }
    }
}

fn json_of(entry: &Entry<'_>) -> String {
    json!({
        "seq": entry.seq,
        "kind": entry.kind,
        "source": entry.source,
        "path": entry.path,
        "generation": entry.generation,
        "offset": entry.offset,
        "length": entry.length,
        "part": entry.part,
        "event": entry.event,
        "severity": entry.severity,
        "at": entry.read_at.as_ref().or(entry.at.as_ref()),
    })
    .to_string()
}

fn words_of(entry: &Entry<'_>) -> String {
    let at = entry.read_at.as_ref().or(entry.at.as_ref()).map_or("", |at| at);
    let what = match (&entry.event, &entry.path, entry.offset) {
        (Some(event), ..) => event.to_string(),
        (None, Some(path), Some(offset)) => format!("{path} at {offset}"),
        (None, path, _) => path.as_deref().unwrap_or_default().to_owned(),
    };
    let length = entry.length.map(|length| format!(", {length} bytes")).unwrap_or_default();
    let text = format!("{:>8}  {at}  {}  {what}{length}", entry.seq, entry.source);
    // The name of a file must not move the cursor.
    text.chars().map(|it| if it.is_control() { ' ' } else { it }).collect()
}
