//! The tail over real directories: files that grow, move, shrink and go.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use siem_protocol::names::event;
use tempfile::TempDir;

use super::{testing::Store, *};
use crate::tail::testing::MovedClock;

/// A directory, a tail on it, and what the tail handed over.
struct World {
    directory: TempDir,
    options: TailOptions,
    clock: Arc<MovedClock>,
    tail: Tail,
    store: Store,
}

impl World {
    fn new() -> Self {
        Self::with(TailOptions { watch: false, ..TailOptions::default() })
    }

    fn with(options: TailOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        let options = TailOptions { roots: vec![root], ..options };
        let clock = MovedClock::shared();
        let tail = Tail::new(options.clone(), clock.clone(), Arc::new(|| {}));
        Self { directory, options, clock, tail, store: Store::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("root").join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn append(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let mut options = OpenOptions::new();
        let mut file = options.append(true).create(true).open(self.path(name)).unwrap();
        file.write_all(bytes.as_ref()).unwrap();
    }

    /// Lets enough time pass for a sweep, and reads everything, a few chunks to a group.
    fn read(&mut self) {
        self.pass(Duration::from_secs(400));
        self.read_on();
    }

    fn pass(&mut self, time: Duration) {
        self.tail.schedule.skipped += time;
        self.clock.advance(time);
    }

    fn read_on(&mut self) {
        let begun = Instant::now();
        while self.tail.read(&mut self.store) == Progress::More {
            self.store.commit();
            self.tail.committed();
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not end");
        }
        self.store.commit();
        self.tail.committed();
    }

    /// Starts again from what was stored.
    fn restart(&mut self) {
        self.store.roll_back();
        let clock = self.clock.clone();
        self.tail = Tail::new(self.options.clone(), clock, Arc::new(|| {}));
        self.tail.restore(&mut self.store.stored_rows());
    }

    /// What was read since it was last asked, as text, and the events.
    fn take(&mut self) -> (Vec<String>, Vec<&'static str>) {
        let taken = (self.store.lines(), self.store.event_names());
        self.store.got.clear();
        self.store.events.clear();
        taken
    }

    /// Reads, and says what came.
    fn next(&mut self) -> (Vec<String>, Vec<&'static str>) {
        self.read();
        self.take()
    }
}

fn lines<const N: usize>(lines: [&str; N]) -> (Vec<String>, Vec<&'static str>) {
    (lines.map(str::to_owned).to_vec(), Vec::new())
}

fn lines_and<const N: usize, const M: usize>(
    lines: [&str; N],
    events: [&'static str; M],
) -> (Vec<String>, Vec<&'static str>) {
    (lines.map(str::to_owned).to_vec(), events.to_vec())
}

#[test]
fn reads_whole_lines_and_leaves_an_incomplete_one() {
    let mut world = World::new();
    world.write("a.jsonl", "one\r\n\ntwo\nthr");
    assert_eq!(world.next(), lines(["one", "", "two"]));
    assert_eq!(world.next(), lines([]));
    world.append("a.jsonl", "ee\n");
    assert_eq!(world.next(), lines(["three"]));
}

#[test]
fn finds_files_at_any_depth_and_those_that_come_later() {
    let mut world = World::new();
    world.write("p/s/subagents/workflows/w/agent.jsonl", "deep\n");
    world.write("p/notes.md", "no\n");
    world.write("empty.jsonl", "");
    assert_eq!(world.next(), lines(["deep"]));
    world.write("q/x.jsonl/later.jsonl", "later\n");
    world.append("empty.jsonl", "x\n");
    let (mut came, events) = world.next();
    came.sort();
    assert_eq!((came, events), lines(["later", "x"]));
    let path = &world.store.got;
    assert!(path.is_empty());
}

#[test]
fn a_restart_goes_on_where_the_rows_say() {
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    world.write("b.jsonl", "eins\nzw");
    world.read();
    world.take();
    world.restart();
    world.append("a.jsonl", "two\n");
    world.append("b.jsonl", "ei\n");
    let (mut came, events) = world.next();
    came.sort();
    assert_eq!((came, events), lines(["two", "zwei"]));
    world.restart();
    assert_eq!(world.next(), lines([]));
    assert_eq!(world.store.rows.len(), 2);
}

#[test]
fn a_group_that_was_not_stored_is_read_again() {
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    world.read();
    let key = world.store.got[0].file;
    world.append("a.jsonl", "two\n");
    world.pass(Duration::from_secs(400));
    assert!(matches!(world.tail.read(&mut world.store), Progress::Idle { .. }));
    world.store.roll_back();
    world.tail.restore(&mut world.store.stored_rows());
    world.read();
    assert_eq!(world.store.lines(), ["one", "two"]);
    assert_eq!(world.store.got[1].file, key, "filters remember the file by its key");
}

#[test]
fn a_renamed_file_goes_on() {
    let mut world = World::new();
    world.write("p/a.jsonl", "one\ntw");
    world.read();
    let before = world.store.got[0].clone();
    fs::create_dir(world.path("q")).unwrap();
    fs::rename(world.path("p/a.jsonl"), world.path("q/b.jsonl")).unwrap();
    world.append("q/b.jsonl", "o\n");
    world.read();
    let after = &world.store.got[1];
    assert_eq!(world.store.lines(), ["one", "two"]);
    assert_eq!((&after.generation, after.file), (&before.generation, before.file));
    assert_eq!(after.path, world.path("q/b.jsonl"));
    world.take();
    world.restart();
    assert_eq!(world.next(), lines([]));
}

#[test]
fn a_rename_while_the_agent_was_stopped_goes_on() {
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    world.read();
    world.restart();
    fs::rename(world.path("a.jsonl"), world.path("b.jsonl")).unwrap();
    world.write("a.jsonl", "another\n");
    world.append("b.jsonl", "two\n");
    world.take();
    let (mut came, events) = world.next();
    came.sort();
    assert_eq!((came, events), lines(["another", "two"]));
}

#[test]
fn files_renamed_over_others_go_on() {
    for restart in [false, true] {
        let mut world = World::new();
        for name in ["a", "b", "c"] {
            world.write(&format!("{name}.jsonl"), format!("{name}\n"));
        }
        world.read();
        world.take();
        if restart {
            world.restart();
        }
        let path = |name| world.path(name);
        // b goes, a becomes b and c becomes a.
        fs::rename(path("a.jsonl"), path("b.jsonl")).unwrap();
        fs::rename(path("c.jsonl"), path("a.jsonl")).unwrap();
        assert_eq!(world.next(), lines([]));
        assert_eq!(world.store.rows.len(), 2);
        // Both change places.
        let path = |name| world.path(name);
        fs::rename(path("a.jsonl"), path("x")).unwrap();
        fs::rename(path("b.jsonl"), path("a.jsonl")).unwrap();
        fs::rename(path("x"), path("b.jsonl")).unwrap();
        world.append("a.jsonl", "was a\n");
        world.append("b.jsonl", "was c\n");
        let (mut came, events) = world.next();
        came.sort();
        assert_eq!((came, events), lines(["was a", "was c"]));
        assert_eq!(world.store.rows.len(), 2);
        world.restart();
        assert_eq!(world.next(), lines([]));
    }
}

#[test]
fn a_copy_is_a_file_of_its_own() {
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    world.read();
    world.take();
    fs::copy(world.path("a.jsonl"), world.path("b.jsonl")).unwrap();
    fs::hard_link(world.path("a.jsonl"), world.path("c.jsonl")).unwrap();
    assert_eq!(world.next(), lines(["one", "one"]));
    assert_eq!(world.store.rows.len(), 3);
}

#[test]
fn a_trimmed_file_goes_on_at_the_cut() {
    for restart in [false, true] {
        let mut world = World::new();
        world.write("a.jsonl", "one\ntwo\nthree\n");
        world.read();
        let before = world.store.got[0].clone();
        world.take();
        if restart {
            world.restart();
        }
        world.write("a.jsonl", "one\ntwo\nother\n");
        world.read();
        let after = world.store.got[0].clone();
        assert_eq!(world.store.events[0].data["offset"], 8);
        assert_eq!(world.take(), lines_and(["other"], [event::FILE_TRIMMED]));
        assert_eq!((after.offset, after.era), (8, before.era));
        assert_ne!(after.generation, before.generation);
        assert_eq!(world.store.rows.len(), 1);
        world.write("a.jsonl", "one\ntw");
        assert_eq!(world.next(), lines_and([], [event::FILE_TRIMMED]));
        world.append("a.jsonl", "ice\n");
        assert_eq!(world.next(), lines(["twice"]));
    }
}

#[test]
fn a_rewritten_file_begins_anew() {
    // The same length, longer, shorter than a line, another inode, truncated to zero.
    for (replace, content, expected) in [
        (false, "ONE\ntwo\n", vec!["ONE", "two"]),
        (false, "ONE\ntwo\nthree\n", vec!["ONE", "two", "three"]),
        (false, "x", vec![]),
        (true, "ONE\ntwo\n", vec!["ONE", "two"]),
        (true, "ONE\ntwo\nthree\n", vec!["ONE", "two", "three"]),
        (false, "", vec![]),
    ] {
        for restart in [false, true] {
            let mut world = World::new();
            world.write("a.jsonl", "one\ntwo\n");
            world.read();
            let before = world.store.got[0].clone();
            world.take();
            if restart {
                world.restart();
            }
            if replace {
                world.write("new", content);
                fs::rename(world.path("new"), world.path("a.jsonl")).unwrap();
            } else {
                world.write("a.jsonl", content);
            }
            world.read();
            let after = world.store.got.first().cloned();
            let (came, events) = world.take();
            assert_eq!(events, [event::FILE_REWRITTEN], "{content:?} {replace}");
            assert_eq!(came, expected);
            if let Some(after) = after.filter(|_| !restart) {
                assert_eq!((after.file, after.era), (before.file, before.era + 1));
            }
            assert_eq!(world.store.rows.len(), 1);
            world.append("a.jsonl", "more\n");
            let (came, events) = world.next();
            assert_eq!((came.len(), events.len()), (1, 0));
        }
    }
}

#[test]
fn a_longer_copy_with_the_same_bytes_goes_on() {
    let mut world = World::new();
    world.write("a.jsonl", "one\ntwo\n");
    world.read();
    world.take();
    world.write("new", "one\ntwo\nthree\n");
    fs::rename(world.path("new"), world.path("a.jsonl")).unwrap();
    assert_eq!(world.next(), lines(["three"]));
    // As after a restored backup or a new disk: other ids, the same bytes.
    world.write("new", "one\ntwo\nthree\n");
    fs::rename(world.path("new"), world.path("a.jsonl")).unwrap();
    assert_eq!(world.next(), lines([]));
}

#[test]
fn a_touched_file_is_not_read_again() {
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    world.read();
    world.take();
    let file = OpenOptions::new().append(true).open(world.path("a.jsonl")).unwrap();
    let later = world.clock.now().0 / 1000 + 1000;
    for seconds in [later, 1] {
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        assert_eq!(world.next(), lines([]));
    }
}

#[test]
fn a_deleted_file_is_read_from_its_open_handle() {
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    world.read();
    // Found changed while live, so that it stays open.
    world.append("a.jsonl", "two\n");
    world.read();
    let key = world.store.got[0].file;
    world.take();
    world.append("a.jsonl", "three\nfour");
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.pass(Duration::from_secs(400));
    world.tail.schedule.sweep_now();
    world.read_on();
    let last = world.store.got.last().unwrap().clone();
    assert_eq!(world.take(), lines(["three", "four"]));
    assert!(last.incomplete);
    assert_eq!(world.store.rows.len(), 0);
    assert_eq!(world.store.forgotten, [key]);
}

#[test]
fn a_file_deleted_unread_is_reported() {
    let mut world = World::new();
    world.write("a.jsonl", "one\ntwo");
    world.write("b.jsonl", "drained\n");
    world.read();
    world.take();
    fs::remove_file(world.path("a.jsonl")).unwrap();
    fs::remove_file(world.path("b.jsonl")).unwrap();
    world.restart();
    world.read();
    let data = world.store.events[0].data.clone();
    assert_eq!((&data["from"], &data["to"]), (&4.into(), &7.into()));
    assert_eq!(world.take(), lines_and([], [event::FILE_DELETED_UNREAD]));
    assert_eq!(world.store.rows.len(), 0);
}

#[test]
fn an_incomplete_line_is_kept_and_shipped_when_the_file_is_deleted() {
    for content in ["one\ntwo", "two"] {
        let mut world = World::new();
        world.write("a.jsonl", content);
        world.read();
        world.take();
        world.pass(Duration::from_secs(700));
        world.read();
        assert_eq!(world.take(), lines([]));
        world.restart();
        assert_eq!(world.next(), lines([]));
        fs::remove_file(world.path("a.jsonl")).unwrap();
        world.read();
        assert!(world.store.got[0].incomplete);
        assert_eq!(world.take(), lines(["two"]));
        assert_eq!(world.store.rows.len(), 0);
    }
}

#[test]
fn a_file_deleted_and_made_anew_is_rewritten_or_new() {
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    world.read();
    world.take();
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.write("a.jsonl", "other\n");
    assert_eq!(world.next(), lines_and(["other"], [event::FILE_REWRITTEN]));
    fs::remove_file(world.path("a.jsonl")).unwrap();
    assert_eq!(world.next(), lines([]));
    world.write("a.jsonl", "third\n");
    assert_eq!(world.next(), lines(["third"]));
}

#[test]
fn an_absent_root_is_not_the_deletion_of_its_files() {
    let mut world = World::new();
    world.write("p/a.jsonl", "one\n");
    world.read();
    world.take();
    let (root, away) = (world.path(""), world.directory.path().join("away"));
    fs::rename(&root, &away).unwrap();
    assert_eq!(world.next(), lines([]));
    world.restart();
    assert_eq!(world.next(), lines([]));
    assert_eq!(world.store.rows.len(), 1);
    fs::rename(&away, &root).unwrap();
    world.append("p/a.jsonl", "two\n");
    assert_eq!(world.next(), lines(["two"]));
}

#[test]
fn long_lines_go_in_parts_over_restarts() {
    let options = TailOptions {
        max_record_bytes: 100,
        part_bytes: 30,
        watch: false,
        ..TailOptions::default()
    };
    let mut world = World::with(options);
    world.store.room = 1;
    let line = "0123456789".repeat(40);
    world.write("a.jsonl", format!("short\n{}", &line[..150]));
    world.read();
    world.restart();
    world.append("a.jsonl", &line[150..]);
    world.read();
    world.append("a.jsonl", "\r");
    world.read();
    world.restart();
    world.append("a.jsonl", "\nshort\n");
    world.read();
    let got = &world.store.got;
    let parts: Vec<_> = got.iter().filter(|got| got.part.is_some()).collect();
    let joined: Vec<u8> = parts.iter().flat_map(|part| part.bytes.clone()).collect();
    assert_eq!(joined, line.as_bytes());
    let digest = siem_protocol::Digest::of(line.as_bytes());
    assert_eq!(parts.last().unwrap().whole, Some((400, digest)));
    let numbers: Vec<_> = parts.iter().filter_map(|part| part.part).collect();
    assert!(numbers.iter().copied().eq(1..=u32::try_from(parts.len()).unwrap()), "{numbers:?}");
    assert!(parts.iter().all(|part| part.offset == 6));
    assert_eq!(got.last().unwrap().offset, 6 + 402);
    assert!(world.store.events.is_empty());
}

#[test]
fn a_long_line_cut_short_is_abandoned() {
    let options = TailOptions {
        max_record_bytes: 100,
        part_bytes: 30,
        watch: false,
        ..TailOptions::default()
    };
    let mut world = World::with(options);
    world.write("a.jsonl", format!("short\n{}", "x".repeat(200)));
    world.read();
    world.take();
    world.write("a.jsonl", "short\nnew\n");
    let expected = [event::RECORD_ABANDONED, event::FILE_TRIMMED];
    assert_eq!(world.next(), lines_and(["new"], expected));
    world.append("a.jsonl", "y".repeat(200));
    world.read();
    world.take();
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.restart();
    let (came, events) = world.next();
    assert!(came.is_empty());
    assert_eq!(events, [event::RECORD_ABANDONED, event::FILE_DELETED_UNREAD]);
}

#[cfg(unix)]
#[test]
fn an_unreadable_file_is_kept_in_mind_and_read_when_it_can_be() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    fs::set_permissions(world.path("a.jsonl"), fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(world.path("a.jsonl")).is_ok() {
        return; // root may read anything
    }
    assert_eq!(world.next(), lines([]));
    assert_eq!(world.tail.survey().unreadable[0].path, world.path("a.jsonl"));
    fs::set_permissions(world.path("a.jsonl"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(world.next(), lines(["one"]));
    assert!(world.tail.survey().unreadable.is_empty());
}

#[cfg(unix)]
#[test]
fn a_directory_that_cannot_be_listed_is_not_the_deletion_of_its_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut world = World::new();
    world.write("p/q/a.jsonl", "one\n");
    world.read();
    world.take();
    let set = |world: &World, mode| {
        fs::set_permissions(world.path("p"), fs::Permissions::from_mode(mode)).unwrap();
    };
    set(&world, 0o000);
    if fs::read_dir(world.path("p")).is_ok() {
        return; // root may list anything
    }
    world.read();
    assert_eq!(world.tail.survey().unreadable.len(), 1);
    assert_eq!(world.store.rows.len(), 1);
    set(&world, 0o700);
    world.append("p/q/a.jsonl", "two\n");
    assert_eq!(world.next(), lines(["two"]));
    assert!(world.tail.survey().unreadable.is_empty());
}

#[test]
fn hints_find_changes_without_a_sweep_and_lies_do_no_harm() {
    let mut world = World::new();
    world.write("a.jsonl", "one\n");
    world.read();
    world.take();
    let sweeps = world.tail.survey().sweeps;
    world.tail.schedule.is_watching = true;
    world.append("a.jsonl", "two\n");
    world.write("new/b.jsonl", "new\n");
    let root = world.path("");
    for path in ["a.jsonl", "new", "absent.jsonl", "new/c.jsonl", "../outside.jsonl"] {
        world.tail.hints.add(root.join(path));
    }
    world.tail.hints.add("/".into());
    world.tail.hints.add(Path::new("").into());
    world.read_on();
    let (mut came, events) = world.take();
    came.sort();
    assert_eq!((came, events), lines(["new", "two"]));
    assert_eq!(world.tail.survey().sweeps, sweeps);
}

#[test]
fn a_live_file_is_read_between_the_chunks_of_a_backlog() {
    let options = TailOptions { chunk_bytes: 64, watch: false, ..TailOptions::default() };
    let mut world = World::with(options);
    world.write("live.jsonl", "old\n");
    world.read();
    world.write("big.jsonl", "backlog\n".repeat(1000));
    let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let big = OpenOptions::new().append(true).open(world.path("big.jsonl")).unwrap();
    big.set_modified(long_ago).unwrap();
    world.take();
    world.store.room = 2;
    world.pass(Duration::from_secs(400));
    assert_eq!(world.tail.read(&mut world.store), Progress::More);
    world.append("live.jsonl", "live\n");
    world.tail.hints.add(world.path("live.jsonl"));
    world.store.commit();
    world.tail.committed();
    assert_eq!(world.tail.read(&mut world.store), Progress::More);
    world.store.commit();
    world.tail.committed();
    let lines = world.store.lines();
    assert!(lines.contains(&"live".to_owned()) && lines.len() < 40, "{}", lines.len());
    world.read_on();
    assert_eq!(world.store.got.len(), 1001);
}

#[test]
fn the_watcher_wakes_the_reader() {
    let (sender, woken) = std::sync::mpsc::channel();
    let mut world = World::with(TailOptions::default());
    let wake = Arc::new(move || sender.send(()).unwrap_or_default());
    world.tail = Tail::new(world.options.clone(), world.clock.clone(), wake);
    world.write("a.jsonl", "one\n");
    world.read();
    if !world.tail.survey().is_watching {
        return; // no watches to be had here
    }
    world.take();
    let sweeps = world.tail.survey().sweeps;
    world.append("a.jsonl", "two\n");
    world.write("p/q/new.jsonl", "new\n");
    let begun = Instant::now();
    while world.store.got.len() < 2 {
        let left = Duration::from_secs(20).saturating_sub(begun.elapsed());
        let next = match world.tail.read(&mut world.store) {
            Progress::Idle { next } => next.min(left),
            Progress::More => Duration::ZERO,
        };
        world.store.commit();
        world.tail.committed();
        assert!(!left.is_zero(), "the watcher was silent");
        let _woken_or_due = woken.recv_timeout(next);
    }
    let (mut came, events) = world.take();
    came.sort();
    assert_eq!((came, events), lines(["new", "two"]));
    assert_eq!(world.tail.survey().sweeps, sweeps);
}

#[test]
fn few_files_are_open_and_none_when_quiet() {
    let options = TailOptions { open_files: 3, watch: false, ..TailOptions::default() };
    let mut world = World::with(options);
    world.read();
    for n in 0..10 {
        world.write(&format!("{n}.jsonl"), "one\n");
    }
    world.tail.schedule.sweep_now();
    world.read_on();
    assert!(world.tail.survey().files_open <= 3);
    world.pass(Duration::from_secs(11));
    world.read_on();
    assert_eq!((world.tail.survey().files_open, world.store.got.len()), (0, 10));
}

/// What happens in a random world.
#[derive(Clone, Debug)]
enum Step {
    Append(usize, Vec<u8>),
    Move(usize),
    Read,
    /// Reads some, and loses the group.
    LoseGroup,
    Restart,
    Replace(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![
        Just(b"\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\r".to_vec()),
        (0..120_usize).prop_map(|len| vec![b'x'; len]),
        "[a-z\u{e9}]{0,9}\r?\n".prop_map(String::into_bytes),
        "([a-z]{0,9}\n){3}".prop_map(String::into_bytes),
    ];
    prop_oneof![
        6 => (0..3_usize, bytes).prop_map(|(file, bytes)| Step::Append(file, bytes)),
        1 => (0..3_usize).prop_map(Step::Move),
        1 => (0..3_usize).prop_map(Step::Replace),
        4 => Just(Step::Read),
        1 => Just(Step::LoseGroup),
        1 => Just(Step::Restart),
    ]
}

/// The complete lines of `content` with their offsets, found in the plainest way.
fn plainly(content: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut offset = 0;
    let mut lines = Vec::new();
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        if let Some(bytes) = line.strip_suffix(b"\n") {
            lines.push((offset, bytes.strip_suffix(b"\r").unwrap_or(bytes).to_vec()));
        }
        offset += line.len() as u64;
    }
    lines
}

/// The lines of one file as they came, parts put together; without one whose last part is to come.
fn came(store: &Store, paths: &[PathBuf]) -> Vec<(u64, Vec<u8>)> {
    let mut lines: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut is_open = false;
    for got in store.got.iter().filter(|got| paths.contains(&got.path)) {
        assert!(!got.incomplete);
        match (got.part, lines.last_mut()) {
            (Some(2..), Some((offset, bytes))) => {
                assert_eq!(*offset, got.offset);
                bytes.extend_from_slice(&got.bytes);
                if let Some((length, digest)) = got.whole {
                    assert_eq!(length, bytes.len() as u64);
                    assert_eq!(digest, siem_protocol::Digest::of(bytes));
                }
            }
            _ => lines.push((got.offset, got.bytes.clone())),
        }
        is_open = got.part.is_some() && got.whole.is_none();
    }
    if is_open {
        lines.pop();
    }
    lines
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn every_complete_line_comes_once_whatever_happens(
        steps in proptest::collection::vec(step(), 1..60),
        chunk_bytes in 1..200_u64,
        max_record_bytes in 1..100_u64,
        part_bytes in 1..50_u64,
        open_files in 1..4_usize,
        room in 1..5_usize,
    ) {
        let options = TailOptions {
            chunk_bytes, max_record_bytes, part_bytes, open_files, watch: false,
            ..TailOptions::default()
        };
        let mut world = World::with(options);
        world.store.room = room;
        let mut content = vec![Vec::new(); 3];
        let mut names: Vec<Vec<String>> = (0..3).map(|n| vec![format!("{n}.jsonl")]).collect();
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append(file, bytes) => {
                    world.append(names[file].last().unwrap(), &bytes);
                    content[file].extend_from_slice(&bytes);
                }
                Step::Move(file) => {
                    let (from, to) = (world.path(names[file].last().unwrap()), format!("{n}/{file}.jsonl"));
                    if from.try_exists().unwrap() {
                        fs::create_dir(world.path(&n.to_string())).unwrap();
                        fs::rename(from, world.path(&to)).unwrap();
                        names[file].push(to);
                    }
                }
                Step::Replace(file) => {
                    let path = world.path(names[file].last().unwrap());
                    if path.try_exists().unwrap() {
                        // Moved and replaced at once it could not be known again.
                        world.read();
                        world.write("copy", &content[file]);
                        fs::rename(world.path("copy"), path).unwrap();
                        world.read();
                    }
                }
                Step::Read => world.read(),
                Step::LoseGroup => {
                    world.pass(Duration::from_secs(400));
                    world.tail.read(&mut world.store);
                    world.store.roll_back();
                    world.tail.restore(&mut world.store.stored_rows());
                }
                Step::Restart => world.restart(),
            }
        }
        world.read();
        prop_assert!(world.store.events.is_empty(), "{:?}", world.store.events);
        for (file, content) in content.iter().enumerate() {
            let paths: Vec<_> = names[file].iter().map(|name| world.path(name)).collect();
            prop_assert_eq!(came(&world.store, &paths), plainly(content));
        }
    }
}
