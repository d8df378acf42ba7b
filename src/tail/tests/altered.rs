//! Bytes that are altered after they were read, where the first and last bytes of the file stay.

use std::{
    io::{Seek as _, SeekFrom},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use proptest::prelude::*;
use siem_protocol::agent_event::AlteredRange;

use super::*;
use crate::{
    platform::cpu_time,
    tail::{
        block_list::{BlockList, SMALLEST},
        testing::ReceivedPiece,
    },
};

const MINUTE: Duration = Duration::from_secs(60);

/// A tail that verifies its files. Each query of the processor's time costs some.
struct VerifiedTail {
    world: TailFixture,
    is_on_battery: Arc<AtomicBool>,
    /// Cost of a query, in microseconds.
    cost: Arc<AtomicU64>,
}

impl VerifiedTail {
    fn new() -> Self {
        let mut tail =
            Self { world: TailFixture::new(), is_on_battery: Arc::default(), cost: Arc::default() };
        tail.verify();
        tail
    }

    /// Makes the tail verify its files: a new one does not.
    fn verify(&mut self) {
        let (power, cost) = (Arc::clone(&self.is_on_battery), Arc::clone(&self.cost));
        let time = Mutex::new(Duration::ZERO);
        let resources = VerifyResources {
            is_on_battery: Arc::new(move || power.load(Ordering::Relaxed)),
            cpu_time: Arc::new(move || {
                let mut time = time.lock().unwrap();
                *time += Duration::from_micros(cost.load(Ordering::Relaxed));
                *time
            }),
        };
        self.world.tail.verifier = Some(Verifier::new(resources));
    }

    fn restart(&mut self) {
        self.world.restart();
        self.verify();
    }

    /// Overwrites bytes of a file in place.
    fn alter(&self, name: &str, at: u64, bytes: &[u8]) {
        let mut file = OpenOptions::new().write(true).open(self.world.path(name)).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(bytes).unwrap();
    }

    /// Lets a sweep and several bursts pass. Returns pieces and events since the last call.
    fn next(&mut self) -> (Vec<ReceivedPiece>, Vec<crate::event::Event>) {
        self.world.read();
        for _ in 0..20 {
            self.world.pass(Duration::from_secs(20));
            self.world.read_on();
        }
        let store = &mut self.world.store;
        (std::mem::take(&mut store.got), std::mem::take(&mut store.events))
    }

    fn next_is_nothing(&mut self) {
        let (got, events) = self.next();
        assert!(got.is_empty() && events.is_empty(), "{got:?} {events:?}");
    }
}

/// Lines of 40 to 1,039 bytes, in total about `size` bytes.
fn content(size: usize) -> Vec<u8> {
    let mut content = Vec::new();
    for n in 0.. {
        if content.len() >= size {
            break;
        }
        let padding = "x".repeat(n * 7919 % 1000);
        content
            .extend_from_slice(format!("{{\"uuid\":\"{n:08}\",\"x\":\"{padding}\"}}\n").as_bytes());
    }
    content
}

/// Lines of `content` that touch the blocks in `ranges`, with their offsets.
fn touching(content: &[u8], ranges: &[(u64, u64)]) -> Vec<(u64, Vec<u8>)> {
    let mut lines = Vec::new();
    let mut start = 0;
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        let end = start + line.len() as u64;
        if ranges.iter().any(|(from, to)| start < *to && end > *from) {
            lines.push((start, line.strip_suffix(b"\n").unwrap().to_vec()));
        }
        start = end;
    }
    lines
}

fn received(got: &[ReceivedPiece]) -> Vec<(u64, Vec<u8>)> {
    got.iter().map(|piece| (piece.offset, piece.bytes.clone())).collect()
}

fn ranges(events: &[crate::event::Event]) -> Vec<(u64, u64)> {
    let [event] = events else { panic!("{events:?}") };
    assert_eq!(event.name, event::FILE_ALTERED);
    let ranges: Vec<AlteredRange> = serde_json::from_value(event.data["ranges"].clone()).unwrap();
    ranges.iter().map(|range| (range.from, range.to)).collect()
}

