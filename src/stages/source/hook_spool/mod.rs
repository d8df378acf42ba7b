//! Reads the reports that the hooks of Claude Code leave in the spool directory, one file per call.
//!
//! A warning or a block is an event. Lines of a session that a hook reports must be read soon, otherwise
//! that is an event too. They may be in another file than the hook named: Claude Code writes to another
//! one when a session moves to another working directory or is resumed. If the transcript is below a
//! directory that is not configured, that directory is read from then on.
//!
//! The names of the reports are stored together with their events, and the files are deleted
//! afterwards: a power cut never makes a report count twice.
//!
//! A report that cannot be read or deleted is skipped and tried again later, so that it delays no other.

mod failed_reports;
mod transcript;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ai_agent_stage::{BuildError, Context};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siem_protocol::{AgentEvent, agent_event::PolicySource, names::source};
use tracing::{info, warn};

use self::{
    failed_reports::FailedReports,
    transcript::{DOES_NOT_ANSWER, TranscriptSearch, root_of},
};
use super::{BadRow, GenerationId, Intake, Plugin, Progress, Source, SourceOptions, Survey, Waker};
use crate::{
    compliance::{
        client_files::ClientSettingsFiles,
        policy_file::StoredPolicy,
        spool::{Spool, SpoolListing, SpooledReport},
    },
    event::Event,
    platform::{Clock, Environment, Paths, Timestamp, bounded::BoundedCalls},
    stages::{AgentContext, SessionKey, Sessions},
};

inventory::submit! {
    Plugin::source::<Options>(
        "hook-spool",
        "Reads the reports of the Claude Code hooks.",
        "",
    )
}

/// Name of the only row of this source.
const ROW: &str = "hook-spool";
/// Time between two reads of the spool.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum number of reports in one group.
const MAX_REPORTS: usize = 200;
/// Time within which records must appear, unless the policy sets it.
const DEFAULT_TRANSCRIPT_WITHIN: Duration = Duration::from_secs(600);
/// Time without a hook call, while sessions grow, after which an event is reported; also the time
/// between two such events.
const SILENCE: Duration = Duration::from_secs(24 * 3600);
/// Precision of the stored time of the last call: each change costs a transaction.
const CALL_PRECISION: Duration = Duration::from_secs(3600);
/// Time between two reads of the settings of the client.
const SETTINGS_INTERVAL: Duration = Duration::from_secs(600);
/// Time between two events about hooks that let prompts pass by a fallback policy.
const FALLBACK_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Time for which a session is expected whose file system does not answer.
const MAX_SILENCE_OF_PLACE: Duration = Duration::from_secs(24 * 3600);
/// Time between two searches for such a session: within it, all expected sessions have their turn.
const SEARCH_INTERVAL: Duration = Duration::from_secs(600);
/// Maximum number of sessions whose records are expected.
const MAX_WAITING: usize = 1000;

/// The source has no options: the policy defines the requirements on sessions.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {}

/// Row of the source, stored with the events that change it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    /// Reports that were read, as long as their files may exist.
    #[serde(default)]
    taken: BTreeSet<String>,
    /// Number of dropped reports that events have reported.
    #[serde(default)]
    dropped: u64,
    /// Number of unreadable reports in the last event about them.
    #[serde(default)]
    unreadable: u64,
    /// Sessions whose records are expected.
    #[serde(default)]
    waiting: Vec<Waiting>,
    /// Directories learned from hooks.
    #[serde(default)]
    roots: Vec<PathBuf>,
    /// Time of the last call of a hook, to the hour.
    #[serde(default)]
    called: Timestamp,
    /// Start of the current period without calls, or time of the last event about it.
    #[serde(default)]
    silent_since: Option<Timestamp>,
    /// Time of the last event about a hook that let a prompt pass by a fallback policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fallback_reported: Option<Timestamp>,
}

/// A session whose records are expected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    session_id: Option<String>,
    transcript: PathBuf,
    since: Timestamp,
    /// True if a prompt was sent; before that there may be nothing to write.
    is_prompted: bool,
}

impl Waiting {
    fn session(&self) -> SessionKey {
        SessionKey::new(self.session_id.as_deref(), &self.transcript)
    }
}

