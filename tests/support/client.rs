//! The real Claude Code client, against a scripted model and without a network.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::{files_below, shared};

/// How long the client may take, its download included.
pub(crate) const LONGEST: Duration = Duration::from_secs(400);

/// The script that runs the client.
pub(crate) struct Client(PathBuf);

impl Client {
    /// The client; none where something that it needs is missing.
    pub(crate) fn find() -> Option<Self> {
        let script = shared()?.join("realclient/run.sh");
        for tool in ["npm", "python3"] {
            let found = Command::new(tool).arg("--version").stdout(Stdio::null()).status();
            if !found.is_ok_and(|status| status.success()) {
                let on_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
                assert!(!on_ci, "the real client needs {tool}, and this is the place to have it");
                eprintln!("skipped: the real client needs {tool}");
                return None;
            }
        }
        Some(Self(script))
    }

    /// One of its own scenarios.
    pub(crate) fn scenario(&self, name: &str) -> PathBuf {
        self.0.parent().unwrap().join(format!("scenarios/{name}.json"))
    }

    /// Runs scenarios, with a hook if one is given; false where the client could not be fetched,
    /// and was not there from another time.
    pub(crate) fn run(&self, scenarios: &[PathBuf], work: &Path, hook: Option<&Path>) -> bool {
        let log = work.join("client.log");
        let mut command = Command::new(&self.0);
        if let Some(hook) = hook {
            command.env("RC_HOOK_COMMAND", hook);
        }
        let mut child = command
            .args(scenarios)
            .env("RC_WORK", work)
            .env("RC_CACHE", cache())
            .stdin(Stdio::null())
            .stdout(fs::File::create(&log).unwrap())
            .stderr(fs::File::options().append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > LONGEST {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("the client took too long:\n{}", fs::read_to_string(&log).unwrap());
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let is_client = |path: &PathBuf| path.file_name().is_some_and(|name| name == "claude");
        if !status.success() && !files_below(&cache()).iter().any(is_client) {
            eprintln!("skipped: the real client could not be fetched from the npm registry");
            return false;
        }
        assert!(status.success(), "{}", fs::read_to_string(&log).unwrap());
        true
    }
}

/// Where the client is kept from one run to the next.
fn cache() -> PathBuf {
    if let Some(given) = std::env::var_os("RC_CACHE") {
        return given.into();
    }
    let home = std::env::var_os("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
    home.join(".cache/ai-agent-realclient")
}
