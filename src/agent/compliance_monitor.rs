//! Reports changes of the signed-in accounts, and writes the policy file that hooks read.

use std::path::{Path, PathBuf};

use siem_protocol::agent_event::PolicyFile;
use tracing::warn;

use super::{account_watch::AccountWatch, policy_files::PolicyFiles};
use crate::{
    compliance::{Account, policy_file::StoredPolicy, violation_tracker::ViolationTracker},
    config::Settings,
    event::Event,
    platform::{file, secure_file},
    stages::AgentContext,
};

/// File in the state directory with the reported violations.
const FILE: &str = "compliance.json";
/// Maximum size of that file.
const MAX_BYTES: u64 = 64 << 20;

/// Reports changes of the signed-in accounts, and writes the policy file that hooks read.
pub(super) struct ComplianceMonitor {
    state_dir: PathBuf,
    context: AgentContext,
    reported: ViolationTracker,
    accounts: AccountWatch,
    /// The policy file as written last.
    kept: Option<StoredPolicy>,
}

impl ComplianceMonitor {
    /// Continues from the reports of the previous agent.
    pub(super) fn new(state_dir: &Path, context: &AgentContext) -> Self {
        let reported = file::read_bounded(&state_dir.join(FILE), MAX_BYTES).ok();
        let reported = reported.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self {
            state_dir: state_dir.to_owned(),
            context: context.clone(),
            reported: reported.unwrap_or_default(),
            accounts: AccountWatch::default(),
            kept: None,
        }
    }

    /// Makes the next check read the accounts, even if their files look the same.
    pub(super) fn read_again(&mut self) {
        self.accounts.read_again();
    }

    /// Writes the policy file if it has changed, and returns the events about accounts.
    pub(super) fn check(&mut self, settings: &Settings, files: &mut PolicyFiles) -> Vec<Event> {
        self.write_policy(settings, files);
        let now = self.context.clock.now();
        self.accounts.refresh(&self.context, settings.agent.poll_interval);
        let before = self.reported.clone();
        let accounts = self.accounts.accounts();
        let mut events = self.reported.observe(accounts, &settings.compliance, now);
        // A program that was never used has no file, and no account that could be unknown.
        let is_there = |account: &&Account| self.accounts.has_file(&account.path);
        let accounts: Vec<_> = accounts.iter().filter(is_there).collect();
        events.extend(self.reported.unknown.observe(&accounts, &settings.compliance, now));
        if self.reported != before {
            let bytes = serde_json::to_vec(&self.reported).expect("serialises to JSON");
            if let Err(error) = secure_file::replace(&self.state_dir.join(FILE), &bytes) {
                warn!(
                    code = "compliance_state_store_failed",
                    %error,
                    "cannot store which account events were reported: some may be reported again"
                );
            }
        }
        events
    }

    /// Writes the policy file, and the pointer to it, if the policy differs from the one written last.
    fn write_policy(&mut self, settings: &Settings, files: &mut PolicyFiles) {
        let policy = StoredPolicy {
            compliance: settings.compliance.clone(),
            config_hash: settings.config_hash(),
            at: self.context.clock.now(),
            managed: self.context.revision.managed_hash(),
        };
        let is_same =
            |known: &StoredPolicy| StoredPolicy { at: known.at, ..policy.clone() } == *known;
        if self.kept.as_ref().is_some_and(is_same) {
            return;
        }
        // The policy of the previous agent is in force since its own time.
        let stored = StoredPolicy::read(&self.state_dir).ok().flatten().filter(is_same);
        let policy = stored.unwrap_or(policy);
        let pointer = file::path_to_bytes(&self.state_dir);
        let written = files
            .write(PolicyFile::Policy, policy.to_file())
            .and_then(|()| files.write(PolicyFile::Pointer, pointer));
        match written {
            Ok(()) => self.kept = Some(policy),
            Err(error) => {
                warn!(
                    code = "policy_file_write_failed",
                    %error,
                    "cannot write the policy file: hooks continue with the previous policy"
                )
            }
        }
    }
}
