//! Notifications of a service to systemd: ready, making progress, stopping.
//!
//! A datagram is sent to the socket in an environment variable, see
//! <https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>. Other service managers
//! have no such notifications.

use std::{ffi::OsString, time::Duration};

use super::super::environment::Environment;

/// Connection to the service manager; does nothing if there is none.
#[derive(Debug, Default)]
pub struct Notify {
    socket: Option<OsString>,
    /// Watchdog timeout of the service manager.
    watchdog: Option<Duration>,
}

impl Notify {
    /// Creates a connection to the manager that `environment` names.
    #[must_use]
    pub fn new(environment: &Environment) -> Self {
        let number = |name: &str| environment.process_value(name)?.to_str()?.parse::<u64>().ok();
        // The variables may be meant for the parent process.
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|micros| is_ours && *micros > 0);
        Self {
            socket: environment.process_value("NOTIFY_SOCKET").map(ToOwned::to_owned),
            watchdog: watchdog.map(Duration::from_micros),
        }
    }

    /// Reports that the agent is ready.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// Reports that the agent is stopping.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// Returns the interval at which to call [`feed`](Self::feed), if the manager has a watchdog.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 4)
    }

    /// Feeds the watchdog if `makes_progress` confirms that the agent made progress within the
    /// given time.
    pub fn feed(&self, makes_progress: impl FnOnce(Duration) -> bool) {
        let Some(limit) = self.watchdog else { return };
        if makes_progress(limit / 2) {
            self.send("WATCHDOG=1");
        } else {
            tracing::error!(
                code = "agent_stalled",
                "agent is stalled: the service manager will restart it"
            );
        }
    }

    fn send(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = send(socket, state) {
            tracing::debug!(%error, state, "could not notify the service manager");
        }
    }
}

#[cfg(target_os = "linux")]
fn send(socket: &std::ffi::OsStr, state: &str) -> std::io::Result<()> {
    use std::os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    };

    let address = match socket.as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(not(target_os = "linux"))]
fn send(_: &std::ffi::OsStr, _: &str) -> std::io::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// Service manager that records notifications.
    struct Manager(UnixDatagram, tempfile::TempDir);

    impl Manager {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
            socket.set_nonblocking(true).unwrap();
            Self(socket, dir)
        }

        fn notify(&self, more: &[(&str, &str)]) -> Notify {
            let path = self.1.path().join("notify");
            let path = path.to_str().unwrap().to_owned();
            let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
            let variables = [("NOTIFY_SOCKET", path)].into_iter().chain(more);
            Notify::new(&variables.collect())
        }

        fn received(&self) -> Vec<String> {
            let mut received = Vec::new();
            let mut bytes = [0; 100];
            while let Ok(length) = self.0.recv(&mut bytes) {
                received.push(String::from_utf8(bytes[..length].to_vec()).unwrap());
            }
            received
        }
    }

    #[test]
    fn ready_and_stopping_are_reported() {
        let manager = Manager::new();
        let notify = manager.notify(&[]);
        notify.ready();
        notify.stopping();
        assert_eq!(manager.received(), ["READY=1", "STOPPING=1"]);
        assert!(notify.watchdog().is_none());
    }

    #[test]
    fn abstract_socket_is_reached() {
        use std::os::{linux::net::SocketAddrExt as _, unix::net::SocketAddr};

        let name = format!("ai-agent-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Notify::new(&[("NOTIFY_SOCKET", format!("@{name}"))].into_iter().collect()).ready();
        let mut bytes = [0; 100];
        let length = socket.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"READY=1");
    }

    /// With a timer that runs on its own, a stuck thread would never be restarted.
    #[test]
    fn watchdog_is_fed_on_progress_only() {
        let manager = Manager::new();
        let notify = manager.notify(&[("WATCHDOG_USEC", "40000000")]);
        assert_eq!(notify.watchdog(), Some(Duration::from_secs(10)));
        notify.feed(|limit| limit == Duration::from_secs(20));
        assert_eq!(manager.received(), ["WATCHDOG=1"]);
        notify.feed(|_| false);
        assert_eq!(manager.received(), Vec::<String>::new());
    }

    #[test]
    fn watchdog_of_another_process_is_ignored() {
        let manager = Manager::new();
        let notify = manager.notify(&[("WATCHDOG_USEC", "40000000"), ("WATCHDOG_PID", "1")]);
        assert!(notify.watchdog().is_none());
    }
}
