//! Errors of a file system that fails or is not connected: once and permanently, on one file and on the
//! whole root.

use rustix::io::Errno;

use super::*;
use crate::platform::faults::{self, Call};

const ERRNOS: [Errno; 5] =
    [Errno::STALE, Errno::TIMEDOUT, Errno::DEADLK, Errno::IO, Errno::NOTCONN];

fn each_fault(mut check: impl FnMut(Call, Errno, &str, usize)) {
    for errno in ERRNOS {
        for call in Call::ALL {
            for place in ["a.jsonl", "p", ""] {
                for times in [1, usize::MAX] {
                    check(call, errno, place, times);
                }
            }
        }
    }
}

/// Reads until everything is read, and returns the number of calls that failed meanwhile.
fn read_with_fault(
    world: &mut TailFixture,
    call: Call,
    path: &Path,
    errno: Errno,
    times: usize,
) -> usize {
    faults::inject(call, path, errno.raw_os_error(), times);
    for _ in 0..3 {
        world.read();
    }
    faults::end()
}

/// A share that was disconnected must neither look like deleted files nor keep the agent busy.
#[test]
fn failing_calls_delete_nothing_and_cause_no_loop() {
    let mut failed_kinds = 0;
    each_fault(|call, errno, place, times| {
        let what = format!("{call:?} {errno:?} {place:?} {times}");
        let mut world = TailFixture::new();
        world.write("a.jsonl", "a1\n");
        world.write("p/b.jsonl", "b1\n");
        world.read();
        world.take();
        world.append("a.jsonl", "a2\n");
        world.append("p/b.jsonl", "b2\n");
        world.write("p/c.jsonl", "c1\n");
        let path = world.path(place);
        let failed = read_with_fault(&mut world, call, &path, errno, times);
        failed_kinds += usize::from(failed > 0);
        assert!(failed < 60, "{what}: {failed} calls in three sweeps");
        let reported: Vec<_> = world.store.events.drain(..).collect();
        assert!(reported.iter().all(|event| event.name == event::PATH_UNREADABLE), "{what}");
        let is_unreadable = !world.tail.survey().unreadable.is_empty();
        if times > 1 && failed > 0 {
            assert!(is_unreadable, "{what}");
            let mut paths: Vec<_> =
                reported.iter().map(|event| event.data["path"].to_string()).collect();
            let events = paths.len();
            paths.sort();
            paths.dedup();
            assert!(events > 0 && events == paths.len(), "{what}: {paths:?}");
            assert!(reported.iter().all(|event| event.data["reason"] == "file_system"), "{what}");
        }
        world.read();
        world.read();
        let (mut lines, events) = world.take();
        lines.sort();
        assert_eq!((lines, events), super::lines(["a2", "b2", "c1"]), "{what}");
        assert!(world.tail.survey().unreadable.is_empty(), "{what}");
    });
    assert!(failed_kinds > 80, "{failed_kinds} faults had an effect");
}

/// A sweep that could not list the directory counted as one that missed the file.
#[test]
fn sweep_that_lists_nothing_misses_nothing() {
    let mut world = TailFixture::new();
    world.write("p/a.jsonl", "one\n");
    world.read();
    faults::inject(Call::List, &world.path("p"), Errno::IO.raw_os_error(), usize::MAX);
    world.read();
    assert!(faults::end() > 0);
    fs::remove_file(world.path("p/a.jsonl")).unwrap();
    world.tail.schedule.request_sweep_now();
    world.tail.find_changes(&mut world.store);
    assert_eq!(world.tail.survey().files, 1, "it may have been renamed");
    world.read();
    assert_eq!(world.tail.survey().files, 0);
}

/// The rest of a deleted file was given up after one error.
#[test]
fn deleted_file_is_read_after_a_failed_call() {
    for errno in ERRNOS {
        for call in [Call::Read, Call::Stat] {
            let mut world = TailFixture::new();
            world.write("a.jsonl", "a1\n");
            world.read();
            world.append("a.jsonl", "a2\n");
            // Opens the file.
            world.read();
            world.append("a.jsonl", "a3\n");
            faults::inject(call, &world.path("a.jsonl"), errno.raw_os_error(), 1);
            fs::remove_file(world.path("a.jsonl")).unwrap();
            world.tail.schedule.request_sweep_now();
            world.read_on();
            world.pass(Duration::from_secs(2));
            world.read_on();
            let failed = faults::end();
            assert_eq!(world.store.lines(), ["a1", "a2", "a3"], "{call:?} {errno:?} {failed}");
            assert!(world.tail.survey().unreadable.is_empty());
        }
    }
}

#[test]
fn deleted_file_that_is_never_readable_is_reported() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "a1\n");
    world.read();
    world.append("a.jsonl", "a2\n");
    // Opens the file.
    world.read();
    world.append("a.jsonl", "a3\n");
    faults::inject(Call::Read, &world.path("a.jsonl"), Errno::IO.raw_os_error(), usize::MAX);
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.tail.schedule.request_sweep_now();
    for _ in 0..100 {
        world.read_on();
        world.pass(Duration::from_secs(1));
    }
    assert!(faults::end() < 200);
    assert_eq!(world.store.lines(), ["a1", "a2"]);
    let events = world.store.event_names();
    assert_eq!(events, [event::PATH_UNREADABLE, event::FILE_DELETED_UNREAD]);
}
