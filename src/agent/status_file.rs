//! `status.json`: what the agent that runs says of itself, for whoever asks without disturbing it.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use tracing::warn;

use crate::{
    pipeline::config_status::{ConfigStatus, SharedConfigStatus},
    platform::{Clock, Timestamp, secure_file},
};

/// Its name, in the state directory.
const FILE: &str = "status.json";

/// The file, written whole whenever something in it changes.
pub(crate) struct Status {
    path: PathBuf,
    pub(crate) started_at: Timestamp,
    /// What became of configurations.
    pub(crate) facts: SharedConfigStatus,
    /// Whether it could not be written the last time.
    is_stuck: bool,
}

impl Status {
    /// Begins with what the agent before had from the server, and nothing else of it.
    pub(crate) fn begin(state_dir: &std::path::Path, clock: &dyn Clock) -> Self {
        let path = state_dir.join(FILE);
        let facts = SharedConfigStatus::default();
        facts.change(|facts| facts.signed_at = signed_at(&path));
        Self { path, started_at: clock.now(), facts, is_stuck: false }
    }

    /// Changes the facts, and the file with them.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut ConfigStatus)) {
        if !self.facts.change(change) {
            return;
        }
        let status = json!({
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
            "started_at": self.started_at.to_string(),
            "config": self.facts.now(),
        });
        let written =
            secure_file::replace_without_sync(&self.path, format!("{status:#}\n").as_bytes());
        if let Err(error) = &written
            && !self.is_stuck
        {
            warn!(code = "status_file_write_failed", %error, path = %self.path.display(), "the status file cannot be written");
        }
        self.is_stuck = written.is_err();
    }
}

/// When the server last answered with a signature, as the agent before wrote.
fn signed_at(path: &std::path::Path) -> Option<Timestamp> {
    let status: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let at = humantime::parse_rfc3339(status["config"]["signed_at"].as_str()?).ok()?;
    Some(at.into())
}
