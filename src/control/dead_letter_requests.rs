//! Handles requests about dead letters.

use std::{collections::BTreeMap, time::Duration};

use siem_protocol::{AgentEvent, agent_event::PurgeReason};
use tokio::time::{Instant, sleep};

use super::{
    error::RequestError,
    outbox_requests::Respond,
    protocol::{DeadLetterRequest, DeadLetterSummary, Response, Selection},
    store::Store,
};
use crate::{
    config::StageTable,
    pipeline::{
        assembly,
        delivery::{RateLimit, RetryOutcome, retry_dead_letter},
        outbox::{DeadLetter, DeadLetterId},
        runner::RetryError,
    },
    stages::{AgentContext, Named, sink::Sink},
    text::causes,
};

/// Selected dead letters that were reported to the receiver.
struct Announced {
    ids: Vec<DeadLetterId>,
    /// Number of selected dead letters that are left out, since they were not reported to it.
    unannounced: usize,
}

/// Handles one request on an outbox. Dead letters are read one at a time, since all of them may be
/// large.
///
/// # Errors
/// [`RequestError`].
pub(super) fn handle(
    store: &Store,
    request: &DeadLetterRequest,
    respond: Respond<'_>,
) -> Result<(), RequestError> {
    let all = store.outbox.dead_letter_ids().map_err(RequestError::because)?;
    match request {
        DeadLetterRequest::List => list(store, &all, respond),
        DeadLetterRequest::Show(selection) => show(store, &select(selection, all)?, respond),
        DeadLetterRequest::Retry(selection) => {
            retry(store, announced(store, selection, all)?, respond)
        }
        DeadLetterRequest::Purge(selection) => {
            purge(store, announced(store, selection, all)?, respond)
        }
    }
}

fn select(
    selection: &Selection,
    all: Vec<DeadLetterId>,
) -> Result<Vec<DeadLetterId>, RequestError> {
    let matches =
        |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|wanted| wanted == value);
    let selected: Vec<DeadLetterId> = all
        .into_iter()
        .filter(|id| matches(&selection.sink, &id.sink) && matches(&selection.epoch, &id.epoch))
        .filter(|id| selection.all || selection.numbers.contains(&id.seq))
        .collect();
    for number in &selection.numbers {
        match selected.iter().filter(|id| id.seq == *number).count() {
            1 => {}
            0 => {
                return Err(RequestError::invalid(format!(
                    "there is no dead letter {number}: see `ai-agent deadletter list`"
                )));
            }
            _ => {
                return Err(RequestError::invalid(format!(
                    "several dead letters have the number {number}: select one with `--sink` or \
                     `--epoch`, see `ai-agent deadletter list`"
                )));
            }
        }
    }
    Ok(selected)
}

/// Selected dead letters without those that no batch has announced to the receiver yet. Such an
/// entry would be sent once more if the dead letter were deleted, and the receiver has no gap for a
/// retry. One that is selected by its number is an error.
fn announced(
    store: &Store,
    selection: &Selection,
    all: Vec<DeadLetterId>,
) -> Result<Announced, RequestError> {
    let unreported = store.outbox.unreported_dead_letters().map_err(RequestError::because)?;
    let (left_out, ids): (Vec<_>, Vec<_>) =
        select(selection, all)?.into_iter().partition(|id| unreported.contains(id));
    match left_out.first() {
        Some(id) if !selection.all => Err(RequestError::failed(format!(
            "dead letter {} has not been announced to the receiver yet: start the agent, or wait \
             until it delivers again",
            id.seq
        ))),
        _ => Ok(Announced { ids, unannounced: left_out.len() }),
    }
}

fn retry(
    store: &Store,
    Announced { ids, unannounced }: Announced,
    respond: Respond<'_>,
) -> Result<(), RequestError> {
    if let Some(missing) = store.loaded.missing_for_delivery() {
        return Err(RequestError::invalid(causes(&missing)));
    }
    let mut local = match store.pipeline() {
        Some(_) => None,
        None => Some(LocalSinks::new(store)?),
    };
    respond_unannounced(unannounced, respond)?;
    for id in ids {
        let seq = id.seq;
        let outcome = match (store.pipeline(), &mut local) {
            (Some(pipeline), _) => store.wait(pipeline.retry_dead_letter(id))?,
            (None, Some(local)) => store.wait(local.retry(store, id))?,
            (None, None) => Err(RetryError::NoSink(id.sink)),
        };
        let outcome = match outcome {
            // Delivered or deleted by another command.
            Ok(RetryOutcome::Missing) => continue,
            Ok(outcome) => outcome,
            Err(RetryError::Outbox(error)) => return Err(RequestError::because(error)),
            Err(error) => RetryOutcome::NotDelivered { reason: error.to_string() },
        };
        respond(Response::Retried { seq, outcome })?;
    }
    Ok(())
}

