//! Sends a dead letter again, through the sink that refused it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use siem_protocol::{BatchHeader, Identity};
use tokio::{sync::oneshot, task::spawn_blocking};

use super::super::outbox::{DeadLetter, DeadLetterId, Outbox, OutboxError};
use crate::{
    frame::FrameBuilder,
    platform::{Clock, Timestamp},
    stages::sink::{Batch, Custody, Delivery, EntryResult, Rest, Sink, StoredFrames},
};

/// An order to a sink's task to send one dead letter again.
///
/// The task sends it between two batches and within the sink's rate limit. When the task ends first,
/// `outcome` is dropped.
#[derive(Debug)]
pub struct DeadLetterRetry {
    /// The dead letter; its sink is the task's.
    pub id: DeadLetterId,
    /// Receives the outcome.
    pub outcome: oneshot::Sender<Result<RetryOutcome, OutboxError>>,
}

/// Outcome of sending one dead letter again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOutcome {
    /// The receiver acknowledged the entry, and the dead letter was deleted.
    Delivered,
    /// The receiver refused the entry again; the dead letter now holds the new answer.
    Refused {
        /// The HTTP status.
        status: u16,
    },
    /// The entry was not delivered, and the dead letter is unchanged.
    NotDelivered {
        /// The sink's reason.
        reason: String,
    },
    /// The receiver holds another entry under this number.
    Conflict,
    /// The dead letter was delivered or deleted before it was sent.
    Missing,
}

/// Outcome of sending one dead letter again, and the number of bytes that were sent.
#[derive(Debug)]
pub struct RetryAttempt {
    /// The outcome. After an error it is not stored, so the dead letter may be sent once more.
    pub outcome: Result<RetryOutcome, OutboxError>,
    /// Bytes that count for the sink's rate limit.
    pub sent_bytes: u64,
}

/// Sends the dead letter `id` to its `sink` in a batch of its own, and stores the outcome.
pub async fn retry_dead_letter(
    sink: &mut dyn Sink,
    outbox: &Arc<Outbox>,
    identity: &Identity,
    clock: &dyn Clock,
    id: DeadLetterId,
) -> RetryAttempt {
    let unsent = |outcome| RetryAttempt { outcome, sent_bytes: 0 };
    let wanted = id.clone();
    let mut letter = match on_store(outbox, move |outbox| outbox.dead_letter(&wanted)).await {
        Ok(Some(letter)) => letter,
        Ok(None) => return unsent(Ok(RetryOutcome::Missing)),
        Err(error) => return unsent(Err(error)),
    };
    let custody = match custody(outbox, &id).await {
        Ok(custody) => custody,
        Err(error) => return unsent(Err(error)),
    };
    let now = clock.now();
    let Some(batch) = batch(identity, &id, &letter, custody, now) else {
        let reason = "its line cannot be read back".to_owned();
        return unsent(Ok(RetryOutcome::NotDelivered { reason }));
    };
    let delivery = of_one_entry(sink.deliver(&batch).await);
    let sent_bytes = sink.sent(&batch);
    let outcome = match delivery {
        Delivery::Acknowledged => on_store(outbox, move |outbox| outbox.remove_dead_letter(&id))
            .await
            .map(|()| RetryOutcome::Delivered),
        Delivery::Refused { status, answer } => {
            letter.attempts = letter.attempts.saturating_add(1);
            (letter.status, letter.answer, letter.at) = (status, answer, now.to_string());
            on_store(outbox, move |outbox| outbox.store_dead_letter(&id, &letter))
                .await
                .map(|()| RetryOutcome::Refused { status })
        }
        Delivery::Retry { reason, .. }
        | Delivery::Slow { reason, .. }
        | Delivery::Hold { reason, .. } => Ok(RetryOutcome::NotDelivered { reason }),
        Delivery::PerEntry { .. } | Delivery::Unidentified { .. } => {
            let reason = "the receiver did not acknowledge it".to_owned();
            Ok(RetryOutcome::NotDelivered { reason })
        }
        Delivery::Conflict { .. } => Ok(RetryOutcome::Conflict),
    };
    RetryAttempt { outcome, sent_bytes }
}

/// Returns the result for the only entry of a batch. One that is misfiled, or in transit without an
/// acknowledgement to come, is as delivered as it can be.
fn of_one_entry(delivery: Delivery) -> Delivery {
    let Delivery::PerEntry { mut entries, rest } = delivery else { return delivery };
    match (entries.pop(), rest) {
        (Some(EntryResult::Accepted | EntryResult::Misfiled { .. }), _)
        | (Some(EntryResult::Undecided), Rest::InTransit { .. }) => Delivery::Acknowledged,
        (Some(EntryResult::Refused { status, answer }), _)
        | (_, Rest::Refused { status, answer }) => Delivery::Refused { status, answer },
        (_, Rest::Retry { after, reason }) => Delivery::Retry { after, reason },
        (_, Rest::Slow { waited, reason }) => Delivery::Slow { waited, reason },
        (_, Rest::Hold { after, reason }) => Delivery::Hold { after, reason },
        (_, Rest::InTransit { .. } | Rest::Unprocessed) => {
            Delivery::PerEntry { entries, rest: Rest::Unprocessed }
        }
    }
}

/// A batch of one entry, which fills the hole that the dead letter left; `None` when the stored line
/// cannot be decoded.
fn batch(
    identity: &Identity,
    id: &DeadLetterId,
    letter: &DeadLetter,
    custody: Custody,
    now: Timestamp,
) -> Option<Batch> {
    let line = letter.line()?;
    let header = BatchHeader {
        count: 1,
        redelivery: true,
        seqs: vec![id.seq],
        ..BatchHeader::new(identity, id.epoch.clone(), letter.config, now.to_string())
    };
    let mut builder = FrameBuilder::default();
    let chain = builder.push(letter.line_sha256, false, |raw| raw.extend_from_slice(&line));
    let frame = builder.seal(id.seq + 1, chain, letter.config, now);
    Some(Batch::new(header, StoredFrames::new(frame.into_iter().collect(), custody)))
}

/// Returns the point of the dead letter's epoch that its receiver has acknowledged.
async fn custody(outbox: &Arc<Outbox>, id: &DeadLetterId) -> Result<Custody, OutboxError> {
    let sink = id.sink.clone();
    // A sink that is no longer configured has no cursor.
    let cursor = on_store(outbox, move |outbox| outbox.known_cursor(&sink)).await?;
    let held = cursor.as_ref().and_then(|cursor| cursor.held(&id.epoch));
    Ok(Custody {
        sink: id.sink.clone(),
        held: held.map(|(point, _)| point),
        receipt: held.and_then(|(_, receipt)| receipt.map(str::to_owned)),
    })
}

/// Runs `work` away from the network's threads.
async fn on_store<T: Send + 'static>(
    outbox: &Arc<Outbox>,
    work: impl FnOnce(&Outbox) -> Result<T, OutboxError> + Send + 'static,
) -> Result<T, OutboxError> {
    let outbox = Arc::clone(outbox);
    match spawn_blocking(move || work(&outbox)).await {
        Ok(done) => done,
        Err(failure) => std::panic::resume_unwind(failure.into_panic()),
    }
}
