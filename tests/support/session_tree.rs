//! Session files for the tests of sinks, and the comparison of what a server has with them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::{
    assembly::{ServerEvent, assemble},
    copy_tree, files_below,
    home::Home,
    reference_reader::{self, Rules},
};

/// Total size of the sessions of the corpus that are used, about.
const TREE_BYTES: u64 = 3 << 20;

/// An event as a server has it, with the file that it is from.
pub(crate) struct SentRecord {
    pub(crate) event: ServerEvent,
    /// `log.file.path`; empty for an event of the agent.
    pub(crate) path: String,
    /// `ai_agent.generation`; empty for an event of the agent.
    pub(crate) generation: String,
}

/// A home directory with real sessions, where there are some, and with generated ones: long, not
/// UTF-8, not JSON.
pub(crate) fn home_with_sessions() -> Home {
    let home = Home::new();
    let mut total = 0;
    for tree in corpus() {
        let size = size_of(&tree);
        if total + size <= TREE_BYTES {
            total += size;
            let name = tree.parent().unwrap().file_name().unwrap();
            copy_tree(&tree, &home.projects().join(name));
        }
    }
    let mut odd = Vec::new();
    for line in [&b"\xff not UTF-8"[..], b"{\"a\":1,\"a\":NaN}", b"null", b"\"\\ud800\"", b"a\0b"] {
        odd.extend_from_slice(line);
        odd.push(b'\n');
    }
    home.write("-generated/odd.jsonl", odd);
    for session in 0..4 {
        let line = |n: usize| {
            let text = "ä \\\"quoted\\\" text ".repeat(if n == 50 { 20_000 } else { n });
            format!("{{\"type\":\"user\",\"uuid\":\"{session}-{n}\",\"text\":\"{text}\"}}\n")
        };
        let lines: String = (0..100).map(line).collect();
        home.write(&format!("-generated/{session}.jsonl"), lines);
    }
    home
}

/// Directories with the session files of the corpus, the smallest first; none where it is missing.
fn corpus() -> Vec<PathBuf> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let shared = std::env::var_os("AI_AGENT_SHARED").map_or(beside, PathBuf::from);
    let Ok(trees) = fs::read_dir(shared.join("corpus")) else { return Vec::new() };
    let mut trees: Vec<_> = trees.map(|tree| tree.unwrap().path().join("projects")).collect();
    trees.retain(|tree| tree.is_dir());
    trees.sort_by_cached_key(|tree| size_of(tree));
    trees
}

fn size_of(tree: &Path) -> u64 {
    files_below(tree).iter().map(|file| file.metadata().unwrap().len()).sum()
}

/// Compares what a server has with the session files: the set of ids and the bytes of each. Returns
/// the number of records, and of events that the server has more than once.
#[track_caller]
pub(crate) fn assert_complete(home: &Home, sent: Vec<SentRecord>) -> (usize, usize) {
    // Each file has one generation.
    let mut generations: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for record in sent.iter().filter(|record| !record.generation.is_empty()) {
        generations.entry(&record.path).or_default().insert(&record.generation);
    }
    let mut expected = BTreeMap::new();
    for line in reference_reader::read_tree(&home.projects(), &Rules::default()) {
        let found = generations.get(line.path.to_str().unwrap());
        let found = found.unwrap_or_else(|| panic!("all of {} is missing", line.path.display()));
        assert_eq!(found.len(), 1, "generations of {}", line.path.display());
        let generation = found.first().unwrap();
        expected.insert(format!("{generation}:{}", line.offset), line.line);
    }
    let known: BTreeSet<String> = generations.values().flatten().map(ToString::to_string).collect();
    let assembled = assemble(sent.into_iter().map(|record| record.event));
    assert_eq!(assembled.incomplete, [""; 0]);
    let is_record = |id: &str| id.split(':').next().is_some_and(|it| known.contains(it));
    let mut arrived = assembled.contents;
    arrived.retain(|id, _| is_record(id));
    let (ids, wanted): (BTreeSet<_>, BTreeSet<_>) =
        (arrived.keys().collect(), expected.keys().collect());
    let (missing, extra) = (wanted.difference(&ids).count(), ids.difference(&wanted).count());
    assert_eq!((missing, extra), (0, 0), "of {} records", expected.len());
    assert!(arrived == expected, "other bytes");
    (expected.len(), assembled.repetitions)
}
