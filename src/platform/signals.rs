//! Signals that stop or reload the agent.

use std::io;

/// Request of the system or of a person to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Stop: SIGTERM, Ctrl-C, a closed console window, or system shutdown.
    End,
    /// Check the configuration: SIGHUP, on systems that have it.
    #[cfg_attr(windows, allow(dead_code, reason = "Windows has no such signal"))]
    HangUp,
}

/// Makes a write beyond the limit of file sizes (`ulimit -f`) fail. By default a signal ends the
/// process: a hook that writes its report would end before its exit code blocks the prompt.
#[cfg(unix)]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
pub fn survive_file_size_limit() {
    // SAFETY: no code of the program runs when the signal arrives.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Windows has no such limit.
#[cfg(windows)]
pub fn survive_file_size_limit() {}

/// Receiver of signals.
pub struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    hangup: tokio::signal::unix::Signal,
    #[cfg(windows)]
    interrupt: tokio::signal::windows::CtrlC,
    #[cfg(windows)]
    close: tokio::signal::windows::CtrlClose,
    #[cfg(windows)]
    shutdown: tokio::signal::windows::CtrlShutdown,
}

#[cfg(unix)]
impl Signals {
    /// Starts to listen.
    ///
    /// # Errors
    /// The error of the system.
    pub fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::End,
            _ = self.interrupt.recv() => Signal::End,
            _ = self.hangup.recv() => Signal::HangUp,
        }
    }
}

#[cfg(windows)]
impl Signals {
    /// Starts to listen.
    ///
    /// # Errors
    /// The error of the system.
    pub fn listen() -> io::Result<Self> {
        use tokio::signal::windows::{ctrl_c, ctrl_close, ctrl_shutdown};

        let (interrupt, close, shutdown) = (ctrl_c()?, ctrl_close()?, ctrl_shutdown()?);
        Ok(Self { interrupt, close, shutdown })
    }

    /// Waits for a signal.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.close.recv() => {}
            _ = self.shutdown.recv() => {}
        }
        Signal::End
    }
}
