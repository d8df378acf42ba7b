//! Reads the session files that Claude Code writes.
//!
//! Every `*.jsonl` below the roots, at any depth: sessions, and the files of their sub-agents. Lines
//! are shipped unchanged. Symlinks to files and directories of the user are followed.
//! [`crate::tail`] follows the files.

use std::{
    any::Any,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ai_agent_stage::{
    BadRow, BuildError, Chunk, Context, Event, FileKey, GenerationId, Intake, Plugin, Progress,
    Source, SourceOptions, Survey, Waker,
};
use schemars::JsonSchema;
use serde::Deserialize;
use siem_protocol::names::source;
use tracing::info;

use crate::{
    compliance::client_files::ClientSettingsFiles,
    platform::{Clock, Timestamp, bounded::BoundedCalls, cpu_time, file},
    stages::{AgentContext, Sessions, SharedRoots, session_lines},
    tail::{
        BackfillHold, ExpiryQuery, HoldQuery, Tail, TailOptions, VerifyResources, fresh_generation,
    },
};
use config_text::Size;

inventory::submit! {
    Plugin::source::<Options>(
        "claude-sessions",
        "Reads Claude Code's session files.",
        r#"
## Additional directories. These are always read: ~/.claude/projects, $CLAUDE_CONFIG_DIR/projects
## and ~/.config/claude/projects.
roots = []
## Use the operating system's file notifications. If false, changes are found by periodic sweeps.
watch = true
## Longer lines are sent in parts.
max_record_bytes = "8 MiB"
"#,
    )
}

/// Options of the source.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Additional directories; `~` is the user's home directory.
    #[serde(default)]
    roots: Vec<PathBuf>,
    /// Use the operating system's file notifications. If false, changes are found by periodic
    /// sweeps.
    #[serde(default = "watch")]
    watch: bool,
    /// Longer lines are sent in parts.
    #[serde(default = "max_record_bytes")]
    max_record_bytes: Size,
}

fn watch() -> bool {
    true
}

fn max_record_bytes() -> Size {
    Size::mebibytes(8)
}

/// Minimum of `max_record_bytes`: the size of a read buffer.
const MIN_RECORD_BYTES: Size = Size(256 << 10);
/// Maximum of `max_record_bytes`: a record of this size still fits into a request in base64.
const MAX_RECORD_BYTES: Size = Size::mebibytes(32);

/// Name of the row with the ids of announced sessions of which lines were read. It is stored with the
/// lines: after a restart they are not read again.
const SEEN_ROW: &str = "seen-sessions";

/// Follows the files below the roots.
struct ClaudeSessions {
    tail: Tail,
    roots: Vec<PathBuf>,
    sessions: Sessions,
    calls: BoundedCalls,
    /// Set from the first restore on: a source that was only built must not change shared state.
    shared_roots: Option<SharedRoots>,
    clock: Arc<dyn Clock>,
    /// Number of learned roots that are followed.
    learned: usize,
    /// Time of the last check whether a file is growing.
    growth_checked: Option<Timestamp>,
}

impl SourceOptions for Options {
    type Source = ClaudeSessions;

    fn build(self, context: &Context, waker: Waker) -> Result<ClaudeSessions, BuildError> {
        let context = AgentContext::of(context)?;
        if !(MIN_RECORD_BYTES..=MAX_RECORD_BYTES).contains(&self.max_record_bytes) {
            let problem = format!(
                "is {}, expected {MIN_RECORD_BYTES} to {MAX_RECORD_BYTES}",
                self.max_record_bytes
            );
            return Err(BuildError::invalid("max_record_bytes", problem));
        }
        let mut roots = default_roots(context);
        roots.extend(self.roots.iter().map(|root| context.paths.expand(root)));
        if let Some(root) = roots.iter().find(|root| !root.is_absolute()) {
            let problem = format!("names `{}`, expected absolute directories", root.display());
            return Err(BuildError::invalid("roots", problem));
        }
        let options = TailOptions {
            roots: roots.clone(),
            home: Some(context.paths.home.clone()),
            max_record_bytes: self.max_record_bytes.0,
            poll_interval: context.poll_interval,
            watch: self.watch && !context.once,
            open_files: open_files(file::open_limit()),
            ..TailOptions::default()
        };
        let (clock, new_id) = (context.clock.clone(), Box::new(fresh_generation));
        let tail = Tail::new(options, Arc::clone(&clock), new_id, waker);
        let mut tail = tail.with_calls(&context.calls);
        // A run with `--once` reads everything, on battery too.
        if !context.once {
            tail = tail
                .with_hold_query(battery_hold(context))
                .with_expiry_query(expiry(context))
                .with_verification(verification(context));
        }
        let sessions = context.sessions.clone();
        Ok(ClaudeSessions {
            tail,
            roots,
            sessions,
            calls: context.calls.clone(),
            shared_roots: None,
            clock,
            learned: 0,
            growth_checked: None,
        })
    }
}

