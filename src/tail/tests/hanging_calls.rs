//! Calls of a file system that do not return: on one root of two, and behind a link.

use std::os::unix::fs::symlink;

use super::*;
use crate::platform::{
    bounded::BoundedCalls,
    faults::{self, Call},
};

/// Time within which a call must return in these tests.
const LIMIT: Duration = Duration::from_millis(400);

/// A tail on the root of a fixture, and on another one.
struct TwoRoots {
    fixture: TailFixture,
    calls: BoundedCalls,
    other: TempDir,
}

impl TwoRoots {
    fn new() -> Self {
        let mut fixture = TailFixture::new();
        let other = tempfile::tempdir().unwrap();
        fixture.options.roots.push(other.path().to_owned());
        let calls = BoundedCalls::with_limit(fixture.clock.clone(), LIMIT);
        let mut world = Self { fixture, calls, other };
        world.restart();
        world
    }

    fn restart(&mut self) {
        self.fixture.restart();
        let clock = self.fixture.clock.clone();
        let new_id = Box::new(fresh_generation);
        let tail = Tail::new(self.fixture.options.clone(), clock, new_id, Arc::new(|| {}));
        self.fixture.tail = tail.with_calls(&self.calls);
        self.fixture.tail.restore(&mut self.fixture.store.stored_rows()).unwrap();
    }

    fn append_to_other(&self, name: &str, bytes: &str) {
        let path = self.other.path().join(name);
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(bytes.as_bytes()).unwrap();
    }

    fn unreadable(&self) -> Vec<PathBuf> {
        self.fixture.tail.survey().unreadable.into_keys().collect()
    }

    fn silent(&self) -> Vec<PathBuf> {
        self.calls.silent().into_iter().map(|(path, _)| path).collect()
    }

    /// Ends the fault, and waits until all places answer.
    fn release(&self) {
        faults::end();
        let begun = Instant::now();
        while !self.silent().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", self.silent());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A share that hangs stopped everything: sessions elsewhere, status, heartbeats and the shutdown.
#[test]
fn root_that_hangs_does_not_stop_other_roots() {
    for call in [Call::Open, Call::Stat, Call::List] {
        for watch in [false, true] {
            let mut world = TwoRoots::new();
            world.fixture.options.watch = watch;
            world.restart();
            world.fixture.write("p/a.jsonl", "a1\n");
            world.append_to_other("b.jsonl", "b1\n");
            world.fixture.read();
            world.fixture.take();
            let root = world.fixture.path("").parent().unwrap().join("root");
            faults::hang(call, &root);
            world.fixture.append("p/a.jsonl", "a2\n");
            world.fixture.write("p/c.jsonl", "c1\n");
            for n in 2..6 {
                world.append_to_other("b.jsonl", &format!("b{n}\n"));
                world.fixture.read();
            }
            let what = format!("{call:?} {watch}");
            assert_eq!(world.fixture.take(), lines(["b2", "b3", "b4", "b5"]), "{what}");
            assert_eq!(faults::hanging(), 1, "{what}: one thread");
            assert_eq!(world.silent(), [&*root], "{what}");
            assert_eq!(world.unreadable(), [&*root], "{what}");

            world.release();
            world.fixture.read_on();
            let (mut lines, events) = world.fixture.take();
            lines.sort();
            assert_eq!((lines, events), super::lines(["a2", "c1"]), "{what}");
            assert!(world.unreadable().is_empty(), "{what}");
        }
    }
}

/// The agent starts while a root hangs: nothing of it counts as deleted.
#[test]
fn files_of_a_root_that_hangs_at_the_start_are_kept() {
    for call in [Call::Open, Call::Stat, Call::List] {
        let mut world = TwoRoots::new();
        world.fixture.write("p/a.jsonl", "a1\n");
        world.fixture.read();
        world.fixture.take();
        let root = world.fixture.path("").parent().unwrap().join("root");
        faults::hang(call, &root);
        world.restart();
        world.fixture.append("p/a.jsonl", "a2\n");
        world.append_to_other("b.jsonl", "b1\n");
        world.fixture.read();
        assert_eq!(world.fixture.take(), lines(["b1"]), "{call:?}");
        world.release();
        world.fixture.read_on();
        assert_eq!(world.fixture.take(), lines(["a2"]), "{call:?}");
    }
}

#[test]
fn link_that_hangs_does_not_stop_its_root() {
    for call in [Call::Open, Call::Stat, Call::List] {
        for is_known in [false, true] {
            let mut world = TwoRoots::new();
            let outside = tempfile::tempdir().unwrap();
            let target = outside.path().canonicalize().unwrap();
            fs::write(target.join("s.jsonl"), "s1\n").unwrap();
            fs::write(target.join("file.jsonl"), "f1\n").unwrap();
            world.fixture.write("p/a.jsonl", "a1\n");
            symlink(&target, world.fixture.path("link")).unwrap();
            symlink(target.join("file.jsonl"), world.fixture.path("file.jsonl")).unwrap();
            if is_known {
                world.fixture.read();
                world.fixture.take();
                fs::write(target.join("s.jsonl"), "s1\ns2\n").unwrap();
                fs::write(target.join("file.jsonl"), "f1\nf2\n").unwrap();
            }
            // Paths below the link are those of the configured root.
            for path in [&target, &world.fixture.path("link"), &world.fixture.path("file.jsonl")] {
                faults::hang(call, path);
                world.fixture.append("p/a.jsonl", "a2\n");
                world.fixture.read();
                world.fixture.read();
                let (read, events) = world.fixture.take();
                let what = format!("{call:?} {is_known} {path:?}");
                assert!(read.contains(&"a2".to_owned()), "{what}: {read:?}");
                assert_eq!(events, [""; 0], "{what}");
                world.release();
                world.fixture.read_on();
            }
            world.fixture.read();
            assert!(world.unreadable().is_empty());
        }
    }
}

/// A network that fails hangs reads of files that are open, deleted ones too.
#[test]
fn open_file_that_hangs_is_read_once_it_answers() {
    for call in [Call::Read, Call::Stat] {
        for is_deleted in [false, true] {
            let what = format!("{call:?} {is_deleted}");
            let mut world = TwoRoots::new();
            // Files that are opened from now on are on a share.
            faults::hang(call, Path::new("/nowhere"));
            world.fixture.write("a.jsonl", "a1\n");
            world.fixture.read();
            world.fixture.append("a.jsonl", "a2\n");
            world.fixture.read();
            faults::end();
            faults::hang(call, &world.fixture.path("a.jsonl"));
            world.fixture.append("a.jsonl", "a3\n");
            if is_deleted {
                fs::remove_file(world.fixture.path("a.jsonl")).unwrap();
                world.fixture.tail.schedule.request_sweep_now();
            }
            world.append_to_other("b.jsonl", "b1\n");
            world.fixture.read_on();
            world.fixture.pass(Duration::from_secs(5));
            world.fixture.read_on();
            assert_eq!(world.fixture.take(), lines(["a1", "a2", "b1"]), "{what}");
            assert_eq!((faults::hanging(), world.silent().len()), (1, 1), "{what}");
            world.release();
            world.fixture.pass(Duration::from_secs(5));
            world.fixture.read_on();
            assert_eq!(world.fixture.take(), lines(["a3"]), "{what}");
        }
    }
}
