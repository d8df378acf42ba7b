//! `status.json`: the status that the running agent publishes.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use siem_protocol::agent_event::{
    AppliedConfig, AttemptedConfig, ManagedSummary, RefusedConfig, Transport,
};
use tracing::warn;

use crate::{
    pipeline::config_status::{ConfigStatus, SharedConfigStatus},
    platform::{Clock, Timestamp, file, secure_file},
};

/// Its name, in the state directory.
const FILE: &str = "status.json";
/// Maximum size of the file that is read.
const MAX_BYTES: u64 = 8 << 20;

/// Contents of the file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StatusFileContents {
    pub(crate) pid: u32,
    pub(crate) version: String,
    pub(crate) started_at: String,
    pub(crate) config: Option<ConfigReport>,
}

/// Configurations in force, tried and refused last, with times in RFC 3339.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ConfigReport {
    pub(crate) applied: Option<AppliedConfig>,
    pub(crate) attempted: Option<AttemptedConfig>,
    pub(crate) refused: Option<RefusedConfig>,
    /// Time of the last signed answer of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) signed_at: Option<String>,
    /// The managed configuration in force.
    pub(crate) managed: Option<ManagedSummary>,
    /// Transport of the sinks.
    pub(crate) transport: Option<Transport>,
}

impl ConfigReport {
    /// Creates the report of a running agent.
    pub(crate) fn new(status: &SharedConfigStatus, now: Timestamp) -> Self {
        let ConfigStatus { signed_at, transport, .. } = status.now();
        let signed_at = signed_at.map(|at| at.to_string());
        let summary = status.for_heartbeat(now);
        Self {
            applied: summary.applied,
            attempted: summary.attempted,
            refused: summary.refused,
            signed_at,
            managed: summary.managed,
            transport,
        }
    }
}

/// Reads the file in a state directory; `None` if there is none, or it is invalid.
pub(crate) fn read(state_dir: &Path) -> Option<StatusFileContents> {
    let (file, _) = file::open_regular(&state_dir.join(FILE)).ok()??;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Writer of the file, which is replaced as a whole whenever something in it changes.
pub(super) struct StatusFile {
    path: PathBuf,
    pub(super) started_at: Timestamp,
    pub(super) config: SharedConfigStatus,
    /// True if the last attempt to write failed.
    is_failing: bool,
}

impl StatusFile {
    /// Creates a writer. Only the time of the last signed response is taken over from the file of the
    /// previous agent.
    pub(super) fn new(state_dir: &Path, clock: &dyn Clock) -> Self {
        let config = SharedConfigStatus::default();
        let previous = read(state_dir).and_then(|contents| contents.config?.signed_at);
        let signed_at = previous.and_then(|at| humantime::parse_rfc3339(&at).ok());
        config.change(|status| status.signed_at = signed_at.map(Timestamp::from));
        let path = state_dir.join(FILE);
        Self { path, started_at: clock.now(), config, is_failing: false }
    }

    /// Changes the configuration's status, and the file with it.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut ConfigStatus)) {
        if !self.config.change(change) {
            return;
        }
        let contents = StatusFileContents {
            pid: std::process::id(),
            version: crate::version::version().to_owned(),
            started_at: self.started_at.to_string(),
            config: Some(ConfigReport::new(&self.config, self.started_at)),
        };
        // Sorted by name, as in each version before.
        let written =
            serde_json::to_value(contents).map_err(std::io::Error::other).and_then(|contents| {
                secure_file::replace_without_sync(&self.path, format!("{contents:#}\n").as_bytes())
            });
        if let Err(error) = &written
            && !self.is_failing
        {
            warn!(
                code = "status_file_write_failed",
                %error,
                path = %self.path.display(),
                "cannot write the status file"
            );
        }
        self.is_failing = written.is_err();
    }
}
