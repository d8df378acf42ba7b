//! The receiver as a child process.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use siem_protocol::Kind;

use super::{
    SECRET, TOKEN,
    entries::{self, StoredEntry},
    eventually, files_below, own_address,
};

/// Name of receivers with a key.
pub(crate) const NAME: &str = "siem.example.com";

/// `demo-server` on an address that it keeps while it is killed and restarted. Killed when dropped.
pub(crate) struct Receiver {
    data: tempfile::TempDir,
    address: String,
    child: Child,
    /// Further options: the level of trust; files with tokens and secrets in place of the default ones.
    options: Vec<String>,
    /// A token that the receiver accepts.
    token: String,
}

impl Receiver {
    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::with_config(None)
    }

    /// Starts a receiver that serves this managed configuration.
    #[track_caller]
    pub(crate) fn with_config(config: Option<&str>) -> Self {
        let data = tempfile::tempdir().unwrap();
        if let Some(config) = config {
            fs::write(data.path().join("config.json"), config).unwrap();
        }
        Self::over(data, Vec::new())
    }

    /// Starts a receiver [`NAME`] with a key, which accepts this level of trust.
    #[track_caller]
    pub(crate) fn at_level(level: &str) -> Self {
        Self::over(tempfile::tempdir().unwrap(), trust_options(level))
    }

    /// Starts a receiver with a key and another name.
    #[track_caller]
    pub(crate) fn named(name: &str) -> Self {
        let options = ["--trust", "first-use", "--receiver-name", name].map(str::to_owned);
        Self::over(tempfile::tempdir().unwrap(), options.to_vec())
    }

    /// Starts a receiver with this data.
    #[track_caller]
    pub(crate) fn over(data: tempfile::TempDir, options: Vec<String>) -> Self {
        let (child, address) =
            try_spawn(data.path(), &format!("{}:0", own_address()), &options).expect("it starts");
        Self { data, address, child, options, token: TOKEN.to_owned() }
    }

    /// Starts a receiver with exactly these options, on a free port.
    #[track_caller]
    pub(crate) fn of_command(options: &[String], token: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut command = Command::new(binary("demo-server"));
        command.args(["--listen", &format!("{}:0", own_address())]).args(options);
        let (child, address) = listening(&mut command).expect("it starts");
        Self { data, address, child, options: Vec::new(), token: token.to_owned() }
    }

    /// Restarts the receiver at this level of trust.
    #[track_caller]
    pub(crate) fn restart_at(&mut self, level: &str) {
        self.options = trust_options(level);
        self.kill();
        self.restart();
    }

    /// Runs a command of `siem-server` on the data, which must succeed, and returns its output.
    #[track_caller]
    pub(crate) fn administer(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(binary("siem-server"));
        let output = command.args(arguments).arg("--data").arg(self.data.path()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Number of events of this kind.
    #[track_caller]
    pub(crate) fn events(&self, kind: &str) -> u64 {
        self.stats()["events"][kind].as_u64().unwrap()
    }

    /// Devices, as `siem-server devices list` shows them.
    #[track_caller]
    pub(crate) fn devices(&self) -> Vec<Value> {
        let list = self.administer(&["devices", "list", "--json"]);
        serde_json::from_str(&list).unwrap()
    }

    /// Starts a receiver with another key on the address of this one, which was killed.
    #[track_caller]
    pub(crate) fn impostor(&self, level: &str) -> Self {
        let (data, options) = (tempfile::tempdir().unwrap(), trust_options(level));
        let (child, address) =
            eventually("the port is free", || try_spawn(data.path(), &self.address, &options));
        Self { data, address, child, options, token: TOKEN.to_owned() }
    }

    /// Restarts the receiver with these tokens and secrets in place of the default ones. The first
    /// secret signs.
    #[track_caller]
    pub(crate) fn restart_with(&mut self, tokens: &[&str], secrets: &[&str]) {
        self.options.clear();
        tokens[0].clone_into(&mut self.token);
        for (name, keys) in [("token", tokens), ("hmac-secret", secrets)] {
            let path = self.data.path().join(name);
            private(&path, &keys.join("\n"));
            self.options.extend([format!("--{name}-file"), path.to_str().unwrap().to_owned()]);
        }
        self.kill();
        self.restart();
    }

    /// Endpoint for agents.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Kills the process as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Restarts the receiver on its address, with its data.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        let (child, address) = eventually("the port is free again", || {
            try_spawn(self.data.path(), &self.address, &self.options)
        });
        assert_eq!(address, self.address);
        self.child = child;
    }

    /// Returns all stored entries in order of their sequence numbers. There must be at most one
    /// machine and one epoch.
    #[track_caller]
    pub(crate) fn entries(&self) -> Vec<StoredEntry> {
        self.settle();
        let files = files_below(&self.data.path().join("machines"));
        let ndjson: Vec<_> =
            files.iter().filter(|path| path.extension().is_some_and(|e| e == "ndjson")).collect();
        assert!(ndjson.len() <= 1, "more than one epoch: {ndjson:?}");
        let Some(path) = ndjson.first() else { return Vec::new() };
        let bytes = fs::read(path).unwrap();
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut entries = entries::parse(&bytes[..whole]);
        entries.sort_by_key(|entry| entry.seq);
        entries
    }

    /// Waits until the running receiver has written its journal to the files of the epochs: it
    /// answers `/stats` only after that.
    fn settle(&self) {
        drop(get(&self.address, "/stats", &self.token));
    }

    /// Returns the stored entries of each epoch, in the order in which the epochs began.
    #[track_caller]
    pub(crate) fn epochs(&self) -> Vec<Vec<StoredEntry>> {
        self.settle();
        let mut files = files_below(&self.data.path().join("machines"));
        files.retain(|path| path.extension().is_some_and(|extension| extension == "ndjson"));
        // The names of the files sort by time.
        files.sort_by(|one, other| one.file_name().cmp(&other.file_name()));
        let read = |path: &PathBuf| {
            let bytes = fs::read(path).unwrap();
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            entries::parse(&bytes[..whole])
        };
        files.iter().map(read).collect()
    }

    /// Returns the stored entries of all epochs, those of an epoch in order of their numbers.
    #[track_caller]
    pub(crate) fn entries_of_all_epochs(&self) -> Vec<StoredEntry> {
        let mut epochs = self.epochs();
        for epoch in &mut epochs {
            epoch.sort_by_key(|entry| entry.seq);
        }
        epochs.into_iter().flatten().collect()
    }

    /// Number of stored entries.
    pub(crate) fn count(&self) -> u64 {
        let epochs = self.stats()["machines"][0]["epochs"].as_array().cloned().unwrap_or_default();
        epochs.iter().filter_map(|epoch| epoch["entries"].as_u64()).sum()
    }

    /// Response to `/stats`.
    #[track_caller]
    pub(crate) fn stats(&self) -> Value {
        let body = get(&self.address, "/stats", &self.token).expect("the receiver answers");
        serde_json::from_str(&body).unwrap()
    }

    /// Fails unless the sequence numbers start at 1 without gaps or repetitions, and the hash chain
    /// is intact.
    #[track_caller]
    pub(crate) fn assert_complete(&self) {
        let stats = self.stats();
        let machines = stats["machines"].as_array().unwrap();
        assert_eq!(machines.len(), 1, "{stats:#}");
        assert_eq!(machines[0]["clones"], Value::Array(Vec::new()), "{stats:#}");
        let epochs = machines[0]["epochs"].as_array().unwrap();
        assert_eq!(epochs.len(), 1, "{stats:#}");
        for list in ["gaps", "holes", "breaks"] {
            assert_eq!(epochs[0][list], Value::Array(Vec::new()), "{stats:#}");
        }
        assert_eq!(epochs[0]["conflicts"], 0, "{stats:#}");
        assert_eq!(
            stats["unexplained"], 0,
            "what the agent claims is not what is there: {stats:#}"
        );
        // An agent that can only be killed may not have sent its last heartbeat.
        if cfg!(unix) || !epochs[0]["claims"].is_null() {
            assert_eq!(epochs[0]["claims"]["difference"], "none", "{stats:#}");
        }
        let numbers: Vec<u64> = self.entries().iter().map(|entry| entry.seq).collect();
        let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
        assert_eq!(numbers, expected);
    }

    /// Its data directory.
    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn trust_options(level: &str) -> Vec<String> {
    ["--trust", level, "--receiver-name", NAME].map(str::to_owned).to_vec()
}

