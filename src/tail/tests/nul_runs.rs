//! Lines with runs of NUL, in sparse files and on disk.

use std::{fs::File, path::Path};

use siem_protocol::{Digest, NulRun, nul_runs::LineDigests};

use super::*;
use crate::tail::testing::ReceivedPiece;

/// Appends a hole.
fn extend(path: &Path, hole: u64) {
    let file = File::options().append(true).create(true).open(path).unwrap();
    let size = file.metadata().unwrap().len();
    file.set_len(size + hole).unwrap();
}

/// Creates a file that consists of a hole, as long as the file system allows. Returns its size.
fn longest_hole(path: &Path) -> u64 {
    let file = File::create(path).unwrap();
    let mut size = i64::MAX.cast_unsigned();
    while file.set_len(size).is_err() {
        size /= 2;
    }
    size
}

/// A sparse line of 2 GiB became 2.7 GB for the receiver.
#[test]
fn sparse_line_is_handed_over_without_its_hole() {
    let mut world = TailFixture::new();
    extend(&world.path("s.jsonl"), 2 << 30);
    world.append("s.jsonl", "\n{\"uuid\":\"a\"}\n");
    world.read();
    let [line, next] = &world.store.got[..] else { panic!("{}", world.store.got.len()) };
    let run = NulRun { offset: 0, length: 2 << 30 };
    assert_eq!((&line.bytes[..], &line.nul_runs[..]), (&b""[..], &[run][..]));
    assert_eq!(
        (line.size, line.whole),
        ((2 << 30) + 1, Some(LineDigests::of(b"", &[run]).unwrap()))
    );
    assert_eq!((next.offset, &next.bytes[..]), ((2 << 30) + 1, &b"{\"uuid\":\"a\"}"[..]));
    assert_eq!(world.tail.survey().bytes_unread, 0);
    world.take();
    world.restart();
    assert_eq!(world.next(), lines([]));
}

/// The sum of the sizes of three such files does not fit into 64 bits.
#[test]
fn holes_of_any_size_cost_nothing() {
    let mut world = TailFixture::new();
    let size = longest_hole(&world.path("0.jsonl"));
    for name in ["1.jsonl", "2.jsonl"] {
        longest_hole(&world.path(name));
    }
    world.append("other.jsonl", "{}\n");
    assert_eq!(world.next(), lines(["{}"]));
    assert_eq!(world.tail.survey().bytes_unread, size.saturating_mul(3));
    // The copy of an incomplete last line is small, and so is the line when the file is deleted.
    world.pass(Duration::from_secs(700));
    world.read();
    assert!(world.store.rows.values().all(|row| row.len() < 2000));
    world.restart();
    for name in ["0.jsonl", "1.jsonl", "2.jsonl"] {
        fs::remove_file(world.path(name)).unwrap();
    }
    world.read();
    assert!(world.store.events.is_empty(), "{:?} {:?}", world.store.events, world.store.got);
    let expected = NulRun { offset: 0, length: size };
    assert_eq!(world.store.got.len(), 3, "{:?}", world.store.got);
    for got in &world.store.got {
        assert_eq!((&got.nul_runs[..], got.incomplete), (&[expected][..], true));
    }
}

/// A session beside a line with a large run waited until the line was read.
#[test]
fn other_files_are_read_between_two_slices() {
    let mut world = TailFixture::new();
    world.append("live.jsonl", "{\"n\":0}\n");
    world.read();
    world.take();
    // The hash of so many NULs takes several slices.
    extend(&world.path("s.jsonl"), 300 << 20);
    world.append("s.jsonl", "\n");
    world.pass(Duration::from_secs(400));
    let mut groups = 0;
    while world.tail.read(&mut world.store) == Progress::More {
        world.store.commit();
        world.tail.sealed();
        world.tail.committed();
        groups += 1;
        if groups == 1 {
            assert_eq!(world.take(), lines([]));
            world.append("live.jsonl", "{\"n\":1}\n");
            // Only a sweep finds it here.
            world.tail.resume();
        }
    }
    assert!(groups >= 4, "{groups}");
    world.store.commit();
    let order: Vec<_> = world.store.got.iter().map(|got| got.size).collect();
    assert_eq!(order, [8, (300 << 20) + 1]);
    let whole = world.store.got[1].whole.unwrap();
    assert_eq!(whole.sha256, Some(Digest::of(&vec![0; 300 << 20])));
}