/// A record of the middle of a file was overwritten with NULs, and nothing was said: only the first
/// and last bytes were compared.
#[test]
fn altered_lines_are_handed_over_again_and_no_others() {
    let mut tail = VerifiedTail::new();
    let mut bytes = content(400_000);
    tail.world.write("a.jsonl", &bytes);
    let (got, events) = tail.next();
    assert!(events.is_empty() && got.iter().all(|piece| !piece.altered));
    let nuls = [0; 300];
    bytes[170_000..170_300].copy_from_slice(&nuls);
    tail.alter("a.jsonl", 170_000, &nuls);
    let (got, events) = tail.next();
    let altered = [(2 * SMALLEST, 3 * SMALLEST)];
    assert_eq!(ranges(&events), altered);
    assert_eq!(received(&got), touching(&bytes, &altered));
    assert!(got.iter().all(|piece| piece.altered));
    tail.next_is_nothing();
    tail.restart();
    tail.next_is_nothing();
    tail.world.append("a.jsonl", "{\"uuid\":\"later\"}\n");
    let (got, events) = tail.next();
    assert!(events.is_empty() && got.len() == 1 && !got[0].altered, "{got:?}");
}

#[test]
fn altered_file_is_found_whatever_its_times_are() {
    let mut tail = VerifiedTail::new();
    let mut bytes = content(300_000);
    tail.world.write("a.jsonl", &bytes);
    tail.next();
    // It grows too, so that its times show nothing.
    tail.alter("a.jsonl", 100_000, b"\0");
    tail.world.append("a.jsonl", "{}\n");
    bytes[100_000] = 0;
    let (got, _) = tail.next();
    assert_eq!(received(&got), [(bytes.len() as u64, b"{}".to_vec())]);
    tail.world.pass(60 * MINUTE);
    let (got, events) = tail.next();
    let altered = [(SMALLEST, 2 * SMALLEST)];
    assert_eq!(ranges(&events), altered);
    assert_eq!(received(&got), touching(&bytes, &altered));
}

#[test]
fn altered_bytes_of_a_small_file_are_found() {
    let mut tail = VerifiedTail::new();
    let mut bytes = content(30_000);
    tail.world.write("a.jsonl", &bytes);
    tail.next();
    tail.alter("a.jsonl", 15_000, b"\n\n");
    bytes[15_000..15_002].copy_from_slice(b"\n\n");
    let (got, events) = tail.next();
    assert_eq!(ranges(&events), [(0, bytes.len() as u64)]);
    assert_eq!(received(&got), touching(&bytes, &[(0, bytes.len() as u64)]));
    tail.next_is_nothing();
}

/// The bytes after the last whole block are read again to continue their hash: an alteration of them
/// would have become a part of it.
#[test]
fn altered_bytes_are_found_when_the_file_grows_after_a_restart() {
    let mut tail = VerifiedTail::new();
    let mut bytes = content(30_000);
    tail.world.write("a.jsonl", &bytes);
    tail.next();
    tail.restart();
    tail.alter("a.jsonl", 15_000, b"\0");
    tail.world.append("a.jsonl", "{}\n");
    bytes[15_000] = 0;
    bytes.extend_from_slice(b"{}\n");
    let (got, events) = tail.next();
    let (new, again): (Vec<_>, Vec<_>) = got.into_iter().partition(|piece| !piece.altered);
    assert_eq!(new.len(), 1);
    assert_eq!(ranges(&events), [(0, bytes.len() as u64)]);
    assert_eq!(received(&again), touching(&bytes, &[(0, bytes.len() as u64)]));
}

