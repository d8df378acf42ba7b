//! Files that grow, and the order in which they are read.

use super::*;

#[test]
fn complete_lines_are_read_and_an_incomplete_one_waits() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\r\n\ntwo\nthr");
    assert_eq!(world.next(), lines(["one", "", "two"]));
    assert_eq!(world.next(), lines([]));
    world.append("a.jsonl", "ee\n");
    assert_eq!(world.next(), lines(["three"]));
}

#[test]
fn files_at_any_depth_and_later_files_are_found() {
    let mut world = TailFixture::new();
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
fn restart_continues_at_the_stored_rows() {
    let mut world = TailFixture::new();
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
fn group_that_was_not_stored_is_read_again() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\n");
    world.read();
    let key = world.store.got[0].file;
    world.append("a.jsonl", "two\n");
    world.pass(Duration::from_secs(400));
    assert!(matches!(world.tail.read(&mut world.store), Progress::Idle { .. }));
    world.store.roll_back();
    world.tail.restore(&mut world.store.stored_rows()).unwrap();
    world.read();
    assert_eq!(world.store.lines(), ["one", "two"]);
    assert_eq!(world.store.got[1].file, key, "the key is kept, since filters use it");
}

#[test]
fn touched_file_is_not_read_again() {
    let mut world = TailFixture::new();
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

#[cfg(unix)]
#[test]
fn unreadable_file_is_listed_until_it_can_be_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\n");
    fs::set_permissions(world.path("a.jsonl"), fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(world.path("a.jsonl")).is_ok() {
        return; // root may read anything
    }
    assert_eq!(world.next(), lines([]));
    assert!(world.tail.survey().unreadable.contains_key(&world.path("a.jsonl")));
    fs::set_permissions(world.path("a.jsonl"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(world.next(), lines(["one"]));
    assert!(world.tail.survey().unreadable.is_empty());
}

#[test]
fn live_file_is_read_between_chunks_of_a_backlog() {
    let options = TailOptions { chunk_bytes: 64, watch: false, ..TailOptions::default() };
    let mut world = TailFixture::with(options);
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
    world.tail.hints.add(world.path("live.jsonl"), Hint::Any);
    world.store.commit();
    world.tail.sealed();
    world.tail.committed();
    assert_eq!(world.tail.read(&mut world.store), Progress::More);
    world.store.commit();
    world.tail.sealed();
    world.tail.committed();
    let lines = world.store.lines();
    assert!(lines.contains(&"live".to_owned()) && lines.len() < 40, "{}", lines.len());
    world.read_on();
    assert_eq!(world.store.got.len(), 1001);
}

#[test]
fn open_files_are_limited_and_closed_when_quiet() {
    let options = TailOptions { open_files: 3, watch: false, ..TailOptions::default() };
    let mut world = TailFixture::with(options);
    world.read();
    for n in 0..10 {
        world.write(&format!("{n}.jsonl"), "one\n");
    }
    world.tail.schedule.request_sweep_now();
    world.read_on();
    assert!(world.tail.survey().files_open <= 3);
    world.pass(Duration::from_secs(11));
    world.read_on();
    assert_eq!((world.tail.survey().files_open, world.store.got.len()), (0, 10));
}

/// Regression: `--once` treated a long first sweep, during which nothing is read, as stalled.
#[test]
fn sweep_reports_its_progress() {
    let mut world = TailFixture::new();
    for n in 0..20 {
        world.write(&format!("-p/{n}.jsonl"), "one\n");
    }
    world.store.room = 0;
    world.tail.read(&mut world.store);
    assert_eq!(world.store.swept_files.get(), 0, "nothing may be read");
    world.store.room = 1;
    world.tail.read(&mut world.store);
    assert_eq!(world.store.swept_files.get(), 20);
}

/// The wait for the next sweep does not pass while the machine sleeps.
#[test]
fn resume_sweeps_before_the_interval() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\n");
    assert_eq!(world.next(), lines(["one"]));
    world.write("b.jsonl", "two\n");
    world.read_on();
    assert_eq!(world.take(), lines([]));
    world.tail.resume();
    world.read_on();
    assert_eq!(world.take(), lines(["two"]));
}

/// A session that waits for the end of a line looked like a backlog that is never read.
#[test]
fn unfinished_last_line_is_not_a_backlog() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\ntw");
    world.read();
    let survey = world.tail.survey();
    assert_eq!((survey.files_unread, survey.bytes_unread), (1, 2));
    assert_eq!((survey.files_incomplete, survey.bytes_incomplete), (1, 2));
    world.restart();
    world.read();
    assert_eq!(world.tail.survey().bytes_incomplete, 2);
    world.append("a.jsonl", "o\n");
    world.read();
    let survey = world.tail.survey();
    assert_eq!((survey.files_unread, survey.files_incomplete), (0, 0));
}
