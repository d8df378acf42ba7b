//! How a system asks a process to end.

use std::io;

/// What the system, or a person by it, asks of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// To end: SIGTERM, Ctrl-C, its window closed, or the system's end.
    End,
    /// To look at its configuration: SIGHUP, where there is such a thing.
    HangUp,
}

/// Listens to the signals that end the agent, and takes those that must not.
pub struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    hangup: tokio::signal::unix::Signal,
    /// Whether a hang-up came while only an end was waited for.
    was_hung_up: bool,
    #[cfg(windows)]
    interrupt: tokio::signal::windows::CtrlC,
    #[cfg(windows)]
    close: tokio::signal::windows::CtrlClose,
    #[cfg(windows)]
    shutdown: tokio::signal::windows::CtrlShutdown,
}

#[cfg(unix)]
impl Signals {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            was_hung_up: false,
        })
    }

    /// Waits for a signal.
    async fn received(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::End,
            _ = self.interrupt.recv() => Signal::End,
            _ = self.hangup.recv() => Signal::HangUp,
        }
    }
}

#[cfg(windows)]
impl Signals {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> io::Result<Self> {
        use tokio::signal::windows::{ctrl_c, ctrl_close, ctrl_shutdown};

        let (interrupt, close, shutdown) = (ctrl_c()?, ctrl_close()?, ctrl_shutdown()?);
        Ok(Self { interrupt, close, shutdown, was_hung_up: false })
    }

    /// Waits for a signal.
    async fn received(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.close.recv() => {}
            _ = self.shutdown.recv() => {}
        }
        Signal::End
    }
}

impl Signals {
    /// Waits for a signal, or gives the hang-up that came while only an end was waited for.
    pub async fn next(&mut self) -> Signal {
        if std::mem::take(&mut self.was_hung_up) { Signal::HangUp } else { self.received().await }
    }

    /// Waits until the agent is asked to end.
    pub async fn ended(&mut self) {
        while self.received().await != Signal::End {
            self.was_hung_up = true;
        }
    }
}
