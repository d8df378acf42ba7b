//! The fuzz targets without the fuzzer: their corpora, and a few thousand mutations of them.
//!
//! Every run makes the same mutations, so that it never fails by chance; `AI_AGENT_SEED` selects
//! others. `cargo fuzz` is for searching, see `fuzz/README.md`.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
};

#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "it is a crate of its own for the fuzzer")]
pub(crate) mod bodies;

/// Number of mutated inputs of a target.
const CHANGES: usize = 3000;
/// Number for targets that write files and build all layers.
const SLOW_CHANGES: usize = 500;
/// Words and numbers that mutations insert, at which readers have failed before.
const WORDS: [&[u8]; 32] = [
    b"\n",
    b"\r\n",
    b"\0",
    b"\xff",
    b"\xc3",
    b"\xef\xbb\xbf",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\\udc00",
    b"{",
    b"}",
    b"[",
    b"]",
    b"[[[[[[[[",
    b",",
    b":",
    b"{}",
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"9007199254740993",
    b"18446744073709551615",
    b"18446744073709551616",
    b"tool_use",
    b"content",
    b"= \"\"",
    b"[a]",
    b"%%",
];

#[test]
fn activity() {
    replay("activity", CHANGES);
}

#[test]
fn audit() {
    replay("audit", CHANGES);
}

#[test]
fn config() {
    replay("config", SLOW_CHANGES);
}

#[test]
fn frame() {
    replay("frame", CHANGES);
}

#[test]
fn ingest() {
    replay("ingest", CHANGES);
}

#[test]
fn json() {
    replay("json", CHANGES);
}

#[test]
fn managed() {
    replay("managed", CHANGES);
}

#[test]
fn reader() {
    replay("reader", CHANGES);
}

#[test]
fn retry_after() {
    replay("retry_after", CHANGES);
}

#[test]
fn tool_call() {
    replay("tool_call", CHANGES);
}

#[test]
fn trust() {
    replay("trust", CHANGES);
}

#[test]
fn update() {
    replay("update", CHANGES);
}

#[test]
fn every_fuzz_target_has_a_small_corpus() {
    let (mut count, mut bytes) = (0, 0);
    for (name, _) in bodies::TARGETS {
        let inputs = corpus(name);
        assert!(inputs.len() > 3, "the corpus of {name} has {} files", inputs.len());
        assert!(folder().join(format!("../fuzz_targets/{name}.rs")).is_file(), "{name}");
        count += inputs.len();
        bytes += inputs.iter().map(|(_, input)| input.len()).sum::<usize>();
    }
    assert_eq!(fs::read_dir(folder()).unwrap().count(), bodies::TARGETS.len(), "a corpus too many");
    assert!(count <= 300 && bytes <= 1 << 20, "{count} files, {bytes} bytes");
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// Returns the inputs of a target by name.
fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(folder().join(name)).unwrap().map(|file| file.unwrap().path());
    let read = |path: PathBuf| (path.display().to_string(), fs::read(&path).unwrap());
    let mut inputs: Vec<_> = files.map(read).collect();
    inputs.sort();
    inputs
}

fn replay(name: &str, changes: usize) {
    let (_, target) = bodies::TARGETS.into_iter().find(|(other, _)| *other == name).unwrap();
    let inputs = corpus(name);
    for (path, input) in &inputs {
        run(target, input, path);
    }
    let seed = std::env::var("AI_AGENT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut random = fastrand::Rng::with_seed(seed);
    for number in 0..changes {
        let (path, input) = &inputs[random.usize(..inputs.len())];
        let mut input = input.clone();
        for _ in 0..random.usize(1..5) {
            let (_, other) = &inputs[random.usize(..inputs.len())];
            change(&mut input, other, &mut random);
        }
        run(target, &input, &format!("AI_AGENT_SEED={seed}, change {number}, of {path}"));
    }
}

/// Runs a target, and names the input on which it failed.
fn run(target: bodies::Target, input: &[u8], what: &str) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        eprintln!("the input, {what}: {}", input.escape_ascii());
        resume_unwind(panic);
    }
}

fn change(input: &mut Vec<u8>, other: &[u8], random: &mut fastrand::Rng) {
    let at = random.usize(..=input.len());
    let end = (at + random.usize(..20)).min(input.len());
    match random.u8(..7) {
        0 if at < input.len() => input[at] ^= 1 << random.u8(..8),
        1 if at < input.len() => input[at] = random.u8(..),
        2 => drop(input.drain(at..end)),
        3 => {
            let piece = input[at..end].to_vec();
            let to = random.usize(..=input.len());
            drop(input.splice(to..to, piece));
        }
        4 => {
            let from = random.usize(..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        5 => input.truncate(at),
        _ => drop(input.splice(at..at, WORDS[random.usize(..WORDS.len())].iter().copied())),
    }
}
