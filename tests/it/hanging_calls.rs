//! Calls of a file system that do not return, on each path that is not the agent's own: a preloaded
//! library makes calls of the C library hang, and a FUSE file system without a process those of the
//! kernel.
#![cfg(target_os = "linux")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    agent::{Agent, AgentCommand},
    entries, eventually,
    home::{Home, append_to},
    scripted_receiver::ScriptedReceiver,
};

/// Time after which an agent must have stopped.
const MAX_STOP: Duration = Duration::from_secs(5);
/// Configuration of all agents: entries are delivered at once, and one address is permitted.
const CONFIG: &str = "\
[shipping]
flush_interval = \"0s\"
[compliance]
permitted_email_domains = [\"company.com\"]
action = \"warn\"
";

/// The library that makes calls hang.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, library) = LIBRARY.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let library = directory.path().join("hanging_calls.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/hanging_calls.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .status();
        assert!(compiled.unwrap().success());
        (directory, library)
    });
    library
}

use Place::{Account, Desktop, LearnedRoot, Link, Root, Settings};

/// A path that hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A configured directory of sessions.
    Root,
    /// A project that is a link.
    Link,
    /// A directory of sessions that a hook has named.
    LearnedRoot,
    /// Directory of Claude Desktop.
    Desktop,
    /// Account file of Claude Code.
    Account,
    /// Settings of Claude Code.
    Settings,
}

/// A home directory with files that may hang.
struct World {
    home: Home,
    outside: tempfile::TempDir,
    /// Directory that controls the library.
    control: tempfile::TempDir,
    receiver: ScriptedReceiver,
}

impl World {
    fn new() -> Self {
        let world = Self {
            home: Home::new(),
            outside: tempfile::tempdir().unwrap(),
            control: tempfile::tempdir().unwrap(),
            receiver: ScriptedReceiver::start([]),
        };
        world.home.write("p/live.jsonl", "");
        for directory in ["root", "target", "learned/projects/p"] {
            fs::create_dir_all(world.outside.path().join(directory)).unwrap();
        }
        symlink(world.outside.path().join("target"), world.home.projects().join("link")).unwrap();
        let desktop = world.home.path().join(".config/Claude");
        let account = "0a0a0a0a-0000-4000-8000-000000000001";
        fs::create_dir_all(desktop.join("claude-code-sessions").join(account)).unwrap();
        let config = json!({ "lastKnownAccountUuid": account });
        fs::write(desktop.join("config.json"), config.to_string()).unwrap();
        fs::write(world.home.path().join(".claude/settings.json"), "{}").unwrap();
        world.sign_in("me@company.com");
        world
    }

    fn sign_in(&self, email: &str) {
        let account = json!({ "oauthAccount": { "emailAddress": email } });
        fs::write(self.home.path().join(".claude.json"), account.to_string()).unwrap();
    }

    fn agent(&self, arguments: &[&str]) -> AgentCommand {
        let root = self.outside.path().join("root");
        let config = format!("{CONFIG}[source.claude-sessions]\nroots = [{root:?}]\n");
        self.home.agent(arguments).config(&config).ships_to(&self.receiver.url())
    }

    /// Command line of an agent whose calls may hang.
    fn hanging_agent(&self, arguments: &[&str]) -> AgentCommand {
        let command = self.agent(arguments).env("LD_PRELOAD", library());
        command.env("HANG_DIR", self.control.path())
    }

    /// The path whose calls hang, and the one that the agent reports.
    fn paths(&self, place: Place) -> (PathBuf, PathBuf) {
        let (home, outside) = (self.home.path(), self.outside.path());
        let same = |path: PathBuf| (path.clone(), path);
        match place {
            Root => same(outside.join("root")),
            // A call follows the link.
            Link => (home.join(".claude/projects/link"), home.join(".claude/projects/link")),
            LearnedRoot => same(outside.join("learned/projects")),
            Desktop => (home.join(".config/Claude"), home.join(".config/Claude/config.json")),
            Account => same(home.join(".claude.json")),
            Settings => same(home.join(".claude/settings.json")),
        }
    }

