//! The log of auditd, followed across rotations, restarts and failures of the store.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    sync::atomic::{AtomicU64, Ordering},
};

use proptest::prelude::*;
use tempfile::TempDir;

use std::path::PathBuf;

use ai_agent_auditd::{
    MAX_LINE_BYTES,
    facts::Facts,
    follower::{AuditFollower, LogError},
};

use super::*;
use crate::tail::testing::{MemoryStore, ShiftedClock};

/// Number of rotated files that auditd keeps in these tests.
const OLD_LOGS: usize = 4;

/// A log, its follower, and the pieces handed over.
struct World {
    folder: TempDir,
    clock: Arc<ShiftedClock>,
    follower: AuditFollower,
    store: MemoryStore,
}

fn follower(folder: &Path, clock: &Arc<ShiftedClock>, once: bool) -> AuditFollower {
    let path = folder.join("audit.log");
    let poll_interval = Duration::from_secs(300);
    let options = LogOptions { max_line_bytes: MAX_LINE_BYTES, is_once: once, poll_interval };
    let files = follow_log(&path, options, clock.clone(), Arc::new(|| ()), None);
    AuditFollower::new(files, path, once, clock.clone())
}

impl World {
    fn new() -> Self {
        let (folder, clock) = (tempfile::tempdir().unwrap(), ShiftedClock::shared());
        let follower = follower(folder.path(), &clock, false);
        let mut store = MemoryStore::default();
        store.room = 2;
        Self { folder, clock, follower, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn append(&self, bytes: impl AsRef<[u8]>) {
        let file = OpenOptions::new().append(true).create(true).open(self.path("audit.log"));
        file.unwrap().write_all(bytes.as_ref()).unwrap();
    }

    /// Rotates the log as auditd does when it is full.
    fn rotate(&self) {
        for number in (1..OLD_LOGS).rev() {
            drop(fs::rename(
                self.path(&format!("audit.log.{number}")),
                self.path(&format!("audit.log.{}", number + 1)),
            ));
        }
        fs::rename(self.path("audit.log"), self.path("audit.log.1")).unwrap();
        self.append("");
    }

    /// Reads everything, after some time has passed.
    fn read(&mut self) {
        self.clock.advance(Duration::from_secs(400));
        while self.read_a_group() == Progress::More {
            self.commit();
        }
        self.commit();
    }

    fn read_a_group(&mut self) -> Progress {
        let is_ours = |facts: &Facts| facts.keys.iter().any(|key| key == "k");
        self.follower.read(&mut self.store, &mut { is_ours })
    }

    fn commit(&mut self) {
        self.store.commit();
        self.follower.sealed();
        self.follower.committed();
    }

    /// Restarts from the stored rows.
    fn restart(&mut self, once: bool) {
        self.store.roll_back();
        self.follower = follower(self.folder.path(), &self.clock, once);
        self.follower.restore(&mut self.store.stored_rows()).unwrap();
    }

    /// Serial and number of lines of each event.
    fn events(&self) -> Vec<(u64, usize)> {
        let event = |got: &crate::tail::testing::ReceivedPiece| {
            let lines: Vec<&[u8]> = got.bytes.split(|byte| *byte == b'\n').collect();
            (Facts::of(lines.iter().copied()).serial, lines.len())
        };
        self.store.got.iter().map(event).collect()
    }

    fn bytes_read(&self) -> u64 {
        self.store.got.iter().map(|got| got.size).sum::<u64>() + self.store.skipped_bytes
    }
}

/// A line of an event: of our rule if the serial is even, otherwise of another.
fn line(kind: &str, serial: u64) -> String {
    let key = if serial.is_multiple_of(2) { "k" } else { "other" };
    let body = match kind {
        "SYSCALL" => format!("pid=1 key=\"{key}\""),
        "EXECVE" => format!("argc=1 a0=\"{}\"", "x".repeat(30)),
        _ => "cwd=\"/\"".to_owned(),
    };
    format!("type={kind} msg=audit(1763812345.007:{serial}): {body}\n")
}

fn event(serial: u64) -> String {
    ["SYSCALL", "EXECVE", "CWD", "PROCTITLE"].map(|kind| line(kind, serial)).concat()
}

#[test]
fn event_is_one_entry_at_its_first_line() {
    let mut world = World::new();
    world.append("no line of an audit log\n");
    world.append(event(1) + &event(2));
    world.read();
    let [got] = world.store.got.as_slice() else { panic!("{:?}", world.store.got) };
    assert_eq!(got.offset, 24 + event(1).len() as u64);
    assert_eq!(got.bytes, event(2).trim_end().as_bytes());
    assert_eq!((got.size, &got.path), (event(2).len() as u64, &world.path("audit.log")));
    assert_eq!(world.store.skipped_bytes, got.offset);
}

/// The agent stops while the checkpoint is past the first lines of the event.
#[test]
fn half_read_event_is_complete_after_restart() {
    let mut world = World::new();
    world.append(line("SYSCALL", 2) + &line("SYSCALL", 4) + &line("EXECVE", 2));
    world.read();
    assert_eq!(world.events(), []);
    world.restart(false);
    world.append(line("PROCTITLE", 4) + &line("CWD", 2) + &line("PROCTITLE", 2));
    world.read();
    assert_eq!(world.events(), [(4, 2), (2, 4)]);
    world.restart(false);
    world.read();
    assert_eq!(world.events().len(), 2);
    let rows: Vec<_> = world.store.stored_rows().collect();
    assert!(rows.iter().all(|(_, row)| !String::from_utf8_lossy(row).contains("unfinished")));
}

#[test]
fn event_without_end_ends_by_silence() {
    let mut world = World::new();
    world.append(line("SYSCALL", 2));
    world.read();
    assert_eq!(world.events(), []);
    world.read();
    assert_eq!(world.events(), [(2, 1)]);
    world.append(line("SYSCALL", 4));
    world.read();
    assert_eq!(world.events().len(), 1);
    // A single read does not wait for silence.
    world.restart(true);
    world.read();
    assert_eq!(world.events(), [(2, 1), (4, 1)]);
}

#[test]
fn event_across_a_rotation_is_one() {
    for is_restarted in [false, true] {
        let mut world = World::new();
        world.append(line("SYSCALL", 2));
        world.read();
        world.append(line("EXECVE", 2));
        if is_restarted {
            world.restart(false);
        }
        world.rotate();
        world.append(line("PROCTITLE", 2) + &event(4));
        world.read();
        assert_eq!(world.events(), [(2, 3), (4, 4)], "{is_restarted}");
        assert_eq!(world.store.event_names(), Vec::<&str>::new());
        world.restart(false);
        world.read();
        assert_eq!(world.events().len(), 2);
    }
}

#[test]
fn files_rotated_before_first_start_are_read() {
    let mut world = World::new();
    world.append(event(2));
    world.rotate();
    world.append(event(4));
    world.rotate();
    fs::create_dir(world.path("old")).unwrap();
    fs::write(world.path("old/audit.log"), event(6)).unwrap();
    fs::write(world.path("audit.log.1.gz"), event(6)).unwrap();
    world.read();
    let mut events = world.events();
    events.sort_unstable();
    assert_eq!(events, [(2, 4), (4, 4)]);
}

#[test]
fn event_ends_with_its_truncated_or_deleted_file() {
    for is_deleted in [false, true] {
        let mut world = World::new();
        world.append(line("SYSCALL", 2));
        world.read();
        if is_deleted {
            fs::remove_file(world.path("audit.log")).unwrap();
        } else {
            fs::write(world.path("audit.log"), line("EXECVE", 4)).unwrap();
        }
        world.read();
        assert_eq!(world.events(), [(2, 1)], "{is_deleted}");
        assert_eq!(world.store.rows.len(), usize::from(!is_deleted));
    }
}

#[test]
fn unreadable_log_is_reported_with_remedy() {
    let mut world = World::new();
    world.read();
    let error = world.follower.error().unwrap().to_string();
    assert!(error.contains("install auditd"), "{error}");
    world.append("");
    world.read();
    assert_eq!(world.follower.error(), None);
    let error = LogError::Unreadable("/var/log/audit".into(), "Permission denied".into());
    let error = error.to_string();
    assert!(error.contains("`adm`") && error.contains("setfacl"), "{error}");
}

/// auditd writes and rotates while the log is read.
#[test]
fn rotations_during_reads_repeat_and_lose_no_event() {
    const EVENTS: u64 = 400;
    let mut world = World::new();
    world.append("");
    let folder = world.folder.path().to_owned();
    let reads = Arc::new(AtomicU64::new(0));
    let reads_of_writer = Arc::clone(&reads);
    let writer = std::thread::spawn(move || {
        let mut log = OpenOptions::new().append(true).open(folder.join("audit.log")).unwrap();
        let mut rotated = 0;
        for serial in 0..EVENTS {
            log.write_all(event(serial).as_bytes()).unwrap();
            if serial % 16 == 7 {
                // At most one rotation happens during two reads.
                let until = reads_of_writer.load(Ordering::Acquire) + 2;
                while reads_of_writer.load(Ordering::Acquire) < until {
                    std::thread::yield_now();
                }
                for number in (0..rotated).rev() {
                    let name = |number: u64| folder.join(format!("audit.log.{number}"));
                    fs::rename(name(number + 1), name(number + 2)).unwrap();
                }
                rotated += 1;
                fs::rename(folder.join("audit.log"), folder.join("audit.log.1")).unwrap();
                log = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(folder.join("audit.log"))
                    .unwrap();
            }
        }
    });
    while !writer.is_finished() {
        world.clock.advance(Duration::from_millis(100));
        world.read_a_group();
        world.commit();
        reads.fetch_add(1, Ordering::Release);
    }
    writer.join().unwrap();
    world.read();
    world.read();
    let mut events = world.events();
    events.sort_unstable();
    let expected: Vec<_> = (0..EVENTS).step_by(2).map(|serial| (serial, 4)).collect();
    assert_eq!(events, expected);
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Read,
    ReadInPart,
    Restart,
    LoseGroup,
    Rotate,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..200_usize).prop_map(Step::Append),
        3 => Just(Step::Read),
        1 => Just(Step::ReadInPart),
        1 => Just(Step::Restart),
        1 => Just(Step::LoseGroup),
        1 => Just(Step::Rotate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whenever the log grows or is rotated, the agent stops or the store fails: each event is handed
    /// over once and complete, and every byte is accounted for.
    #[test]
    fn every_event_is_handed_over_once(
        order in proptest::collection::vec(0..6_u64, 8..40),
        steps in proptest::collection::vec(step(), 0..24),
    ) {
        // Lines of six events, mixed; each ends with its last line.
        let kinds = ["SYSCALL", "EXECVE", "CWD"];
        let mut counts = [0; 6];
        let mut text = String::new();
        for serial in &order {
            let index = usize::try_from(*serial).unwrap();
            text += &line(kinds[counts[index] % 3], *serial);
            counts[index] += 1;
        }
        let begun: Vec<u64> = (0..6).filter(|serial| order.contains(serial)).collect();
        text.extend(begun.iter().map(|serial| line("PROCTITLE", *serial)));
        let expected: Vec<(u64, usize)> = begun
            .iter()
            .filter(|serial| serial.is_multiple_of(2))
            .map(|serial| (*serial, counts[usize::try_from(*serial).unwrap()] + 1))
            .collect();

        // A single read with a clock before the events: none of them ends by silence.
        let mut world = World::new();
        world.clock.jump(-5 * 365 * 24 * 3600);
        world.restart(true);
        let mut rest = text.as_bytes();
        world.append("");
        let mut rotated = 0;
        for step in steps {
            match step {
                Step::Append(bytes) => {
                    let (now, later) = rest.split_at(bytes.min(rest.len()));
                    world.append(now);
                    rest = later;
                }
                Step::Read => world.read(),
                Step::ReadInPart => drop(world.read_a_group()),
                Step::Restart => world.restart(true),
                Step::LoseGroup => {
                    world.store.roll_back();
                    world.follower.restore(&mut world.store.stored_rows()).unwrap();
                }
                // A log that auditd deletes loses its unread lines and ends its events; not tested here.
                Step::Rotate if rotated == OLD_LOGS => {}
                Step::Rotate => {
                    rotated += 1;
                    // auditd rotates between two lines.
                    let line = rest.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                    let written = text.len() - rest.len();
                    if written > 0 && text.as_bytes()[written - 1] != b'\n' {
                        world.append(&rest[..line]);
                        rest = &rest[line..];
                    }
                    world.rotate();
                }
            }
        }
        world.append(rest);
        world.read();
        let mut events = world.events();
        events.sort_unstable();
        prop_assert_eq!(events, expected);
        prop_assert_eq!(world.bytes_read(), text.len() as u64);
    }
}
