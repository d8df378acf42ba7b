//! Backpressure: with a full outbox or disk, reading waits and the files are the buffer. The agent
//! resumes by itself, and nothing is lost or doubled.
#![cfg(target_os = "linux")]

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::support::{
    agent::Agent,
    entries::{self, StoredEntry},
    eventually,
    home::Home,
    lines_with_code, random,
    receiver::{Receiver, wait_for},
    scripted_receiver::{Answer, ScriptedReceiver},
    within,
};
use ai_agent::internals::protocol::names::event;
use rustix::process::Signal;
use test_requires::requires;

const MB: usize = 1 << 20;

/// Incompressible lines of about `bytes` bytes in total, each with its own number.
fn lines(random: &mut fastrand::Rng, first: usize, bytes: usize) -> Vec<u8> {
    let mut lines = Vec::with_capacity(bytes + 20_000);
    let mut number = first;
    while lines.len() < bytes {
        let text: String = (0..16_000).map(|_| random.alphanumeric()).collect();
        writeln!(lines, "{{\"type\":\"user\",\"n\":{number},\"text\":\"{text}\"}}").unwrap();
        number += 1;
    }
    lines
}

/// Fails unless the lines of the file arrived in order, each once.
#[track_caller]
fn assert_same(file: &Path, entries: &[StoredEntry]) {
    let mut offset = 0;
    let mut arrived = entries::lines(entries).into_iter().filter(|line| line.path == file);
    for line in fs::read(file).unwrap().split_inclusive(|byte| *byte == b'\n') {
        let found = arrived.next().expect("a line is lost");
        assert_eq!(found.offset, offset, "a line is lost or doubled");
        assert!(found.bytes == line[..line.len() - 1], "other bytes at {offset}");
        offset += line.len() as u64;
    }
    assert!(arrived.next().is_none(), "a line is doubled");
}

/// Returns the entries between the first events of these names.
fn between<'a>(entries: &'a [StoredEntry], one: &str, other: &str) -> &'a [StoredEntry] {
    let place = |name: &str| entries.iter().position(|entry| entry.event.as_deref() == Some(name));
    &entries[place(one).unwrap()..place(other).unwrap()]
}

#[test]
fn full_outbox_stops_reading_until_entries_are_acknowledged() {
    let home = Home::new();
    let mut random = random();
    // It grows while the agent is running: a backlog would wait in its file.
    let file = home.write("-work/a.jsonl", lines(&mut random, 0, 1000));
    let is_open = Arc::new(AtomicBool::new(true));
    let opened = Arc::clone(&is_open);
    let receiver = ScriptedReceiver::by_rule(move |_| match opened.load(Ordering::Relaxed) {
        true => Answer::Receipt,
        false => Answer::Status(503, &[("Retry-After", "1")], ""),
    });
    // 16 MiB of it are reserved for events.
    let config = "[shipping]\nflush_interval = \"0s\"\n[outbox]\nmax_bytes = \"32 MiB\"";
    let mut agent = home.agent(&["run"]).config(config).ships_to(&receiver.url()).start();
    within(crate::support::PATIENCE, "the first line", || {
        (!entries::lines(&receiver.entries()).is_empty()).then_some(())
    });
    is_open.store(false, Ordering::Relaxed);
    home.append("-work/a.jsonl", lines(&mut random, 1, 30 * MB));
    agent.wait_for_line("outbox_full", "lack=\"outbox\"");
    // Lines written meanwhile wait in their file.
    home.append("-work/a.jsonl", lines(&mut random, 5000, MB));
    is_open.store(true, Ordering::Relaxed);
    agent.wait_for_code("outbox_recovered");
    let total = fs::read(&file).unwrap().iter().filter(|byte| **byte == b'\n').count();
    within(2 * crate::support::PATIENCE, "all of it", || {
        (entries::lines(&receiver.entries()).len() >= total).then_some(())
    });
    agent.stop();

    let entries = receiver.entries();
    assert_same(&file, &entries);
    let full = &entries::events(&entries, event::OUTBOX_FULL)[0].data;
    assert_eq!(full["lack"], "outbox");
    let stored = full["outbox_bytes"].as_u64().unwrap() as usize;
    assert!((16 * MB..24 * MB).contains(&stored), "{stored}");
    // Nothing was read between the two.
    let waited = between(&entries, event::OUTBOX_FULL, event::OUTBOX_RECOVERED);
    assert_eq!(entries::lines(waited).len(), 0, "{waited:?}");
    assert_eq!(receiver.doubled(), 0);
}