/// Time before Claude Code deletes a file in which the file is read even if much waits for delivery.
const BEFORE_EXPIRY: Duration = Duration::from_secs(2 * 86_400);

/// Returns the age from which Claude Code may delete a file soon. Half of a short clean-up period is
/// the time to read it.
fn expiry(context: &AgentContext) -> ExpiryQuery {
    let settings = settings_files(context);
    Arc::new(move || {
        let period = settings.cleanup_period();
        period - BEFORE_EXPIRY.min(period / 2)
    })
}

fn settings_files(context: &AgentContext) -> ClientSettingsFiles {
    ClientSettingsFiles::new(&context.environment, &context.paths).with_calls(&context.calls)
}

/// Returns what the verification of files needs.
fn verification(context: &AgentContext) -> VerifyResources {
    let power = Arc::clone(&context.power);
    VerifyResources {
        is_on_battery: Arc::new(move || power.is_on_battery()),
        cpu_time: Arc::new(cpu_time::of_process),
    }
}

/// Delays old files on battery, except those that Claude Code would delete soon.
fn battery_hold(context: &AgentContext) -> HoldQuery {
    let power = Arc::clone(&context.power);
    let settings = settings_files(context);
    let was_on_battery = AtomicBool::new(false);
    Arc::new(move || {
        let is_on_battery = power.is_on_battery();
        let has_changed = was_on_battery.swap(is_on_battery, Ordering::Relaxed) != is_on_battery;
        if !is_on_battery {
            if has_changed {
                info!("on mains power: reading old session files");
            }
            return BackfillHold::Off;
        }
        let age = settings.cleanup_period() / 2;
        if has_changed {
            let days = age.as_secs() / 86_400;
            info!(days, "on battery: delaying old session files, except those older than this");
        }
        BackfillHold::YoungerThan(age)
    })
}

/// Returns the maximum number of open session files: far below the process limit, since the outbox,
/// the network and the watcher need some too.
fn open_files(limit: Option<u64>) -> usize {
    let most = TailOptions::default().open_files;
    limit
        .and_then(|limit| usize::try_from(limit / 4).ok())
        .map_or(most, |limit| limit.clamp(1, most))
}

/// Returns the directories that Claude Code writes to:
/// <https://code.claude.com/docs/en/env-vars>. Some versions wrote to the last one; watching it
/// costs nothing.
fn default_roots(context: &AgentContext) -> Vec<PathBuf> {
    let home = &context.paths.home;
    let mut roots = vec![home.join(".claude/projects"), home.join(".config/claude/projects")];
    if let Some(moved) = context.environment.get("CLAUDE_CONFIG_DIR") {
        let root = PathBuf::from(moved).join("projects");
        if root.is_absolute() && !roots.contains(&root) {
            roots.insert(1, root);
        }
    }
    roots
}

impl Source for ClaudeSessions {
    fn label(&self) -> &'static str {
        source::CLAUDE_SESSIONS
    }

    fn roots(&self) -> Vec<PathBuf> {
        self.roots.clone()
    }

    /// Files keep their keys, so that filters keep their memory about them.
    fn inherit(&mut self, old: Box<dyn Any>) {
        if let Ok(old) = old.downcast::<Self>() {
            self.tail.inherit(old.tail);
        }
    }

    fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        if self.shared_roots.is_none() {
            self.shared_roots = Some(self.sessions.share_roots(self.roots.clone()));
        }
        let sessions = &self.sessions;
        self.tail.restore(&mut rows.filter(|(name, row)| {
            let is_file = name.0 != SEEN_ROW;
            if !is_file {
                // A malformed row costs no more than a search on the disk.
                let seen: Vec<String> = serde_json::from_slice(row).unwrap_or_default();
                for id in &seen {
                    sessions.saw_line_of(id);
                }
            }
            is_file
        }))
    }

    fn read(&mut self, intake: &mut dyn Intake) -> Progress {
        let learned = self.sessions.learned();
        learned.iter().skip(self.learned).for_each(|root| self.tail.follow(root.clone()));
        self.learned = learned.len();
        self.tail.read(&mut SessionIntake {
            intake,
            sessions: &self.sessions,
            calls: &self.calls,
            now: self.clock.now(),
            growth_checked: &mut self.growth_checked,
        })
    }

    fn tend(&mut self) {
        self.tail.tend();
    }

    fn resume(&mut self) {
        self.tail.resume();
    }

    fn is_backfill(&self) -> bool {
        self.tail.is_backfill()
    }

    fn sealed(&mut self) {
        self.tail.sealed();
    }

    fn committed(&mut self) {
        self.tail.committed();
    }

    fn survey(&self) -> Survey {
        self.tail.survey()
    }
}

