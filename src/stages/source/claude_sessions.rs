//! Reads the session files that Claude Code writes.
//!
//! Every `*.jsonl` below the roots, at any depth: sessions, and the files of their sub-agents. The
//! lines are shipped as they stand there; following the files is the work of [`crate::tail`].

use std::{
    any::Any,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ai_agent_stage::{BuildError, Context};
use schemars::JsonSchema;
use serde::Deserialize;
use siem_protocol::names::source;
use tracing::info;

use super::{
    BadRow, Chunk, GenerationId, Intake, Progress, Source, SourceOptions, SourcePlugin, Survey,
    Waker,
};
use crate::{
    compliance::client_files::ClientSettingsFiles,
    event::Event,
    platform::{Clock, Timestamp, file},
    stages::{AgentContext, Sessions},
    tail::{BackfillHold, FileKey, HoldQuery, Tail, TailOptions, fresh_generation},
    units::Size,
};

inventory::submit! {
    SourcePlugin::new::<Options>(
        "claude-sessions",
        "Reads Claude Code's session files.",
        r#"
## Directories to read besides those where Claude Code writes, which are always read:
## ~/.claude/projects, $CLAUDE_CONFIG_DIR/projects and ~/.config/claude/projects.
roots = []
## Whether to be told of changes by the system. Without, files are found by looking now and then.
watch = true
## Longer lines travel in parts.
max_record_bytes = "8 MiB"
"#,
    )
}

/// Where session files lie.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Directories to read besides those where Claude Code writes; `~` is the user's home.
    #[serde(default)]
    roots: Vec<PathBuf>,
    /// Whether to be told of changes by the system. Without, files are found by looking now and
    /// then.
    #[serde(default = "watch")]
    watch: bool,
    /// Longer lines travel in parts.
    #[serde(default = "max_record_bytes")]
    max_record_bytes: Size,
}

fn watch() -> bool {
    true
}

fn max_record_bytes() -> Size {
    Size::mebibytes(8)
}

/// The least that `max_record_bytes` may be: a read buffer.
const LEAST: Size = Size(256 << 10);
/// The most: a record of this size still fits a request in base64.
const MOST: Size = Size::mebibytes(32);

/// Follows the files below the roots.
struct ClaudeSessions {
    tail: Tail,
    sessions: Sessions,
    clock: Arc<dyn Clock>,
    /// How many directories that hooks named are followed.
    learnt: usize,
    /// When a file was last looked at for whether it grows.
    looked: Option<Timestamp>,
}

impl SourceOptions for Options {
    type Source = ClaudeSessions;

    fn build(self, context: &Context, waker: Waker) -> Result<ClaudeSessions, BuildError> {
        let context = AgentContext::of(context)?;
        if !(LEAST..=MOST).contains(&self.max_record_bytes) {
            let problem = format!("is {}, expected {LEAST} to {MOST}", self.max_record_bytes);
            return Err(BuildError::Invalid { option: "max_record_bytes", problem });
        }
        let mut roots = default_roots(context);
        roots.extend(self.roots.iter().map(|root| context.paths.expand(root)));
        if let Some(root) = roots.iter().find(|root| !root.is_absolute()) {
            let problem = format!("names `{}`, expected absolute directories", root.display());
            return Err(BuildError::Invalid { option: "roots", problem });
        }
        context.sessions.configure(&roots);
        let options = TailOptions {
            roots,
            max_record_bytes: self.max_record_bytes.0,
            poll_interval: context.poll_interval,
            watch: self.watch && !context.once,
            open_files: open_files(file::open_limit()),
            ..TailOptions::default()
        };
        let (clock, new_id) = (context.clock.clone(), Box::new(fresh_generation));
        let mut tail = Tail::new(options, Arc::clone(&clock), new_id, waker);
        // Whoever reads once waits for all of it.
        if !context.once {
            tail = tail.with_hold_query(saving_battery(context));
        }
        let sessions = context.sessions.clone();
        Ok(ClaudeSessions { tail, sessions, clock, learnt: 0, looked: None })
    }
}

/// Keeps old files waiting on battery, except those that Claude Code would delete before long.
fn saving_battery(context: &AgentContext) -> HoldQuery {
    let power = Arc::clone(&context.power);
    let settings = ClientSettingsFiles::new(&context.environment, &context.paths);
    let was_on_battery = AtomicBool::new(false);
    Arc::new(move || {
        let is_on_battery = power.is_on_battery();
        let has_changed = was_on_battery.swap(is_on_battery, Ordering::Relaxed) != is_on_battery;
        if !is_on_battery {
            if has_changed {
                info!("no longer on battery: old session files are read");
            }
            return BackfillHold::Off;
        }
        let age = settings.cleanup_period() / 2;
        if has_changed {
            let days = age.as_secs() / 86_400;
            info!(
                days,
                "on battery: session files that are old wait, but not those older than this"
            );
        }
        BackfillHold::YoungerThan(age)
    })
}