/// The agent waited forever for space that only a delivery could free.
#[test]
fn once_exits_when_the_outbox_stays_full() {
    let home = Home::new();
    home.write("-work/a.jsonl", lines(&mut random(), 0, 30 * MB));
    let receiver = ScriptedReceiver::by_rule(|_| Answer::Status(503, &[("Retry-After", "1")], ""));
    let config = "[outbox]\nmax_bytes = \"32 MiB\"";
    let once = home.agent(&["run", "--once"]).config(config).ships_to(&receiver.url());
    let error = once.env("AI_AGENT_TEST_CATCH_UP_MS", "5000").fail(1);
    assert!(error.contains("`siem`") && error.contains("503"), "{error}");
}

/// A file system in memory, unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn new(folder: &Path, megabytes: u32) -> Self {
        let path = folder.join("disk");
        fs::create_dir(&path).unwrap();
        let options = format!("size={megabytes}m,mode=700");
        mount(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(&path));
        Self(path)
    }

    /// Fills the file system to the last byte.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("ballast");
        let mut file = File::options().create_new(true).append(true).open(&path).unwrap();
        let found = rustix::fs::statvfs(&self.0).unwrap();
        let (flags, free) = (rustix::fs::FallocateFlags::empty(), found.f_bavail * found.f_frsize);
        // Less may be free by now.
        rustix::fs::fallocate(&file, flags, 0, free).ok();
        for piece in [MB, 4096, 1] {
            while file.write_all(&vec![0x55; piece]).is_ok() {}
        }
        path
    }

    /// Mounts the file system again, read-only or writable.
    #[track_caller]
    fn remount(&self, how: &str) {
        mount(Command::new("mount").args(["-o", how]).arg(&self.0));
    }
}

impl Disk {
    /// Unmounts the last mount on this path. Returns false if there was none.
    fn unmount(&self) -> bool {
        let done = Command::new("umount").arg("--lazy").arg(&self.0).output();
        done.is_ok_and(|output| output.status.success())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        while self.unmount() {}
    }
}

/// A configuration with the state directory on that disk.
fn on(disk: &Disk) -> String {
    let state = disk.0.join("state");
    format!("[agent]\nstate_dir = \"{}\"\n[shipping]\nflush_interval = \"0s\"", state.display())
}

#[requires(mount)]
#[test]
fn full_disk_stops_reading_until_space_is_freed() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let disk = Disk::new(home.path(), 160);
    let mut random = random();
    let file = home.write("-work/a.jsonl", lines(&mut random, 0, MB));
    let mut agent = home.agent(&["run"]).config(&on(&disk)).ships_to(&receiver.url()).start();
    let arrived = |what: &str| {
        let written = fs::read(&file).unwrap().iter().filter(|byte| **byte == b'\n').count();
        wait_for(&receiver, what, |entries| {
            (entries::lines(entries).len() >= written).then_some(())
        });
    };
    arrived("the first lines");
    for round in 1..=2 {
        let ballast = disk.fill();
        home.append("-work/a.jsonl", lines(&mut random, round * 1000, 3 * MB));
        eventually("reading waits", || {
            assert!(agent.runs(), "{}", agent.log());
            (lines_with_code(&agent.log(), "outbox_full").len() == round).then_some(())
        });
        fs::remove_file(ballast).unwrap();
        arrived("what was written while the disk was full");
        assert!(agent.runs());
    }
    agent.stop();
    let entries = receiver.entries();
    assert_same(&file, &entries);
    receiver.assert_complete();
    let full = entries::events(&entries, event::OUTBOX_FULL);
    assert_eq!((full.len(), &full[0].data["lack"]), (2, &"disk".into()));
    assert_eq!(entries::events(&entries, event::OUTBOX_RECOVERED).len(), 2);
    let waited = between(&entries, event::OUTBOX_FULL, event::OUTBOX_RECOVERED);
    assert_eq!(entries::lines(waited).len(), 0, "{waited:?}");
}

