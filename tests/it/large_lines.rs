//! Lines far larger than the memory limit of the agent: they travel in parts and arrive whole.
#![cfg(unix)]

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::support::{
    agent::{Agent, AgentCommand},
    entries::{self, StoredEntry},
    home::Home,
    receiver::{Receiver, wait_for},
    within,
};
use sha2::{Digest as _, Sha256};
use siem_protocol::{Digest, Entry, Kind, names::event};

const MIB: u64 = 1 << 20;

const SMALL_RECORDS: &str =
    "[shipping]\nflush_interval = \"0s\"\n[source.claude-sessions]\nmax_record_bytes = \"256 KiB\"";

/// The line after the large one, which arrives last.
const AFTER: &str = r#"{"type":"user","after":1}"#;

/// Length and hash of a line without its ending.
#[derive(Debug, PartialEq)]
struct Written {
    length: u64,
    sha256: Digest,
}

/// Writes a session with one incompressible record of about `size` bytes and a line after it,
/// without holding it in memory.
fn write_large(path: &Path, size: u64, seed: u64) -> Written {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut file = BufWriter::new(File::create(path).unwrap());
    let (mut hash, mut length) = (Sha256::new(), 0);
    let mut block = vec![0; 1 << 20];
    let begin = br#"{"type":"user","uuid":"1","message":""#;
    let mut put = |bytes: &[u8]| {
        file.write_all(bytes).unwrap();
        hash.update(bytes);
        length += bytes.len() as u64;
    };
    put(begin);
    for _ in 0..size / block.len() as u64 {
        for eight in block.chunks_exact_mut(8) {
            let random = random.u64(..).to_le_bytes();
            for (byte, random) in eight.iter_mut().zip(random) {
                *byte = b'0' + random % 64;
            }
        }
        block.iter_mut().filter(|byte| **byte == b'\\').for_each(|byte| *byte = b'-');
        put(&block);
    }
    put(br#""}"#);
    file.write_all(format!("\n{AFTER}\n").as_bytes()).unwrap();
    file.into_inner().unwrap();
    Written { length, sha256: Digest::from_bytes(hash.finalize().into()) }
}

/// Returns the lines that a receiver stored, assembled without holding one: the hash of the bytes
/// is compared with the last part.
fn joined(receiver: &Receiver) -> Vec<Written> {
    let mut lines = Vec::new();
    let mut open: Option<(u64, u32, Sha256, u64)> = None;
    let mut seq = 0;
    for line in BufReader::new(File::open(stored(receiver).unwrap()).unwrap()).split(b'\n') {
        let line = line.unwrap();
        let entry = Entry::parse(&line).unwrap();
        seq += 1;
        assert_eq!(entry.seq, seq, "no gap, and nothing twice");
        if entry.kind == Kind::Event {
            continue;
        }
        let bytes = entry.content().unwrap().unwrap();
        let offset = entry.offset.unwrap();
        if entry.kind == Kind::Record {
            let sha256 = Digest::of(&bytes);
            lines.push(Written { length: bytes.len() as u64, sha256 });
            continue;
        }
        let (at, parts, hash, length) = open.get_or_insert((offset, 0, Sha256::new(), 0));
        *parts += 1;
        assert_eq!((entry.offset, entry.part), (Some(*at), Some(*parts)));
        hash.update(&bytes);
        *length += bytes.len() as u64;
        if entry.last {
            let (_, _, hash, length) = open.take().unwrap();
            let sha256 = Digest::from_bytes(hash.finalize().into());
            assert_eq!((entry.length, entry.sha256), (Some(length), Some(sha256)));
            lines.push(Written { length, sha256 });
        }
    }
    assert!(open.is_none(), "the last part is missing");
    lines
}

/// Path of the lines of a receiver.
fn stored(receiver: &Receiver) -> Option<PathBuf> {
    let machines = receiver.data().join("machines");
    let files = machines.is_dir().then(|| crate::support::files_below(&machines))?;
    files.into_iter().find(|path| path.extension().is_some_and(|e| e == "ndjson"))
}

/// Reports whether the line after the large one is stored.
fn has_arrived(receiver: &Receiver) -> Option<()> {
    let mut file = File::open(stored(receiver)?).unwrap();
    let length = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(length.saturating_sub(4096))).unwrap();
    let mut end = Vec::new();
    file.read_to_end(&mut end).unwrap();
    let end = String::from_utf8_lossy(&end);
    (end.contains(AFTER) && end.ends_with('\n')).then_some(())
}