/// Reads the spool.
struct HookSpool {
    /// `None` in a dry run, which reads no reports.
    state_dir: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    sessions: Sessions,
    /// The row as it was handed over last.
    row: Row,
    /// Reports in the group that is being built.
    in_group: Vec<String>,
    /// Reports in the group that is being stored.
    in_store: Vec<String>,
    /// Reports that are skipped.
    failed: FailedReports,
    /// Sessions whose file system did not answer, with the uptime of the next search.
    postponed: BTreeMap<SessionKey, Duration>,
    /// Reads a report; a test replaces it.
    read_report: fn(&Spool, &str) -> io::Result<Option<SpooledReport>>,
    /// Deletes a report; a test replaces it.
    remove_report: fn(&Spool, &str) -> io::Result<()>,
    /// Time of the next read of the spool.
    next_poll: Duration,
    /// Time of the next read of the settings of the client.
    settings_due: Duration,
    environment: Environment,
    paths: Paths,
    calls: BoundedCalls,
}

impl SourceOptions for Options {
    type Source = HookSpool;

    fn build(self, context: &Context, _: Waker) -> Result<HookSpool, BuildError> {
        let context = AgentContext::of(context)?;
        Ok(HookSpool {
            state_dir: context.state_dir.clone(),
            clock: Arc::clone(&context.clock),
            sessions: context.sessions.clone(),
            row: Row::default(),
            in_group: Vec::new(),
            in_store: Vec::new(),
            failed: FailedReports::default(),
            postponed: BTreeMap::new(),
            read_report: Spool::read,
            remove_report: Spool::remove,
            next_poll: Duration::ZERO,
            settings_due: Duration::ZERO,
            environment: context.environment.clone(),
            paths: context.paths.clone(),
            calls: context.calls.clone(),
        })
    }
}

impl Source for HookSpool {
    fn label(&self) -> &'static str {
        source::HOOK
    }

    fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        let rows = rows.filter(|(generation, _)| generation.0 == ROW);
        // A malformed row only causes duplicate events.
        let row = rows.last().and_then(|(_, row)| serde_json::from_slice(&row).ok());
        self.row = row.unwrap_or_default();
        self.in_group.clear();
        self.in_store.clear();
        self.postponed.clear();
        for root in &self.row.roots {
            self.sessions.learn(root);
        }
        self.row.waiting.retain(|waiting| self.sessions.expect(&waiting.session()));
        self.next_poll = Duration::ZERO;
        Ok(())
    }

    fn read(&mut self, intake: &mut dyn Intake) -> Progress {
        let now = self.clock.uptime();
        if let Some(rest) = self.next_poll.checked_sub(now).filter(|rest| !rest.is_zero()) {
            return Progress::Idle { next: rest };
        }
        let Some(state_dir) = self.state_dir.clone() else {
            return Progress::Idle { next: POLL_INTERVAL };
        };
        let before = self.row.clone();
        let spool = Spool::of(&state_dir);
        let (mut events, is_more) = self.read_reports(&spool);
        self.count_dropped(&spool, &mut events);
        self.check_transcripts(&state_dir, &mut events);
        self.check_silence(&state_dir, &mut events);
        if self.row != before {
            let row = serde_json::to_vec(&self.row).expect("a row can be written as JSON");
            intake.store_row(ROW, &row, events);
        }
        if is_more {
            return Progress::More;
        }
        self.next_poll = now + POLL_INTERVAL;
        Progress::Idle { next: POLL_INTERVAL }
    }

    fn resume(&mut self) {
        (self.next_poll, self.settings_due) = (Duration::ZERO, Duration::ZERO);
    }

    fn sealed(&mut self) {
        self.in_store.append(&mut self.in_group);
    }

    fn committed(&mut self) {
        let Some(state_dir) = &self.state_dir else { return };
        let spool = Spool::of(state_dir);
        for name in self.in_store.drain(..) {
            // The row contains the report, so a failure is repaired at the next start.
            if let Err(error) = (self.remove_report)(&spool, &name) {
                self.failed.add_undeletable(&name);
                warn!(code = "hook_report_delete_failed", %error, name, "cannot delete the report of a hook");
            }
        }
    }

    fn survey(&self) -> Survey {
        Survey::default()
    }
}