/// How many session files are held open at most: far fewer than the system lets the process have,
/// since the outbox, the network and the watcher need some too.
fn open_files(limit: Option<u64>) -> usize {
    let most = TailOptions::default().open_files;
    limit
        .and_then(|limit| usize::try_from(limit / 4).ok())
        .map_or(most, |limit| limit.clamp(1, most))
}

/// Where Claude Code writes: <https://code.claude.com/docs/en/env-vars>. The last is where some
/// versions wrote; watching it costs nothing.
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

    /// Files keep their keys, and so what filters remember of them.
    fn inherit(&mut self, old: Box<dyn Any>) {
        if let Ok(old) = old.downcast::<Self>() {
            self.tail.inherit(old.tail);
        }
    }

    fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        self.tail.restore(rows)
    }

    fn read(&mut self, intake: &mut dyn Intake) -> Progress {
        let roots = self.sessions.roots();
        roots.iter().skip(self.learnt).for_each(|root| self.tail.follow(root.clone()));
        self.learnt = roots.len();
        let (sessions, now) = (&self.sessions, self.clock.now());
        self.tail.read(&mut Telling { intake, sessions, now, looked: &mut self.looked })
    }

    fn tend(&mut self) {
        self.tail.tend();
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

/// Tells of transcripts as their records are handed over.
struct Telling<'a> {
    intake: &'a mut dyn Intake,
    sessions: &'a Sessions,
    now: Timestamp,
    looked: &'a mut Option<Timestamp>,
}

impl Telling<'_> {
    /// Says when what is read has just been written. One file in a minute tells it for all, and one
    /// in a second is asked: there may be 50,000 old ones to catch up with.
    fn tell_of_growth(&mut self, path: &Path) {
        const RECENT: Duration = Duration::from_secs(600);
        const PAUSE: Duration = Duration::from_secs(60);
        const REST: Duration = Duration::from_secs(1);

        let now = self.now;
        let is_within =
            |at: Option<Timestamp>, pause| at.is_some_and(|at| now >= at && now.since(at) < pause);
        if is_within(self.sessions.grown(), PAUSE) || is_within(*self.looked, REST) {
            return;
        }
        *self.looked = Some(now);
        let modified = file::inspect(path).map(|sight| sight.stamp.modified.max(0).unsigned_abs());
        let modified = Timestamp(modified.unwrap_or_default() / 1_000_000);
        if self.now.since(modified) < RECENT {
            self.sessions.grew(self.now);
        }
    }
}

impl Intake for Telling<'_> {
    fn take(&mut self, chunk: Chunk<'_>) {
        if !chunk.pieces.is_empty() {
            self.sessions.arrived(&chunk.origin.path);
            self.tell_of_growth(&chunk.origin.path);
        }
        self.intake.take(chunk);
    }

    fn report(&mut self, event: Event) {
        self.intake.report(event);
    }

    fn store_row(&mut self, name: &str, row: &[u8], events: Vec<Event>) {
        self.intake.store_row(name, row, events);
    }

    fn forget(&mut self, file: FileKey) {
        self.intake.forget(file);
    }

    fn has_room(&self) -> bool {
        self.intake.has_room()
    }

    fn saw(&self, files: u64) {
        self.intake.saw(files);
    }

    fn checkpoint(&self, generation: &GenerationId) -> Option<Vec<u8>> {
        self.intake.checkpoint(generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::Power;

    /// A machine whose plug a test pulls.
    struct Plug(AtomicBool);

    impl Power for Plug {
        fn is_on_battery(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    /// What Claude Code deletes before the mains are back can't be read any more.
    #[test]
    fn on_battery_old_files_wait_for_half_of_the_clean_up_period_at_most() {
        let home = tempfile::tempdir().unwrap();
        let mut context = crate::testing::context();
        context.paths.home = home.path().to_owned();
        context.paths.client_settings = home.path().join("etc");
        let plug = Arc::new(Plug(AtomicBool::new(false)));
        context.power = Arc::clone(&plug) as Arc<dyn Power>;
        let hold = saving_battery(&context);
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
    fn few_files_are_open_where_few_may_be() {
        let table =
            [(None, 64), (Some(1024), 64), (Some(64), 16), (Some(3), 1), (Some(u64::MAX), 64)];
        for (limit, files) in table {
            assert_eq!(open_files(limit), files, "{limit:?}");
        }
    }
}
