use std::{fs, sync::mpsc};

use super::*;
use crate::{
    platform::{Clock, secure_file},
    tail::{Chunk, FileKey, Intake},
};

#[derive(Default)]
struct Taken {
    events: Vec<Event>,
    row: Option<Vec<u8>>,
}

impl Intake for Taken {
    fn take(&mut self, _: Chunk<'_>) {
        panic!("the spool has no file");
    }

    fn store_row(&mut self, name: &str, row: &[u8], events: Vec<Event>) {
        assert_eq!(name, ROW);
        self.events.extend(events);
        self.row = Some(row.to_vec());
    }

    fn report(&mut self, event: Event) {
        self.events.push(event);
    }

    fn forget(&mut self, _: FileKey) {}

    fn has_room(&self) -> bool {
        true
    }

    fn saw(&self, _: u64) {}

    fn checkpoint(&self, _: &GenerationId) -> Option<Vec<u8>> {
        None
    }
}

/// A clock that only the test moves.
#[derive(Default)]
struct TestClock(std::sync::atomic::AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(std::sync::atomic::Ordering::Relaxed))
    }

    fn uptime(&self) -> Duration {
        Duration::from_millis(self.now().0)
    }
}

struct World {
    folder: tempfile::TempDir,
    clock: Arc<TestClock>,
    sessions: Sessions,
    source: HookSpool,
    row: Option<Vec<u8>>,
    random: u128,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (clock, sessions) = (Arc::<TestClock>::default(), Sessions::default());
        let source = source(folder.path(), &clock, &sessions);
        Self { folder, clock, sessions, source, row: None, random: 0 }
    }

    /// Restarts the process.
    fn restart(&mut self) {
        self.sessions = Sessions::default();
        self.source = source(self.folder.path(), &self.clock, &self.sessions);
        let row = self.row.clone().map(|row| (GenerationId(ROW.into()), row));
        self.source.restore(&mut row.into_iter()).unwrap();
    }

    fn call(&mut self, hook: &str, decision: &str, transcript: &Path) {
        self.call_at(self.clock.now(), hook, decision, transcript);
    }

    fn call_at(&mut self, at: Timestamp, hook: &str, decision: &str, transcript: &Path) {
        self.random += 1;
        let report = SpooledReport {
            at,
            hook: hook.into(),
            decision: decision.into(),
            session_id: transcript.file_stem().map(|id| id.to_string_lossy().into_owned()),
            transcript_path: Some(transcript.to_owned()),
            ..SpooledReport::default()
        };
        Spool::of(self.folder.path()).add(&report, self.random).unwrap();
    }

    /// Reads a group, which is not stored yet.
    fn read(&mut self) -> (Vec<Event>, Option<Vec<u8>>) {
        let step = 2 * u64::try_from(POLL_INTERVAL.as_millis()).unwrap();
        self.clock.0.fetch_add(step, std::sync::atomic::Ordering::Relaxed);
        let mut taken = Taken::default();
        self.source.read(&mut taken);
        self.source.sealed();
        (taken.events, taken.row)
    }

    /// Reads until the source waits, and returns the names of the events.
    fn until_idle(&mut self) -> Vec<&'static str> {
        let mut taken = Taken::default();
        for _ in 0..5 {
            if matches!(self.source.read(&mut taken), Progress::Idle { .. }) {
                return taken.events.iter().map(|event| event.name).collect();
            }
        }
        panic!("it reads without end");
    }

    /// Reads a group and stores it.
    fn store(&mut self) -> Vec<(&'static str, &'static str)> {
        let (events, row) = self.read();
        self.row = row.or(self.row.take());
        self.source.committed();
        events.into_iter().map(|event| (event.name, event.severity)).collect()
    }

    fn waiting(&self) -> usize {
        Spool::of(self.folder.path()).list().unwrap().names.len()
    }
}