/// Reports transcripts to [`Sessions`] as their records are handed over.
struct SessionIntake<'a> {
    intake: &'a mut dyn Intake,
    sessions: &'a Sessions,
    calls: &'a BoundedCalls,
    now: Timestamp,
    growth_checked: &'a mut Option<Timestamp>,
}

impl SessionIntake<'_> {
    /// Reports that a file has just been written to. At most one file per minute is reported and one
    /// per second is checked: there may be a backlog of 50,000 old files.
    fn report_growth(&mut self, path: &Path) {
        const RECENT: Duration = Duration::from_secs(600);
        const REPORT_INTERVAL: Duration = Duration::from_secs(60);
        const CHECK_INTERVAL: Duration = Duration::from_secs(1);

        let now = self.now;
        let is_within =
            |at: Option<Timestamp>, interval| at.is_some_and(|at| now >= at && now - at < interval);
        if is_within(self.sessions.grown(), REPORT_INTERVAL)
            || is_within(*self.growth_checked, CHECK_INTERVAL)
        {
            return;
        }
        *self.growth_checked = Some(now);
        let its_path = path.to_owned();
        let inspected = self.calls.run(path, move || file::inspect_target(&its_path));
        let modified = inspected.map(|info| info.stamp.modified.max(0).unsigned_abs());
        let modified = Timestamp(modified.unwrap_or_default() / 1_000_000);
        if self.now - modified < RECENT {
            self.sessions.grew(self.now);
        }
    }
}

