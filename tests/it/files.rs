//! Files below the roots: of every kind, before the agent starts and while it runs.

use std::{
    fs,
    io::{Seek as _, SeekFrom, Write as _},
    time::{Duration, Instant},
};

#[cfg(unix)]
use crate::support::agent::AgentCommand;
use crate::support::{
    PATIENCE,
    agent::Agent,
    entries::{self, Line, StoredEntry},
    home::Home,
    random, random_moment,
    receiver::{Receiver, wait_for},
    within,
};
use siem_protocol::names::event;
#[cfg(unix)]
use test_requires::requires;

const AT_ONCE: &str = "[shipping]\nflush_interval = \"0s\"";

/// A truncated file gets a moment, since a program that rewrites a file truncates it first.
/// `--once` waits for that, or the lines would be lost if the file were deleted before the next
/// run.
#[test]
fn once_waits_for_a_file_that_was_just_truncated() {
    let home = Home::new();
    let receiver = Receiver::start();
    let once = || home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    home.write("-p/a.jsonl", "{\"number\":\"one\"}\n{\"number\":\"two\"}\n");
    once();
    // The first bytes are the same, so the file is not recognised as another one.
    home.write("-p/a.jsonl", "{\"m\":1}\n");
    once();
    let lines = entries::lines(&receiver.entries());
    assert_eq!(lines.len(), 3, "{lines:?}");
}

/// A running agent with its home directory and its receiver.
struct Scene {
    home: Home,
    receiver: Receiver,
    agent: Agent,
}

impl Scene {
    fn new(home: Home) -> Self {
        Self::with(home, AT_ONCE)
    }

    fn with(home: Home, config: &str) -> Self {
        let receiver = Receiver::start();
        let agent = home.agent(&["run"]).config(config).ships_to(&receiver.url()).start_and_wait();
        Self { home, receiver, agent }
    }

    /// Waits until this number of lines has arrived.
    #[track_caller]
    fn wait_for(&self, count: usize) -> Vec<Line> {
        wait_for(&self.receiver, &format!("{count} lines arrived"), |entries| {
            let lines = entries::lines(entries);
            (lines.len() >= count).then_some(lines)
        })
    }

    /// Waits for these lines of these files, stops the agent, and fails if other lines arrived.
    #[track_caller]
    fn expect(self, expected: &[(&str, &str)]) {
        self.wait_for(expected.len());
        self.agent.stop();
        let mut found: Vec<(String, String)> = entries::lines(&self.receiver.entries())
            .iter()
            .map(|line| {
                let below = line.path.strip_prefix(self.home.projects()).unwrap();
                let below = below.to_str().unwrap().replace(std::path::MAIN_SEPARATOR, "/");
                (below, String::from_utf8(line.bytes.clone()).unwrap())
            })
            .collect();
        found.sort();
        let mut expected: Vec<(String, String)> =
            expected.iter().map(|(name, line)| ((*name).into(), (*line).into())).collect();
        expected.sort();
        assert_eq!(found, expected);
        self.receiver.assert_complete();
    }
}

#[test]
fn new_files_and_directories_are_found_while_running() {
    let scene = Scene::new(Home::new());
    scene.home.write("-a/one.jsonl", "{\"n\":1}\n");
    scene.wait_for(1);
    scene.home.append("-a/one.jsonl", "{\"n\":2}\n");
    scene.home.write("-a/one/subagents/agent-1.jsonl", "{\"n\":3}\n");
    scene.home.write("-b/c/d/e/f/g/h/deep.jsonl", "{\"n\":4}\n");
    scene.wait_for(4);
    scene.home.append("-b/c/d/e/f/g/h/deep.jsonl", "{\"n\":5}\n");
    scene.expect(&[
        ("-a/one.jsonl", "{\"n\":1}"),
        ("-a/one.jsonl", "{\"n\":2}"),
        ("-a/one/subagents/agent-1.jsonl", "{\"n\":3}"),
        ("-b/c/d/e/f/g/h/deep.jsonl", "{\"n\":4}"),
        ("-b/c/d/e/f/g/h/deep.jsonl", "{\"n\":5}"),
    ]);
}

