//! Feeds the service manager's watchdog as long as the agent makes progress.

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

/// Feeds the watchdog while three threads make progress: this one, which follows the configuration;
/// the ingest thread, checked by `ingest_progresses`; and the network thread, which runs the sinks.
///
/// An unreachable server or a full disk does not stop the feeding, since a restart would not help.
pub(super) async fn feed(
    notify: &Notify,
    ingest_progresses: impl Fn(Duration) -> bool,
) -> Infallible {
    let Some(pause) = notify.watchdog() else { return pending().await };
    let network = NetworkThread::default();
    loop {
        sleep(pause).await;
        let network_progresses = network.has_progressed();
        notify.feed(|limit| network_progresses && ingest_progresses(limit));
    }
}

/// Probe of the thread that runs the sinks.
pub(super) struct NetworkThread {
    has_run: Arc<AtomicBool>,
}

impl Default for NetworkThread {
    fn default() -> Self {
        Self { has_run: Arc::new(AtomicBool::new(true)) }
    }
}

impl NetworkThread {
    /// Returns whether the thread ran a task since the last call.
    pub(super) fn has_progressed(&self) -> bool {
        let progressed = self.has_run.swap(false, Ordering::Relaxed);
        let runs = Arc::clone(&self.has_run);
        tokio::spawn(async move { runs.store(true, Ordering::Relaxed) });
        progressed
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Instant};

    use super::*;

    /// The watchdog was fed by the thread that follows the configuration, which ran on while the
    /// network thread was stuck.
    #[test]
    fn a_stuck_network_thread_makes_no_progress() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
        let runtime = runtime.unwrap();
        let _context = runtime.enter();
        let network = NetworkThread::default();
        assert!(network.has_progressed(), "it had no time to get stuck");

        let (is_stuck, stuck) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        runtime.spawn(async move {
            is_stuck.send(()).unwrap();
            released.recv().unwrap();
        });
        stuck.recv().unwrap();
        // A task that was spawned before may have run.
        network.has_progressed();
        assert!(!network.has_progressed());
        assert!(!network.has_progressed());

        release.send(()).unwrap();
        let begun = Instant::now();
        while !network.has_progressed() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it never recovers");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