/// The hash of the bytes after the last whole block was replaced only if the file had not grown since it
/// was verified: one alteration was reported again each hour.
#[test]
fn alteration_in_a_growing_block_is_reported_once() {
    for growth in [3, 20_000, 100_000] {
        let mut tail = VerifiedTail::new();
        tail.world.write("a.jsonl", content(30_000));
        tail.next();
        tail.alter("a.jsonl", 15_000, b"\0");
        tail.world.store.is_paced = true;
        tail.next_is_nothing();
        tail.world.append("a.jsonl", content(growth));
        let (got, events) = tail.next();
        assert!(!got.is_empty() && events.is_empty(), "{growth}: only what was appended");
        tail.world.store.is_paced = false;
        let (got, events) = tail.next();
        assert_eq!(ranges(&events)[0].0, 0, "{growth}");
        assert!(!got.is_empty());
        for _ in 0..3 {
            tail.world.pass(61 * MINUTE);
            tail.next_is_nothing();
        }
        // Another alteration of the block is another report.
        tail.alter("a.jsonl", 16_000, b"\0");
        assert_eq!(ranges(&tail.next().1)[0].0, 0, "{growth}");
    }
}

/// The last blocks of a file of more than 256 MiB become parts of larger ones when it grows. If that
/// happened before their lines were handed over again, one alteration was reported again each hour.
#[test]
fn alteration_in_a_block_that_is_merged_is_reported_once() {
    let mut tail = VerifiedTail::new();
    tail.world.write("a.jsonl", content(100_000));
    tail.next();
    // As if the file were larger.
    for (generation, stored) in &mut tail.world.store.blocks {
        if let Some(small) = BlockList::decode(stored).filter(|_| !generation.0.is_empty()) {
            let mut large = BlockList::of_level(1);
            small.blocks().for_each(|block| large.push(block.hash, block.count()));
            *stored = large.encode();
        }
    }
    tail.alter("a.jsonl", 30_000, b"\0");
    tail.world.store.is_paced = true;
    tail.next_is_nothing();
    tail.world.append("a.jsonl", content(100_000));
    tail.next();
    tail.world.store.is_paced = false;
    assert_eq!(ranges(&tail.next().1), [(0, SMALLEST)]);
    for _ in 0..3 {
        tail.world.pass(61 * MINUTE);
        tail.next_is_nothing();
    }
    // Another alteration of the block is another report.
    tail.alter("a.jsonl", 40_000, b"\0");
    assert_eq!(ranges(&tail.next().1), [(0, 2 * SMALLEST)]);
}

/// A hole is neither read nor hashed, whatever its size is.
#[cfg(unix)]
#[test]
fn hole_of_terabytes_is_verified_at_once() {
    let mut tail = VerifiedTail::new();
    let bytes = content(100_000);
    tail.world.write("a.jsonl", &bytes);
    let file = OpenOptions::new().write(true).open(tail.world.path("a.jsonl")).unwrap();
    file.set_len(1 << 42).unwrap();
    tail.world.append("a.jsonl", [b"\n", &bytes[..]].concat());
    assert!(!tail.next().0.is_empty());
    assert!(tail.world.tail.survey().verified_at.is_some(), "the pass is not over");
    tail.alter("a.jsonl", (1 << 42) + 20_000, b"\0");
    assert_eq!(ranges(&tail.next().1), [(1 << 42, (1 << 42) + SMALLEST)]);
}

/// Verification must not displace what other programs have in the cache.
#[cfg(target_os = "linux")]
#[test]
fn verified_bytes_are_removed_from_the_cache() {
    use std::io::IoSliceMut;

    let is_cached = |file: &fs::File| {
        let mut byte = [0];
        let mut buffers = [IoSliceMut::new(&mut byte)];
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        rustix::io::preadv2(file, &mut buffers, 100_000, flags).is_ok()
    };
    let mut tail = VerifiedTail::new();
    tail.is_on_battery.store(true, Ordering::Relaxed);
    tail.world.write("a.jsonl", content(300_000));
    tail.next();
    let file = fs::File::open(tail.world.path("a.jsonl")).unwrap();
    file.sync_all().unwrap();
    assert!(is_cached(&file));
    crate::platform::file::drop_from_cache(&file, 0, 300_000);
    // Not in every file system.
    let stays_cached = is_cached(&file);
    fs::read(tail.world.path("a.jsonl")).unwrap();
    assert!(is_cached(&file));
    tail.is_on_battery.store(false, Ordering::Relaxed);
    tail.world.pass(10 * MINUTE);
    tail.next_is_nothing();
    assert!(tail.world.tail.survey().verified_at.is_some());
    assert_eq!(is_cached(&file), stays_cached);
}