/// The client may be installed after the agent.
#[test]
fn root_created_later_is_found() {
    let home = Home::new();
    fs::remove_dir_all(home.path().join(".claude")).unwrap();
    let scene = Scene::new(home);
    scene.home.write("-a/one.jsonl", "{\"n\":1}\n");
    scene.expect(&[("-a/one.jsonl", "{\"n\":1}")]);
}

#[test]
fn files_are_found_without_a_watcher() {
    let config = format!("{AT_ONCE}\n[source.claude-sessions]\nwatch = false");
    let scene = Scene::with(Home::new(), &config);
    scene.home.write("-a/one.jsonl", "{\"n\":1}\n");
    scene.wait_for(1);
    scene.home.append("-a/one.jsonl", "{\"n\":2}\n");
    scene.home.write("-b/two.jsonl", "{\"n\":3}\n");
    scene.expect(&[
        ("-a/one.jsonl", "{\"n\":1}"),
        ("-a/one.jsonl", "{\"n\":2}"),
        ("-b/two.jsonl", "{\"n\":3}"),
    ]);
}

#[test]
fn configured_roots_are_read_besides_the_default_ones() {
    let home = Home::new();
    home.write("-a/usual.jsonl", "{\"n\":1}\n");
    let [configured, moved, old] =
        ["elsewhere", "moved/projects", ".config/claude/projects"].map(|name| {
            let root = home.path().join(name);
            fs::create_dir_all(&root).unwrap();
            fs::write(root.join("a.jsonl"), "{\"n\":1}\n").unwrap();
            root
        });
    let receiver = Receiver::start();
    home.agent(&["run", "--once"])
        .config("[source.claude-sessions]\nroots = [\"~/elsewhere\"]")
        .env("CLAUDE_CONFIG_DIR", home.path().join("moved"))
        .ships_to(&receiver.url())
        .succeed();
    let mut found: Vec<_> =
        entries::lines(&receiver.entries()).into_iter().map(|line| line.path).collect();
    let mut expected = vec![home.projects().join("-a/usual.jsonl")];
    expected.extend([configured, moved, old].map(|root| root.join("a.jsonl")));
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn line_without_a_newline_waits_for_it() {
    let home = Home::new();
    home.write("-a/empty.jsonl", "");
    home.write("-a/torn.jsonl", "{\"n\":1}\n{\"n\"");
    home.write("-a/notes.json", "{\"no\":\"session\"}\n");
    let scene = Scene::new(home);
    scene.wait_for(1);
    scene.home.append("-a/torn.jsonl", ":2}\n");
    scene.home.append("-a/empty.jsonl", "{\"n\":3}\n");
    scene.expect(&[
        ("-a/empty.jsonl", "{\"n\":3}"),
        ("-a/torn.jsonl", "{\"n\":1}"),
        ("-a/torn.jsonl", "{\"n\":2}"),
    ]);
}

#[cfg(unix)]
#[test]
fn special_files_are_ignored_and_links_are_followed() {
    use std::os::unix::{fs::symlink, net::UnixListener};

    let home = Home::new();
    home.write("-a/one.jsonl", "{\"n\":1}\n");
    let folder = home.projects().join("-a");
    let outside = home.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("out.jsonl"), "{\"outside\":1}\n").unwrap();
    symlink(&outside, folder.join("linked-directory")).unwrap();
    symlink(outside.join("out.jsonl"), folder.join("link.jsonl")).unwrap();
    symlink("/nowhere", folder.join("dangling.jsonl")).unwrap();
    symlink("/dev/zero", folder.join("zero.jsonl")).unwrap();
    symlink(".", folder.join("loop.jsonl")).unwrap();
    fs::create_dir(folder.join("directory.jsonl")).unwrap();
    fs::write(folder.join("directory.jsonl/inside.jsonl"), "{\"n\":2}\n").unwrap();
    let _socket = UnixListener::bind(folder.join("socket.jsonl")).unwrap();
    #[cfg(target_os = "linux")]
    make_fifo(&folder.join("fifo.jsonl"));

    let scene = Scene::new(home);
    scene.wait_for(3);
    // The same again while the agent runs.
    symlink(outside.join("out.jsonl"), scene.home.projects().join("-a/later.jsonl")).unwrap();
    #[cfg(target_os = "linux")]
    make_fifo(&scene.home.projects().join("-a/later-fifo.jsonl"));
    scene.home.append("-a/one.jsonl", "{\"n\":3}\n");
    scene.expect(&[
        ("-a/one.jsonl", "{\"n\":1}"),
        ("-a/directory.jsonl/inside.jsonl", "{\"n\":2}"),
        // Once, although several links lead to it.
        ("-a/link.jsonl", "{\"outside\":1}"),
        ("-a/one.jsonl", "{\"n\":3}"),
    ]);
}

