//! Takes up what the hooks of Claude Code saw.
//!
//! A hook leaves a small file for each call in the spool. What it warned of or blocked is an event;
//! a session that it saw must have a transcript soon, or that is an event too; and the transcript's
//! path may lie below a directory that is not configured, which is read from then on.
//!
//! The names of reports that were taken up are stored with their events, and the files are deleted
//! after that: none is taken up twice, whenever the power goes.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ai_agent_stage::{BuildError, Context};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siem_protocol::{AgentEvent, names::source};
use tracing::{info, warn};

use super::{
    BadRow, GenerationId, Intake, Progress, Source, SourceOptions, SourcePlugin, Survey, Waker,
};
use crate::{
    compliance::{
        client_files::ClientSettingsFiles,
        policy_file::StoredPolicy,
        spool::{Spool, SpooledReport},
    },
    event::Event,
    platform::{Clock, Environment, Paths, Timestamp, secure_file},
    stages::{AgentContext, Sessions},
};

inventory::submit! {
    SourcePlugin::new::<Options>(
        "hook-spool",
        "Reports what the hooks of Claude Code saw.",
        "",
    )
}

/// Name of the only row of this source.
const ROW: &str = "hook-spool";
/// How often the spool is looked into.
const LOOK: Duration = Duration::from_secs(5);
/// So many reports are taken up at once.
const AT_ONCE: usize = 200;
/// How soon records must appear, where the policy does not say.
const TRANSCRIPT_WITHIN: Duration = Duration::from_secs(600);
/// So long hooks may be silent while sessions grow; said again after as long.
const SILENT: Duration = Duration::from_secs(24 * 3600);
/// How exactly it is kept when a hook was called: each change is a transaction.
const CALLED: Duration = Duration::from_secs(3600);
/// How often the client's settings are looked at.
const SETTINGS: Duration = Duration::from_secs(600);
/// So many sessions are waited for.
const MOST_WAITING: usize = 1000;

/// There is nothing to choose: what is expected of sessions stands in the policy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {}

/// What is stored: with the events that it led to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    /// Reports that were taken up, as long as their files may be there.
    #[serde(default)]
    taken: BTreeSet<String>,
    /// Number of dropped reports that were already reported.
    #[serde(default)]
    dropped: u64,
    /// Sessions whose records have not appeared.
    #[serde(default)]
    waiting: Vec<Waiting>,
    /// Directories that were learnt.
    #[serde(default)]
    roots: Vec<PathBuf>,
    /// The last call of a hook, to the hour.
    #[serde(default)]
    called: Timestamp,
    /// Time since which hooks should be called and their silence has not been reported.
    #[serde(default)]
    silent_since: Option<Timestamp>,
}

/// A session whose records have not appeared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    session_id: Option<String>,
    transcript: PathBuf,
    since: Timestamp,
    /// Whether a prompt was sent: until then there may be nothing to write.
    is_prompted: bool,
}

