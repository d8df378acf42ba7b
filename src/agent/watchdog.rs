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

/// Feeds it: where this runs the configuration is followed, `reading_makes_progress` asks the thread that
/// reads, and what it spawns shows that the thread of the sinks is not stuck. A server that is away
/// and a disk that is full are no reasons: a new agent would find them as they are.
pub(crate) async fn feed(
    notify: &Notify,
    reading_makes_progress: impl Fn(Duration) -> bool,
) -> Infallible {
    let Some(pause) = notify.watchdog() else { return pending().await };
    let network = Network::default();
    loop {
        sleep(pause).await;
        let network_makes_progress = network.gets_on();
        notify.feed(|limit| network_makes_progress && reading_makes_progress(limit));
    }
}

/// The thread of the sinks.
struct Network {
    has_run: Arc<AtomicBool>,
}

impl Default for Network {
    fn default() -> Self {
        Self { has_run: Arc::new(AtomicBool::new(true)) }
    }
}

impl Network {
    /// Whether it has run since this was asked the last time.
    fn gets_on(&self) -> bool {
        let gets_on = self.has_run.swap(false, Ordering::Relaxed);
        let runs = Arc::clone(&self.has_run);
        tokio::spawn(async move { runs.store(true, Ordering::Relaxed) });
        gets_on
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Instant};

    use super::*;

    /// The thread that follows the configuration feeds the watchdog, and ran on while nothing was
    /// delivered any more.
    #[test]
    fn a_thread_of_the_sinks_that_is_stuck_is_none_that_gets_on() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
        let runtime = runtime.unwrap();
        let _context = runtime.enter();
        let network = Network::default();
        assert!(network.gets_on(), "it has had no time to get stuck");

        let (is_stuck, stuck) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        runtime.spawn(async move {
            is_stuck.send(()).unwrap();
            released.recv().unwrap();
        });
        stuck.recv().unwrap();
        // What was spawned before may have run.
        network.gets_on();
        assert!(!network.gets_on());
        assert!(!network.gets_on());

        release.send(()).unwrap();
        let begun = Instant::now();
        while !network.gets_on() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it never gets on again");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