#[cfg(target_os = "linux")]
fn make_fifo(path: &std::path::Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    mknodat(CWD, path, FileType::Fifo, Mode::from(0o600), 0).unwrap();
}

/// A home directory may be a link to another disk.
#[cfg(unix)]
#[test]
fn symlinked_root_is_followed() {
    let home = Home::new();
    fs::remove_dir(home.projects()).unwrap();
    let real = home.path().join("disk/projects");
    fs::create_dir_all(&real).unwrap();
    std::os::unix::fs::symlink(&real, home.projects()).unwrap();
    home.write("-a/one.jsonl", "{\"n\":1}\n");
    let scene = Scene::new(home);
    scene.wait_for(1);
    scene.home.append("-a/one.jsonl", "{\"n\":2}\n");
    scene.home.write("-b/two.jsonl", "{\"n\":3}\n");
    // Paths are reported below the root as configured.
    scene.expect(&[
        ("-a/one.jsonl", "{\"n\":1}"),
        ("-a/one.jsonl", "{\"n\":2}"),
        ("-b/two.jsonl", "{\"n\":3}"),
    ]);
}

#[cfg(unix)]
#[requires(unprivileged)]
#[test]
fn unreadable_file_is_reported_and_read_later() {
    use std::os::unix::fs::PermissionsExt as _;

    let home = Home::new();
    let path = home.write("-a/locked.jsonl", "{\"n\":1}\n");
    home.write("-a/open.jsonl", "{\"n\":2}\n");
    let receiver = Receiver::start();
    let agent = home.agent(&["run"]).config(AT_ONCE).ships_to(&receiver.url());
    let agent = without_rights(&home, agent);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    let agent = agent.start_and_wait();
    let mut scene = Scene { home, receiver, agent };
    scene.wait_for(1);
    scene.agent.wait_for_line("file_unreadable", "locked.jsonl");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    scene.expect(&[("-a/locked.jsonl", "{\"n\":1}"), ("-a/open.jsonl", "{\"n\":2}")]);
}

