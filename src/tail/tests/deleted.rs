//! Deleted files, and files that only seem to be deleted.

use super::*;

#[test_requires::requires(not_wine)]
#[test]
fn deleted_file_is_read_through_its_open_handle() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\n");
    world.read();
    // Changed while live, so that it stays open.
    world.append("a.jsonl", "two\n");
    world.read();
    let key = world.store.got[0].file;
    world.take();
    world.append("a.jsonl", "three\nfour");
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.pass(Duration::from_secs(400));
    world.tail.schedule.request_sweep_now();
    world.read_on();
    let last = world.store.got.last().unwrap().clone();
    assert_eq!(world.take(), lines(["three", "four"]));
    assert!(last.incomplete);
    assert_eq!(world.store.rows.len(), 0);
    assert_eq!(world.store.forgotten, [key]);
}

#[test]
fn file_deleted_unread_is_reported() {
    let mut world = TailFixture::new();
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

/// Regression: while files were deleted one after the other, sweeps followed each other without a
/// pause.
#[test]
fn file_deleted_between_two_sweeps_requires_none_at_once() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\n");
    world.write("b.jsonl", "two\n");
    world.read();
    assert_eq!(world.tail.survey().files_open, 0);
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.pass(Duration::from_secs(400));
    world.tail.find_changes(&mut world.store);
    assert!(world.tail.schedule.is_sweep_required(), "it may have been renamed");
    fs::remove_file(world.path("b.jsonl")).unwrap();
    world.tail.find_changes(&mut world.store);
    assert!(!world.tail.schedule.is_sweep_required());
    world.read();
    assert_eq!(world.store.rows.len(), 0);
}

