//! Opens the outbox for a pipeline, and reports the state in which it was found.

use std::{path::Path, sync::Arc};

use siem_protocol::{
    AgentEvent,
    agent_event::{EpochReason, EpochStarted},
};
use tracing::{error, warn};

use super::error::AgentError;
use crate::{
    pipeline::{
        ingest::Inbox,
        orphaned_sinks,
        outbox::{OpenOutcome, Outbox, SinkRegistration},
        runner::new_epoch,
    },
    platform::Clock,
};

/// Opens the outbox in a state directory, or creates one where there is none or a damaged one.
///
/// # Errors
/// [`AgentError`] if it can be neither opened nor created.
pub(super) fn open(
    state_dir: &Path,
    sinks: &[SinkRegistration],
    clock: &dyn Clock,
    inbox: &Arc<Inbox>,
) -> Result<Outbox, AgentError> {
    let path = state_dir.join("outbox.redb");
    let opened = Outbox::open_or_recover(&path, sinks, new_epoch, clock.now());
    let (outbox, outcome) = opened.map_err(|error| match error.is_disk_full() {
        true => AgentError::DiskFull { error },
        false => AgentError::Outbox(error),
    })?;
    report(outcome, &outbox.epoch(), inbox);
    orphaned_sinks::report(&outbox, |event| inbox.report(event));
    Ok(outbox)
}

fn report(outcome: OpenOutcome, epoch: &str, inbox: &Inbox) {
    let (previous_epoch, reason) = match outcome {
        OpenOutcome::Intact => return,
        OpenOutcome::Created { previous_epoch: None } => (None, EpochReason::First),
        OpenOutcome::Created { previous_epoch } => {
            warn!(
                code = "outbox_missing",
                previous_epoch,
                "the outbox was deleted: created a new one; files are read again from the offsets \
                 that the receiver had acknowledged"
            );
            (previous_epoch, EpochReason::OutboxMissing)
        }
        OpenOutcome::Replaced { moved_to, reason, previous_epoch, dead_letters } => {
            let moved_to = moved_to.display().to_string();
            error!(
                code = "outbox_quarantined",
                reason,
                moved_to,
                dead_letters_kept = dead_letters.kept,
                dead_letters_lost = dead_letters.lost,
                "the outbox was damaged and moved aside: created a new one; files are read again \
                 from the offsets that the receiver had acknowledged; the damaged file may be \
                 deleted unless you want to examine it"
            );
            let quarantined = AgentEvent::OutboxQuarantined {
                reason,
                moved_to,
                dead_letters_kept: dead_letters.kept,
                dead_letters_lost: dead_letters.lost,
            };
            inbox.report(quarantined.into());
            (previous_epoch, EpochReason::Quarantine)
        }
    };
    let started = EpochStarted {
        epoch: epoch.to_owned(),
        previous_epoch,
        reason,
        entries: None,
        previous_last_seq: None,
        previous_totals: None,
    };
    inbox.report(AgentEvent::EpochStarted(Box::new(started)).into());
}