/// Takes reports out of the spool.
struct HookSpool {
    /// None for a dry run, which takes nothing up.
    state_dir: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    sessions: Sessions,
    /// What was handed over last.
    row: Row,
    /// Reports in groups that are being filled, and being stored.
    filling: Vec<String>,
    storing: Vec<String>,
    /// When the spool is looked into next.
    look: Duration,
    /// When the client's settings are.
    settings_due: Duration,
    environment: Environment,
    paths: Paths,
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
            filling: Vec::new(),
            storing: Vec::new(),
            look: Duration::ZERO,
            settings_due: Duration::ZERO,
            environment: context.environment.clone(),
            paths: context.paths.clone(),
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
        // One that makes no sense costs events twice, and no more.
        let row = rows.last().and_then(|(_, row)| serde_json::from_slice(&row).ok());
        self.row = row.unwrap_or_default();
        self.filling.clear();
        self.storing.clear();
        for root in &self.row.roots {
            self.sessions.learn(root);
        }
        self.row.waiting.retain(|waiting| self.sessions.expect(&waiting.transcript));
        self.look = Duration::ZERO;
        Ok(())
    }

    fn read(&mut self, intake: &mut dyn Intake) -> Progress {
        let now = self.clock.uptime();
        if let Some(rest) = self.look.checked_sub(now).filter(|rest| !rest.is_zero()) {
            return Progress::Idle { next: rest };
        }
        let Some(state_dir) = self.state_dir.clone() else {
            return Progress::Idle { next: LOOK };
        };
        let before = self.row.clone();
        let spool = Spool::of(&state_dir);
        let (mut events, is_more) = self.take_up(&spool);
        self.count_dropped(&spool, &mut events);
        self.look_for_transcripts(&state_dir, &mut events);
        self.look_for_silence(&state_dir, &mut events);
        if self.row != before {
            let row = serde_json::to_vec(&self.row).expect("a row can be written as JSON");
            intake.store_row(ROW, &row, events);
        }
        if is_more {
            return Progress::More;
        }
        self.look = now + LOOK;
        Progress::Idle { next: LOOK }
    }

    fn sealed(&mut self) {
        self.storing.append(&mut self.filling);
    }

    fn committed(&mut self) {
        let Some(state_dir) = &self.state_dir else { return };
        let spool = Spool::of(state_dir);
        for name in self.storing.drain(..) {
            // It is recorded as processed: deletion is retried at the next start.
            if let Err(error) = spool.remove(&name) {
                warn!(code = "hook_report_delete_failed", %error, name, "a hook's report could not be deleted");
            }
        }
    }

    fn survey(&self) -> Survey {
        Survey::default()
    }
}

impl HookSpool {
    /// Takes up what waits in the spool; whether there is more.
    fn take_up(&mut self, spool: &Spool) -> (Vec<Event>, bool) {
        let names = spool.names().unwrap_or_else(|error| {
            warn!(code = "hook_reports_list_failed", %error, "the reports of hooks could not be listed");
            Vec::new()
        });
        let there: BTreeSet<&String> = names.iter().collect();
        let on_their_way: Vec<&String> = self.filling.iter().chain(&self.storing).collect();
        // Stored, and not deleted: the process ended in between.
        for name in self.row.taken.iter().filter(|name| there.contains(name)) {
            if !on_their_way.contains(&name) {
                drop(spool.remove(name));
            }
        }
        self.row.taken.retain(|name| there.contains(name));
        let new: Vec<&String> =
            names.iter().filter(|name| !self.row.taken.contains(*name)).collect();
        let mut events = Vec::new();
        for name in new.iter().take(AT_ONCE) {
            match spool.read(name) {
                Ok(Some(report)) => self.see(&report, &mut events),
                Ok(None) => warn!(
                    code = "hook_report_invalid",
                    name, "a hook's report makes no sense, and is left out"
                ),
                Err(error) => {
                    warn!(code = "hook_report_read_failed", %error, name, "a hook's report could not be read");
                    continue;
                }
            }
            self.row.taken.insert((*name).clone());
            self.filling.push((*name).clone());
        }
        (events, new.len() > AT_ONCE)
    }

    fn see(&mut self, report: &SpooledReport, events: &mut Vec<Event>) {
        // A time that lies ahead would keep it silent until then.
        let at = report.at.min(self.clock.now());
        if at.since(self.row.called) >= CALLED {
            self.row.called = at;
        }
        if report.decision != "allowed" {
            events.push(AgentEvent::HookAnswered(Box::new(report.into())).into());
        }
        let Some(transcript) = &report.transcript_path else { return };
        if let Some(root) = root_of(transcript)
            && self.sessions.learn(&root)
        {
            info!(root = %root.display(), "a hook named a directory of sessions: it is read from now on");
            let learnt = AgentEvent::RootLearnt {
                root: root.to_string_lossy().into_owned(),
                session_id: report.session_id.clone(),
            };
            events.push(learnt.into());
            self.row.roots.push(root);
        }
        self.wait_for(transcript, at, report);
    }

