//! Handles requests about the outbox.

use std::{collections::BTreeSet, io};

use siem_protocol::Entry;

use super::{
    error::RequestError,
    protocol::{
        EntrySummary, EpochReceipt, ForgottenSink, OutboxRequest, OutboxStatus, Response,
        SinkPosition, Verification,
    },
    store::Store,
};
use crate::{
    config::did_you_mean,
    pipeline::{
        orphaned_sinks,
        outbox::{EndedEpoch, OrphanedSink, Outbox},
    },
};

/// Receives responses one by one. Fails with [`io::ErrorKind::BrokenPipe`] when the reader has
/// disconnected.
pub(super) type Respond<'a> = &'a mut dyn FnMut(Response) -> io::Result<()>;

/// Handles one request on an outbox.
///
/// # Errors
/// [`RequestError`].
pub(super) fn handle(
    store: &Store,
    request: &OutboxRequest,
    respond: Respond<'_>,
) -> Result<(), RequestError> {
    match request {
        OutboxRequest::Status => Ok(respond(Response::OutboxStatus(status(store)?))?),
        OutboxRequest::List { from, limit } => list(store, *from, *limit, respond),
        OutboxRequest::Show { numbers } => show(store, numbers, respond),
        OutboxRequest::Export { from } => export(store, *from, respond),
        OutboxRequest::Verify => Ok(respond(Response::Verified(verify(store)?))?),
        OutboxRequest::ForgetSink { name } => {
            Ok(respond(Response::SinkForgotten(forget_sink(store, name)?))?)
        }
    }
}

fn status(store: &Store) -> Result<OutboxStatus, RequestError> {
    let stats = store.outbox.stats().map_err(RequestError::because)?;
    let now = store.context.clock.now();
    let sinks = stats.sinks.into_iter().map(|sink| SinkPosition {
        configured: is_configured(store, &sink.name),
        name: sink.name,
        destination: sink.destination,
        acknowledged: sink.acknowledged,
        entries: sink.entries,
        oldest_seconds: sink.oldest.map(|at| (now - at).as_secs()),
        receipt: sink.receipt,
        earlier_receipts: sink.ended.into_iter().filter_map(epoch_receipt).collect(),
    });
    Ok(OutboxStatus {
        version: 1,
        epoch: stats.epoch,
        last_seq: stats.last_seq,
        entries: stats.entries,
        bytes: stats.bytes,
        file_bytes: stats.file_bytes,
        max_bytes: store.loaded.settings.outbox.max_bytes,
        dead_letters: stats.dead_letters,
        sinks: sinks.collect(),
    })
}

fn epoch_receipt(ended: EndedEpoch) -> Option<EpochReceipt> {
    Some(EpochReceipt { epoch: ended.epoch, receipt: ended.receipt? })
}

fn is_configured(store: &Store, sink: &str) -> bool {
    store.loaded.settings.pipeline.sinks.iter().any(|table| table.name == sink)
}

fn verify(store: &Store) -> Result<Verification, RequestError> {
    let verified = store.outbox.verify().map_err(RequestError::because)?;
    Ok(Verification {
        entries: verified.entries,
        first_seq: verified.first_seq,
        last_seq: verified.last_seq,
        bytes: verified.bytes,
        dead_letters: verified.dead_letters,
    })
}

fn forget_sink(store: &Store, name: &str) -> Result<ForgottenSink, RequestError> {
    if is_configured(store, name) {
        return Err(RequestError::invalid(format!(
            "sink `{name}` is configured: remove it from `pipeline.sinks` first, or it would start \
             again from its `start` option"
        )));
    }
    let orphaned = store.outbox.orphaned_sinks().map_err(RequestError::because)?;
    let Some(sink) = orphaned.iter().find(|sink| sink.name == name) else {
        return Err(RequestError::invalid(unknown_sink(name, &orphaned)));
    };
    let before = store.outbox.stored_bytes();
    let forgotten = name.to_owned();
    let event = orphaned_sinks::removal_event(sink, true);
    store.change_with_event(event, move |outbox, group| outbox.forget_sink(&forgotten, group))?;
    let letters = store.outbox.dead_letter_ids().map_err(RequestError::because)?;
    Ok(ForgottenSink {
        name: name.to_owned(),
        acknowledged: sink.acknowledged,
        undelivered: sink.undelivered,
        freed_bytes: before.saturating_sub(store.outbox.stored_bytes()),
        dead_letters: letters.iter().filter(|id| id.sink == name).count() as u64,
    })
}

