//! Reads calls of docker out of auditd's log.
//!
//! `ai-agent audit install` lets the kernel log every execution of docker by root and by the
//! operator; this source ships those that end a container of ours. What each one was is told by
//! [`crate::audit`].

use std::{any::Any, path::PathBuf, sync::Arc};

use ai_agent_stage::{BuildError, Context};
use schemars::JsonSchema;
use serde::Deserialize;
use siem_protocol::{AgentEvent, names::source};
use tracing::error;

use super::{
    BadRow, GenerationId, Intake, Progress, Source, SourceOptions, SourcePlugin, Survey, Waker,
};
use crate::audit::{self, wanted::Wanted};

mod follow;

pub(crate) use follow::{FollowOptions, Follower, Trouble};

inventory::submit! {
    SourcePlugin::new::<Options>(
        "auditd",
        "Reads calls of docker that end containers out of auditd's log (Linux).",
        r#"
## The log that auditd writes: `log_file` in /etc/audit/auditd.conf. It takes membership in the group
## that owns it, or an ACL.
path = "/var/log/audit/audit.log"
## The key of the rules whose events are read; "" for events of any rule.
key = "claude-hooks-docker"
## Programs whose calls are meant, by their file names; none for any.
programs = ["docker"]
## What they are called to do; none for anything.
verbs = ["stop", "rm", "kill", "restart", "pause"]
## Globs on the containers, as they were named in the call; none for any.
names = ["claude-hooks-*"]
"#,
    )
}

/// Which log, and what of it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The log that auditd writes.
    #[serde(default = "path")]
    path: PathBuf,
    /// The key of the rules whose events are read; "" for events of any rule.
    #[serde(default = "key")]
    key: String,
    /// Programs whose calls are meant, by their file names; none for any.
    #[serde(default = "programs")]
    programs: Vec<String>,
    /// What they are called to do; none for anything.
    #[serde(default = "verbs")]
    verbs: Vec<String>,
    /// Globs on the containers, as they were named in the call; none for any.
    #[serde(default = "names")]
    names: Vec<String>,
}

fn path() -> PathBuf {
    audit::LOG.into()
}

fn key() -> String {
    audit::KEY.to_owned()
}

fn programs() -> Vec<String> {
    audit::PROGRAMS.map(Into::into).into()
}

fn verbs() -> Vec<String> {
    audit::VERBS.map(Into::into).into()
}

fn names() -> Vec<String> {
    audit::NAMES.map(Into::into).into()
}

/// Follows auditd's log.
struct Auditd {
    follower: Follower,
    wanted: Wanted,
    /// What can't be read, and was told.
    told: Option<Trouble>,
}

impl SourceOptions for Options {
    type Source = Auditd;

    fn build(self, context: &Context, waker: Waker) -> Result<Auditd, BuildError> {
        let path = context.expand(&self.path);
        if !path.has_root() || path.file_name().is_none() {
            let problem = format!("is `{}`, expected an absolute path", self.path.display());
            return Err(BuildError::Invalid { option: "path", problem });
        }
        let wanted = Wanted::new(&self.key, self.programs, self.verbs, &self.names);
        let wanted = wanted.map_err(|error| {
            let problem = error.to_string();
            BuildError::Invalid { option: "names", problem }
        })?;
        let (once, poll_interval) = (context.is_once(), context.poll_interval());
        let options = FollowOptions { path, once, poll_interval };
        let follower = Follower::new(options, Arc::clone(context.clock()), waker);
        Ok(Auditd { follower, wanted, told: None })
    }
}

impl Source for Auditd {
    fn label(&self) -> &'static str {
        source::AUDITD
    }

    fn roots(&self) -> Vec<PathBuf> {
        self.follower.roots()
    }

    fn inherit(&mut self, old: Box<dyn Any>) {
        if let Ok(old) = old.downcast::<Self>() {
            self.follower.tail.inherit(old.follower.tail);
        }
    }

    fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        self.follower.restore(rows)
    }

    fn read(&mut self, intake: &mut dyn Intake) -> Progress {
        let wanted = &self.wanted;
        let progress = self.follower.read(intake, &mut |facts| wanted.takes(facts));
        if let Progress::Idle { .. } = progress {
            let trouble = self.follower.trouble();
            if let Some(trouble) = trouble.as_ref().filter(|it| self.told.as_ref() != Some(it)) {
                error!(code = "audit_log_unreadable", "{trouble}");
                let failure = AgentEvent::StageFailed {
                    path: None,
                    generation: None,
                    stage: Some("auditd".to_owned()),
                    problem: Some(trouble.to_string()),
                };
                intake.report(failure.into());
            }
            self.told = trouble;
        }
        progress
    }

    fn tend(&mut self) {
        self.follower.tail.tend();
    }

    fn sealed(&mut self) {
        self.follower.tail.sealed();
    }

    fn committed(&mut self) {
        self.follower.tail.committed();
    }

    fn survey(&self) -> Survey {
        self.follower.tail.survey()
    }
}
