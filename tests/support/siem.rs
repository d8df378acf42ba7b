//! Events that a SIEM has, compared with the files that the agent read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use serde_json::Value;

use super::{
    assembly::{ServerEvent, assemble, decode},
    copy_tree, eventually,
    home::Home,
    reference_reader::{self, Rules},
    shared,
};

/// Text in the record that servers refuse.
pub(crate) const POISON: &str = "p0150n-of-the-test";

/// Writes session files: those of the corpus where it is there, generated ones, one large record, and
/// one record that the server refuses.
pub(crate) fn write_sessions(home: &Home) {
    if let Ok(corpus) = fs::read_dir(shared_corpus()) {
        for tree in corpus.map(Result::unwrap) {
            let projects = tree.path().join("projects");
            if projects.is_dir() {
                copy_tree(&projects, &home.projects().join(tree.file_name()));
            }
        }
    }
    for file in 0..5 {
        let mut text = String::new();
        for number in 0..200 {
            let filling = "\u{e4}\\\"".repeat(number % 50);
            text += &format!(
                "{{\"type\":\"user\",\"uuid\":\"{file}-{number}\",\"text\":\"{filling}\"}}\n"
            );
            if (file, number) == (2, 100) {
                text += &format!("{{\"type\":\"user\",\"text\":\"{POISON}\"}}\n");
                text += &format!("{{\"long\":\"{}\"}}\n\0NUL\n", "\u{20ac}".repeat(700_000));
            }
        }
        home.write(&format!("-generated/{file}.jsonl"), text);
    }
}

fn shared_corpus() -> PathBuf {
    let beside = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    if beside.is_dir() { shared().join("corpus") } else { beside }
}

/// Differences between a SIEM and the files; none of them is a loss.
#[derive(Debug)]
pub(crate) struct Compared {
    /// Number of entries, with events of the agent.
    pub(crate) entries: usize,
    /// Number of lines of files.
    pub(crate) lines: usize,
    /// Number of events that are there more than once, each repetition counted.
    pub(crate) repetitions: usize,
}

/// Fails unless the SIEM has exactly the lines of the files, byte for byte, but for the one with
/// [`POISON`], and every number of an entry but the one of that line. `objects` have the fields with the
/// names of ECS, and the content under `content`.
#[track_caller]
pub(crate) fn compare(home: &Home, objects: &[(Value, String)]) -> Compared {
    let text = |fields: &Value, name: &str| fields[name].as_str().unwrap_or_default().to_owned();
    let (mut places, mut numbers) = (BTreeMap::new(), BTreeSet::new());
    for (fields, _) in objects {
        let part_of = text(fields, "ai_agent.part.of");
        let id = if part_of.is_empty() { text(fields, "event.id") } else { part_of };
        numbers
            .insert((text(fields, "ai_agent.epoch"), fields["event.sequence"].as_u64().unwrap()));
        if let Some(offset) = fields["log.offset"].as_u64() {
            places.insert(id, (PathBuf::from(text(fields, "log.file.path")), offset));
        }
    }
    let assembled = assemble(objects.iter().map(|(fields, content)| ServerEvent {
        id: text(fields, "event.id"),
        part: fields["ai_agent.part.index"].as_u64().map(|index| {
            let total = fields["ai_agent.part.total"].as_u64().unwrap();
            (text(fields, "ai_agent.part.of"), index, total)
        }),
        hash: text(fields, "event.hash"),
        content: decode(content, &text(fields, "ai_agent.encoding")),
    }));
    assert!(assembled.incomplete.is_empty(), "parts are missing: {:?}", assembled.incomplete);
    let mut expected: BTreeMap<(PathBuf, u64), Vec<u8>> =
        reference_reader::read_tree(&home.projects(), &Rules::default())
            .into_iter()
            .map(|line| ((line.path, line.offset), line.line))
            .collect();
    let count = expected.len();
    expected.retain(|_, line| !String::from_utf8_lossy(line).contains(POISON));
    assert_eq!(expected.len() + 1, count, "one line is poisoned");
    let mut found = BTreeMap::new();
    for (id, place) in &places {
        let before = found.insert(place.clone(), assembled.contents[id].clone());
        assert!(before.is_none(), "two ids for {place:?}");
    }
    let missing = expected.keys().find(|place| !found.contains_key(place));
    let extra = found.keys().find(|place| !expected.contains_key(place));
    assert!(missing.is_none() && extra.is_none(), "missing {missing:?}, unexpected {extra:?}");
    assert!(found == expected, "the bytes differ");
    let last = numbers.last().unwrap().1;
    let lacking = (1..=last).filter(|seq| !numbers.iter().any(|(_, number)| number == seq));
    assert_eq!(lacking.count(), 1, "only the poisoned entry is missing");
    let entries = assembled.contents.len();
    Compared { entries, lines: found.len(), repetitions: assembled.repetitions }
}

/// Waits until `count` reports at least `least`.
#[track_caller]
pub(crate) fn wait_for_count(least: usize, mut count: impl FnMut() -> usize) {
    eventually(&format!("{least} events at the server"), || (count() >= least).then_some(()));
}