/// The line is not handed over again, and the ones behind it in the block were not either.
#[test]
fn alteration_of_a_line_of_66_mib_is_reported() {
    let mut tail = VerifiedTail::new();
    // It ends in the middle of a block.
    let size = (66 << 20) + 10_000;
    let mut bytes = vec![b'x'; size];
    bytes.push(b'\n');
    bytes.extend_from_slice(&content(200_000));
    tail.world.write("a.jsonl", &bytes);
    tail.next();
    let last = size as u64 - 1;
    tail.alter("a.jsonl", last, b"y");
    // A burst is short.
    let mut found = (0..100).map(|_| tail.next());
    let (got, events) = found.find(|(_, events)| !events.is_empty()).unwrap();
    drop(found);
    let altered = ranges(&events);
    assert!(altered[0].0 <= last && last < altered[0].1, "{altered:?}");
    let behind = touching(&bytes[size + 1..], &[(0, altered[0].1 - size as u64 - 1)]);
    let behind: Vec<_> =
        behind.into_iter().map(|(at, line)| (at + size as u64 + 1, line)).collect();
    assert!(!behind.is_empty());
    assert_eq!(received(&got), behind);
}

#[test]
fn line_in_parts_is_handed_over_again_as_a_whole() {
    let mut tail = VerifiedTail::new();
    let long = [vec![b'y'; 9 << 20], b"\n".to_vec()].concat();
    let mut bytes = [content(100_000), long, content(100_000)].concat();
    tail.world.write("a.jsonl", &bytes);
    let (first, _) = tail.next();
    tail.alter("a.jsonl", 5 << 20, b"zz");
    bytes[5 << 20..(5 << 20) + 2].copy_from_slice(b"zz");
    let (again, events) = tail.next();
    assert_eq!(ranges(&events).len(), 1);
    let parts: Vec<_> = first.iter().filter(|piece| piece.part.is_some()).collect();
    assert_eq!(again.len(), parts.len());
    assert!(again.iter().all(|piece| piece.altered));
    let sent: Vec<u8> = again.iter().flat_map(|piece| piece.bytes.clone()).collect();
    assert_eq!(touching(&bytes, &ranges(&events)), [(again[0].offset, sent)]);
}

#[test]
fn altered_line_with_a_run_of_nul_is_handed_over_again() {
    let mut tail = VerifiedTail::new();
    let nuls = vec![0; 200_000];
    let start = content(100_000);
    let bytes = [&start[..], b"{\"a\":1", &nuls, b"}\r\n", &content(100_000)].concat();
    tail.world.write("a.jsonl", &bytes);
    tail.next();
    tail.next_is_nothing();
    tail.restart();
    tail.next_is_nothing();
    tail.alter("a.jsonl", start.len() as u64 + 100_000, b"x");
    let (got, events) = tail.next();
    let [(from, to)] = ranges(&events)[..] else { panic!("{events:?}") };
    assert_eq!(to - from, SMALLEST);
    assert_eq!((got.len(), got[0].offset), (1, start.len() as u64));
    assert_eq!(got[0].size, 200_000 + 9);
}

#[test]
fn rewritten_and_truncated_files_are_not_reported_as_altered() {
    let mut tail = VerifiedTail::new();
    let bytes = content(200_000);
    for name in ["a.jsonl", "b.jsonl", "c.jsonl"] {
        tail.world.write(name, &bytes);
    }
    tail.next();
    tail.world.write("a.jsonl", [b"other\n", &bytes[..]].concat());
    tail.world.write("b.jsonl", &bytes[..touching(&bytes, &[(0, 150_000)]).len()]);
    fs::remove_file(tail.world.path("c.jsonl")).unwrap();
    let (_, events) = tail.next();
    let names: Vec<_> = events.iter().map(|event| event.name).collect();
    assert_eq!(names, [event::FILE_REWRITTEN, event::FILE_REWRITTEN]);
    assert!(tail.world.store.blocks.len() <= 3, "the hashes of ended generations are deleted");
    tail.world.pass(60 * MINUTE);
    tail.next_is_nothing();
}