    fn hang(&self, call: &str, path: &Path) {
        let unfinished = self.control.path().join("unfinished");
        fs::write(&unfinished, path.as_os_str().as_encoded_bytes()).unwrap();
        fs::rename(unfinished, self.control.path().join(call)).unwrap();
    }

    fn release(&self, call: &str) {
        fs::remove_file(self.control.path().join(call)).unwrap();
    }

    /// Appends a record to a session that does not hang, and waits until it is delivered.
    fn ships(&self, record: &str) {
        append_to(&self.home.projects().join("p/live.jsonl"), format!("{record}\n"));
        self.wait_for_record(record);
    }

    fn wait_for_record(&self, record: &str) {
        eventually(record, || self.has_record(record).then_some(()));
    }

    fn has_record(&self, record: &str) -> bool {
        let entries = self.receiver.entries();
        entries::lines(&entries).iter().any(|line| line.bytes == record.as_bytes())
    }

    /// Paths in the events about file systems that do not answer.
    fn reported(&self) -> Vec<String> {
        let stored = self.receiver.entries();
        let events = entries::events(&stored, "path_unreadable").into_iter();
        let silent = events.filter(|event| event.data["reason"] == "does_not_answer");
        silent.map(|event| event.data["path"].as_str().unwrap().to_owned()).collect()
    }

    /// Paths in the status.
    fn hanging(&self) -> Vec<String> {
        let shown = self.agent(&["status", "--json"]).run();
        let status: Value = serde_json::from_slice(&shown.stdout).unwrap();
        let hanging = status["hanging"].as_array().unwrap_or_else(|| panic!("{status}"));
        hanging.iter().map(|place| place["path"].as_str().unwrap().to_owned()).collect()
    }

    fn violations(&self) -> usize {
        entries::events(&self.receiver.entries(), "compliance_violation").len()
    }

    /// Reports a session in the learned directory, as a hook does.
    fn call_hook(&self) {
        let transcript = self.outside.path().join("learned/projects/p/s.jsonl");
        let call = json!({ "session_id": "s", "transcript_path": transcript, "cwd": "/" });
        let mut child = Command::new(env!("CARGO_BIN_EXE_ai-agent"))
            .args(["check", "--hook", "UserPromptSubmit"])
            .env_clear()
            .env("HOME", self.home.path())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        use std::io::Write as _;
        writeln!(child.stdin.take().unwrap(), "{call}").unwrap();
        assert!(child.wait().unwrap().success());
    }
}

/// Checks an agent while a call on a path hangs, and afterwards.
fn check(call: &str, place: Place, is_at_start: bool) {
    let what = format!("{call} {place:?} {is_at_start}");
    let world = World::new();
    let (path, expected) = world.paths(place);
    let begin = || {
        world.hang(call, &path);
        // Makes the agent look there.
        for file in ["root/s.jsonl", "target/s.jsonl", "learned/projects/p/s.jsonl"] {
            append_to(&world.outside.path().join(file), "{\"hidden\":1}\n");
        }
        for directory in ["root/new", "learned/projects/new"] {
            fs::create_dir(world.outside.path().join(directory)).unwrap();
        }
        append_to(&world.home.path().join(".config/Claude/config.json"), " ");
        append_to(&world.home.path().join(".claude.json"), " ");
    };
    if is_at_start {
        begin();
    }
    let mut agent = world.hanging_agent(&["run"]).start_and_wait();
    world.ships("{\"n\":1}");
    if place == LearnedRoot {
        world.call_hook();
    }
    if !is_at_start {
        begin();
    }
    eventually(&format!("an event of {what}"), || (!world.reported().is_empty()).then_some(()));
    assert_eq!(world.reported(), [expected.to_str().unwrap()], "{what}");
    assert_eq!(world.hanging(), [expected.to_str().unwrap()], "{what}");
    world.ships("{\"n\":2}");
    if place != Account {
        world.sign_in("me@gmail.com");
        eventually(&format!("a violation of {what}"), || (world.violations() == 1).then_some(()));
    }
    agent.signal(Signal::HUP);
    agent.wait_for_code("reload_by_signal");
    world.ships("{\"n\":3}");
    assert_eq!(world.reported().len(), 1, "{what}: one event");
    assert_eq!(threads(&agent, "file-system"), 2 + 1, "{what}: one thread hangs");

    world.release(call);
    agent.wait_for_code("file_system_answers");
    if matches!(place, Root | Link | LearnedRoot) {
        world.wait_for_record("{\"hidden\":1}");
    }
    assert_eq!(world.hanging(), [""; 0], "{what}");
    agent.stop();
}

