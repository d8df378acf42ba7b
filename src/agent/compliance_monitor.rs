//! Watches over who is signed in, and leaves the policy where hooks find it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tracing::warn;

use super::file_watch::{self as files, Stamps};
use crate::{
    compliance::{
        Account, account, desktop,
        policy_file::{self, StoredPolicy},
        violation_tracker::ViolationTracker,
    },
    config::Settings,
    event::Event,
    platform::secure_file,
    stages::Context,
};

/// What was reported, in the state directory.
const FILE: &str = "compliance.json";

/// Watches over who is signed in.
pub(crate) struct Guard {
    state_dir: PathBuf,
    context: Context,
    reported: ViolationTracker,
    /// Who is signed in, as found at the last look.
    accounts: Vec<Account>,
    /// How the files looked then.
    stamps: Stamps,
    /// When they are read again though they look the same, by the time that the agent is up.
    due: Duration,
    /// What hooks were left.
    kept: Option<StoredPolicy>,
}

impl Guard {
    /// Goes on from what the agent before has reported.
    pub(crate) fn new(state_dir: &Path, context: &Context) -> Self {
        let reported = std::fs::read(state_dir.join(FILE)).ok();
        let reported = reported.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self {
            state_dir: state_dir.to_owned(),
            context: context.clone(),
            reported: reported.unwrap_or_default(),
            accounts: Vec::new(),
            stamps: Stamps::new(),
            due: Duration::ZERO,
            kept: None,
        }
    }

    /// Leaves the policy for hooks, and looks who is signed in: what there is to report.
    pub(crate) fn look(&mut self, settings: &Settings) -> Vec<Event> {
        self.leave(settings);
        let stamps = files::look(self.places());
        let (now, uptime) = (self.context.clock.now(), self.context.clock.uptime());
        if stamps != self.stamps || uptime >= self.due {
            self.due = uptime + settings.agent.poll_interval;
            self.stamps = stamps;
            self.accounts = self.read();
        }
        let before = self.reported.clone();
        let events = self.reported.observe(&self.accounts, &settings.compliance, now);
        if self.reported != before {
            let bytes = serde_json::to_vec(&self.reported).expect("it can be written as JSON");
            if let Err(error) = secure_file::replace(&self.state_dir.join(FILE), &bytes) {
                warn!(code = "compliance_state_store_failed", %error, "what was reported of accounts cannot be kept: it may come again");
            }
        }
        events
    }

    /// Leaves the policy and where it lies, when that is another than hooks know.
    fn leave(&mut self, settings: &Settings) {
        let config_hash = settings.config_hash();
        let is_known = self.kept.as_ref().is_some_and(|kept| {
            kept.compliance == settings.compliance && kept.config_hash == config_hash
        });
        if is_known {
            return;
        }
        let (compliance, at) = (settings.compliance.clone(), self.context.clock.now());
        let kept = StoredPolicy { compliance, config_hash, at };
        let left = kept
            .write(&self.state_dir)
            .and_then(|()| policy_file::point_to(&self.state_dir, &self.context.paths));
        match left {
            Ok(()) => self.kept = Some(kept),
            Err(error) => {
                warn!(code = "policy_file_write_failed", %error, "hooks cannot be told of the policy: they go on with what they know")
            }
        }
    }

    /// Who is signed in to each program.
    fn read(&self) -> Vec<Account> {
        let (home, environment) = (&self.context.paths.home, &self.context.environment);
        let code = Account::of_claude_code_with(home, environment, account::read_sign_in_state);
        let others = self.others();
        let others = others.iter().map(|file| Account::of_claude_code_in(file));
        let desktop = desktop::folders(&self.context.paths);
        let desktop = desktop.iter().filter_map(|folder| Account::of_claude_desktop(folder));
        [code].into_iter().chain(others).chain(desktop).collect()
    }

    fn places(&self) -> Vec<PathBuf> {
        let (home, environment) = (&self.context.paths.home, &self.context.environment);
        let desktop = desktop::folders(&self.context.paths).into_iter();
        let desktop = desktop.map(|folder| folder.join(desktop::FILE));
        let code = [account::claude_code_file(home, environment)];
        code.into_iter().chain(self.others()).chain(desktop).collect()
    }

    /// Where accounts of sessions lie that run with a directory of their own.
    fn others(&self) -> Vec<PathBuf> {
        let Context { paths, environment, sessions, .. } = &self.context;
        account::other_claude_code_files(&paths.home, environment, &sessions.client_dirs())
    }
}
