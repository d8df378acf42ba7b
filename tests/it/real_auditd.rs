//! The audit commands and the source `auditd` with the kernel's audit system and a real auditd.
//!
//! The test runs itself under `with-auditd` of the shared tools, which switches auditing on and
//! off.
#![cfg(target_os = "linux")]

use std::{
    env, fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Instant,
};

use crate::support::{
    agent::{Agent, AgentCommand},
    eventually,
    home::Home,
    receiver::Receiver,
    shared,
};
use serde_json::Value;
use test_requires::requires;

/// Set while auditing is on.
const INSIDE: &str = "AI_AGENT_AUDITD";
const RULES: &str = "/etc/audit/rules.d/claude-hooks-docker.rules";
const LOG: &str = "/var/log/audit/audit.log";
/// The operator of the test, and another user.
const OPERATOR: u32 = 1000;
const OTHER: u32 = 1001;

#[requires(auditd)]
#[test]
fn docker_calls_are_shown_and_shipped() {
    let output = Command::new(shared().join("tools/with-auditd"))
        .arg(env::current_exe().unwrap())
        .args(["--exact", "real_auditd::with_auditd", "--ignored", "--nocapture"])
        .env(INSIDE, "on")
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && log.contains("1 passed"), "{log}");
    eprintln!("{log}");
}

/// The body of the test above, which switches auditing on for it.
#[ignore = "run by docker_calls_are_shown_and_shipped"]
#[test]
fn with_auditd() {
    assert!(env::var_os(INSIDE).is_some(), "auditing is not switched on");
    let world = World::new();
    world.installs();
    world.shows_and_ships();
    world.uninstalls();
}

/// A program named docker on the PATH, a home directory, and a word in the names of this run's
/// containers.
struct World {
    home: Home,
    programs: tempfile::TempDir,
    run: String,
}

/// Removes the rules, however the test ends.
impl Drop for World {
    fn drop(&mut self) {
        drop(fs::remove_file(RULES));
        drop(Command::new("augenrules").arg("--load").output());
    }
}

impl World {
    fn new() -> Self {
        // A run that was killed leaves them.
        drop(fs::remove_file(RULES));
        // Other users may write to the usual directory for temporary files, so docker is refused there.
        let programs = tempfile::tempdir_in("/usr/local").unwrap();
        let open =
            |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        open(programs.path());
        // Many packages install the command as a symlink.
        fs::create_dir(programs.path().join("real")).unwrap();
        fs::copy("/bin/true", programs.path().join("real/docker")).unwrap();
        std::os::unix::fs::symlink("real/docker", programs.path().join("docker")).unwrap();
        let run = format!("{:08x}", fastrand::u32(..));
        let script = format!(
            "#!/bin/sh\necho $$ > \"$1\"\ndocker container rm -f claude-hooks-{run}-script\n:\n"
        );
        fs::write(programs.path().join("cleanup"), script).unwrap();
        open(&programs.path().join("cleanup"));
        Self { home: Home::new(), programs, run }
    }

    fn path(&self) -> String {
        format!("{}:{}", self.programs.path().display(), env::var("PATH").unwrap())
    }

    fn docker(&self) -> PathBuf {
        self.programs.path().join("real/docker")
    }

    fn audit(&self, arguments: &[&str]) -> AgentCommand {
        self.home.agent(&[&["audit"], arguments].concat()).env("PATH", self.path())
    }

    fn container(&self, name: &str) -> String {
        format!("claude-hooks-{}-{name}", self.run)
    }