/// Number of threads with this name.
fn threads(agent: &Agent, name: &str) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
    let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    names.filter(|comm| comm.trim() == name).count()
}

/// Checks all places at once, since each agent mostly waits.
fn check_all(call: &'static str, places: &[Place]) {
    library();
    thread::scope(|scope| {
        let check = |place, is_at_start| scope.spawn(move || check(call, place, is_at_start));
        let checks: Vec<_> =
            places.iter().flat_map(|place| [check(*place, false), check(*place, true)]).collect();
        checks.into_iter().for_each(|check| check.join().unwrap());
    });
}

/// macOS shows a permission dialog when a program opens files of another one.
#[test_requires::requires(preload)]
#[test]
fn open_that_hangs_stops_nothing_else() {
    check_all("open", &[Root, Link, LearnedRoot, Desktop, Account]);
}

#[test_requires::requires(preload)]
#[test]
fn stat_that_hangs_stops_nothing_else() {
    check_all("stat", &[Root, Link, LearnedRoot, Desktop, Account]);
}

#[test_requires::requires(preload)]
#[test]
fn readdir_that_hangs_stops_nothing_else() {
    check_all("readdir", &[Root, LearnedRoot]);
}

/// The settings are read when the agent starts, and then each ten minutes.
#[test_requires::requires(preload)]
#[test]
fn settings_that_hang_stop_nothing_else() {
    library();
    for call in ["open", "stat"] {
        check(call, Settings, true);
    }
}

/// SIGTERM was ignored while a call did not return.
#[test_requires::requires(preload)]
#[test]
fn sigterm_ends_the_agent_whatever_hangs() {
    library();
    thread::scope(|scope| {
        let check = |call, place| scope.spawn(move || check_stop(call, place));
        let places = [Root, Link, Desktop, Account, Settings];
        let checks: Vec<_> = places
            .into_iter()
            .flat_map(|place| ["open", "stat"].map(|it| check(it, place)))
            .collect();
        checks.into_iter().for_each(|check| check.join().unwrap());
    });
}

/// Stops an agent before and after it knows that a path hangs.
fn check_stop(call: &str, place: Place) {
    for is_known in [false, true] {
        let what = format!("{call} {place:?} {is_known}");
        let world = World::new();
        world.hang(call, &world.paths(place).0);
        append_to(&world.outside.path().join("root/s.jsonl"), "{\"hidden\":1}\n");
        let mut agent = world.hanging_agent(&["run"]).start_and_wait();
        if is_known {
            agent.wait_for_code("file_system_hangs");
        }
        let asked = Instant::now();
        agent.signal(Signal::TERM);
        let ended = agent.wait(PATIENCE);
        assert!(asked.elapsed() < MAX_STOP, "{what}: {:?}", asked.elapsed());
        assert_eq!(ended.code, Some(0), "{what}: {}", ended.stderr);
        // The outbox was closed, and another process continues with it.
        world.release(call);
        world.agent(&["outbox", "verify"]).succeed();
    }
}

