//! The source `auditd`.
//!
//! `ai-agent audit install` makes the kernel log every execution of docker by root and by the
//! operator. This source ships the calls that stop, remove or pause one of our containers.

use std::{any::Any, path::PathBuf, sync::Arc};

use ai_agent_stage::{
    BadRow, BuildError, Context, GenerationId, Intake, Plugin, Progress, Source, SourceOptions,
    Survey, Waker,
};
use schemars::JsonSchema;
use serde::Deserialize;
use siem_protocol::{AgentEvent, names};
use tracing::error;

use crate::{
    KEY, LOG, MAX_LINE_BYTES, NAMES, PROGRAMS, VERBS,
    call_filter::CallFilter,
    follower::{AuditFollower, LogError},
};

inventory::submit! {
    Plugin::source::<Options>(
        "auditd",
        "Reads docker commands that stop or remove containers from the audit log (Linux).",
        r#"
## Log of auditd: `log_file` in /etc/audit/auditd.conf. Requires membership in the group that owns it,
## or an ACL.
path = "/var/log/audit/audit.log"
## Key of the audit rules whose events are read; "" for events of any rule.
key = "claude-hooks-docker"
## Programs whose calls are selected, by file name; empty for any.
programs = ["docker"]
## Commands that are selected; empty for any.
verbs = ["stop", "rm", "kill", "restart", "pause"]
## Globs of containers, as named in the call; empty for any.
names = ["claude-hooks-*"]
"#,
    )
}

/// Options of the source.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Log of auditd.
    #[serde(default = "path")]
    path: PathBuf,
    /// Key of the audit rules whose events are read; "" for events of any rule.
    #[serde(default = "key")]
    key: String,
    /// Programs whose calls are selected, by file name; empty for any.
    #[serde(default = "programs")]
    programs: Vec<String>,
    /// Commands that are selected; empty for any.
    #[serde(default = "verbs")]
    verbs: Vec<String>,
    /// Globs of containers, as named in the call; empty for any. At most 100 globs of 4 KiB in all, with
    /// 16 braces each.
    #[serde(default = "names")]
    #[schemars(length(max = 100), inner(length(max = 4096)))]
    names: Vec<String>,
}

fn path() -> PathBuf {
    LOG.into()
}

fn key() -> String {
    KEY.to_owned()
}

fn programs() -> Vec<String> {
    PROGRAMS.map(Into::into).into()
}

fn verbs() -> Vec<String> {
    VERBS.map(Into::into).into()
}

fn names() -> Vec<String> {
    NAMES.map(Into::into).into()
}

/// Follows the log of auditd.
struct Auditd {
    follower: AuditFollower,
    filter: CallFilter,
    /// The error that was reported last.
    reported: Option<LogError>,
}

impl SourceOptions for Options {
    type Source = Auditd;

    fn build(self, context: &Context, waker: Waker) -> Result<Auditd, BuildError> {
        let path = context.expand(&self.path);
        if !path.has_root() || path.file_name().is_none() {
            let problem = format!("is `{}`, expected an absolute path", self.path.display());
            return Err(BuildError::invalid("path", problem));
        }
        check_limits(&self.names)?;
        let filter = CallFilter::new(&self.key, self.programs, self.verbs, &self.names)
            .map_err(|error| BuildError::invalid("names", error.to_string()))?;
        let log = context.follow_log(&path, MAX_LINE_BYTES, waker)?;
        let clock = Arc::clone(context.clock());
        let follower = AuditFollower::new(log, path, context.is_once(), clock);
        Ok(Auditd { follower, filter, reported: None })
    }
}

/// Checks the number, length and nesting of globs before they are parsed: the parser calls itself for
/// each brace.
fn check_limits(names: &[String]) -> Result<(), BuildError> {
    const MAX_GLOBS: usize = 100;
    const MAX_BYTES: usize = 4 << 10;
    const MAX_BRACES: usize = 16;
    let found = (names.len(), names.iter().map(String::len).sum::<usize>());
    let braces = names.iter().map(|name| name.matches('{').count()).max().unwrap_or(0);
    let problem = match found {
        (count, _) if count > MAX_GLOBS => {
            format!("has {count} globs, at most {MAX_GLOBS} are allowed")
        }
        (_, bytes) if bytes > MAX_BYTES => {
            format!("has {bytes} bytes of globs, at most {MAX_BYTES} are allowed")
        }
        _ if braces > MAX_BRACES => {
            format!("has a glob with {braces} braces, at most {MAX_BRACES} are allowed")
        }
        _ => return Ok(()),
    };
    Err(BuildError::invalid("names", problem))
}