fn source(state_dir: &Path, clock: &Arc<TestClock>, sessions: &Sessions) -> HookSpool {
    let context = AgentContext {
        clock: Arc::clone(clock) as Arc<dyn Clock>,
        state_dir: Some(state_dir.to_owned()),
        sessions: sessions.clone(),
        ..crate::test_context::context()
    };
    Options {}.build(&context.for_stages(), Arc::new(|| ())).unwrap()
}

const ANSWERED: (&str, &str) = ("hook_answered", "warning");

#[test]
fn report_is_read_once_despite_restarts() {
    let mut world = World::new();
    let nowhere = Path::new("/nowhere/x.jsonl");
    world.call("UserPromptSubmit", "blocked", nowhere);
    // The group was not stored, so the report is read again.
    world.read();
    world.restart();
    assert_eq!(world.store(), [ANSWERED]);
    assert_eq!(world.waiting(), 0);
    // The group was stored, but the file was not deleted.
    world.call("UserPromptSubmit", "warned", nowhere);
    let (events, row) = world.read();
    assert_eq!(events.len(), 1);
    world.row = row;
    world.restart();
    assert_eq!(world.store(), []);
    assert_eq!(world.waiting(), 0);
    assert_eq!(world.store(), [], "and what is known of it is forgotten");
    world.call("SessionStart", "allowed", nowhere);
    assert_eq!(world.store(), [], "what was let through is no event");
}

#[test]
fn session_without_records_is_reported_once() {
    let mut world = World::new();
    let minutes = |world: &World, minutes: u64| {
        world.clock.0.fetch_add(minutes * 60_000, std::sync::atomic::Ordering::Relaxed);
    };
    let logged = world.folder.path().join("logged.jsonl");
    let unlogged = world.folder.path().join("unlogged.jsonl");
    let idle = world.folder.path().join("idle.jsonl");
    world.call("SessionStart", "allowed", &logged);
    world.call("SessionStart", "allowed", &unlogged);
    world.call("UserPromptSubmit", "allowed", &unlogged);
    world.call("SessionStart", "allowed", &idle);
    assert_eq!(world.store(), []);
    assert!(world.sessions.saw_line_of("logged"));
    minutes(&world, 5);
    assert_eq!(world.store(), []);
    world.restart();
    minutes(&world, 6);
    assert_eq!(world.store(), [("session_unlogged", "warning"), ("session_unlogged", "info")]);
    minutes(&world, 60);
    assert_eq!(world.store(), []);
}

/// Claude Code writes to another file than it names to the hook, when a session has moved to another
/// working directory or is resumed. The event was reported for each of them.
#[test]
fn session_with_lines_in_another_file_is_no_event() {
    let mut world = World::new();
    let home = world.folder.path().canonicalize().unwrap();
    let root = home.join("c/projects");
    let _roots = world.sessions.share_roots(vec![root.clone()]);
    fs::create_dir_all(root.join("moved")).unwrap();
    let write = |name: &str, id: &str| {
        let line = format!("{{\"type\":\"user\",\"sessionId\":\"{id}\"}}\n");
        fs::write(root.join("moved").join(name), line).unwrap();
    };
    for session in ["early", "resumed", "foreign", "none"] {
        let transcript = root.join(format!("named/{session}.jsonl"));
        world.call("UserPromptSubmit", "allowed", &transcript);
    }
    // Read long ago, or in this run under another name.
    write("resumed.jsonl", "resumed");
    world.sessions.saw_line_of("early");
    // The name is not enough.
    write("foreign.jsonl", "another session");
    write("other.jsonl", "other");
    assert_eq!(world.store(), []);
    world.clock.0.fetch_add(660_000, std::sync::atomic::Ordering::Relaxed);
    let (events, _) = world.read();
    let reason = |event: &Event| {
        assert_eq!(event.name, "session_unlogged");
        ["session_id", "reason"].map(|member| event.data[member].as_str().unwrap().to_owned())
    };
    let expected =
        [["foreign", "its lines are those of other sessions"], ["none", "it does not exist"]];
    assert_eq!(events.iter().map(reason).collect::<Vec<_>>(), expected);
}

