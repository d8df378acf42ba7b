//! Real session files through agent and receiver, compared with an independent reading of the same
//! files: exactly the expected records arrive, byte for byte, each once.

use std::fs;

use crate::support::{
    copy_tree,
    entries::{self, Carrier},
    files_below,
    home::Home,
    receiver::Receiver,
    reference_reader::{self, Rules},
    shared,
};
use siem_protocol::Kind;
use test_requires::requires;

/// A home directory with every session tree of the corpus.
fn home() -> Home {
    let corpus = shared().join("corpus");
    let home = Home::new();
    for tree in fs::read_dir(corpus).unwrap() {
        let tree = tree.unwrap();
        let projects = tree.path().join("projects");
        if projects.is_dir() {
            copy_tree(&projects, &home.projects().join(tree.file_name()));
        }
    }
    home
}

/// Ships the corpus under `config`, and fails unless exactly the records that pass `rules` arrive.
#[track_caller]
fn arrives(config: &str, rules: &Rules) -> Vec<entries::StoredEntry> {
    let home = home();
    let receiver = Receiver::start();
    home.agent(&["run", "--once"]).config(config).ships_to(&receiver.url()).succeed();
    receiver.assert_complete();
    let entries = receiver.entries();
    let expected = reference_reader::read_tree(&home.projects(), rules);
    assert!(expected.len() > 1000, "the corpus has records");
    reference_reader::assert_same(&expected, &entries::lines(&entries));
    assert_accounted(&home, &entries, expected.len());
    entries
}

/// Fails unless the last heartbeat accounts for every byte of every file.
#[track_caller]
fn assert_accounted(home: &Home, entries: &[entries::StoredEntry], shipped: usize) {
    let heartbeats = entries::events(entries, "heartbeat");
    let data = &heartbeats.last().expect("an agent that ends sends a heartbeat").data;
    let totals = &data["totals"];
    assert_eq!(totals["shipped"]["lines"], shipped, "{data:#}");
    let filtered = totals["filtered"].as_object().unwrap().values();
    let reasons = filtered.flat_map(|reasons| reasons.as_object().unwrap().values());
    let counts = reasons.chain([&totals["shipped"], &totals["parts"], &totals["blank"]]);
    let read: u64 = counts.map(|count| count["bytes"].as_u64().unwrap()).sum();
    let sessions = files_below(&home.projects());
    let sizes = sessions
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .map(|path| fs::metadata(path).unwrap().len());
    let rest =
        ["/totals/endings", "/unread_bytes"].map(|at| data.pointer(at).unwrap().as_u64().unwrap());
    assert_eq!(read + rest.iter().sum::<u64>(), sizes.sum::<u64>(), "{data:#}");
}

#[requires(shared)]
#[test]
fn every_record_of_the_corpus_arrives_once() {
    let entries = arrives("", &Rules::default());
    for entry in entries.iter().filter(|entry| entry.kind == Kind::Record) {
        let is_json = serde_json::from_slice::<serde_json::Value>(&entry.bytes).is_ok();
        let how = if is_json { Carrier::Record } else { Carrier::Raw };
        assert_eq!(entry.carrier, how, "{} at {}", entry.path.display(), entry.offset);
        assert_eq!(entry.source, "claude-sessions");
        for member in ["machine_id", "hostname", "user", "os"] {
            assert!(entry.whole["host"][member].is_string(), "{member}");
        }
    }
}

#[requires(shared)]
#[test]
fn disabled_ignore_types_ships_all_types() {
    let rules = Rules { ignore_types: Vec::new(), ..Rules::default() };
    arrives("[filter.ignore-types]\nenabled = false", &rules);
}

#[requires(shared)]
#[test]
fn configured_ignored_types_are_dropped() {
    let ignore_types = vec!["assistant".into(), "attachment".into(), "Progress".into()];
    let rules = Rules { ignore_types, ..Rules::default() };
    arrives("[filter.ignore-types]\ntypes = [\"assistant\", \"attachment\", \"Progress\"]", &rules);
}

