//! The real Claude Code client, against a scripted model and without a network.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use super::{shared, within};

/// Time that the client may take, including its download.
pub(crate) const LONGEST: Duration = Duration::from_secs(400);

/// The script that runs the client.
pub(crate) struct Client(PathBuf);

impl Client {
    /// The client, for tests that say `#[requires(client)]`.
    pub(crate) fn new() -> Self {
        Self(shared().join("realclient/run.sh"))
    }

    /// Path of one of the client's own scenarios.
    pub(crate) fn scenario(&self, name: &str) -> PathBuf {
        self.0.parent().unwrap().join(format!("scenarios/{name}.json"))
    }

    /// Runs scenarios, with a hook if one is given.
    #[track_caller]
    pub(crate) fn run(&self, scenarios: &[PathBuf], work: &Path, hook: Option<&Path>) {
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
        let status = within(LONGEST, "the end of the client", || child.try_wait().unwrap());
        assert!(status.success(), "{}", fs::read_to_string(&log).unwrap());
    }
}

/// Directory that keeps the client between runs.
fn cache() -> PathBuf {
    if let Some(given) = std::env::var_os("RC_CACHE") {
        return given.into();
    }
    let home = std::env::var_os("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
    home.join(".cache/ai-agent-realclient")
}