/// The group with the lines is lost: they are handed over again, with the event.
#[test]
fn alteration_is_reported_again_if_its_group_is_lost() {
    let mut tail = VerifiedTail::new();
    tail.world.write("a.jsonl", content(400_000));
    tail.next();
    tail.alter("a.jsonl", 170_000, b"\0");
    tail.world.pass(Duration::from_secs(400));
    while tail.world.tail.read(&mut tail.world.store) == Progress::More {}
    tail.world.lose_group();
    let (got, events) = tail.next();
    assert_eq!((got.len(), events.len()), (0, 0), "a file is reported once in an hour");
    tail.world.pass(60 * MINUTE);
    let (got, events) = tail.next();
    assert_eq!(ranges(&events).len(), 1);
    assert!(!got.is_empty());
}

#[test]
fn altered_lines_wait_for_room_as_a_backlog_does() {
    let mut tail = VerifiedTail::new();
    tail.world.write("a.jsonl", content(400_000));
    tail.next();
    tail.world.store.is_paced = true;
    tail.alter("a.jsonl", 170_000, b"\0");
    tail.world.pass(60 * MINUTE);
    tail.next_is_nothing();
    tail.world.store.is_paced = false;
    let (got, events) = tail.next();
    assert_eq!(ranges(&events).len(), 1);
    assert!(!got.is_empty());
}

/// Pauses are a multiple of what a burst has really cost, with the threads that open the files: 0.02 % of a
/// core over a pass. Those threads were not counted, and many small files took twice as much.
#[test]
fn pass_over_many_bytes_stays_within_the_real_budget() {
    let mut tail = VerifiedTail::new();
    let resources = VerifyResources {
        is_on_battery: Arc::new(|| false),
        cpu_time: Arc::new(cpu_time::of_process),
    };
    tail.world.tail.verifier = Some(Verifier::new(resources));
    let mut total = 0;
    for n in 0..400 {
        let bytes = content(15_000 + n);
        total += bytes.len();
        tail.world.write(&format!("{n}.jsonl"), bytes);
    }
    tail.world.pass(Duration::from_secs(400));
    while tail.world.tail.read(&mut tail.world.store) == Progress::More {
        tail.world.store.commit();
    }
    tail.world.store.commit();
    tail.world.pass(60 * MINUTE);
    let TailFixture { tail, store, clock, .. } = &mut tail.world;
    let (mut spent, mut elapsed) = (Duration::ZERO, Duration::ZERO);
    let before = tail.survey().verified_at;
    while tail.survey().verified_at == before {
        let started = cpu_time::of_process();
        tail.verify(store);
        spent += cpu_time::of_process() - started;
        let pause = tail.until_verification().unwrap();
        clock.advance(pause);
        elapsed += pause;
    }
    assert!(store.events.is_empty() && total > 5_000_000);
    assert!(spent <= elapsed / 5000, "{spent:?} of {elapsed:?}");
}