#[requires(mount)]
#[test]
fn disk_full_at_start_is_an_error_and_loses_nothing() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let disk = Disk::new(home.path(), 160);
    let file = home.write("-work/a.jsonl", lines(&mut random(), 0, MB));
    let agent = || home.agent(&["run", "--once"]).config(&on(&disk)).ships_to(&receiver.url());
    fs::create_dir(disk.0.join("state")).unwrap();
    let ballast = disk.fill();
    let error = agent().fail(1);
    assert!(error.contains(disk.0.to_str().unwrap()), "{error}");
    fs::remove_file(&ballast).unwrap();
    // There is enough space for the directory, but not for an outbox.
    fs::write(disk.0.join("state/agent.lock"), b"").unwrap();
    let ballast = disk.fill();
    File::options()
        .write(true)
        .open(&ballast)
        .unwrap()
        .set_len(fs::metadata(&ballast).unwrap().len() - 16384)
        .unwrap();
    let error = agent().fail(1);
    assert!(error.contains("`state_dir`") && error.contains("outbox.redb"), "{error}");
    fs::remove_file(ballast).unwrap();
    agent().succeed();
    assert_same(&file, &receiver.entries());
    receiver.assert_complete();
}

#[requires(mount)]
#[test]
fn read_only_disk_at_start_is_an_error_and_loses_nothing() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let disk = Disk::new(home.path(), 160);
    let mut random = random();
    let file = home.write("-work/a.jsonl", lines(&mut random, 0, MB));
    let agent =
        |arguments: &[&str]| home.agent(arguments).config(&on(&disk)).ships_to(&receiver.url());
    agent(&["run", "--once"]).succeed();
    disk.remount("remount,ro");
    home.append("-work/a.jsonl", lines(&mut random, 1000, MB));
    let error = agent(&["run", "--once"]).fail(1);
    assert!(error.contains("ead-only file system") && !error.contains("chown"), "{error}");
    assert!(error.contains(disk.0.join("state").to_str().unwrap()), "{error}");
    disk.remount("remount,rw");
    agent(&["run", "--once"]).succeed();
    assert_same(&file, &receiver.entries());
    receiver.assert_complete();
}

/// An agent whose transactions hit a full disk: no entry leaves its outbox, so each transaction
/// needs more space.
struct Squeezed {
    receiver: ScriptedReceiver,
    is_open: Arc<AtomicBool>,
    agent: Agent,
    file: PathBuf,
    disk: Disk,
    home: Home,
    random: fastrand::Rng,
}

impl Squeezed {
    fn new() -> Self {
        let home = Home::new();
        let disk = Disk::new(home.path(), 256);
        let is_open = Arc::new(AtomicBool::new(false));
        let opened = Arc::clone(&is_open);
        let receiver = ScriptedReceiver::by_rule(move |_| match opened.load(Ordering::Relaxed) {
            true => Answer::Receipt,
            false => Answer::Status(503, &[("Retry-After", "1")], ""),
        });
        let mut agent = home.agent(&["run"]).config(&on(&disk)).ships_to(&receiver.url()).start();
        agent.wait_for_code("agent_started");
        let file = home.write("-work/a.jsonl", "");
        Self { receiver, is_open, agent, file, disk, home, random: random() }
    }

    /// Fills the disk in the middle of a transaction until the log contains `words`. The agent is
    /// stopped meanwhile: otherwise it would notice the free space in time. If it was stopped just
    /// before that check, the next round tries again.
    #[track_caller]
    fn until_it_says(&mut self, words: &str) {
        let mut round = 0;
        while !self.agent.log().contains(words) {
            round += 1;
            assert!(round < 6, "never report {words:?}:\n{}", self.agent.log());
            let more = lines(&mut self.random, round * 1000, 12 * MB);
            // The agent may have allocated its space before: what counts is that it writes.
            let store = self.disk.0.join("state/outbox.redb");
            let written = || fs::metadata(&store).unwrap().modified().unwrap();
            let before = written();
            self.home.append("-work/a.jsonl", more);
            // The words may be logged only now, after which a read-only store is not written again.
            eventually("reading is under way", || {
                (written() > before || self.agent.log().contains(words)).then_some(())
            });
            self.agent.signal(Signal::STOP);
            let ballast = self.disk.fill();
            self.agent.signal(Signal::CONT);
            eventually("the disk is found full", || {
                let log = self.agent.log();
                let full = lines_with_code(&log, "outbox_full").len() == round;
                (full || log.contains(words)).then_some(())
            });
            fs::remove_file(ballast).unwrap();
        }
        assert!(self.agent.runs());
    }