fn try_spawn(data: &Path, listen: &str, options: &[String]) -> Option<(Child, String)> {
    let mut command = Command::new(binary("demo-server"));
    command.args(["--listen", listen, "--data"]).arg(data).args(options);
    command.env("CLAUDE_SIEM_TOKEN", TOKEN).env("CLAUDE_SIEM_HMAC_SECRET", SECRET);
    listening(&mut command)
}

/// Starts the process. Returns `None` if it exits before it listens.
fn listening(command: &mut Command) -> Option<(Child, String)> {
    let mut child = command
        .env("RUST_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    match line.trim().strip_prefix("listening on http://") {
        Some(address) => Some((child, address.to_owned())),
        None => {
            drop(child.kill());
            child.wait().unwrap();
            None
        }
    }
}

/// Replaces a file, readable for its owner only.
pub(crate) fn private(path: &Path, text: &str) {
    ai_agent::internals::platform::secure_file::replace(path, text.as_bytes()).unwrap();
}

/// Path of a binary of the receiver beside the agent's, which is built if it is missing.
pub(crate) fn binary(name: &str) -> PathBuf {
    let agent = Path::new(env!("CARGO_BIN_EXE_ai-agent"));
    let profile = agent.parent().unwrap();
    let binary = profile.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    if !binary.try_exists().unwrap() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "siem-server", "--target-dir"]);
        cargo.arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
        assert!(status.success(), "the receiver can't be built");
    }
    binary
}

/// Returns the body of a successful response to a GET.
fn get(address: &str, path: &str, token: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200 ").then(|| body.to_owned())
}

/// Waits until the receiver has stored `lines` lines, or until no more arrive: the caller finds
/// what is missing.
#[track_caller]
pub(crate) fn settle(receiver: &Receiver, lines: usize) {
    const QUIET: Duration = Duration::from_secs(15);
    let mut held = (0, Instant::now());
    wait_for(receiver, "an end of what comes", |entries| {
        let count = entries.iter().filter(|entry| entry.kind != Kind::Event).count();
        if held.0 != count {
            held = (count, Instant::now());
        }
        (count >= lines || held.1.elapsed() > QUIET).then_some(())
    });
}

/// Waits until the stored entries meet a condition.
#[track_caller]
pub(crate) fn wait_for<T>(
    receiver: &Receiver,
    what: &str,
    mut done: impl FnMut(&[StoredEntry]) -> Option<T>,
) -> T {
    let mut known = 0;
    let mut entries = Vec::new();
    eventually(what, || {
        let count = receiver.count();
        if count == 0 || count != known {
            entries = receiver.entries_of_all_epochs();
            known = entries.len() as u64;
        }
        done(&entries)
    })
}
