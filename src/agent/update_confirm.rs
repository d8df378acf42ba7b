//! Confirms a new program once this process has proved that it makes progress, and reports the end of the
//! last update.

use std::{
    convert::Infallible,
    future::pending,
    path::{Path, PathBuf},
    time::Duration,
};

use siem_protocol::AgentEvent;
use tokio::{task::spawn_blocking, time::sleep};
use tracing::{error, info, warn};

use super::watchdog::NetworkThread;
use crate::{
    logging,
    pipeline::runner::PipelineHandle,
    platform::LogReader,
    update::{
        guard, outside,
        program_files::ProgramFiles,
        record::{RollbackReason, UpdateRecord, UpdateState},
        rollback_reason, swap,
    },
    version::version,
};

/// Number of consecutive checks that must find progress.
const CHECKS: u32 = 3;
/// Interval between two checks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Longest time that a step of the ingest thread may take.
const MAX_STEP: Duration = Duration::from_secs(60);
/// Interval between attempts to store the confirmation.
const RETRY: Duration = Duration::from_secs(5);
/// Time in which an event is stored. An agent that is killed within it reports the event again.
const STORED: Duration = Duration::from_secs(10);
/// Lines of the log in the event about a failure.
const LOG_LINES: u64 = 30;
/// Part of the log in that event, in bytes.
const LOG_BYTES: usize = 8 << 10;

/// Confirms the program of this process if an update has put it into place, and reports the end of an
/// update. The same threads must make progress as for the watchdog: an unreachable receiver does not
/// prevent it, since the previous program would not help. A full disk does, until the guard puts the
/// previous program back: the confirmation is stored beside the program.
pub(super) async fn follow(
    ingest_progresses: impl Fn(Duration) -> bool,
    pipeline: &PipelineHandle,
    state_dir: &Path,
) -> Infallible {
    if guard::is_unconfirmed() {
        confirm(ingest_progresses).await;
    }
    report(pipeline, state_dir.to_owned()).await;
    pending().await
}

/// Confirms the program of a process that ends before it could prove progress in the usual way: it has
/// read what there was, and ends in order.
pub(super) async fn confirm_at_end() {
    if let Err(error) = blocking(guard::confirm).await {
        warn!(code = "update_confirm_failed", error, "cannot record that the new program runs");
    }
}

async fn confirm(ingest_progresses: impl Fn(Duration) -> bool) {
    let network = NetworkThread::default();
    let mut progressed = 0;
    while progressed < CHECKS {
        sleep(INTERVAL).await;
        let progresses = network.has_progressed() && ingest_progresses(MAX_STEP);
        progressed = if progresses { progressed + 1 } else { 0 };
    }
    while let Err(error) = blocking(guard::confirm).await {
        warn!(code = "update_confirm_failed", error, "cannot record that the new program runs");
        sleep(RETRY).await;
    }
    info!(code = "update_confirmed", version = version(), "the new program makes progress");
}

/// Reports the end of the last update, once.
pub(super) async fn report(pipeline: &PipelineHandle, state_dir: PathBuf) {
    let Some(files) = ProgramFiles::of_current().ok() else { return };
    let record = UpdateRecord::read(&files);
    let Some(record) = record.filter(|record| !record.is_pending() && !record.reported) else {
        return;
    };
    let event = blocking(move || Ok(event(record, &state_dir))).await;
    if let Ok(Some(event)) = event {
        pipeline.report(event.into());
        sleep(STORED).await;
    }
    let mark = move || outside::run(move || swap::mark_reported(&files));
    let marked = blocking(move || mark().flatten().map_err(|error| error.to_string())).await;
    if let Err(error) = marked {
        tracing::debug!(error, "cannot record that the update was reported");
    }
}

/// Returns the event about the end of an update; `None` if another program was installed meanwhile.
fn event(record: UpdateRecord, state_dir: &Path) -> Option<AgentEvent> {
    let UpdateRecord { state, from, to, reason, detail, .. } = record;
    let reason = match (state, reason) {
        (UpdateState::Confirmed, _) => return Some(AgentEvent::UpdateInstalled { from, to }),
        (UpdateState::RolledBack | UpdateState::Interrupted, Some(reason)) => reason,
        _ => return None,
    };
    let mut detail = detail.unwrap_or_default();
    if reason != RollbackReason::ByHand {
        error!(code = "update_rolled_back", from = to, to = from, detail, "the update has failed");
        let log = last_lines(state_dir);
        if !log.is_empty() {
            detail.push_str("\nlast lines of the log:\n");
            detail.push_str(&log);
        }
    }
    Some(AgentEvent::UpdateFailed { from, to, reason: rollback_reason(reason), detail })
}

/// Returns the last lines of the log, which the program that failed has written before this one started.
fn last_lines(state_dir: &Path) -> String {
    let mut bytes = Vec::new();
    let mut reader = LogReader::new(&logging::dir(state_dir));
    let read = reader.read_last(LOG_LINES, &mut |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    });
    let start = bytes.len().saturating_sub(LOG_BYTES);
    read.map_or_else(|_| String::new(), |()| String::from_utf8_lossy(&bytes[start..]).into_owned())
}

async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    spawn_blocking(call).await.unwrap_or_else(|error| Err(error.to_string()))
}