impl HookSpool {
    /// Reads reports from the spool. Returns their events, and true if there are more.
    fn read_reports(&mut self, spool: &Spool) -> (Vec<Event>, bool) {
        let SpoolListing { names, irregular, is_complete } = match spool.list() {
            Ok(listing) => listing,
            // The reports still exist: if they were forgotten here, they would count twice.
            Err(error) => {
                warn!(code = "hook_reports_list_failed", %error, "cannot list the reports of hooks");
                return (Vec::new(), false);
            }
        };
        let present: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let now = self.clock.uptime();
        let is_present =
            |name: &str| present.contains(name) || !is_complete && spool.contains(name);
        self.failed.update(is_present, now);
        self.row.taken.retain(|name| is_present(name));
        self.delete_leftovers(spool);
        let is_new =
            |name: &&String| !self.row.taken.contains(*name) && !self.failed.is_unreadable(name);
        let new: Vec<&String> = names.iter().filter(is_new).collect();
        let (mut events, mut taken) = (Vec::new(), 0);
        // Each report is then either taken or failed, so the next call has fewer.
        for name in new {
            if taken == MAX_REPORTS {
                return (events, true);
            }
            match (self.read_report)(spool, name) {
                Ok(Some(report)) => self.add_report(&report, &mut events),
                Ok(None) => warn!(
                    code = "hook_report_invalid",
                    name, "the report of a hook is malformed and was skipped"
                ),
                Err(error) => {
                    self.failed.add_unreadable(name, &error);
                    continue;
                }
            }
            self.row.taken.insert(name.clone());
            self.in_group.push(name.clone());
            taken += 1;
        }
        self.failed.schedule(now);
        self.count_unreadable(irregular, &mut events);
        (events, false)
    }

    /// Deletes reports that were stored but not deleted, since the process ended in between.
    fn delete_leftovers(&mut self, spool: &Spool) {
        for name in &self.row.taken {
            let is_pending = self.in_group.contains(name) || self.in_store.contains(name);
            if !is_pending
                && !self.failed.is_undeletable(name)
                && (self.remove_report)(spool, name).is_err()
            {
                self.failed.add_undeletable(name);
            }
        }
    }

    /// Reports unreadable reports when their number grows, also entries that are no files.
    fn count_unreadable(&mut self, irregular: u64, events: &mut Vec<Event>) {
        let (unreadable, error) = self.failed.unreadable();
        let error = if unreadable == 0 { "not a regular file" } else { error };
        let count = unreadable + irregular;
        if count > self.row.unreadable {
            warn!(
                code = "hook_report_read_failed",
                count, error, "reports of hooks cannot be read and are skipped"
            );
            events
                .push(AgentEvent::HookReportsUnreadable { count, error: error.to_owned() }.into());
        }
        self.row.unreadable = count;
    }

    fn add_report(&mut self, report: &SpooledReport, events: &mut Vec<Event>) {
        // A time in the future would suppress the event about missing calls.
        let at = report.at.min(self.clock.now());
        if at - self.row.called >= CALL_PRECISION {
            self.row.called = at;
        }
        if report.decision != "allowed" || self.is_new_fallback(report, at) {
            events.push(AgentEvent::HookAnswered(Box::new(report.into())).into());
        }
        let Some(transcript) = &report.transcript_path else { return };
        if let Some(root) = root_of(transcript, &self.calls)
            && self.sessions.learn(&root)
        {
            info!(root = %root.display(), "learned a directory of sessions from a hook");
            let learned = AgentEvent::RootLearnt {
                root: root.to_string_lossy().into_owned(),
                session_id: report.session_id.clone(),
            };
            events.push(learned.into());
            self.row.roots.push(root);
        }
        self.expect_transcript(transcript, at, report);
    }

    /// Returns true if a hook had to use the machine's file in place of the policy file, and that was
    /// not reported within a day: without a daemon, each prompt has such a report.
    fn is_new_fallback(&mut self, report: &SpooledReport, at: Timestamp) -> bool {
        if report.policy_source != Some(PolicySource::MachineFallback) {
            return false;
        }
        let known = self.row.fallback_reported;
        let is_new = known.is_none_or(|known| at < known || at - known >= FALLBACK_INTERVAL);
        if is_new {
            self.row.fallback_reported = Some(at);
        }
        is_new
    }