#[test]
fn saved_line_is_handed_over_when_the_file_is_deleted() {
    for content in ["one\ntwo", "two"] {
        let mut world = TailFixture::new();
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
fn missing_root_does_not_delete_its_files() {
    let mut world = TailFixture::new();
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

#[cfg(unix)]
#[test]
fn unlistable_directory_does_not_delete_its_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut world = TailFixture::new();
    world.write("p/q/a.jsonl", "one\n");
    world.read();
    world.take();
    let set = |world: &TailFixture, mode| {
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

/// Writes files and makes the tail keep them open.
fn open_files(world: &mut TailFixture, names: &[&str]) {
    for content in ["one\n", "two\n"] {
        names.iter().for_each(|name| world.append(name, content));
        world.read();
    }
    assert_eq!(world.tail.survey().files_open, names.len());
}

fn delete_with_unread(world: &mut TailFixture, name: &str, unread: usize) {
    world.append(name, "unread.\n".repeat(unread / 8));
    fs::remove_file(world.path(name)).unwrap();
    world.tail.schedule.request_sweep_now();
}

fn world_with_small_chunks() -> TailFixture {
    TailFixture::with(TailOptions {
        chunk_bytes: 64,
        drain_bytes: 1000,
        watch: false,
        ..TailOptions::default()
    })
}

/// Returns the number of bytes read from a file, and the unread range according to the event.
fn accounted(world: &TailFixture, name: &str) -> (u64, u64, u64) {
    let path = world.path(name);
    let read = world.store.got.iter().filter(|got| got.path == path).map(|got| got.size).sum();
    let text = path.to_string_lossy();
    let event = world.store.events.iter().find(|event| event.data["path"] == *text);
    let number = |name| event.map_or(0, |event| event.data[name].as_u64().unwrap_or_default());
    assert_eq!(number("bytes"), number("to") - number("from"));
    (read, number("from"), number("to"))
}

#[test_requires::requires(not_wine)]
#[test]
fn deleted_file_is_read_within_its_byte_limit() {
    let mut world = world_with_small_chunks();
    open_files(&mut world, &["a.jsonl"]);
    delete_with_unread(&mut world, "a.jsonl", 4000);
    world.read_on();
    let (read, from, to) = accounted(&world, "a.jsonl");
    assert_eq!((read, to), (from, 8 + 4000));
    assert!((1000..1100).contains(&read), "{read}");
    assert_eq!((world.store.rows.len(), world.tail.survey().files_pinned), (0, 0));
}

#[test_requires::requires(not_wine)]
#[test]
fn deleted_files_share_the_byte_limit() {
    let mut world = world_with_small_chunks();
    world.store.room = 1;
    open_files(&mut world, &["a.jsonl", "b.jsonl"]);
    // Found deleted first, with most of it unread.
    delete_with_unread(&mut world, "a.jsonl", 800);
    assert_eq!(world.tail.read(&mut world.store), Progress::More);
    let survey = world.tail.survey();
    assert_eq!(survey.files_pinned, 1);
    assert!((700..=800).contains(&survey.bytes_pinned), "{}", survey.bytes_pinned);
    world.store.commit();
    world.tail.sealed();
    world.tail.committed();
    delete_with_unread(&mut world, "b.jsonl", 800);
    world.read_on();
    let (read, from, _) = accounted(&world, "a.jsonl");
    assert_eq!((read, from), (808, 0), "read completely");
    let (read, from, to) = accounted(&world, "b.jsonl");
    assert_eq!((read, to), (from, 808));
    assert!(read < 400, "{read}");
    assert_eq!(world.tail.survey().bytes_pinned, 0);
}

#[test_requires::requires(not_wine)]
#[test]
fn deleted_file_is_kept_open_within_its_time_limit() {
    let mut world = world_with_small_chunks();
    world.store.room = 1;
    open_files(&mut world, &["a.jsonl"]);
    delete_with_unread(&mut world, "a.jsonl", 800);
    assert_eq!(world.tail.read(&mut world.store), Progress::More);
    world.store.commit();
    world.tail.sealed();
    world.tail.committed();
    // As if the outbox were full meanwhile.
    world.pass(Duration::from_secs(61));
    world.read_on();
    let (read, from, to) = accounted(&world, "a.jsonl");
    assert_eq!((read, to), (from, 808));
    assert!(read < 200, "{read}");
    assert_eq!(world.tail.survey().files_open, 0);
}

/// A deleted file is readable only through its handle, so files that can be opened again are closed
/// first.
#[test]
fn deleted_files_keep_their_handles_over_others() {
    let options = TailOptions { open_files: 2, watch: false, ..TailOptions::default() };
    let mut world = TailFixture::with(options);
    let others = ["b.jsonl", "c.jsonl", "d.jsonl"];
    others.iter().for_each(|name| world.write(name, "other\n"));
    world.read();
    open_files(&mut world, &["a.jsonl"]);
    // All of them grew before the deletion was found.
    others.iter().for_each(|name| world.append(name, "other\n"));
    delete_with_unread(&mut world, "a.jsonl", 80);
    world.read_on();
    assert_eq!(accounted(&world, "a.jsonl"), (88, 0, 0));
    assert_eq!(world.store.got.len(), 12 + 6);
    assert!(world.tail.survey().files_open <= 2);
}

/// Regression: a file that ended in a stored group counted as never stored when the next group failed,
/// and was read again under another generation.
#[test_requires::requires(not_wine)]
#[test]
fn file_ended_in_a_stored_group_is_not_read_again() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\n");
    world.read();
    world.append("a.jsonl", "two\n");
    world.read();
    world.append("a.jsonl", "rest");
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.pass(Duration::from_secs(400));
    world.tail.schedule.request_sweep_now();
    world.tail.read(&mut world.store);
    assert_eq!(world.tail.survey().files, 0, "the file has ended");
    world.store.commit();
    world.tail.sealed();
    // Its group is stored while the next one is current.
    world.write("b.jsonl", "three\n");
    world.tail.schedule.request_sweep_now();
    world.tail.read(&mut world.store);
    world.tail.committed();
    world.lose_group();
    world.read();
    assert_eq!(world.take(), lines(["one", "two", "rest", "three"]));
}

/// The opposite case: the file ended in the group that failed, and the one before was stored.
#[test_requires::requires(not_wine)]
#[test]
fn file_ended_in_a_failed_group_ends_again() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\n");
    world.read();
    world.append("a.jsonl", "two\nrest");
    world.pass(Duration::from_secs(400));
    world.tail.read(&mut world.store);
    world.store.commit();
    world.tail.sealed();
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.pass(Duration::from_secs(400));
    world.tail.read(&mut world.store);
    assert_eq!(world.tail.survey().files, 0, "the file has ended");
    world.tail.committed();
    world.lose_group();
    world.read();
    assert_eq!(world.take(), lines(["one", "two", "rest"]));
}

/// Regression: while the outbox was full, deleted files were kept open without limit and occupied the
/// disk.
#[test_requires::requires(not_wine)]
#[test]
fn tend_closes_a_deleted_file_after_its_time_limit() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\n");
    world.write("b.jsonl", "one\n");
    world.read();
    for name in ["a.jsonl", "b.jsonl"] {
        world.append(name, "two\n");
    }
    world.read();
    world.take();
    assert_eq!(world.tail.survey().files_open, 2);
    world.append("a.jsonl", "three\n");
    fs::remove_file(world.path("a.jsonl")).unwrap();
    for seconds in [10, 30] {
        world.pass(Duration::from_secs(seconds));
        world.tail.tend();
        assert_eq!(world.tail.survey().files_open, 2, "its time limit is not reached");
    }
    world.pass(Duration::from_secs(40));
    world.tail.tend();
    assert_eq!(world.tail.survey().files_open, 1);
    world.read();
    assert_eq!(world.take(), lines_and([], [event::FILE_DELETED_UNREAD]));
}

#[test_requires::requires(not_wine)]
#[test]
fn tend_closes_a_deleted_file_over_its_byte_limit() {
    let options = TailOptions { watch: false, drain_bytes: 3, ..TailOptions::default() };
    let mut world = TailFixture::with(options);
    world.write("a.jsonl", "one\n");
    world.read();
    world.append("a.jsonl", "two\n");
    world.read();
    world.append("a.jsonl", "three\n");
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.pass(Duration::from_secs(10));
    world.tail.tend();
    assert_eq!(world.tail.survey().files_open, 0);
}