#[test]
fn runs_on_disk_are_removed_in_bounded_memory() {
    let mut world = TailFixture::new();
    let line = [b"{\"a\":\"", &[0; 40 << 20][..], b"\"}\xff"].concat();
    world.write("a.jsonl", [&line[..], b"\r\n{}\n"].concat());
    world.read();
    let got = &world.store.got[0];
    assert_eq!(got.bytes, b"{\"a\":\"\"}\xff");
    assert_eq!(got.nul_runs, [NulRun { offset: 6, length: 40 << 20 }]);
    assert_eq!((got.part, got.size), (None, line.len() as u64 + 2));
    assert_eq!(got.whole.unwrap().sha256, Some(Digest::of(&line)));
    assert_eq!(world.store.got[1].bytes, b"{}");
    assert!(world.tail.reader.footprint() <= 512 << 10, "{}", world.tail.reader.footprint());
}

#[test]
fn line_with_many_runs_survives_restarts_and_lost_groups() {
    for (n, room) in [(0, 1), (1, 2), (2, 1)] {
        let mut world = TailFixture::new();
        world.store.room = room;
        let line = [b"abc", &[0; 6000][..]].concat().repeat(300);
        let half = line.len() / 2 + 17 * n;
        world.append("a.jsonl", &line[..half]);
        world.pass(Duration::from_secs(400));
        assert_eq!(world.tail.read(&mut world.store), Progress::More);
        match n {
            0 => world.restart(),
            1 => world.lose_group(),
            _ => {
                world.store.commit();
                world.restart();
            }
        }
        world.read();
        world.append("a.jsonl", [&line[half..], b"\n"].concat());
        world.read();
        let parts: Vec<_> = world.store.got.iter().map(|got| got.part).collect();
        assert!(parts.iter().copied().eq((1..=parts.len() as u32).map(Some)), "{parts:?}");
        assert!(parts.len() >= 5, "{parts:?}");
        let joined: Vec<u8> = world.store.got.iter().flat_map(ReceivedPiece::content).collect();
        assert!(joined == line, "{n}");
        let whole = world.store.got.last().unwrap().whole.unwrap();
        assert_eq!((whole.length, whole.sha256), (line.len() as u64, Some(Digest::of(&line))));
        assert!(world.store.events.is_empty());
    }
}

/// A deleted file pins the disk space that it occupies, and not its size.
#[test_requires::requires(not_wine)]
#[test]
fn deleted_sparse_file_is_read_through_its_handle() {
    let mut world = TailFixture::new();
    world.append("a.jsonl", "{}\n");
    world.read();
    // Changed while live, so that it stays open.
    world.append("a.jsonl", "{}\n");
    world.read();
    world.take();
    extend(&world.path("a.jsonl"), 4 << 30);
    world.append("a.jsonl", "\n{\"n\":1}\nx");
    extend(&world.path("a.jsonl"), 3 << 30);
    fs::remove_file(world.path("a.jsonl")).unwrap();
    world.read();
    assert!(world.store.events.is_empty(), "{:?}", world.store.events);
    let [hole, line, incomplete] = &world.store.got[..] else {
        panic!("{:?}", world.store.got.len())
    };
    assert_eq!(hole.nul_runs, [NulRun { offset: 0, length: 4 << 30 }]);
    assert_eq!(line.bytes, b"{\"n\":1}");
    assert_eq!((&incomplete.bytes[..], incomplete.incomplete), (&b"x"[..], true));
    assert_eq!(incomplete.nul_runs, [NulRun { offset: 1, length: 3 << 30 }]);
    assert!(world.store.events.is_empty(), "{:?}", world.store.events);
}

/// What is appended to a hole that was scanned is read, and the hole is not.
#[test]
fn line_that_grows_behind_a_hole_is_read_once() {
    let mut world = TailFixture::new();
    extend(&world.path("a.jsonl"), 3 << 30);
    world.read();
    for n in 0..5 {
        world.append("a.jsonl", [b'a' + n]);
        assert_eq!(world.next(), lines([]));
    }
    world.append("a.jsonl", "\r\n");
    assert_eq!(world.next(), lines(["abcde"]));
    assert_eq!(world.store.rows.len(), 1);
}
