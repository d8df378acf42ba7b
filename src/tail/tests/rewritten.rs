//! FileTable that hold other bytes than before.

use super::*;

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

#[test_requires::requires(not_wine)]
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

#[test_requires::requires(not_wine)]
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

impl World {
    /// Empties a file and writes `bytes`, as of now by the world's clock, and hints at it.
    fn write_now(&self, name: &str, bytes: &str) {
        self.write(name, bytes);
        self.touch(name, self.clock.now().0);
        self.tail.hints.add(self.path(name));
    }

    fn touch(&self, name: &str, millis: u64) {
        let file = OpenOptions::new().append(true).open(self.path(name)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_millis(millis)).unwrap();
    }

    /// What comes of the hints alone, at this moment.
    fn glance(&mut self) -> (Vec<String>, Vec<&'static str>) {
        self.tail.schedule.is_watching = true;
        self.read_on();
        self.take()
    }
}

/// Whoever writes a file anew empties it first. FoundBy empty, it was taken for another life of the
/// file, and all its lines were shipped again.
#[test]
fn a_file_that_is_being_written_again_goes_on() {
    let mut world = World::new();
    world.write("a.jsonl", "one\ntwo\nthree\n");
    world.write("b.jsonl", "b\n");
    world.read();
    world.take();
    for step in ["", "one\n", "one\ntw", "one\ntwo\nth"] {
        world.write_now("a.jsonl", step);
        assert_eq!(world.glance(), lines([]), "{step:?}");
        world.pass(Duration::from_millis(200));
        assert_eq!(world.glance(), lines([]), "{step:?}");
        // Others do not wait for it.
        world.append("b.jsonl", "more\n");
        world.tail.hints.add(world.path("b.jsonl"));
        assert_eq!(world.glance(), lines(["more"]));
    }
    world.write_now("a.jsonl", "one\ntwo\nthree\nfour\n");
    assert_eq!(world.glance(), lines(["four"]));
}

#[test]
fn a_file_that_stays_empty_or_short_is_believed_after_a_moment() {
    for (content, name) in [("", event::FILE_REWRITTEN), ("one\n", event::FILE_TRIMMED)] {
        let mut world = World::new();
        world.write("a.jsonl", "one\ntwo\n");
        world.read();
        world.take();
        world.write_now("a.jsonl", content);
        world.tail.schedule.is_watching = true;
        let Progress::Idle { next } = world.tail.read(&mut world.store) else { panic!("no room") };
        assert!(next <= Duration::from_millis(250), "{next:?}");
        assert_eq!(world.glance(), lines([]));
        // Who reads once must wait for it, and nobody may say that all of it is read.
        let survey = world.tail.survey();
        assert_eq!((survey.files_settling, survey.bytes_unread), (1, content.len() as u64));
        // Nothing hints at it any more.
        world.pass(Duration::from_millis(251));
        assert_eq!(world.glance(), lines_and([], [name]));
        world.append("a.jsonl", "new\n");
        assert_eq!(world.next(), lines(["new"]));
    }
}

#[test]
fn other_bytes_are_believed_at_once() {
    let mut world = World::new();
    world.write("a.jsonl", "one\ntwo\nthree\n");
    world.read();
    world.take();
    world.write_now("a.jsonl", "new\n");
    assert_eq!(world.glance(), lines_and(["new"], [event::FILE_REWRITTEN]));
}

#[test]
fn a_writer_that_never_stops_is_not_waited_for_for_ever() {
    let mut world = World::new();
    world.write("a.jsonl", "one\ntwo\nthree\nfour\nfive\nsix\nseven\n");
    world.read();
    world.take();
    let mut came = world.glance();
    for _ in 0..30 {
        world.write_now("a.jsonl", "one\ntw");
        // By a clock that runs a little behind, nothing was ever long ago.
        world.touch("a.jsonl", world.clock.now().0 + 300_000);
        world.pass(Duration::from_millis(200));
        came = world.glance();
        if came != lines([]) {
            break;
        }
    }
    assert_eq!(came, lines_and([], [event::FILE_TRIMMED]));
}

/// What a damaged store had begun is read again under its old id. A file that was rewritten meanwhile
/// went on under it, too: other bytes at the same offsets of the same generation.
#[test]
fn a_generation_that_is_read_again_goes_on_only_in_the_file_that_it_began_in() {
    for (is_other, seen) in [(false, &[][..]), (true, &[event::FILE_REWRITTEN])] {
        let mut world = World::new();
        world.write("a.jsonl", "one\ntwo\n");
        world.read();
        let (generation, row) = world.store.rows.pop_first().unwrap();
        world.store.rows.insert(generation.clone(), beginning(&row).unwrap());
        world.take();
        let now = if is_other { "other\ntwo\n" } else { "one\ntwo\nthree\n" };
        world.write("a.jsonl", now);
        world.restart();
        world.read();
        assert_eq!(world.store.got[0].generation == generation, !is_other);
        let (came, events) = world.take();
        assert_eq!((came.join("\n") + "\n", events), (now.to_owned(), seen.to_vec()));
        world.append("a.jsonl", "four\n");
        world.restart();
        assert_eq!(world.next(), lines(["four"]), "it is known from then on");
    }
}