/// Everything that a verification does costs time: its clock, the power supply, rows that are read. The
/// time is taken outside of it. The query of the power supply was not counted, and a machine that wakes up
/// and another configuration each ended a pause.
#[test]
fn everything_a_verification_costs_is_in_the_budget() {
    let mut tail = VerifiedTail::new();
    let (clock_queries, power_queries) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let reads = Arc::clone(&tail.world.store.reads);
    let spent = {
        let (clock_queries, power_queries) = (clock_queries.clone(), power_queries.clone());
        move || {
            let costs = [(&clock_queries, 50), (&power_queries, 3000), (&reads, 400)];
            let cost =
                |(count, micros): (&Arc<AtomicU64>, u64)| count.load(Ordering::Relaxed) * micros;
            Duration::from_micros(costs.into_iter().map(cost).sum())
        }
    };
    let is_on_battery = Arc::clone(&tail.is_on_battery);
    let resources = VerifyResources {
        is_on_battery: Arc::new(move || {
            power_queries.fetch_add(1, Ordering::Relaxed);
            is_on_battery.load(Ordering::Relaxed)
        }),
        cpu_time: Arc::new({
            let spent = spent.clone();
            move || {
                clock_queries.fetch_add(1, Ordering::Relaxed);
                spent()
            }
        }),
    };
    tail.world.tail.verifier = Some(Verifier::new(resources.clone()));
    for n in 0..40 {
        tail.world.write(&format!("{n}.jsonl"), content(30_000 + n));
    }
    tail.world.write("large.jsonl", content(1_500_000));
    tail.world.read();
    tail.world.pass(60 * MINUTE);
    let (mut cost, mut elapsed, mut steps) = (Duration::ZERO, Duration::ZERO, 0);
    while elapsed < 300 * MINUTE {
        let TailFixture { tail: verified, store, options, clock, .. } = &mut tail.world;
        let before = spent();
        assert!(!verified.verify(store));
        cost += spent() - before;
        store.commit();
        let key = verified.files.iter().next().unwrap().0;
        verified.suspect(key);
        steps += 1;
        if steps % 7 == 0 {
            let new_id = Box::new(fresh_generation);
            let new = Tail::new(options.clone(), clock.clone(), new_id, Arc::new(|| {}));
            let new = new.with_verification(resources.clone());
            let old = std::mem::replace(verified, new);
            verified.inherit(old);
            verified.restore(&mut store.stored_rows()).unwrap();
        }
        if steps % 3 == 0 || tail.is_on_battery.load(Ordering::Relaxed) {
            verified.resume();
        }
        tail.is_on_battery.store(steps % 5 == 0, Ordering::Relaxed);
        let pause = verified.until_verification().unwrap();
        // The machine sleeps in a pause.
        let pause = if steps % 3 == 0 { pause / 2 } else { pause };
        clock.advance(pause);
        elapsed += pause;
    }
    let rest = tail.world.tail.until_verification().unwrap();
    assert!(cost <= (elapsed + rest) / 5000, "{cost:?} of {elapsed:?} and {rest:?}");
    assert!(cost >= elapsed / 5000 / 10, "the budget is used: {cost:?} of {elapsed:?}");
    assert!(tail.world.tail.survey().verified_at.is_some() && tail.world.store.events.is_empty());
}

/// An alteration whose event waits for room is reported after a reload, and not only an hour later.
#[test]
fn unreported_alteration_is_found_again_after_a_reload() {
    let mut tail = VerifiedTail::new();
    tail.world.write("a.jsonl", content(400_000));
    tail.next();
    tail.alter("a.jsonl", 170_000, b"\0");
    tail.world.store.is_paced = true;
    tail.next_is_nothing();
    let TailFixture { tail: verified, store, options, clock, .. } = &mut tail.world;
    let new_id = Box::new(fresh_generation);
    let new = Tail::new(options.clone(), clock.clone(), new_id, Arc::new(|| {}));
    let resources = verified.verifier.as_ref().unwrap().resources();
    let old = std::mem::replace(verified, new.with_verification(resources));
    verified.inherit(old);
    verified.restore(&mut store.stored_rows()).unwrap();
    store.is_paced = false;
    let (got, events) = tail.next();
    assert_eq!(ranges(&events), [(2 * SMALLEST, 3 * SMALLEST)]);
    assert!(!got.is_empty());
}

/// A file that changed was left until the next pass after the first burst.
#[test]
fn altered_bytes_are_found_in_several_bursts() {
    let mut tail = VerifiedTail::new();
    tail.world.write("a.jsonl", content(1_500_000));
    tail.next();
    tail.cost.store(500, Ordering::Relaxed);
    tail.alter("a.jsonl", 1_000_000, b"\0");
    let (got, events) = tail.next();
    assert_eq!(ranges(&events).len(), 1);
    assert!(!got.is_empty());
}