impl Source for Auditd {
    fn label(&self) -> &'static str {
        names::source::AUDITD
    }

    fn roots(&self) -> Vec<PathBuf> {
        self.follower.roots()
    }

    fn inherit(&mut self, old: Box<dyn Any>) {
        if let Ok(old) = old.downcast::<Self>() {
            self.follower.inherit(old.follower);
        }
    }

    fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        self.follower.restore(rows)
    }

    fn read(&mut self, intake: &mut dyn Intake) -> Progress {
        let filter = &self.filter;
        let progress = self.follower.read(intake, &mut |facts| filter.matches(facts));
        if let Progress::Idle { .. } = progress {
            self.report_error(intake);
        }
        progress
    }

    fn tend(&mut self) {
        self.follower.tend();
    }

    fn resume(&mut self) {
        self.follower.resume();
    }

    fn sealed(&mut self) {
        self.follower.sealed();
    }

    fn committed(&mut self) {
        self.follower.committed();
    }

    fn survey(&self) -> Survey {
        self.follower.survey()
    }
}

impl Auditd {
    /// Reports an error of the log once, until it changes.
    fn report_error(&mut self, intake: &mut dyn Intake) {
        let error = self.follower.error();
        if let Some(error) = error.as_ref().filter(|error| self.reported.as_ref() != Some(error)) {
            error!(code = "audit_log_unreadable", "{error}");
            let failure = AgentEvent::StageFailed {
                path: None,
                generation: None,
                stage: Some("auditd".to_owned()),
                problem: Some(error.to_string()),
            };
            intake.report(failure.into());
        }
        self.reported = error;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ai_agent_stage::{
        ContextParts,
        testing::{SourceTest, TestLog, context},
    };

    /// Builds the source, which reads `log`.
    fn auditd(log: &TestLog) -> SourceTest {
        let context = ContextParts { log_opener: Some(Arc::new(log.clone())), ..context() };
        SourceTest::new("auditd", "", context).unwrap()
    }

    fn event(serial: u64, command: &str) -> Vec<String> {
        let head = format!("msg=audit(1795291200.007:{serial}):");
        let arguments: Vec<_> = command.split(' ').collect();
        let list = arguments.iter().enumerate().map(|(at, word)| format!(" a{at}=\"{word}\""));
        vec![
            format!("type=SYSCALL {head} exe=\"/usr/bin/docker\" key=\"claude-hooks-docker\""),
            format!("type=EXECVE {head} argc={}{}", arguments.len(), list.collect::<String>()),
            format!("type=PROCTITLE {head} proctitle=\"docker\""),
        ]
    }

    /// The parser of globs called itself for each brace until the stack overflowed.
    #[test]
    fn names_over_a_limit_are_refused_with_the_limit() {
        let nested = |depth| format!("{}a{}", "{".repeat(depth), "}".repeat(depth));
        for (names, limit) in [
            (vec!["a".to_owned(); 101], "100"),
            (vec!["a".repeat(4097)], "4096"),
            (vec![nested(17)], "16"),
        ] {
            let error = super::check_limits(&names).unwrap_err().to_string();
            assert!(error.contains("`names`") && error.contains(limit), "{error}");
        }
        super::check_limits(&[nested(16)]).unwrap();
    }

    #[test]
    fn source_hands_over_selected_events_and_counts_others() {
        let log = TestLog::default();
        let mut source = auditd(&log);
        source.restore().unwrap();
        let stop = event(1, "docker stop claude-hooks-1");
        stop.iter().chain(&event(2, "docker ps")).for_each(|line| log.append(line));
        let (input, _) = source.read();
        assert_eq!(input.records, [stop.join("\n")]);
        assert_eq!(input.skipped, [("other_event", 3)]);
    }

    #[test]
    fn event_that_is_half_read_is_complete_after_restore() {
        let log = TestLog::default();
        let mut source = auditd(&log);
        source.restore().unwrap();
        let stop = event(1, "docker stop claude-hooks-1");
        log.append(&stop[0]);
        assert!(source.read().0.records.is_empty());
        source.commit();
        let rows = source.rows;
        let mut source = auditd(&log);
        source.rows = rows;
        source.restore().unwrap();
        stop[1..].iter().for_each(|line| log.append(line));
        assert_eq!(source.read().0.records, [stop.join("\n")]);
    }
}