fn unknown_sink(name: &str, orphaned: &[OrphanedSink]) -> String {
    let known: Vec<&str> = orphaned.iter().map(|sink| &*sink.name).collect();
    let hint = match (did_you_mean(name, &known), known.as_slice()) {
        (Some(near), _) => format!("did you mean `{near}`?"),
        (None, []) => "there is none, see `ai-agent outbox status`".to_owned(),
        (None, known) => format!("there are {}", known.join(", ")),
    };
    format!("the outbox holds nothing for an unconfigured sink `{name}`: {hint}")
}

/// Decision to visit another entry or to stop.
enum Next {
    Continue,
    Stop,
}

fn list(
    store: &Store,
    from: Option<u64>,
    limit: u64,
    respond: Respond<'_>,
) -> Result<(), RequestError> {
    let (mut left, mut next) = (limit, None);
    visit(&store.outbox, first(store, from)?, |seq, line| {
        if left == 0 {
            next = Some(seq);
            return Ok(Next::Stop);
        }
        left -= 1;
        respond(match Entry::parse(line) {
            Ok(entry) => Response::Entry(summary(&entry)),
            Err(_) => Response::UnreadableEntry { seq },
        })?;
        Ok(Next::Continue)
    })?;
    next.map_or(Ok(()), |next| Ok(respond(Response::MoreEntries { next })?))
}

fn summary(entry: &Entry<'_>) -> EntrySummary {
    let owned = |text: &Option<std::borrow::Cow<'_, str>>| text.as_deref().map(str::to_owned);
    EntrySummary {
        seq: entry.seq,
        kind: entry.kind,
        source: entry.source.to_string(),
        path: owned(&entry.path),
        generation: owned(&entry.generation),
        offset: entry.offset,
        length: entry.length,
        part: entry.part,
        event: owned(&entry.event),
        severity: owned(&entry.severity),
        at: owned(&entry.read_at).or_else(|| owned(&entry.at)),
    }
}

fn show(store: &Store, numbers: &[u64], respond: Respond<'_>) -> Result<(), RequestError> {
    let numbers: BTreeSet<u64> = numbers.iter().copied().collect();
    for number in numbers {
        let mut is_found = false;
        visit(&store.outbox, number, |seq, line| {
            if seq == number {
                is_found = true;
                respond(Response::Line(text(seq, line)?))?;
            }
            Ok(Next::Stop)
        })?;
        if !is_found {
            return Err(RequestError::invalid(format!(
                "there is no entry {number} in the outbox: see `ai-agent outbox list`; entries \
                 that every sink has acknowledged are deleted"
            )));
        }
    }
    Ok(())
}

fn export(store: &Store, from: Option<u64>, respond: Respond<'_>) -> Result<(), RequestError> {
    visit(&store.outbox, first(store, from)?, |seq, line| {
        respond(Response::Line(text(seq, line)?))?;
        Ok(Next::Continue)
    })
}

fn text(seq: u64, line: &[u8]) -> Result<String, RequestError> {
    let text = std::str::from_utf8(line)
        .map_err(|_| RequestError::failed(format!("entry {seq} cannot be read back")))?;
    Ok(text.to_owned())
}

/// Number of the first entry to visit: `from`, or the first that a sink has not acknowledged.
fn first(store: &Store, from: Option<u64>) -> Result<u64, RequestError> {
    if let Some(from) = from {
        return Ok(from);
    }
    let stats = store.outbox.stats().map_err(RequestError::because)?;
    Ok(stats.sinks.iter().map(|sink| sink.acknowledged + 1).min().unwrap_or_default())
}

/// Visits the entries from `seq` on, in chunks: a slow reader does not hold the store, and entries
/// that are delivered before they are reached are passed over.
fn visit(
    outbox: &Outbox,
    mut seq: u64,
    mut visit: impl FnMut(u64, &[u8]) -> Result<Next, RequestError>,
) -> Result<(), RequestError> {
    loop {
        let frames = outbox.frame_chunk(seq).map_err(RequestError::because)?;
        if frames.is_empty() {
            return Ok(());
        }
        for frame in frames {
            let raw = frame.decode().map_err(RequestError::because)?;
            let lines = raw.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            let first = frame.head.first_seq;
            for (at, line) in (first..).zip(lines).filter(|(at, _)| *at >= seq) {
                if let Next::Stop = visit(at, line)? {
                    return Ok(());
                }
            }
            seq = frame.head.last_seq() + 1;
        }
    }
}