/// Peak memory of a process, on systems that tell.
fn peak(agent: &Agent) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Ships a session with a record of `size` bytes from `home`. Returns the peak memory.
fn ship(home: &Home, agent: AgentCommand, config: &str, size: u64, limit: Duration) -> Option<u64> {
    let receiver = Receiver::start();
    let path = home.projects().join("-a/large.jsonl");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let large = write_large(&path, size, size);
    let agent = agent.config(config).ships_to(&receiver.url()).start_and_wait();
    within(limit, "the line after the large one arrived", || has_arrived(&receiver));
    let peak = peak(&agent);
    agent.stop();
    let after = Written { length: AFTER.len() as u64, sha256: Digest::of(AFTER.as_bytes()) };
    assert_eq!(joined(&receiver), [large, after]);
    peak
}

/// Additional memory for a large line, compared with a small one: reading, encoding, the cache of
/// the store, and a batch.
const FOR_ITS_WORK: u64 = 64 * MIB;

#[test]
fn large_line_arrives_whole_in_bounded_memory() {
    const LARGE: u64 = 96 * MIB;

    let peaks = [MIB, LARGE].map(|size| {
        let home = Home::new();
        ship(&home, home.agent(&["run"]), SMALL_RECORDS, size, crate::support::PATIENCE)
    });
    let [Some(small), Some(large)] = peaks else { return };
    assert!(
        large < small + FOR_ITS_WORK,
        "{small} bytes for a small line, {large} for a large one"
    );
}

/// The line alone is larger than the address space of the agent; 1 GiB in a full run.
#[test]
fn line_larger_than_memory_arrives_whole() {
    let line = std::env::var("AI_AGENT_LINE_MIB").map_or(384, |size| size.parse().unwrap());
    let home = Home::new();
    let script = "ulimit -v 327680 && exec \"$0\" run \"$@\"";
    let shell = ["-c", script, env!("CARGO_BIN_EXE_ai-agent")];
    // Each arena of the allocator reserves 64 MiB of addresses.
    let agent =
        AgentCommand::of("/bin/sh".as_ref(), home.path(), &shell).env("MALLOC_ARENA_MAX", "2");
    let config = "[shipping]\nflush_interval = \"0s\"";
    let peak = ship(&home, agent, config, line * MIB, Duration::from_secs(3600));
    let peak = peak.unwrap_or_default();
    assert!(peak < 256 * MIB, "{peak} bytes");
    eprintln!("a line of {line} MiB took {} MiB of memory", peak / MIB);
}

/// The parts of a line that can never be completed are closed by an event, and later lines are
/// shipped.
#[test]
fn large_line_truncated_while_read_is_abandoned() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let whole = "{\"n\":1}\n";
    let path = home.write("-a/large.jsonl", format!("{whole}{}", "x".repeat(1 << 20)));
    let agent = home.agent(&["run"]).config(SMALL_RECORDS).ships_to(&receiver.url());
    let agent = agent.start_and_wait();
    let parts = |entries: &[StoredEntry]| {
        entries.iter().filter(|entry| entry.kind == Kind::RecordPart).count()
    };
    wait_for(&receiver, "parts arrived", |entries| (parts(entries) >= 3).then_some(()));
    let file = File::options().append(true).open(&path).unwrap();
    file.set_len(whole.len() as u64).unwrap();
    home.append("-a/large.jsonl", "{\"n\":2}\n");
    let abandoned = wait_for(&receiver, "the line was abandoned", |entries| {
        let after = entries.iter().any(|entry| entry.bytes == b"{\"n\":2}");
        let abandoned = entries::events(entries, event::RECORD_ABANDONED);
        (after && !abandoned.is_empty()).then(|| abandoned[0].data.clone())
    });
    agent.stop();
    let entries = receiver.entries();
    assert_eq!(abandoned["offset"], whole.len());
    assert_eq!(abandoned["parts"], parts(&entries));
    assert!(entries.iter().all(|entry| !entry.last));
    assert_eq!(entries::events(&entries, event::FILE_TRIMMED).len(), 1);
    let lines = entries.iter().filter(|entry| entry.kind == Kind::Record);
    assert!(lines.map(|line| &line.bytes[..]).eq([&b"{\"n\":1}"[..], b"{\"n\":2}"]));
    receiver.assert_complete();
}
