//! The agent as a child process.

use std::{
    ffi::OsStr,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{PATIENCE, SECRET, TOKEN, lines_with_code, replace_file, within};

/// Variable that names the user's home directory.
const HOME: &str = if cfg!(windows) { "USERPROFILE" } else { "HOME" };

/// Command line of the agent. The process gets no variables except PATH, HOME and those set here.
pub(crate) struct AgentCommand {
    command: Command,
    home: PathBuf,
}

impl AgentCommand {
    pub(crate) fn new(home: &Path, arguments: &[&str]) -> Self {
        Self::of(Path::new(env!("CARGO_BIN_EXE_ai-agent")), home, arguments)
    }

    /// Uses another binary with the same command line.
    pub(crate) fn of(binary: &Path, home: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(binary);
        command.env_clear().env(HOME, home).args(arguments);
        for name in ["PATH", "SystemRoot", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        Self { command, home: home.to_owned() }
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Sets a variable.
    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes a variable.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Sets the endpoint, with the token and the secret of the tests.
    pub(crate) fn ships_to(self, endpoint: &str) -> Self {
        self.env("CLAUDE_SIEM_ENDPOINT", endpoint)
            .env("CLAUDE_SIEM_TOKEN", TOKEN)
            .env("CLAUDE_SIEM_HMAC_SECRET", SECRET)
    }

    /// Writes `text` to a file and passes it by `--config`. A command with the configuration of a
    /// running agent leaves the file unchanged, since the agent watches it.
    pub(crate) fn config(self, text: &str) -> Self {
        let path = self.home.join("agent.toml");
        replace_file(&path, text);
        self.arg("--config").arg(path)
    }

    /// Runs the agent as another user. Requires root.
    #[cfg(unix)]
    pub(crate) fn user(mut self, user: u32) -> Self {
        std::os::unix::process::CommandExt::uid(&mut self.command, user);
        std::os::unix::process::CommandExt::gid(&mut self.command, user);
        self
    }

    /// Starts the agent.
    #[track_caller]
    pub(crate) fn start(mut self) -> Agent {
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        let stdout = Collector::new(child.stdout.take().unwrap());
        let stderr = Collector::new(child.stderr.take().unwrap());
        Agent { child, stdout, stderr, began: Instant::now() }
    }

    /// Starts the agent and waits until its pipeline runs.
    #[track_caller]
    pub(crate) fn start_and_wait(self) -> Agent {
        let mut agent = self.start();
        agent.wait_for_code("agent_started");
        agent
    }

    /// Runs the agent until it exits.
    #[track_caller]
    pub(crate) fn run(self) -> Finished {
        self.start().wait(2 * PATIENCE)
    }

    /// Runs the agent until it exits, which must be with 0.
    #[track_caller]
    pub(crate) fn succeed(self) -> Finished {
        let ended = self.run();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended
    }

    /// Runs the agent until everything is delivered. The exit code is 1 if an entry became a dead
    /// letter in this run, and not in one before.
    #[track_caller]
    pub(crate) fn deliver(self) -> Finished {
        let ended = self.run();
        assert!(matches!(ended.code, Some(0 | 1)), "{}", ended.stderr);
        ended
    }

    /// Runs the agent until it exits, which must be with `code`. Returns its standard error from
    /// `error: ` on.
    #[track_caller]
    pub(crate) fn fail(self, code: i32) -> String {
        let ended = self.run();
        assert_eq!(ended.code, Some(code), "{}{}", ended.text(), ended.stderr);
        let errors = ended.stderr.lines().filter(|line| line.starts_with("error: "));
        assert_eq!(errors.count(), 1, "{}", ended.stderr);
        let error = ended.stderr.rfind("\nerror: ").map_or(0, |at| at + 1);
        ended.stderr[error..].to_owned()
    }
}

/// A running agent. Killed when dropped. It must not have printed any secret.
pub(crate) struct Agent {
    child: Child,
    stdout: Collector,
    stderr: Collector,
    began: Instant,
}

/// The result of an agent that has exited.
pub(crate) struct Finished {
    /// Exit code; `None` if a signal killed the process.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    /// Time from start to exit.
    pub(crate) after: Duration,
}

impl Finished {
    /// Standard output as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

impl Agent {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Standard error so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&self.stderr.so_far()).into_owned()
    }

    /// Standard output so far.
    pub(crate) fn stdout(&self) -> Vec<u8> {
        self.stdout.so_far()
    }

    /// Reports whether the process is still running.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for a log line with this code.
    #[track_caller]
    pub(crate) fn wait_for_code(&mut self, code: &str) {
        self.wait_for_line(code, "");
    }

    /// Waits for a log line with this code that contains `token`: a field, a key, a path.
    #[track_caller]
    pub(crate) fn wait_for_line(&mut self, code: &str, token: &str) {
        self.wait_until_logged(&format!("{code} {token}"), |log| {
            lines_with_code(log, code).iter().any(|line| line.contains(token))
        });
    }

    /// Waits until the log meets a condition.
    #[track_caller]
    pub(crate) fn wait_until_logged(&mut self, what: &str, condition: impl Fn(&str) -> bool) {
        within(PATIENCE, what, || {
            // The order matters: a process that exits in between has logged everything.
            let runs = self.runs();
            let log = self.log();
            let is_met = condition(&log);
            assert!(runs || is_met, "ended without {what}:\n{log}");
            is_met.then_some(())
        });
    }

    /// Sends a signal.
    #[cfg(unix)]
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Sends SIGTERM and waits for a clean and quick exit.
    #[cfg(unix)]
    #[track_caller]
    pub(crate) fn stop(self) -> Finished {
        self.stop_by(rustix::process::Signal::TERM)
    }

    /// Kills the process, since no signal stops a process without a window. What it stored must be
    /// enough.
    #[cfg(not(unix))]
    pub(crate) fn stop(self) {
        self.kill();
    }

    /// Like [`Agent::stop`], with another signal.
    #[cfg(unix)]
    #[track_caller]
    pub(crate) fn stop_by(self, signal: rustix::process::Signal) -> Finished {
        let asked = Instant::now();
        self.signal(signal);
        let ended = self.wait(PATIENCE);
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(5), "took {took:?} to end:\n{}", ended.stderr);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended
    }

    /// Kills the process as `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until the process exits by itself.
    #[track_caller]
    pub(crate) fn wait(mut self, limit: Duration) -> Finished {
        let started_at = Instant::now();
        let status = within(2 * limit, "the end of the agent", || {
            let status = self.child.try_wait().unwrap();
            assert!(started_at.elapsed() < limit, "ran longer than {limit:?}:\n{}", self.log());
            status
        });
        let ended = Finished {
            code: status.code(),
            stdout: self.stdout.whole(),
            stderr: String::from_utf8_lossy(&self.stderr.whole()).into_owned(),
            after: self.began.elapsed(),
        };
        no_secret(&ended.stdout, &ended.stderr);
        ended
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if !thread::panicking() {
            no_secret(&self.stdout.so_far(), &self.log());
        }
    }
}

#[track_caller]
fn no_secret(stdout: &[u8], stderr: &str) {
    for secret in [TOKEN, SECRET] {
        assert!(!stderr.contains(secret), "a secret was printed:\n{stderr}");
        let printed = stdout.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!printed, "a secret was printed");
    }
}

/// Reads the output of a process, so that its pipe never fills.
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn new(mut from: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&bytes);
        let thread = thread::spawn(move || {
            let mut piece = [0; 64 << 10];
            while let Ok(length) = from.read(&mut piece) {
                if length == 0 {
                    break;
                }
                collected.lock().unwrap().extend_from_slice(&piece[..length]);
            }
        });
        Self { bytes, thread: Some(thread) }
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn whole(&mut self) -> Vec<u8> {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        self.so_far()
    }
}