/// A user who removes the right to read hides a session. The receiver must see that something is
/// hidden.
#[cfg(unix)]
#[requires(unprivileged)]
#[test]
fn heartbeat_counts_unreadable_files_and_directories() {
    use std::os::unix::fs::PermissionsExt as _;

    let home = Home::new();
    let locked = home.write("-a/locked.jsonl", "{\"n\":1}\n");
    let shut = home.write("-shut/one.jsonl", "{\"n\":2}\n");
    let shut = shut.parent().unwrap();
    let receiver = Receiver::start();
    let agent = home.agent(&["run", "--once"]).ships_to(&receiver.url());
    let agent = without_rights(&home, agent);
    let forbid = |mode| {
        for path in [&locked, shut] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    forbid(0o000);
    agent.succeed();
    forbid(0o700);
    let entries = receiver.entries();
    let heartbeats = entries::events(&entries, event::HEARTBEAT);
    assert_eq!(heartbeats.last().unwrap().data["unreadable"], 2);
}

/// Runs the agent as a user who cannot read every file, unlike root.
#[cfg(unix)]
fn without_rights(home: &Home, agent: AgentCommand) -> AgentCommand {
    const UNPRIVILEGED: u32 = 65_534;

    if !rustix::process::geteuid().is_root() {
        return agent;
    }
    home.give_to(UNPRIVILEGED);
    agent.user(UNPRIVILEGED)
}

#[test]
fn renamed_file_continues_and_rewritten_file_restarts() {
    let scene = Scene::new(Home::new());
    let old = scene.home.write("-a/old.jsonl", "{\"n\":1}\n");
    scene.home.write("-a/rewritten.jsonl", "{\"n\":2}\n{\"n\":3}\n");
    scene.wait_for(3);
    fs::rename(&old, scene.home.projects().join("-a/new.jsonl")).unwrap();
    scene.home.append("-a/new.jsonl", "{\"n\":4}\n");
    scene.home.write("-a/rewritten.jsonl", "{\"other\":1}\n");
    scene.expect(&[
        ("-a/old.jsonl", "{\"n\":1}"),
        ("-a/rewritten.jsonl", "{\"n\":2}"),
        ("-a/rewritten.jsonl", "{\"n\":3}"),
        ("-a/new.jsonl", "{\"n\":4}"),
        ("-a/rewritten.jsonl", "{\"other\":1}"),
    ]);
}

/// The system limits watches per user. Here the limit is three watches, or no watcher at all.
#[cfg(unix)]
#[requires(user_namespaces)]
#[test]
fn files_are_found_without_enough_watches() {
    for limit in ["watches", "instances"] {
        let home = Home::new();
        for n in 0..8 {
            home.write(&format!("-{n}/one.jsonl"), "{\"n\":1}\n");
        }
        let count = if limit == "watches" { 3 } else { 0 };
        // The limit applies to a user namespace of our own.
        let script =
            format!("echo {count} > /proc/sys/user/max_inotify_{limit} && exec \"$0\" run \"$@\"");
        let arguments = ["-Ur", "/bin/sh", "-c", &script, env!("CARGO_BIN_EXE_ai-agent")];
        let receiver = Receiver::start();
        let agent = AgentCommand::of("unshare".as_ref(), home.path(), &arguments);
        let agent = agent.config(AT_ONCE).ships_to(&receiver.url()).start_and_wait();
        let mut scene = Scene { home, receiver, agent };
        scene.wait_for(8);
        let code = if limit == "watches" { "watch_limit_reached" } else { "watch_failed" };
        scene.agent.wait_for_code(code);
        for n in 0..8 {
            scene.home.append(&format!("-{n}/one.jsonl"), "{\"n\":2}\n");
            scene.home.write(&format!("-{n}/deep/two.jsonl"), "{\"n\":3}\n");
        }
        scene.wait_for(24);
        scene.agent.stop();
        scene.receiver.assert_complete();
        assert_eq!(entries::lines(&scene.receiver.entries()).len(), 24);
    }
}

/// A program that rewrites a file truncates it first, and the agent may read at any moment.
#[test]
fn file_rewritten_with_the_same_bytes_continues() {
    let scene = Scene::new(Home::new());
    let mut content: String = (0..2000).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let path = scene.home.write("-a/one.jsonl", &content);
    scene.wait_for(2000);
    let (mut random, mut slow) = (random(), 0);
    for n in 2000..2030 {
        let half = content.len() / 2;
        content.push_str(&format!("{{\"n\":{n}}}\n"));
        let started_at = Instant::now();
        let mut file = fs::File::create(&path).unwrap();
        for piece in [&content[..half], &content[half..]] {
            // The agent may read the incomplete file now.
            random_moment(&mut random, Duration::from_millis(10));
            file.write_all(piece.as_bytes()).unwrap();
        }
        // The agent waits 250 ms for the rest of the bytes.
        slow += usize::from(started_at.elapsed() > Duration::from_millis(200));
        scene.wait_for(n + 1);
    }
    scene.agent.stop();
    let entries = scene.receiver.entries();
    let names = [event::FILE_REWRITTEN, event::FILE_TRIMMED];
    let seen: usize = names.iter().map(|name| entries::events(&entries, name).len()).sum();
    assert!(seen <= slow, "{seen} times seen as another file, {slow} writes were slow");
    if seen == 0 {
        assert_eq!(entries::lines(&entries).len(), 2030);
    }
}

/// The size of the file and its first and last bytes stay, so that nothing else shows the change.
#[test]
fn altered_bytes_are_reported_and_their_lines_sent_again() {
    const AT: u64 = 170_000;
    const NULS: u64 = 300;

    let scene = Scene::new(Home::new());
    let mut content = Vec::new();
    let mut ends = Vec::new();
    for n in 0..400 {
        let text = "x".repeat(n * 7 % 1900);
        content
            .extend_from_slice(format!("{{\"uuid\":\"{n:04}\",\"text\":\"{text}\"}}\n").as_bytes());
        ends.push(content.len() as u64);
    }
    let path = scene.home.write("-a/one.jsonl", &content);
    scene.wait_for(ends.len());
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(AT)).unwrap();
    file.write_all(&vec![0; usize::try_from(NULS).unwrap()]).unwrap();
    let altered = |entries: &[StoredEntry]| -> Vec<StoredEntry> {
        let marked = |entry: &&StoredEntry| entry.whole["altered"] == true;
        entries.iter().filter(marked).cloned().collect()
    };
    let (from, to) = (2 * 65_536, 3 * 65_536);
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let touching = starts.zip(&ends).filter(|(start, end)| *start < to && **end > from);
    let expected: Vec<u64> = touching.map(|(start, _)| start).collect();
    // Verification pauses for 5,000 times what it costs, and a debug build is slow.
    within(5 * PATIENCE, "the altered lines arrived", || {
        let arrived = altered(&scene.receiver.entries_of_all_epochs()).len();
        (arrived >= expected.len()).then_some(())
    });
    let log = scene.agent.log();
    assert!(log.contains("file_altered"), "{log}");
    scene.agent.stop();
    let entries = scene.receiver.entries();
    let events = entries::events(&entries, event::FILE_ALTERED);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].data["ranges"], serde_json::json!([{ "from": from, "to": to }]));
    let altered = altered(&entries);
    let offsets: Vec<u64> = altered.iter().map(|entry| entry.offset).collect();
    assert_eq!(offsets, expected);
    assert!(altered.iter().any(|entry| entry.bytes.contains(&0)), "with the present bytes");
    assert_eq!(entries::lines(&entries).len(), ends.len() + expected.len());
    scene.receiver.assert_complete();
}

