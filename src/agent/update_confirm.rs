//! Confirms a new program once this process has proved that it makes progress.

use std::{convert::Infallible, future::pending, time::Duration};

use tokio::{task::spawn_blocking, time::sleep};
use tracing::{info, warn};

use super::watchdog::NetworkThread;
use crate::{update::guard, version::version};

/// Number of consecutive checks that must find progress.
const CHECKS: u32 = 3;
/// Interval between two checks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Longest time that a step of the ingest thread may take, as for the watchdog.
const MAX_STEP: Duration = Duration::from_secs(60);
/// Interval between attempts to store the confirmation.
const RETRY: Duration = Duration::from_secs(5);

/// Confirms the program of this process if an update has put it into place, and calls `confirmed` then.
/// The same threads must make progress as for the watchdog: an unreachable receiver or a full disk does
/// not prevent it, since the previous program would not help.
pub(super) async fn confirm(
    ingest_progresses: impl Fn(Duration) -> bool,
    confirmed: impl FnOnce(),
) -> Infallible {
    if !guard::is_unconfirmed() {
        return pending().await;
    }
    let network = NetworkThread::default();
    let mut progressed = 0;
    while progressed < CHECKS {
        sleep(INTERVAL).await;
        let progresses = network.has_progressed() && ingest_progresses(MAX_STEP);
        progressed = if progresses { progressed + 1 } else { 0 };
    }
    while let Err(error) = store_confirmation().await {
        warn!(code = "update_confirm_failed", error, "cannot record that the new program runs");
        sleep(RETRY).await;
    }
    info!(code = "update_confirmed", version = version(), "the new program makes progress");
    confirmed();
    pending().await
}

async fn store_confirmation() -> Result<(), String> {
    let stored = spawn_blocking(guard::confirm).await;
    stored.unwrap_or_else(|error| Err(error.to_string()))
}