#[requires(shared)]
#[test]
fn records_of_sub_agents_are_dropped() {
    let rules = Rules { sidechain: true, ..Rules::default() };
    arrives("[filter.sidechain]\nenabled = true", &rules);
}

#[requires(shared)]
#[test]
fn meta_records_are_dropped() {
    let rules = Rules { meta: true, ..Rules::default() };
    arrives("[filter.meta]\nenabled = true", &rules);
}

/// The client writes each block of a message as a record of its own, so whole records are dropped
/// here.
#[requires(shared)]
#[test]
fn tool_calls_are_dropped() {
    arrives("[filter.tool-call]\nenabled = true", &Rules { tool_call: true, ..Rules::default() });
}

/// The same records as other versions might write them: with text before, after or between the
/// calls.
#[requires(shared)]
#[test]
fn only_tool_calls_are_cut_out() {
    const CALL: &str = r#""content":[{"type":"tool_use""#;
    const TEXT: &str = r#"{"type":"text","text":"tool_use, \"]},{"}"#;
    let from = home();
    let (home, receiver) = (Home::new(), Receiver::start());
    let mut count = 0;
    for path in files_below(&from.projects()) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for line in text.lines().filter(|line| line.contains(CALL)) {
            let before = format!(r#""content":[{TEXT},{{"type":"tool_use""#);
            let behind =
                format!(r#""content":[{{"type":"tool_use"}} , {TEXT},{{"type":"tool_use""#);
            let with = if count % 2 == 0 { before } else { behind };
            let uuid = format!(r#"{{"uuid":"{count}","#);
            let line = line.replacen(CALL, &with, 1).replacen('{', &uuid, 1);
            home.append("-work/mixed.jsonl", line + "\n");
            count += 1;
        }
    }
    let config = "[filter.tool-call]\nenabled = true";
    home.agent(&["run", "--once"]).config(config).ships_to(&receiver.url()).succeed();
    let rules = Rules { tool_call: true, ..Rules::default() };
    let expected = reference_reader::read_tree(&home.projects(), &rules);
    let cut = expected.iter().filter(|expected| expected.cut.is_some()).count();
    assert!(cut > 1000, "{cut} of {count} records are cut");
    reference_reader::assert_same(&expected, &entries::lines(&receiver.entries()));
}

#[requires(shared)]
#[test]
fn all_filters_combined_ship_what_they_keep() {
    let rules = Rules { sidechain: true, meta: true, tool_call: true, ..Rules::default() };
    arrives(
        "[filter.sidechain]\nenabled = true\n[filter.meta]\nenabled = true\n\
         [filter.tool-call]\nenabled = true\n[shipping]\nbatch_size = 7\nmax_batch_bytes = \"64 KiB\"",
        &rules,
    );
}

/// The verdicts of `--test --json` match the entries of a real run.
#[requires(shared)]
#[test]
fn dry_run_verdicts_match_a_real_run() {
    let home = home();
    let config = "[filter.tool-call]\nenabled = true\n[filter.meta]\nenabled = true";
    let shown = home.agent(&["run", "--test", "--json"]).config(config).succeed();
    let mut verdicts: Vec<(String, u64)> = Vec::new();
    for line in shown.text().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        if line["verdict"] == "keep" || line["verdict"] == "edit" {
            let path = line["path"].as_str().unwrap().to_owned();
            verdicts.push((path, line["offset"].as_u64().unwrap()));
        }
    }
    let rules = Rules { tool_call: true, meta: true, ..Rules::default() };
    let mut expected: Vec<(String, u64)> = reference_reader::read_tree(&home.projects(), &rules)
        .into_iter()
        .map(|expected| (expected.path.to_str().unwrap().to_owned(), expected.offset))
        .collect();
    verdicts.sort();
    expected.sort();
    assert!(verdicts == expected, "{} verdicts, {} lines", verdicts.len(), expected.len());
}