#[test]
fn nothing_is_verified_on_battery() {
    let mut tail = VerifiedTail::new();
    tail.is_on_battery.store(true, Ordering::Relaxed);
    tail.world.write("a.jsonl", content(400_000));
    tail.next();
    tail.alter("a.jsonl", 170_000, b"\0");
    tail.next_is_nothing();
    assert_eq!(tail.world.tail.survey().verified_at, None);
    tail.is_on_battery.store(false, Ordering::Relaxed);
    tail.world.pass(10 * MINUTE);
    assert_eq!(tail.next().1.len(), 1);
    assert!(tail.world.tail.survey().verified_at.is_some());
}

#[test]
fn pass_continues_after_a_restart() {
    let mut tail = VerifiedTail::new();
    for n in 0..70 {
        tail.world.write(&format!("{n}.jsonl"), content(1000 + n));
    }
    // Four files in a burst.
    tail.cost.store(500, Ordering::Relaxed);
    tail.next();
    assert_eq!(tail.world.tail.survey().verified_at, None);
    let position = tail.world.store.blocks.get(&GenerationId(String::new())).cloned().unwrap();
    assert!(position.starts_with(b"{\"after\":\""), "{position:?}");
    tail.restart();
    tail.cost.store(0, Ordering::Relaxed);
    tail.next();
    let ended = tail.world.tail.survey().verified_at;
    assert!(ended.is_some());
    tail.restart();
    tail.cost.store(500, Ordering::Relaxed);
    tail.world.read();
    assert_eq!(tail.world.tail.survey().verified_at, ended, "stored with the position");
}

/// Rows of an older agent have no hashes: what it read is not verified, the rest is.
#[test]
fn file_of_an_older_agent_is_verified_from_now_on() {
    let mut tail = VerifiedTail::new();
    let bytes = content(300_000);
    tail.world.write("a.jsonl", &bytes);
    tail.next();
    tail.world.store.blocks.clear();
    for row in tail.world.store.rows.values_mut() {
        let mut stored: serde_json::Value = serde_json::from_slice(row).unwrap();
        stored.as_object_mut().unwrap().remove("hash").unwrap();
        *row = serde_json::to_vec(&stored).unwrap();
    }
    tail.restart();
    tail.alter("a.jsonl", 100_000, b"\0");
    tail.next_is_nothing();
    tail.world.append("a.jsonl", content(300_000));
    assert_eq!(tail.next().1.len(), 0);
    tail.alter("a.jsonl", 100_000, b"\0\0");
    tail.alter("a.jsonl", 500_000, b"\0");
    assert_eq!(ranges(&tail.next().1), [(500_000 / SMALLEST * SMALLEST, 8 * SMALLEST)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Any altered byte is found, appended bytes are never reported, and the lines are those that
    /// touch altered blocks.
    #[test]
    fn every_altered_byte_is_found(
        sizes in prop::collection::vec(9_000_usize..200_000, 1..4),
        at in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..2), 1..4),
        restarts in any::<bool>(),
    ) {
        let mut tail = VerifiedTail::new();
        let mut bytes = Vec::new();
        for size in sizes {
            let next = content(size);
            tail.world.append("a.jsonl", &next);
            bytes.extend_from_slice(&next);
            let (got, events) = tail.next();
            prop_assert!(events.is_empty() && got.iter().all(|piece| !piece.altered));
            if restarts {
                tail.restart();
            }
        }
        let before = bytes.clone();
        // The first and last bytes are compared otherwise.
        let room = bytes.len() - 70_000_usize.min(bytes.len() - 1000);
        for (index, byte) in at {
            let at = 4096 + index.index(room.saturating_sub(4096).max(1));
            bytes[at] = byte;
            tail.alter("a.jsonl", at as u64, &[byte]);
        }
        prop_assume!(bytes != before && bytes[..4096] == before[..4096]);
        prop_assume!(bytes[bytes.len() - 70_000.min(bytes.len())..] == before[bytes.len() - 70_000.min(bytes.len())..]);
        let (got, events) = tail.next();
        let found = ranges(&events);
        for (at, (old, new)) in before.iter().zip(&bytes).enumerate() {
            let at = at as u64;
            prop_assert!(old == new || found.iter().any(|(from, to)| (*from..*to).contains(&at)));
        }
        prop_assert_eq!(received(&got), touching(&bytes, &found));
    }
}