/// Sinks of a command, for dead letters of a stopped agent. The running agent uses its own.
struct LocalSinks {
    sinks: Vec<Named<dyn Sink>>,
    rate_limits: BTreeMap<String, RateLimit>,
    begun: Option<Instant>,
}

impl LocalSinks {
    fn new(store: &Store) -> Result<Self, RequestError> {
        let sinks = assembly::sinks(&store.loaded, &store.context)
            .map_err(|error| RequestError::invalid(causes(&error)))?;
        let limit = |table: &StageTable| {
            let limit = table.sink_settings.max_bytes_per_second?;
            Some((table.name.clone(), RateLimit::new(limit)))
        };
        let rate_limits = store.loaded.settings.pipeline.sinks.iter().filter_map(limit).collect();
        Ok(Self { sinks, rate_limits, begun: None })
    }

    async fn retry(&mut self, store: &Store, id: DeadLetterId) -> Result<RetryOutcome, RetryError> {
        let begun = *self.begun.get_or_insert_with(Instant::now);
        let Some((name, sink)) = self.sinks.iter_mut().find(|(name, _)| *name == id.sink) else {
            return Err(RetryError::NoSink(id.sink));
        };
        let mut rate_limit = self.rate_limits.get_mut(name);
        let wait = rate_limit.as_ref().map_or(Duration::ZERO, |limit| limit.wait(begun.elapsed()));
        sleep(wait).await;
        let since = begun.elapsed();
        let AgentContext { identity, clock, .. } = &store.context;
        let attempt = retry_dead_letter(&mut **sink, &store.outbox, identity, &**clock, id).await;
        if let Some(limit) = &mut rate_limit {
            limit.sent(attempt.sent_bytes, since);
        }
        Ok(attempt.outcome?)
    }
}

fn purge(
    store: &Store,
    Announced { ids, unannounced }: Announced,
    respond: Respond<'_>,
) -> Result<(), RequestError> {
    respond_unannounced(unannounced, respond)?;
    let count = ids.len() as u64;
    if count > 0 {
        let purged = AgentEvent::DeadLettersPurged {
            reason: PurgeReason::Command,
            count,
            letters: ids.clone(),
            bytes: None,
            total: None,
        };
        store.change_with_event(purged.into(), move |outbox, group| outbox.purge(&ids, group))?;
    }
    if count > 0 || unannounced == 0 {
        respond(Response::Purged { count })?;
    }
    Ok(())
}

fn respond_unannounced(count: usize, respond: Respond<'_>) -> Result<(), RequestError> {
    if count > 0 {
        respond(Response::Unannounced { count: count as u64 })?;
    }
    Ok(())
}

fn list(store: &Store, all: &[DeadLetterId], respond: Respond<'_>) -> Result<(), RequestError> {
    for id in all {
        let Some(letter) = letter(store, id)? else { continue };
        respond(Response::DeadLetter(summary(id, letter)))?;
    }
    Ok(())
}

fn summary(id: &DeadLetterId, letter: DeadLetter) -> DeadLetterSummary {
    DeadLetterSummary {
        seq: id.seq,
        sink: id.sink.clone(),
        epoch: id.epoch.clone(),
        reason: if letter.status == 413 { "too large" } else { "refused" }.to_owned(),
        status: letter.status,
        at: letter.at,
        attempts: letter.attempts,
        answer: letter.answer,
        line_sha256: letter.line_sha256,
    }
}

fn show(store: &Store, ids: &[DeadLetterId], respond: Respond<'_>) -> Result<(), RequestError> {
    for id in ids {
        let Some(letter) = letter(store, id)? else { continue };
        let line = letter.line().and_then(|line| String::from_utf8(line).ok());
        let line = line.ok_or_else(|| {
            RequestError::failed(format!("dead letter {} cannot be read back", id.seq))
        })?;
        respond(Response::Line(line))?;
    }
    Ok(())
}

fn letter(store: &Store, id: &DeadLetterId) -> Result<Option<DeadLetter>, RequestError> {
    store.outbox.dead_letter(id).map_err(RequestError::because)
}