/// A share without its server made each of its sessions an event, although they were logged.
#[test]
fn session_of_a_silent_place_is_reported_after_a_day() {
    let mut world = World::new();
    let (clock, limit) = (Arc::clone(&world.clock), Duration::from_millis(50));
    world.source.calls = BoundedCalls::with_limit(clock, limit);
    world.call("UserPromptSubmit", "allowed", Path::new("/nowhere/p/s.jsonl"));
    assert_eq!(world.store(), []);
    let (_release, released) = mpsc::channel::<()>();
    let hang = move || {
        released.recv().unwrap_or_default();
        Ok(())
    };
    world.source.calls.run(Path::new("/nowhere"), hang).unwrap_err();
    let pass = |world: &World, seconds: u64| {
        world.clock.0.fetch_add(seconds * 1000, std::sync::atomic::Ordering::Relaxed);
    };
    for seconds in [660, 660, 3600] {
        pass(&world, seconds);
        assert_eq!(world.store(), []);
    }
    pass(&world, 24 * 3600);
    assert_eq!(world.store(), [("session_unlogged", "warning")]);
    assert!(world.source.postponed.is_empty());
}

/// The lines are not read again after a restart.
#[test]
fn lines_seen_before_a_restart_count() {
    let mut world = World::new();
    world.call("UserPromptSubmit", "allowed", Path::new("/nowhere/s.jsonl"));
    world.store();
    world.restart();
    // The row of the sessions' source, stored with the lines.
    world.sessions.saw_line_of("s");
    world.clock.0.fetch_add(660_000, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(world.store(), []);
}

/// Each search looks into every project.
#[test]
fn searches_for_overdue_sessions_are_spread() {
    let mut world = World::new();
    for session in 0..25 {
        world.call("UserPromptSubmit", "allowed", Path::new(&format!("/nowhere/{session}.jsonl")));
    }
    world.store();
    world.clock.0.fetch_add(660_000, std::sync::atomic::Ordering::Relaxed);
    assert_eq!([0; 4].map(|_| world.store().len()), [10, 10, 5, 0]);
}

#[cfg(unix)]
#[test]
fn directory_is_learned_if_it_belongs_to_the_user() {
    let mut world = World::new();
    let home = world.folder.path().canonicalize().unwrap();
    let transcript = |config: &str| home.join(config).join("projects/p/s.jsonl");
    for config in ["work", "linked-to"] {
        fs::create_dir(home.join(config)).unwrap();
    }
    std::os::unix::fs::symlink(home.join("linked-to"), home.join("link")).unwrap();
    let _shared = world.sessions.share_roots(vec![home.join("usual/projects")]);
    fs::create_dir(home.join("usual")).unwrap();
    for config in ["work", "link", "nowhere", "usual"] {
        world.call("SessionStart", "allowed", &transcript(config));
    }
    world.call("SessionStart", "allowed", &home.join("work/other/p/s.jsonl"));
    world.call("SessionStart", "allowed", Path::new("work/projects/p/s.jsonl"));
    assert_eq!(world.store(), [("root_learnt", "info")]);
    assert_eq!(world.sessions.learned(), [home.join("work/projects")]);
    world.restart();
    assert_eq!(world.sessions.learned(), [home.join("work/projects")], "it is kept");
}

#[test]
fn uncalled_hooks_are_reported_once_a_day_while_sessions_grow() {
    const HOUR: u64 = 3_600_000;
    let mut world = World::new();
    let pass = |world: &World, hours: u64, grows: bool| {
        world.clock.0.fetch_add(hours * HOUR, std::sync::atomic::Ordering::Relaxed);
        if grows {
            world.sessions.grew(world.clock.now());
        }
    };
    let silent = [("hooks_silent", "warning")];
    pass(&world, 1000, true);
    assert_eq!(world.store(), [], "hooks are not configured");
    let action = Some(siem_protocol::managed::Action::Warn);
    let compliance = siem_protocol::managed::Compliance { action, ..Default::default() };
    let config_hash = siem_protocol::Digest::ZERO;
    let kept = StoredPolicy { compliance, config_hash, at: Timestamp(1), managed: None };
    kept.write(world.folder.path()).unwrap();
    pass(&world, 1, true);
    assert_eq!(world.store(), [], "they are given a day");
    pass(&world, 25, false);
    assert_eq!(world.store(), [], "nothing grows");
    pass(&world, 25, true);
    assert_eq!(world.store(), silent);
    pass(&world, 1, true);
    assert_eq!(world.store(), []);
    world.restart();
    pass(&world, 24, true);
    assert_eq!(world.store(), silent);
    world.call("UserPromptSubmit", "allowed", Path::new("/nowhere/x.jsonl"));
    pass(&world, 30, true);
    world.call("UserPromptSubmit", "allowed", Path::new("/nowhere/x.jsonl"));
    assert!(!world.store().contains(&silent[0]), "one was called");
}

/// The report may come from another clock, or try to suppress the event for years.
#[test]
fn call_with_a_future_time_counts_as_now() {
    const HOUR: u64 = 3_600_000;
    let mut world = World::new();
    let pass = |world: &World, hours: u64| {
        world.clock.0.fetch_add(hours * HOUR, std::sync::atomic::Ordering::Relaxed);
        world.sessions.grew(world.clock.now());
    };
    pass(&world, 1000);
    let action = Some(siem_protocol::managed::Action::Warn);
    let compliance = siem_protocol::managed::Compliance { action, ..Default::default() };
    let config_hash = siem_protocol::Digest::ZERO;
    let kept = StoredPolicy { compliance, config_hash, at: Timestamp(1), managed: None };
    kept.write(world.folder.path()).unwrap();
    let transcript = world.folder.path().join("none.jsonl");
    let ahead = Timestamp(u64::from(u32::MAX) * 1000);
    world.call_at(ahead, "UserPromptSubmit", "allowed", &transcript);
    assert_eq!(world.store(), []);
    pass(&world, 1);
    assert_eq!(world.store(), [("session_unlogged", "warning")]);
    pass(&world, 25);
    world.store();
    pass(&world, 25);
    assert_eq!(world.store(), [("hooks_silent", "warning")]);
}

/// Without a policy file, each prompt of a day would be an event.
#[test]
fn prompt_passed_by_a_fallback_policy_is_reported_once_a_day() {
    const HOUR: u64 = 3_600_000;
    let mut world = World::new();
    let call = |world: &mut World, source| {
        world.random += 1;
        let report = SpooledReport {
            at: world.clock.now(),
            hook: "UserPromptSubmit".into(),
            decision: "allowed".into(),
            policy_source: Some(source),
            ..SpooledReport::default()
        };
        Spool::of(world.folder.path()).add(&report, world.random).unwrap();
        world.store()
    };
    let answered = [("hook_answered", "warning")];
    assert_eq!(call(&mut world, PolicySource::PolicyFile), []);
    assert_eq!(call(&mut world, PolicySource::MachineFallback), answered);
    assert_eq!(call(&mut world, PolicySource::MachineFallback), []);
    world.restart();
    world.clock.0.fetch_add(25 * HOUR, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(call(&mut world, PolicySource::MachineFallback), answered);
}

#[test]
fn dropped_reports_are_counted() {
    let mut world = World::new();
    let drop_some = |world: &World, count: usize| {
        let folder = world.folder.path().join("spool");
        secure_file::create_dir(&folder).unwrap();
        fs::write(folder.join("dropped"), ".".repeat(count)).unwrap();
    };
    drop_some(&world, 3);
    assert_eq!(world.store(), [("hook_reports_dropped", "warning")]);
    world.restart();
    assert_eq!(world.store(), []);
    drop_some(&world, 1);
    assert_eq!(world.store(), [("hook_reports_dropped", "warning")], "the count restarted");
}

/// Unreadable reports were read again at once and without end, and no later report was ever read.
#[test]
fn unreadable_reports_are_skipped_and_counted() {
    let mut world = World::new();
    for _ in 0..MAX_REPORTS + 50 {
        world.call("UserPromptSubmit", "warned", Path::new("/nowhere/x.jsonl"));
    }
    world.clock.0.fetch_add(1000, std::sync::atomic::Ordering::Relaxed);
    world.call("UserPromptSubmit", "blocked", Path::new("/nowhere/x.jsonl"));
    world.source.read_report = |spool, name| match spool.read(name) {
        Ok(Some(report)) if report.decision == "warned" => {
            Err(io::ErrorKind::PermissionDenied.into())
        }
        read => read,
    };
    assert_eq!(world.until_idle(), ["hook_answered", "hook_reports_unreadable"]);
    world.source.sealed();
    world.source.committed();
    world.clock.0.fetch_add(60_000, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(world.until_idle(), [""; 0], "it is reported once");
    world.source.read_report = Spool::read;
    world.clock.0.fetch_add(60_000, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(world.until_idle(), vec![ANSWERED.0; MAX_REPORTS + 50], "they are tried again");
}

/// Each of them was opened, remembered and tried again: 20,000 took two seconds of a core.
#[test]
fn entries_that_are_no_reports_are_counted_once() {
    let mut world = World::new();
    world.call("UserPromptSubmit", "blocked", Path::new("/nowhere/x.jsonl"));
    for number in 0..MAX_REPORTS + 50 {
        let name = format!("1{number:025}.json");
        fs::create_dir(world.folder.path().join("spool").join(name)).unwrap();
    }
    let (events, row) = world.read();
    let names: Vec<_> = events.iter().map(|event| event.name).collect();
    assert_eq!(names, ["hook_answered", "hook_reports_unreadable"]);
    let counted = format!("{:?}", events[1]);
    assert!(counted.contains(&(MAX_REPORTS + 50).to_string()), "{counted}");
    assert_eq!(world.source.row.taken.len(), 1, "no name of them is stored");
    world.row = row;
    world.source.committed();
    world.restart();
    assert_eq!(world.store(), []);
}

#[test]
fn report_that_cannot_be_deleted_is_taken_once() {
    let mut world = World::new();
    world.call("UserPromptSubmit", "blocked", Path::new("/nowhere/x.jsonl"));
    let name = &Spool::of(world.folder.path()).list().unwrap().names[0];
    world.source.remove_report = |_, _| Err(io::ErrorKind::PermissionDenied.into());
    assert_eq!(world.store(), [ANSWERED]);
    assert!(world.source.row.taken.contains(name));
    assert!(world.source.failed.is_undeletable(name));
    world.call("UserPromptSubmit", "blocked", Path::new("/nowhere/x.jsonl"));
    assert_eq!(world.store(), [ANSWERED]);
    assert!(world.source.row.taken.contains(name), "it is not read again");
    world.restart();
    assert_eq!(world.store(), []);
    assert_eq!(world.waiting(), 0, "they are deleted as soon as that is possible");
}

/// The spool counted as empty, and its reports as new ones afterwards.
#[test]
fn spool_that_cannot_be_listed_forgets_no_report() {
    let mut world = World::new();
    world.call("UserPromptSubmit", "blocked", Path::new("/nowhere/x.jsonl"));
    assert_eq!(world.read().0.len(), 1);
    let name = Spool::of(world.folder.path()).list().unwrap().names.remove(0);
    world.source.failed.add_undeletable(&name);
    let [spool, aside] = ["spool", "aside"].map(|name| world.folder.path().join(name));
    fs::rename(&spool, &aside).unwrap();
    fs::write(&spool, "no directory").unwrap();
    assert_eq!(world.read().0.len(), 0);
    assert!(world.source.row.taken.contains(&name));
    assert!(world.source.failed.is_undeletable(&name));
    fs::remove_file(&spool).unwrap();
    fs::rename(&aside, &spool).unwrap();
    assert_eq!(world.store(), [], "it counts once");
    assert_eq!(world.waiting(), 0);
}
