//! Random operations on files: every complete line is read exactly once.

use proptest::prelude::*;

use super::*;

/// Random operation.
#[derive(Clone, Debug)]
enum RandomStep {
    Append(usize, Vec<u8>),
    Move(usize),
    Read,
    /// Reads once, and discards the group.
    LoseGroup,
    Restart,
    Replace(usize),
}

fn step() -> impl Strategy<Value = RandomStep> {
    let bytes = prop_oneof![
        Just(b"\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\r".to_vec()),
        (0..120_usize).prop_map(|len| vec![b'x'; len]),
        "[a-z\u{e9}]{0,9}\r?\n".prop_map(String::into_bytes),
        "([a-z]{0,9}\n){3}".prop_map(String::into_bytes),
    ];
    prop_oneof![
        6 => (0..3_usize, bytes).prop_map(|(file, bytes)| RandomStep::Append(file, bytes)),
        1 => (0..3_usize).prop_map(RandomStep::Move),
        1 => (0..3_usize).prop_map(RandomStep::Replace),
        4 => Just(RandomStep::Read),
        1 => Just(RandomStep::LoseGroup),
        1 => Just(RandomStep::Restart),
    ]
}

/// Returns the complete lines of `content` with their offsets, by a simple algorithm.
fn expected_lines(content: &[u8]) -> Vec<(u64, Vec<u8>)> {
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

/// Returns the lines of a file as they were read, with parts joined, and without a line whose last
/// part is missing.
fn read_lines(store: &MemoryStore, paths: &[PathBuf]) -> Vec<(u64, Vec<u8>)> {
    let mut lines: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut is_open = false;
    for got in store.got.iter().filter(|got| paths.contains(&got.path)) {
        assert!(!got.incomplete);
        match (got.part, lines.last_mut()) {
            (Some(2..), Some((offset, bytes))) => {
                assert_eq!(*offset, got.offset);
                bytes.extend_from_slice(&got.bytes);
                if let Some(whole) = got.whole {
                    assert_eq!(whole.length, bytes.len() as u64);
                    assert_eq!(whole.sha256, Some(siem_protocol::Digest::of(bytes)));
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
    // Wine does not replace a file that is open.
    #[test_requires::requires(not_wine)]
    #[test]
    fn every_complete_line_is_read_once(
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
        let mut world = TailFixture::with(options);
        world.store.room = room;
        let mut content = vec![Vec::new(); 3];
        let mut names: Vec<Vec<String>> = (0..3).map(|n| vec![format!("{n}.jsonl")]).collect();
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                RandomStep::Append(file, bytes) => {
                    world.append(names[file].last().unwrap(), &bytes);
                    content[file].extend_from_slice(&bytes);
                }
                RandomStep::Move(file) => {
                    let (from, to) = (world.path(names[file].last().unwrap()), format!("{n}/{file}.jsonl"));
                    if from.try_exists().unwrap() {
                        fs::create_dir(world.path(&n.to_string())).unwrap();
                        fs::rename(from, world.path(&to)).unwrap();
                        names[file].push(to);
                    }
                }
                RandomStep::Replace(file) => {
                    let path = world.path(names[file].last().unwrap());
                    if path.try_exists().unwrap() {
                        // If it were moved and replaced at once, it could not be recognised.
                        world.read();
                        world.write("copy", &content[file]);
                        fs::rename(world.path("copy"), path).unwrap();
                        world.read();
                    }
                }
                RandomStep::Read => world.read(),
                RandomStep::LoseGroup => {
                    world.pass(Duration::from_secs(400));
                    world.tail.read(&mut world.store);
                    world.store.roll_back();
                    world.tail.restore(&mut world.store.stored_rows()).unwrap();
                }
                RandomStep::Restart => world.restart(),
            }
        }
        world.read();
        prop_assert!(world.store.events.is_empty(), "{:?}", world.store.events);
        for (file, content) in content.iter().enumerate() {
            let paths: Vec<_> = names[file].iter().map(|name| world.path(name)).collect();
            prop_assert_eq!(read_lines(&world.store, &paths), expected_lines(content));
        }
    }
}

/// Operation between two appends.
#[derive(Clone, Copy, Debug)]
enum Between {
    Nothing,
    Read,
    /// Stores some groups, then makes the store fail.
    ReadSomeAndFail(usize),
    FailAndRestart,
    Restart,
    /// Waits until an incomplete line is saved.
    Wait,
}

fn between() -> impl Strategy<Value = Between> {
    prop_oneof![
        1 => Just(Between::Nothing),
        3 => Just(Between::Read),
        2 => (0..4_usize).prop_map(Between::ReadSomeAndFail),
        1 => Just(Between::FailAndRestart),
        1 => Just(Between::Restart),
        1 => Just(Between::Wait),
    ]
}

/// Bytes of every kind, with many line endings.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(b"\n".to_vec()),
        2 => Just(b"\r\n".to_vec()),
        1 => Just(b"\r".to_vec()),
        1 => (1..9_usize).prop_map(|len| vec![0; len]),
        1 => (1..9_usize).prop_map(|len| vec![0xff; len]),
        1 => Just("\u{1f980}".as_bytes().to_vec()),
        3 => (0..130_usize).prop_map(|len| vec![b'x'; len]),
        2 => proptest::collection::vec(any::<u8>(), 0..20),
    ];
    proptest::collection::vec(piece, 0..50).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn any_bytes_are_read_once_across_restarts_and_failures(
        content in any_bytes(),
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), between()), 0..12),
        chunk_bytes in 1..200_u64,
        max_record_bytes in 1..100_u64,
        part_bytes in 1..50_u64,
        room in 1..5_usize,
    ) {
        let options = TailOptions {
            chunk_bytes, max_record_bytes, part_bytes, watch: false, ..TailOptions::default()
        };
        let mut world = TailFixture::with(options);
        world.store.room = room;
        let mut cuts: Vec<_> =
            cuts.iter().map(|(at, then)| (at.index(content.len() + 1), *then)).collect();
        cuts.sort_by_key(|(at, _)| *at);
        let mut written = 0;
        for (at, then) in cuts {
            world.append("a.jsonl", &content[written..at]);
            written = at;
            match then {
                Between::Nothing => {}
                Between::Read => world.read(),
                Between::ReadSomeAndFail(groups) => {
                    world.pass(Duration::from_secs(400));
                    for _ in 0..groups {
                        world.tail.read(&mut world.store);
                        world.store.commit();
                        world.tail.sealed();
                        world.tail.committed();
                    }
                    world.tail.read(&mut world.store);
                    world.lose_group();
                }
                Between::FailAndRestart => {
                    world.pass(Duration::from_secs(400));
                    world.tail.read(&mut world.store);
                    world.restart();
                }
                Between::Restart => world.restart(),
                Between::Wait => {
                    world.read();
                    world.pass(Duration::from_secs(700));
                    world.read();
                }
            }
        }
        world.append("a.jsonl", &content[written..]);
        world.read();
        prop_assert!(world.store.events.is_empty(), "{:?}", world.store.events);
        prop_assert_eq!(read_lines(&world.store, &[world.path("a.jsonl")]), expected_lines(&content));
        let parts_and_lines: u64 = world.store.got.iter().map(|got| got.size).sum();
        let unread = world.tail.survey().bytes_unread;
        prop_assert_eq!(parts_and_lines + unread, content.len() as u64);
        let generations: std::collections::BTreeSet<_> =
            world.store.got.iter().map(|got| &got.generation).collect();
        prop_assert!(generations.len() <= 1);
    }
}