impl Intake for SessionIntake<'_> {
    fn take(&mut self, chunk: Chunk<'_>) {
        let mut is_news = false;
        if !chunk.pieces.is_empty() {
            self.sessions.saw_file(&chunk.origin.path);
            session_lines::session_ids(chunk.pieces, |id| is_news |= self.sessions.saw_line_of(id));
            self.report_growth(&chunk.origin.path);
        }
        self.intake.take(chunk);
        if is_news {
            let row = serde_json::to_vec(&self.sessions.seen_ids());
            let row = row.expect("a list of texts can be written as JSON");
            self.intake.store_row(SEEN_ROW, &row, Vec::new());
        }
    }

    fn store_row(&mut self, name: &str, row: &[u8], events: Vec<Event>) {
        self.intake.store_row(name, row, events);
    }

    fn report(&mut self, event: Event) {
        self.intake.report(event);
    }

    fn forget(&mut self, file: FileKey) {
        self.intake.forget(file);
    }

    fn has_room(&self) -> bool {
        self.intake.has_room()
    }

    fn has_room_for_backfill(&self) -> bool {
        self.intake.has_room_for_backfill()
    }

    fn saw(&self, files: u64) {
        self.intake.saw(files);
    }

    fn checkpoint(&self, generation: &GenerationId) -> Option<Vec<u8>> {
        self.intake.checkpoint(generation)
    }

    fn store_verification(&mut self, position: &[u8]) {
        self.intake.store_verification(position);
    }

    fn blocks(&self, generation: &GenerationId) -> Option<Vec<u8>> {
        self.intake.blocks(generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{platform::Power, stages::source, tail::testing::MemoryStore};

    fn build(context: &AgentContext, options: &str) -> Box<dyn Source> {
        let options: ai_agent_stage::StageOptions = options.parse().unwrap();
        source::build("claude-sessions", &options, context, Arc::new(|| ())).unwrap()
    }

    /// A configuration is checked by building its stages, disabled ones too: doctor showed the
    /// directories of a disabled source, and the compliance check read account files beside them.
    #[test]
    fn building_a_source_changes_no_shared_state() {
        let home = tempfile::tempdir().unwrap();
        let mut context = crate::test_context::context();
        context.paths.home = home.path().to_owned();
        let mut running = build(&context, "");
        running.restore(&mut std::iter::empty()).unwrap();
        let expected = context.sessions.configured();
        assert!(expected.contains(&home.path().join(".claude/projects")), "{expected:?}");
        let other = home.path().join("other/projects");
        let _disabled = build(&context, &format!("roots = ['{}']", other.display()));
        assert_eq!(context.sessions.configured(), expected);
    }

    #[test]
    fn growth_of_a_file_that_does_not_answer_is_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.jsonl");
        std::fs::write(&path, "").unwrap();
        let grown = |calls: &BoundedCalls| {
            let (sessions, mut store) = (Sessions::default(), MemoryStore::default());
            let mut intake = SessionIntake {
                intake: &mut store,
                sessions: &sessions,
                calls,
                now: crate::platform::SystemClock.now(),
                growth_checked: &mut None,
            };
            intake.report_growth(&path);
            sessions.grown().is_some()
        };
        assert!(grown(&BoundedCalls::new(Arc::new(crate::platform::SystemClock))));
        let (calls, release) = BoundedCalls::with_silent(&path);
        assert!(!grown(&calls));
        drop(release);
    }

    #[test]
    fn shared_roots_are_those_of_all_running_sources() {
        let home = tempfile::tempdir().unwrap();
        let mut context = crate::test_context::context();
        context.paths.home = home.path().to_owned();
        let other = home.path().join("other/projects");
        let mut first = build(&context, "");
        let mut second = build(&context, &format!("roots = ['{}']", other.display()));
        first.restore(&mut std::iter::empty()).unwrap();
        second.restore(&mut std::iter::empty()).unwrap();
        let usual = home.path().join(".claude/projects");
        let configured = context.sessions.configured();
        assert!(configured.contains(&usual) && configured.contains(&other), "{configured:?}");
        assert_eq!(configured.iter().filter(|root| **root == usual).count(), 1);
        drop(second);
        assert!(!context.sessions.configured().contains(&other));
    }

    /// A power supply that the test switches.
    struct Plug(AtomicBool);

    impl Power for Plug {
        fn is_on_battery(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn files_expire_up_to_two_days_before_their_deletion() {
        let home = tempfile::tempdir().unwrap();
        let mut context = crate::test_context::context();
        context.paths.home = home.path().to_owned();
        context.paths.client_settings = home.path().join("etc");
        let expiry = expiry(&context);
        let days = |days: u64| Duration::from_secs(days * 86_400);
        assert_eq!(expiry(), days(28));
        std::fs::create_dir_all(home.path().join(".claude")).unwrap();
        let settings = home.path().join(".claude/settings.json");
        std::fs::write(settings, "{\"cleanupPeriodDays\": 2}").unwrap();
        assert_eq!(expiry(), days(1));
    }

    /// Files that Claude Code deletes while the machine is on battery would be lost.
    #[test]
    fn on_battery_old_files_wait_half_the_cleanup_period() {
        let home = tempfile::tempdir().unwrap();
        let mut context = crate::test_context::context();
        context.paths.home = home.path().to_owned();
        context.paths.client_settings = home.path().join("etc");
        let plug = Arc::new(Plug(AtomicBool::new(false)));
        context.power = Arc::clone(&plug) as Arc<dyn Power>;
        let hold = battery_hold(&context);
        let days = |days: u64| BackfillHold::YoungerThan(Duration::from_secs(days * 86_400));
        assert_eq!(hold(), BackfillHold::Off);
        plug.0.store(true, Ordering::Relaxed);
        assert_eq!(hold(), days(15), "the client's default is 30 days");
        std::fs::create_dir(home.path().join(".claude")).unwrap();
        let settings = home.path().join(".claude/settings.json");
        std::fs::write(settings, "{\"cleanupPeriodDays\": 4}").unwrap();
        assert_eq!(hold(), days(2));
        plug.0.store(false, Ordering::Relaxed);
        assert_eq!(hold(), BackfillHold::Off);
    }

    #[test]
    fn open_files_are_a_quarter_of_the_limit() {
        let table =
            [(None, 64), (Some(1024), 64), (Some(64), 16), (Some(3), 1), (Some(u64::MAX), 64)];
        for (limit, files) in table {
            assert_eq!(open_files(limit), files, "{limit:?}");
        }
    }
}