    fn expect_transcript(&mut self, transcript: &Path, since: Timestamp, report: &SpooledReport) {
        let is_prompted = report.hook == "UserPromptSubmit" && report.decision != "blocked";
        let session = SessionKey::new(report.session_id.as_deref(), transcript);
        let known = self.row.waiting.iter_mut().find(|it| it.session() == session);
        if let Some(known) = known {
            known.is_prompted |= is_prompted;
            return;
        }
        if self.row.waiting.len() < MAX_WAITING && self.sessions.expect(&session) {
            self.row.waiting.push(Waiting {
                session_id: report.session_id.clone(),
                transcript: transcript.to_owned(),
                since,
                is_prompted,
            });
        }
    }

    fn count_dropped(&mut self, spool: &Spool, events: &mut Vec<Event>) {
        // A count that cannot be read is not zero: everything would be reported again.
        let Ok(total) = spool.dropped() else { return };
        // The count restarts if its file was deleted.
        let before = if total < self.row.dropped { 0 } else { self.row.dropped };
        if total > before {
            events.push(AgentEvent::HookReportsDropped { count: total - before, total }.into());
        }
        self.row.dropped = total;
    }

    /// Removes sessions whose records have appeared, and reports those whose records are overdue.
    fn check_transcripts(&mut self, state_dir: &Path, events: &mut Vec<Event>) {
        if self.row.waiting.is_empty() {
            return;
        }
        let policy = StoredPolicy::read(state_dir).ok().flatten();
        let seconds = policy.and_then(|policy| policy.compliance.transcript_within_seconds);
        let within = seconds.map_or(DEFAULT_TRANSCRIPT_WITHIN, Duration::from_secs);
        let (now, uptime) = (self.clock.now(), self.clock.uptime());
        let (sessions, postponed) = (self.sessions.clone(), &mut self.postponed);
        let mut search = TranscriptSearch::new(&sessions, &self.calls);
        self.row.waiting.retain(|waiting| {
            let session = waiting.session();
            if sessions.is_seen(&session) {
                sessions.forget(&session);
                postponed.remove(&session);
                return false;
            }
            let is_postponed = postponed.get(&session).is_some_and(|due| uptime < *due);
            if now - waiting.since < within || is_postponed || search.is_exhausted() {
                return true;
            }
            // A continued session may have been read long before the hook was called.
            let found = search.find(&session, &waiting.transcript);
            if found == Err(DOES_NOT_ANSWER) && now - waiting.since < MAX_SILENCE_OF_PLACE {
                postponed.insert(session, uptime + SEARCH_INTERVAL);
                return true;
            }
            sessions.forget(&session);
            postponed.remove(&session);
            let Err(reason) = found else { return false };
            let unlogged = AgentEvent::SessionUnlogged {
                session_id: waiting.session_id.clone(),
                transcript_path: waiting.transcript.to_string_lossy().into_owned(),
                since: waiting.since.to_string(),
                within_seconds: within.as_secs(),
                prompted: waiting.is_prompted,
                reason: reason.to_owned(),
            };
            events.push(unlogged.into());
            false
        });
    }
}

impl HookSpool {
    /// Reports that sessions grow without any hook call, although hooks are configured.
    fn check_silence(&mut self, state_dir: &Path, events: &mut Vec<Event>) {
        let (now, uptime) = (self.clock.now(), self.clock.uptime());
        if uptime < self.settings_due {
            return;
        }
        self.settings_due = uptime + SETTINGS_INTERVAL;
        let policy = StoredPolicy::read(state_dir).ok().flatten();
        let by_policy = policy.is_some_and(|policy| policy.compliance.action.is_some());
        let settings = ClientSettingsFiles::new(&self.environment, &self.paths);
        let by_settings = settings.with_calls(&self.calls).has_agent_hooks();
        let is_called = now - self.row.called < SILENCE;
        if is_called || !(by_policy || by_settings) {
            self.row.silent_since = None;
            return;
        }
        let since = *self.row.silent_since.get_or_insert(now);
        let grown = self.sessions.grown().filter(|grown| now - *grown < SILENCE);
        let Some(grown) = grown.filter(|_| now - since >= SILENCE) else { return };
        let last = (self.row.called > Timestamp::default()).then(|| self.row.called.to_string());
        let silent = AgentEvent::HooksSilent {
            last_call: last,
            sessions_grew: grown.to_string(),
            named_in_settings: by_settings,
            wanted_by_policy: by_policy,
        };
        events.push(silent.into());
        self.row.silent_since = Some(now);
    }
}

#[cfg(test)]
mod tests;