    /// Calls docker as a user.
    fn call(&self, user: u32, arguments: &[&str]) {
        let mut command = Command::new("docker");
        command.args(arguments).env("PATH", self.path()).uid(user).gid(user).current_dir("/");
        let output: Output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn installs(&self) {
        let dry = self.audit(&["install", "--dry-run"]).succeed();
        assert!(dry.text().contains(self.docker().to_str().unwrap()), "{}", dry.text());
        assert!(!Path::new(RULES).try_exists().unwrap(), "a dry run changes nothing");
        let refused = self.audit(&["install"]).env("PATH", "/nowhere").fail(2);
        assert!(refused.contains("docker"), "{refused}");
        self.audit(&["status"]).fail(1);

        for _ in 0..2 {
            let operator = OPERATOR.to_string();
            let done = self.audit(&["install", "--uid", &operator]).succeed();
            assert!(done.text().contains("ausearch -k claude-hooks-docker"), "{}", done.text());
            let metadata = fs::metadata(RULES).unwrap();
            let mode = metadata.mode() & 0o777;
            assert_eq!((mode, metadata.uid(), metadata.gid()), (0o640, 0, 0));
            assert_eq!(listed().len(), 2, "{:?}", listed());
        }
        self.audit(&["status"]).succeed();
    }

    fn uninstalls(&self) {
        for _ in 0..2 {
            self.audit(&["uninstall"]).succeed();
            assert_eq!(listed(), [""; 0]);
            assert!(!Path::new(RULES).try_exists().unwrap());
        }
    }

    fn shows_and_ships(&self) {
        let receiver = Receiver::start();
        let agent = || {
            let sources = "pipeline.sources = [\"auditd\"]\n[shipping]\nflush_interval = \"0s\"\n";
            let command = self.home.agent(&["run"]).config(sources).ships_to(&receiver.url());
            command.start_and_wait()
        };
        let first = agent();
        let tail = self.audit(&["tail", "--json"]).start();
        let mut shown = Shown { agent: tail, seen: 0 };
        let run = self.run.clone();
        let name = |name: &str| self.container(name);
        let mut expected: Vec<Vec<String>> = Vec::new();
        let mut called = |user: u32, arguments: &[&str]| {
            self.call(user, arguments);
            // These calls must not be shown.
            self.call(0, &["ps", "-a", "--filter", &name("other")]);
            self.call(OPERATOR, &["stop", &format!("web-{run}")]);
            let words = [&["docker"], arguments].concat();
            expected.push(words.into_iter().map(Into::into).collect());
            let event = shown.next(&run);
            assert_eq!(argv(&event), *expected.last().unwrap());
            event
        };

        let event = called(0, &["stop", &name("shell")]);
        assert_eq!((&event["uid"], &event["cwd"]), (&0.into(), &"/".into()));
        assert_eq!(event["exe"], self.docker().to_str().unwrap());
        assert_eq!(event["ppid"], std::process::id());
        let event = called(OPERATOR, &["--context", "c", "kill", "-s", "KILL", &name("user")]);
        assert_eq!(event["uid"], OPERATOR);
        self.call(OTHER, &["stop", &name("not-the-operator")]);
        called(0, &["rm", &name("odd"), "a b", "it's \"q\"", "Grüße", "tab\there", "", "$(x)"]);
        let (quoted, hex) = ("x".repeat(100 << 10), "lang und länger ".repeat(6 << 10));
        called(0, &["pause", &name("long"), &quoted, &hex, "end"]);

        // A script is the parent of its command, and both are reported.
        let pid_file = self.programs.path().join("pid");
        let script = self.programs.path().join("cleanup");
        let ran = Command::new(script).arg(&pid_file).env("PATH", self.path()).status().unwrap();
        assert!(ran.success());
        let event = shown.next(&run);
        expected.push(argv(&event));
        assert_eq!(argv(&event)[1..], ["container", "rm", "-f", &name("script")]);
        let parent: u64 = fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
        assert_eq!((&event["ppid"], &event["parents"][0]["pid"]), (&parent.into(), &parent.into()));
        assert!(event["pid"].as_u64().unwrap() > 0 && event["pid"] != event["ppid"]);

        // Lines of concurrent calls may be interleaved.
        let many: Vec<String> = (0..40).map(|number| name(&format!("many-{number}"))).collect();
        let start = |container: &String| {
            let mut docker = Command::new("docker");
            docker.args(["stop", container]).env("PATH", self.path()).spawn().unwrap()
        };
        let children: Vec<_> = many.iter().map(start).collect();
        assert!(children.into_iter().all(|mut child| child.wait().unwrap().success()));
        let mut reported: Vec<_> = many.iter().map(|_| argv(&shown.next(&run))).collect();
        expected.extend(reported.iter().cloned());
        reported.sort();
        let mut called: Vec<_> =
            many.into_iter().map(|it| vec!["docker".to_owned(), "stop".to_owned(), it]).collect();
        called.sort();
        assert_eq!(reported, called);

        // The log is rotated while the agent reads, and again while it is stopped.
        rotate();
        for number in 0..5 {
            self.call(0, &["stop", &name(&format!("rotated-{number}"))]);
        }
        first.kill();
        for number in 5..10 {
            self.call(0, &["restart", "-t", "1", &name(&format!("rotated-{number}"))]);
        }
        rotate();
        for number in 10..15 {
            self.call(0, &["stop", &name(&format!("rotated-{number}"))]);
        }
        let second = agent();
        for _ in 0..15 {
            expected.push(argv(&shown.next(&run)));
        }
        assert_eq!(shown.rest(&run), Vec::<Value>::new(), "nothing else is shown");

        // A second `tail` continues where the first stopped; `--all` shows everything.
        drop(shown);
        self.call(0, &["stop", &name("later")]);
        let mut later = Shown { agent: self.audit(&["tail", "--json"]).start(), seen: 0 };
        assert_eq!(argv(&later.next(&run))[2], name("later"));
        expected.push(vec!["docker".into(), "stop".into(), name("later")]);
        assert_eq!(later.rest(&run), Vec::<Value>::new());
        let mut all = Shown {
            agent: self.audit(&["tail", "--all", "--json", "--since", "today"]).start(),
            seen: 0,
        };
        eventually("every call is shown", || {
            let all = all.so_far(&run);
            all.iter().any(|event| argv(event).contains(&"ps".into())).then_some(())
        });

        let shipped = || {
            let entries = receiver.entries();
            let ours = entries.into_iter().filter(|entry| entry.source == "auditd");
            let ours = ours.filter(|entry| entry.whole["audit"].to_string().contains(&run));
            ours.collect::<Vec<_>>()
        };
        eventually("every event arrives", || (shipped().len() >= expected.len()).then_some(()));
        let log = second.stop().stderr;
        let shipped = shipped();
        let mut arrived: Vec<Vec<String>> =
            shipped.iter().map(|entry| argv(&entry.whole["audit"])).collect();
        arrived.sort();
        expected.sort();
        assert!(arrived == expected, "{} of {}:\n{log}", arrived.len(), expected.len());
        for entry in &shipped {
            let lines = entry.whole["raw_lines"].as_array().unwrap();
            assert!(lines[0].as_str().unwrap().starts_with("type=SYSCALL "), "{:?}", lines[0]);
            let length: usize = lines.iter().map(|line| line.as_str().unwrap().len()).sum();
            assert_eq!(entry.length, Some(length as u64));
            assert!(entry.path.starts_with("/var/log/audit"), "{:?}", entry.path);
        }
        receiver.assert_complete();
    }
}

fn argv(event: &Value) -> Vec<String> {
    let words = event["argv"].as_array().unwrap_or_else(|| panic!("no argv: {event}"));
    words.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// Output of `audit tail`.
struct Shown {
    agent: Agent,
    seen: usize,
}

impl Shown {
    /// Returns all events of this run so far.
    fn so_far(&mut self, run: &str) -> Vec<Value> {
        let bytes = self.agent.stdout();
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let text = std::str::from_utf8(&bytes[..whole]).unwrap();
        let events = text.lines().filter(|line| line.contains(run));
        events.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits for the next event of this run.
    #[track_caller]
    fn next(&mut self, run: &str) -> Value {
        let started_at = Instant::now();
        let event = eventually("an event is shown", || self.so_far(run).into_iter().nth(self.seen));
        eprintln!("shown {:?} later", started_at.elapsed());
        self.seen += 1;
        event
    }

    /// Returns the events after the last awaited one.
    fn rest(&mut self, run: &str) -> Vec<Value> {
        self.so_far(run).split_off(self.seen)
    }
}

/// Our rules as listed by the kernel.
fn listed() -> Vec<String> {
    let output = Command::new("auditctl").arg("-l").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| line.contains("claude-hooks")).map(Into::into).collect()
}

/// Makes auditd rotate its log, as it does for a full one.
fn rotate() {
    let before = fs::metadata(LOG).unwrap().ino();
    let output = Command::new("auditctl").arg("-s").output().unwrap();
    let state = String::from_utf8(output.stdout).unwrap();
    let pid = state.lines().find_map(|line| line.strip_prefix("pid ")).unwrap();
    assert!(Command::new("kill").args(["-USR1", pid]).status().unwrap().success());
    eventually("the log is rotated", || {
        fs::metadata(LOG).ok().filter(|log| log.ino() != before).map(drop)
    });
}