    fn wait_for(&mut self, transcript: &Path, since: Timestamp, report: &SpooledReport) {
        let is_prompted = report.hook == "UserPromptSubmit" && report.decision != "blocked";
        let known = self.row.waiting.iter_mut().find(|it| it.transcript == transcript);
        if let Some(known) = known {
            known.is_prompted |= is_prompted;
            return;
        }
        if self.row.waiting.len() < MOST_WAITING && self.sessions.expect(transcript) {
            self.row.waiting.push(Waiting {
                session_id: report.session_id.clone(),
                transcript: transcript.to_owned(),
                since,
                is_prompted,
            });
        }
    }

    fn count_dropped(&mut self, spool: &Spool, events: &mut Vec<Event>) {
        let total = spool.dropped();
        // The count was deleted: it restarts from 0.
        let before = if total < self.row.dropped { 0 } else { self.row.dropped };
        if total > before {
            events.push(AgentEvent::HookReportsDropped { count: total - before, total }.into());
        }
        self.row.dropped = total;
    }

    /// Ends the wait for sessions whose records have appeared, or should have.
    fn look_for_transcripts(&mut self, state_dir: &Path, events: &mut Vec<Event>) {
        if self.row.waiting.is_empty() {
            return;
        }
        let kept = StoredPolicy::read(state_dir).ok().flatten();
        let seconds = kept.and_then(|kept| kept.compliance.transcript_within_seconds);
        let within = seconds.map_or(TRANSCRIPT_WITHIN, Duration::from_secs);
        let (now, sessions) = (self.clock.now(), self.sessions.clone());
        self.row.waiting.retain(|waiting| {
            if !sessions.is_expected(&waiting.transcript) {
                return false;
            }
            if now.since(waiting.since) < within {
                return true;
            }
            sessions.arrived(&waiting.transcript);
            // What was read before the hook was called: a session that goes on.
            let (lies_there, why) = look_at(&waiting.transcript);
            let is_read = root_of(&waiting.transcript).is_some();
            if lies_there && is_read {
                return false;
            }
            let reason = if lies_there { "it lies below no directory of sessions" } else { why };
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
    /// Says when sessions grow and no hook is called, although one should be.
    fn look_for_silence(&mut self, state_dir: &Path, events: &mut Vec<Event>) {
        let (now, uptime) = (self.clock.now(), self.clock.uptime());
        if uptime < self.settings_due {
            return;
        }
        self.settings_due = uptime + SETTINGS;
        let kept = StoredPolicy::read(state_dir).ok().flatten();
        let by_policy = kept.is_some_and(|kept| kept.compliance.action.is_some());
        let by_settings =
            ClientSettingsFiles::new(&self.environment, &self.paths).has_agent_hooks();
        let is_called = now.since(self.row.called) < SILENT;
        if is_called || !(by_policy || by_settings) {
            self.row.silent_since = None;
            return;
        }
        let since = *self.row.silent_since.get_or_insert(now);
        let grown = self.sessions.grown().filter(|grown| now.since(*grown) < SILENT);
        let Some(grown) = grown.filter(|_| now.since(since) >= SILENT) else { return };
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

/// Whether there is something in a transcript, or why not.
fn look_at(transcript: &Path) -> (bool, &'static str) {
    match fs::metadata(transcript) {
        Ok(file) if file.is_file() && file.len() > 0 => (true, ""),
        Ok(_) => (false, "it is empty"),
        Err(_) => (false, "it does not exist"),
    }
}

/// The directory of sessions that a transcript lies in: `<X>/projects` of
/// `<X>/projects/<project>/<session>.jsonl`, where X is the user's own and no symlink is on the way.
fn root_of(transcript: &Path) -> Option<PathBuf> {
    let is_session = transcript.extension().is_some_and(|ending| ending == "jsonl");
    let root = transcript.parent()?.parent()?;
    let above = root.parent()?;
    let is_root = root.file_name().is_some_and(|name| name == "projects");
    let is_plain = is_session && is_root && transcript.is_absolute();
    let is_real = || above.canonicalize().is_ok_and(|real| real == above);
    let is_ours = || secure_file::is_trusted_dir(above);
    (is_plain && is_real() && is_ours()).then(|| root.to_owned())
}

#[cfg(test)]
mod tests;
