//! Lines with runs of NUL, as sparse files and crashed file systems have them: they are shipped
//! without their NULs, delay no other session, and can be restored byte for byte.
#![cfg(unix)]

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use crate::support::{
    entries::{self, StoredEntry},
    files_below,
    home::Home,
    receiver::{Receiver, wait_for},
    within,
};
use serde_json::json;
use siem_protocol::names::event;

const AT_ONCE: &str = "[shipping]\nflush_interval = \"0s\"";

/// Time within which both sessions arrive, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// Appends a hole to a new or existing file.
fn truncate_to(path: &Path, size: u64) -> std::io::Result<()> {
    File::options().append(true).create(true).open(path)?.set_len(size)
}

/// Creates a file that consists of a hole, as long as the file system allows. Returns its size.
fn longest_hole(path: &Path) -> u64 {
    let mut size = i64::MAX.cast_unsigned();
    while truncate_to(path, size).is_err() {
        size /= 2;
    }
    size
}

fn with_bytes<'a>(entries: &'a [StoredEntry], bytes: &[u8]) -> Option<&'a StoredEntry> {
    entries.iter().find(|entry| entry.bytes == bytes && entry.event.is_none())
}

/// Regression: 2 GiB that take no disk space became 2.7 GB for the receiver, and a session beside it
/// waited for more than 60 s.
#[test]
fn sparse_line_delays_no_session_and_can_be_restored() {
    const HOLE: u64 = 2 << 30;

    let (home, receiver) = (Home::new(), Receiver::start());
    home.write("-work/live.jsonl", "{\"n\":0}\n");
    let agent = home.agent(&["run"]).config(AT_ONCE).ships_to(&receiver.url()).start_and_wait();
    wait_for(&receiver, "the first record arrived", |all| with_bytes(all, b"{\"n\":0}").map(drop));

    let path = home.projects().join("-work/s.jsonl");
    truncate_to(&path, HOLE).unwrap();
    home.append("-work/s.jsonl", "\n{\"uuid\":\"a\"}\n");
    home.append("-work/live.jsonl", "{\"n\":1}\n");
    let started = Instant::now();
    within(DEADLINE, "the session beside the hole and the line after it arrived", || {
        let entries = receiver.entries();
        with_bytes(&entries, b"{\"n\":1}")?;
        with_bytes(&entries, b"{\"uuid\":\"a\"}").map(drop)
    });
    let elapsed = started.elapsed();
    agent.stop();

    let entries = receiver.entries();
    let hole = with_bytes(&entries, b"").unwrap();
    assert_eq!((hole.length, hole.sha256), (Some(HOLE), None));
    assert_eq!(hole.whole["nul_runs"], json!([[0, HOLE]]));
    assert_eq!(hole.whole["raw_base64"], "");
    assert!(hole.whole["folded_sha256"].is_string());
    receiver.assert_complete();
    let stored = files_below(&receiver.data().join("machines"));
    let stored: u64 = stored.iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(stored < 256 << 10, "{stored} bytes");
    eprintln!("a hole of 2 GiB took {elapsed:?} and {stored} bytes at the receiver");

    let restored = home.path().join("restored");
    let output = restored.to_str().unwrap();
    receiver.administer(&["line", &hole.generation, "0", "--output", output]);
    let metadata = fs::metadata(&restored).unwrap();
    assert_eq!(metadata.len(), HOLE);
    assert!(metadata.blocks() * 512 < 1 << 20);
}

/// The longest line that a file can have, without a newline at first.
#[test]
fn hole_of_the_longest_file_costs_nothing() {
    let (home, receiver) = (Home::new(), Receiver::start());
    home.write("-work/live.jsonl", "{\"n\":0}\n");
    let path = home.projects().join("-work/s.jsonl");
    let size = longest_hole(&path);
    longest_hole(&home.projects().join("-work/t.jsonl"));
    let started = Instant::now();
    let once = || home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    once();
    assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
    let entries = receiver.entries();
    assert!(with_bytes(&entries, b"{\"n\":0}").is_some());
    let heartbeats = entries::events(&entries, event::HEARTBEAT);
    let unread = &heartbeats.last().unwrap().data["unread_bytes"];
    assert_eq!(unread.as_u64(), Some(size.saturating_mul(2)));

    if size < i64::MAX.cast_unsigned() {
        home.append("-work/s.jsonl", "{}\n");
        once();
        let entries = receiver.entries();
        let line = with_bytes(&entries, b"{}").unwrap();
        assert_eq!(line.whole["nul_runs"], json!([[0, size]]));
        assert_eq!(line.length, Some(size + 2));
    }
    receiver.assert_complete();
}