/// The agent reads its configuration on the thread that starts it.
#[test_requires::requires(preload)]
#[test]
fn sigterm_ends_an_agent_whose_configuration_hangs() {
    let world = World::new();
    world.hang("open", &world.home.path().join("agent.toml"));
    let agent = world.hanging_agent(&["run"]).start();
    let status = PathBuf::from(format!("/proc/{}/status", agent.pid()));
    // Bit 14 of the caught signals is SIGTERM.
    eventually("a handler of SIGTERM", || {
        let status = fs::read_to_string(&status).ok()?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t"))?;
        (u64::from_str_radix(caught, 16).unwrap() & 1 << 14 != 0).then_some(())
    });
    let asked = Instant::now();
    agent.signal(Signal::TERM);
    let ended = agent.wait(PATIENCE);
    assert!(asked.elapsed() < MAX_STOP, "{:?}", asked.elapsed());
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("stop_forced"), "{}", ended.stderr);
}

/// What hangs is a reason to run doctor.
#[test_requires::requires(preload)]
#[test]
fn doctor_names_folders_that_hang() {
    library();
    thread::scope(|scope| {
        for (call, path) in [("open", "root"), ("readdir", "root"), ("open", "agent.toml")] {
            scope.spawn(move || {
                let world = World::new();
                let doctor = world.hanging_agent(&["doctor"]);
                let path = match path {
                    "root" => world.paths(Root).0,
                    file => world.home.path().join(file),
                };
                world.hang(call, &path);
                let asked = Instant::now();
                let ended = doctor.run();
                assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
                let report = ended.text();
                let (shown, hangs) = (path.to_str().unwrap(), "does not answer");
                let is_about = |line: &str| line.starts_with("FAIL") && line.contains(shown);
                let line = report.lines().find(|line| is_about(line) && line.contains(hangs));
                assert!(line.is_some(), "{call} {shown}: {report}{}", ended.stderr);
            });
        }
    });
}

/// Hooks answer at once, since each prompt waits for one.
#[test_requires::requires(preload)]
#[test]
fn hook_answers_while_the_account_file_hangs() {
    let world = World::new();
    let agent = world.agent(&["run"]).start_and_wait();
    eventually("a policy", || world.home.state_dir().join("policy.json").is_file().then_some(()));
    agent.stop();
    let account = world.home.path().join(".claude.json");
    let spool = world.home.state_dir().join("spool");
    for (call, path) in [("open", &account), ("stat", &account), ("open", &spool)] {
        world.hang(call, path);
        let called = Instant::now();
        let ended = world
            .home
            .agent(&["check", "--hook", "UserPromptSubmit"])
            .env("LD_PRELOAD", library())
            .env("HANG_DIR", world.control.path())
            .run();
        assert!(called.elapsed() < Duration::from_secs(3), "{call}: {:?}", called.elapsed());
        assert_eq!(ended.code, Some(0), "{call}: {}", ended.stderr);
        world.release(call);
    }
}

/// A FUSE file system whose process does not answer: no library can hide a call from the kernel.
#[test_requires::requires(mount)]
#[test]
fn fuse_that_hangs_stops_nothing_else() {
    let world = World::new();
    let mounted = world.outside.path().join("root");
    // The agent itself has the end that nothing reads from.
    let script = "exec 9<>/dev/fuse && mount -i -t fuse \
                  -o fd=9,rootmode=40000,user_id=0,group_id=0 none \"$1\" && shift && exec \"$@\"";
    let run = |binary: &Path| {
        let root = world.outside.path().join("root");
        let config = format!("{CONFIG}[source.claude-sessions]\nroots = [{root:?}]\n");
        let arguments = ["-m", "sh", "-c", script, "sh"];
        AgentCommand::of(Path::new("unshare"), world.home.path(), &arguments)
            .arg(&mounted)
            .arg(binary)
            .arg("run")
            .config(&config)
            .ships_to(&world.receiver.url())
    };
    let mut agent = run(Path::new(env!("CARGO_BIN_EXE_ai-agent"))).start_and_wait();
    agent.wait_for_code("file_system_hangs");
    world.ships("{\"n\":1}");
    assert_eq!(world.hanging(), [mounted.to_str().unwrap()]);
    agent.signal(Signal::HUP);
    agent.wait_for_code("reload_by_signal");
    world.ships("{\"n\":2}");
    assert_eq!(world.reported(), [mounted.to_str().unwrap()]);
    agent.stop();
}
