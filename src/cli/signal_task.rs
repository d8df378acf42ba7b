//! Signals to the agent. A thread of their own receives them, so that they are obeyed while the main
//! thread is in a call of a file system that does not return. It is the only one that starts before
//! the agent is restricted, and has a stricter restriction of its own: it opens no files.

use std::{
    io, process,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use tokio::{runtime, sync::watch};
use tracing::error;

use crate::{
    agent::AgentHandle,
    platform::{Signal, Signals, sandbox},
};

/// Time after a signal to stop after which the process ends in any case: reading and delivery take at
/// most 4.5 s to stop.
const MAX_STOP: Duration = Duration::from_millis(4700);
/// Time that the log line about it and closing the outbox may take then.
const MAX_CLOSE: Duration = Duration::from_millis(200);

/// Receives signals, and passes them on to the agent once there is one.
#[derive(Clone)]
pub(super) struct SignalTask(Arc<Shared>);

struct Shared {
    received: Mutex<Received>,
    stopped: watch::Sender<bool>,
}

#[derive(Default)]
struct Received {
    agent: Option<AgentHandle>,
    /// True if SIGHUP was received before there was an agent.
    was_hung_up: bool,
}

impl SignalTask {
    /// Starts to receive signals.
    ///
    /// # Errors
    /// The error of the system.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _context = runtime.enter();
            Signals::listen()?
        };
        let shared = Shared { received: Mutex::default(), stopped: watch::Sender::new(false) };
        let task = Self(Arc::new(shared));
        let receiver = task.clone();
        let receive = move || {
            sandbox::forbid_all();
            runtime.block_on(receiver.receive(signals));
        };
        thread::Builder::new().name("signals".into()).spawn(receive)?;
        Ok(task)
    }

    async fn receive(self, mut signals: Signals) {
        loop {
            match signals.next().await {
                Signal::End => self.stop(),
                Signal::HangUp => {
                    let mut received = self.received();
                    match &received.agent {
                        Some(agent) => agent.hang_up(),
                        None => received.was_hung_up = true,
                    }
                }
            }
        }
    }

    /// Passes signals on to `agent`, those that were received before included.
    pub(super) fn forward_to(&self, agent: AgentHandle) {
        let mut received = self.received();
        if received.was_hung_up {
            agent.hang_up();
        }
        if *self.0.stopped.borrow() {
            agent.stop();
        }
        received.agent = Some(agent);
    }

    /// Passes signals on no longer; the agent has ended.
    pub(super) fn forget_agent(&self) {
        self.received().agent = None;
    }

    /// Waits for a signal to stop.
    pub(super) async fn stopped(&self) {
        let mut stopped = self.0.stopped.subscribe();
        // Cannot fail, since the sender is in this task.
        drop(stopped.wait_for(|stopped| *stopped).await);
    }

    fn stop(&self) {
        let is_first = !self.0.stopped.send_replace(true);
        if let Some(agent) = &self.received().agent {
            agent.stop();
        }
        if is_first {
            let task = self.clone();
            let end = thread::Builder::new().name("stop".into()).spawn(move || task.end_process());
            if let Err(error) = end {
                error!(code = "stop_unlimited", %error, "cannot limit the time of the shutdown");
            }
        }
    }

    /// Ends the process if it has not ended by then.
    fn end_process(self) -> ! {
        thread::sleep(MAX_STOP);
        let (closed, are_done) = mpsc::channel::<()>();
        // A thread that hangs in a write to the log has it locked.
        let logged = closed.clone();
        let log = move || {
            error!(code = "stop_forced", "the shutdown takes too long: ending the process");
            drop(logged);
        };
        let close = move || {
            if let Some(Ok(pipeline)) = self.received().agent.as_ref().map(AgentHandle::pipeline) {
                pipeline.outbox().close();
            }
            drop(closed);
        };
        // One that cannot be started drops its sender.
        drop(thread::Builder::new().spawn(log));
        drop(thread::Builder::new().spawn(close));
        // Nothing is sent: it ends when both have dropped their senders.
        are_done.recv_timeout(MAX_CLOSE).unwrap_or_default();
        process::exit(1);
    }

    fn received(&self) -> MutexGuard<'_, Received> {
        self.0.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