    /// Accepts everything from now on, and waits until all lines have arrived.
    #[track_caller]
    fn all_arrives(self) {
        self.is_open.store(true, Ordering::Relaxed);
        let bytes = fs::read(&self.file).unwrap();
        let written = bytes.iter().filter(|byte| **byte == b'\n').count();
        within(2 * crate::support::PATIENCE, "all of it", || {
            (entries::lines(&self.receiver.entries()).len() >= written).then_some(())
        });
        self.agent.stop();
        assert_same(&self.file, &self.receiver.entries());
    }
}

/// Another process fills the disk in the middle of a transaction, too quickly for any check of free
/// space. redb's handle is unusable after that and has to be reopened.
#[requires(mount)]
#[test]
fn transaction_that_finds_the_disk_full_is_repeated() {
    let mut squeezed = Squeezed::new();
    squeezed.until_it_says("No space left on device");
    squeezed.all_arrives();
}

/// The kernel remounts a disk read-only after an error. A disk in use cannot be remounted by hand,
/// so a read-only view is mounted over it, which the agent meets when it reopens its store.
#[requires(mount)]
#[test]
fn disk_read_only_while_running_is_waited_for() {
    let mut squeezed = Squeezed::new();
    let writable = Disk(squeezed.disk.0.with_file_name("writable"));
    fs::create_dir(&writable.0).unwrap();
    bind(&squeezed.disk.0, &writable.0);
    bind(&squeezed.disk.0, &squeezed.disk.0);
    // Busy while the agent has a file open below the new mount.
    eventually("the view is read-only", || {
        let mut remount = Command::new("mount");
        remount.args(["-o", "remount,ro,bind"]).arg(&squeezed.disk.0);
        remount.status().unwrap().success().then_some(())
    });
    let view = Disk(std::mem::replace(&mut squeezed.disk.0, writable.0.clone()));
    squeezed.until_it_says("ead-only file system");
    // The agent keeps trying.
    assert!(squeezed.agent.runs(), "{}", squeezed.agent.log());
    assert!(view.unmount());
    squeezed.all_arrives();
}

#[track_caller]
fn bind(from: &Path, to: &Path) {
    mount(Command::new("mount").arg("--bind").args([from, to]));
}

#[track_caller]
fn mount(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The part of a batch that fit stayed in the file, and its lines were there twice after the retry.
#[requires(mount)]
#[test]
fn full_disk_of_a_file_sink_keeps_only_whole_batches() {
    let home = Home::new();
    let disk = Disk::new(home.path(), 2);
    let out = disk.0.join("out.ndjson");
    let config = format!(
        "[shipping]\nmax_batch_bytes = \"1 MiB\"\n[pipeline]\nsinks = [\"out\"]\n\
         [sink.out]\ntype = \"file\"\npath = {out:?}"
    );
    home.write("-work/a.jsonl", lines(&mut random(), 0, 3 * MB));
    let once = || home.agent(&["run", "--once"]).config(&config);
    let error = once().env("AI_AGENT_TEST_CATCH_UP_MS", "500").fail(1);
    assert!(error.contains("No space left") && error.contains("out.ndjson"), "{error}");
    let before = entries::parse(&fs::read(&out).unwrap()).len() as u64;
    disk.remount("remount,size=32m");
    once().succeed();
    let stored = entries::parse(&fs::read(&out).unwrap());
    let numbers: Vec<u64> = stored.iter().map(|entry| entry.seq).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert!((1..numbers.len() as u64).contains(&before), "{before}");
}
