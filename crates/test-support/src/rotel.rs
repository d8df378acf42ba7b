//! The collector rotel as a process: it receives OTLP and forwards everything to another receiver.

use std::{
    env,
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Time for a start and a stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running collector. Killed when dropped.
pub struct Rotel {
    process: Child,
    address: SocketAddr,
    /// Its log and the file with its id.
    _directory: tempfile::TempDir,
}

impl Rotel {
    /// Starts a collector on a free port that forwards to the URL `to`.
    pub fn start(to: &str) -> Self {
        Self::on(free(), to)
    }

    /// Starts a collector on an address, such as that of one that was stopped.
    #[track_caller]
    pub fn on(address: SocketAddr, to: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(program());
        command.env_clear().arg("start");
        command.args(["--otlp-http-endpoint", &address.to_string()]);
        command.args(["--otlp-grpc-endpoint", &free().to_string()]);
        command.args(["--exporter", "otlp", "--otlp-exporter-protocol", "http"]);
        command.args(["--otlp-exporter-endpoint", to, "--batch-timeout", "20ms"]);
        command.args(["--otlp-exporter-retry-initial-backoff", "100ms"]);
        command.arg("--pid-file").arg(directory.path().join("pid"));
        command.arg("--log-file").arg(directory.path().join("log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().unwrap();
        let rotel = Self { process, address, _directory: directory };
        wait_for("rotel listens", || TcpStream::connect(address).is_ok());
        rotel
    }

    /// URL for the sink.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops the collector in an orderly way: what it has in memory is forwarded first.
    #[track_caller]
    pub fn stop(mut self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        wait_for("rotel stops", || self.process.try_wait().unwrap().is_some());
    }
}

impl Drop for Rotel {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Returns the program that `cargo xtask test` installs.
fn program() -> PathBuf {
    let servers = env::var_os("AI_AGENT_SERVERS").map(PathBuf::from);
    let cache = || PathBuf::from(env::var_os("HOME").unwrap()).join(".cache/ai-agent-servers");
    servers.unwrap_or_else(cache).join("bin/rotel")
}

/// Returns an address where no process listens.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Waits until a condition holds.
#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let started_at = Instant::now();
    while !condition() {
        assert!(started_at.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