/// The limit of a shell or a service may be low: open session files must leave enough for the
/// outbox and the network.
#[cfg(unix)]
#[test]
fn more_files_than_the_open_file_limit_all_arrive() {
    const FILES: usize = 300;
    const LIMIT: usize = 64;

    let home = Home::new();
    let receiver = Receiver::start();
    for n in 0..FILES {
        home.write(&format!("-a/{n}.jsonl"), format!("{{\"n\":{n}}}\n"));
    }
    let script = format!("ulimit -n {LIMIT} && exec \"$0\" run \"$@\"");
    let shell = ["-c", &script, env!("CARGO_BIN_EXE_ai-agent")];
    let agent = AgentCommand::of("/bin/sh".as_ref(), home.path(), &shell);
    let agent = agent.config(AT_ONCE).ships_to(&receiver.url()).start_and_wait();
    let scene = Scene { home, receiver, agent };
    scene.wait_for(FILES);
    // All files change at once, so that each should stay open.
    for n in 0..FILES {
        scene.home.append(&format!("-a/{n}.jsonl"), format!("{{\"again\":{n}}}\n"));
    }
    let mut most = 0;
    wait_for(&scene.receiver, "all lines arrived", |entries| {
        most = most.max(open_sessions(scene.agent.pid()));
        (entries::lines(entries).len() >= 2 * FILES).then_some(())
    });
    assert!(most <= LIMIT / 4, "{most} session files were open");
    let log = scene.agent.log();
    assert!(!log.contains("os error 24"), "{log}");
    scene.agent.stop();
    scene.receiver.assert_complete();
    assert_eq!(entries::lines(&scene.receiver.entries()).len(), 2 * FILES);
}

/// Number of session files that a process has open, on systems that tell.
#[cfg(unix)]
fn open_sessions(pid: u32) -> usize {
    let Ok(handles) = fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
    let open = handles.filter_map(|handle| fs::read_link(handle.ok()?.path()).ok());
    open.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl")).count()
}
