//! Files whose bytes have changed.

use super::*;

#[test]
fn trimmed_file_continues_at_the_cut() {
    for restart in [false, true] {
        let mut world = TailFixture::new();
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
fn rewritten_file_starts_a_new_generation() {
    // Same length, longer, shorter than a line, another inode, truncated to zero.
    for (replace, content, expected) in [
        (false, "ONE\ntwo\n", vec!["ONE", "two"]),
        (false, "ONE\ntwo\nthree\n", vec!["ONE", "two", "three"]),
        (false, "x", vec![]),
        (true, "ONE\ntwo\n", vec!["ONE", "two"]),
        (true, "ONE\ntwo\nthree\n", vec!["ONE", "two", "three"]),
        (false, "", vec![]),
    ] {
        for restart in [false, true] {
            let mut world = TailFixture::new();
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

#[test_requires::requires(not_wine)]
#[test]
fn longer_copy_with_the_same_bytes_continues() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\ntwo\n");
    world.read();
    world.take();
    world.write("new", "one\ntwo\nthree\n");
    fs::rename(world.path("new"), world.path("a.jsonl")).unwrap();
    assert_eq!(world.next(), lines(["three"]));
    // As after restoring a backup: another id, the same bytes.
    world.write("new", "one\ntwo\nthree\n");
    fs::rename(world.path("new"), world.path("a.jsonl")).unwrap();
    assert_eq!(world.next(), lines([]));
}

#[test_requires::requires(not_wine)]
#[test]
fn recreated_file_is_rewritten_or_new() {
    let mut world = TailFixture::new();
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

impl TailFixture {
    /// Overwrites a file with `bytes`, sets its modification time to the world's time, and adds a hint.
    fn write_now(&self, name: &str, bytes: &str) {
        self.write(name, bytes);
        self.touch(name, self.clock.now().0);
        self.tail.hints.add(self.path(name), Hint::Data);
    }

    fn touch(&self, name: &str, millis: u64) {
        let file = OpenOptions::new().append(true).open(self.path(name)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_millis(millis)).unwrap();
    }

    /// Applies the hints without advancing the clock, and returns the new lines and events.
    fn apply_hints(&mut self) -> (Vec<String>, Vec<&'static str>) {
        self.tail.schedule.is_watching = true;
        self.read_on();
        self.take()
    }
}

/// Regression: a program that rewrites a file empties it first. The empty file counted as rewritten,
/// and all its lines were sent again.
#[test]
fn file_rewritten_with_the_same_bytes_continues() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\ntwo\nthree\n");
    world.write("b.jsonl", "b\n");
    world.read();
    world.take();
    for step in ["", "one\n", "one\ntw", "one\ntwo\nth"] {
        world.write_now("a.jsonl", step);
        assert_eq!(world.apply_hints(), lines([]), "{step:?}");
        world.pass(Duration::from_millis(200));
        assert_eq!(world.apply_hints(), lines([]), "{step:?}");
        // Other files do not wait for it.
        world.append("b.jsonl", "more\n");
        world.tail.hints.add(world.path("b.jsonl"), Hint::Any);
        assert_eq!(world.apply_hints(), lines(["more"]));
    }
    world.write_now("a.jsonl", "one\ntwo\nthree\nfour\n");
    assert_eq!(world.apply_hints(), lines(["four"]));
}

#[test]
fn file_that_stays_shorter_counts_as_truncated() {
    for (content, name) in [("", event::FILE_REWRITTEN), ("one\n", event::FILE_TRIMMED)] {
        let mut world = TailFixture::new();
        world.write("a.jsonl", "one\ntwo\n");
        world.read();
        world.take();
        world.write_now("a.jsonl", content);
        world.tail.schedule.is_watching = true;
        let Progress::Idle { next } = world.tail.read(&mut world.store) else { panic!("no room") };
        assert!(next <= Duration::from_millis(250), "{next:?}");
        assert_eq!(world.apply_hints(), lines([]));
        // `--once` must wait for it, and its bytes count as unread.
        let survey = world.tail.survey();
        assert_eq!((survey.files_settling, survey.bytes_unread), (1, content.len() as u64));
        // No further hint is needed.
        world.pass(Duration::from_millis(251));
        assert_eq!(world.apply_hints(), lines_and([], [name]));
        world.append("a.jsonl", "new\n");
        assert_eq!(world.next(), lines(["new"]));
    }
}

#[test]
fn different_bytes_count_as_rewritten_at_once() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\ntwo\nthree\n");
    world.read();
    world.take();
    world.write_now("a.jsonl", "new\n");
    assert_eq!(world.apply_hints(), lines_and(["new"], [event::FILE_REWRITTEN]));
}

#[test]
fn wait_for_a_busy_writer_is_limited() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\ntwo\nthree\nfour\nfive\nsix\nseven\n");
    world.read();
    world.take();
    let mut came = world.apply_hints();
    for _ in 0..30 {
        world.write_now("a.jsonl", "one\ntw");
        // With a clock that is behind the file system's, every change seems recent.
        world.touch("a.jsonl", world.clock.now().0 + 300_000);
        world.pass(Duration::from_millis(200));
        came = world.apply_hints();
        if came != lines([]) {
            break;
        }
    }
    assert_eq!(came, lines_and([], [event::FILE_TRIMMED]));
}

/// Regression: after a damaged store, generations are read again under their old ids. A file that was
/// rewritten meanwhile kept its id too, with other bytes at the same offsets.
#[test]
fn starting_row_matches_only_its_own_file() {
    for (is_other, expected) in [(false, &[][..]), (true, &[event::FILE_REWRITTEN])] {
        let mut world = TailFixture::new();
        world.write("a.jsonl", "one\ntwo\n");
        world.read();
        let (generation, row) = world.store.rows.pop_first().unwrap();
        world.store.rows.insert(generation.clone(), starting_row(&row).unwrap());
        world.take();
        let now = if is_other { "other\ntwo\n" } else { "one\ntwo\nthree\n" };
        world.write("a.jsonl", now);
        world.restart();
        world.read();
        assert_eq!(world.store.got[0].generation == generation, !is_other);
        let (came, events) = world.take();
        assert_eq!((came.join("\n") + "\n", events), (now.to_owned(), expected.to_vec()));
        world.append("a.jsonl", "four\n");
        world.restart();
        assert_eq!(world.next(), lines(["four"]), "the file is known afterwards");
    }
}
