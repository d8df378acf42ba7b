//! Feeds the service manager's watchdog as long as the agent gets on.

use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::sleep;

use crate::platform::service::Notify;

/// Feeds it: where this runs the configuration is followed, `reading_gets_on` asks the thread that
/// reads, and what it spawns shows that the thread of the sinks is not stuck. A server that is away
/// and a disk that is full are no reasons: a new agent would find them as they are.
pub(super) async fn feed(
    notify: &Notify,
    reading_gets_on: impl Fn(Duration) -> bool,
) -> Infallible {
    let Some(pause) = notify.watchdog() else { return pending().await };
    let has_run = Arc::new(AtomicBool::new(true));
    loop {
        sleep(pause).await;
        let network_gets_on = has_run.swap(false, Ordering::Relaxed);
        let runs = Arc::clone(&has_run);
        tokio::spawn(async move { runs.store(true, Ordering::Relaxed) });
        notify.feed(|limit| network_gets_on && reading_gets_on(limit));
    }
}
