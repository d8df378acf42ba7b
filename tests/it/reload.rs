//! Reloads of a running agent: each record is filtered by exactly one configuration, whose hash is
//! in its batch, and none is lost or doubled.
#![cfg(unix)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::support::{
    agent::Agent,
    entries::{self, StoredEntry},
    eventually, files_below,
    home::Home,
    random, random_moment,
    receiver::{Receiver, wait_for},
    replace_file,
};
use ai_agent::internals::{
    config::{self, ConfigInputs},
    platform::{Environment, Paths},
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Settings that a reload changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Toggles {
    modes_ignored: bool,
    sidechain: bool,
    meta: bool,
    tool_call: bool,
}

/// Kind of a line, which decides the filter that may drop it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nature {
    Plain,
    Progress,
    Mode,
    Sidechain,
    Meta,
    Call,
    /// An earlier line again, byte for byte.
    Repeated,
}

impl Toggles {
    fn all() -> impl Iterator<Item = Self> {
        (0..16).map(|bits| Self {
            modes_ignored: bits & 1 > 0,
            sidechain: bits & 2 > 0,
            meta: bits & 4 > 0,
            tool_call: bits & 8 > 0,
        })
    }

    fn types(self) -> Value {
        if self.modes_ignored { json!(["mode"]) } else { json!(["progress"]) }
    }

    fn toml(self) -> String {
        let Self { sidechain, meta, tool_call, .. } = self;
        format!(
            "shipping.flush_interval = \"200ms\"\nfilter.ignore-types.types = {}\n\
             filter.sidechain.enabled = {sidechain}\nfilter.meta.enabled = {meta}\n\
             filter.tool-call.enabled = {tool_call}\n",
            self.types()
        )
    }

    fn managed(self, n: usize) -> Value {
        let Self { sidechain, meta, tool_call, .. } = self;
        json!({
            "version": 1, "revision": format!("r{n}"),
            "filters": {
                "ignore_types": self.types(), "drop_sidechain": sidechain, "drop_meta": meta,
                "drop_tool_calls": tool_call,
            },
        })
    }

    fn drops(self, nature: Nature) -> bool {
        match nature {
            Nature::Plain | Nature::Call => false,
            Nature::Progress => !self.modes_ignored,
            Nature::Mode => self.modes_ignored,
            Nature::Sidechain => self.sidechain,
            Nature::Meta => self.meta,
            Nature::Repeated => true,
        }
    }

    /// Hash of the configuration as the library computes it, for an agent that ships to `endpoint`.
    fn hash(self, home: &Home, endpoint: &str) -> String {
        let environment = Environment::from_iter([
            ("HOME", home.path().to_str().unwrap()),
            ("CLAUDE_SIEM_ENDPOINT", endpoint),
            // Only the presence of secrets counts.
            ("CLAUDE_SIEM_TOKEN", "any"),
            ("CLAUDE_SIEM_HMAC_SECRET", "any"),
        ]);
        let paths = Paths::from_environment(&environment).unwrap();
        let file = home.path().join("predicted.toml");
        fs::write(&file, self.toml()).unwrap();
        let inputs = ConfigInputs {
            paths: &paths,
            environment: &environment,
            explicit: Some(&file),
            managed: None,
        };
        config::load(&inputs).unwrap().settings.config_hash().to_string()
    }
}

/// Writes session files as fast as a busy machine until `ended`. Returns the lines of each file by
/// offset.
fn grow(home: &Home, file: usize, ended: &Arc<AtomicBool>) -> thread::JoinHandle<Lines> {
    let path = home.write(&format!("-work-{file}/a.jsonl"), "");
    let ended = Arc::clone(ended);
    let mut random = fastrand::Rng::with_seed(random().u64(..));
    thread::spawn(move || {
        let (mut lines, mut offset, mut written) = (BTreeMap::new(), 0, Vec::<String>::new());
        let mut n = 0;
        loop {
            let is_last = ended.load(Ordering::Relaxed);
            let mut text = String::new();
            for _ in 0..random.usize(1..12) {
                n += 1;
                let (nature, line) = line(&mut random, file, n, &written);
                let nature = if is_last { Nature::Plain } else { nature };
                let line = if is_last { plain(file, n) } else { line };
                lines.insert(offset, nature);
                offset += line.len() as u64 + 1;
                text += &line;
                text.push('\n');
                if nature != Nature::Repeated {
                    written.push(line);
                }
            }
            crate::support::home::append_to(&path, text);
            if is_last {
                return Lines { path, lines };
            }
            random_moment(&mut random, Duration::from_millis(12));
        }
    })
}

struct Lines {
    path: PathBuf,
    lines: BTreeMap<u64, Nature>,
}

fn plain(file: usize, n: usize) -> String {
    format!(r#"{{"type":"user","uuid":"{file}-{n}"}}"#)
}

fn line(random: &mut fastrand::Rng, file: usize, n: usize, written: &[String]) -> (Nature, String) {
    let uuid = format!(r#""uuid":"{file}-{n}""#);
    match random.u32(..12) {
        0 => (Nature::Progress, format!(r#"{{"type":"progress",{uuid}}}"#)),
        1 => (Nature::Mode, format!(r#"{{"type":"mode",{uuid}}}"#)),
        2 => (Nature::Sidechain, format!(r#"{{"isSidechain":true,{uuid}}}"#)),
        3 => (Nature::Meta, format!(r#"{{"isMeta":true,{uuid}}}"#)),
        4 | 5 => {
            let content = r#"[{"type":"tool_use","id":"t"},{"type":"text","text":"x"}]"#;
            (Nature::Call, format!(r#"{{"message":{{"content":{content}}},{uuid}}}"#))
        }
        6 if !written.is_empty() => {
            (Nature::Repeated, written[random.usize(..written.len())].clone())
        }
        _ => (Nature::Plain, plain(file, n)),
    }
}

fn facts(home: &Home) -> Value {
    let path = home.path().join(".local/state/ai-agent/status.json");
    let text = fs::read_to_string(path).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["config"].clone()
}

/// Returns first and last sequence number and configuration hash of each stored batch.
fn batches(receiver: &Receiver) -> Vec<(u64, u64, String)> {
    let files = files_below(&receiver.data().join("machines"));
    let lines =
        files.iter().find(|path| path.extension().is_some_and(|it| it == "ndjson")).unwrap();
    let stored = fs::read(lines).unwrap();
    let mut batches = Vec::new();
    for file in files.iter().filter(|path| path.extension().is_some_and(|it| it == "index")) {
        let index = fs::read(file).unwrap();
        let mut rest = &index[..];
        let mut hash = String::new();
        // A record has the sizes of its three parts after four bytes; the first part is at 32.
        while let Some((head, parts)) = rest.split_first_chunk::<32>() {
            let [note, values, starts] = [4, 8, 12]
                .map(|at| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()) as usize);
            rest = &parts[note + values + starts..];
            let note: Value = serde_json::from_slice(&parts[..note]).unwrap();
            let (Some(at), Some(bytes)) = (note["lines_at"].as_u64(), note["bytes"].as_u64())
            else {
                continue;
            };
            if let Some(other) = note["who"]["config_hash"].as_str() {
                other.clone_into(&mut hash);
            }
            let entries = entries::parse(&stored[at as usize..(at + bytes) as usize]);
            if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
                batches.push((first.seq, last.seq, hash.clone()));
            }
        }
    }
    batches.sort();
    batches
}

/// 200 changes of the configuration while files grow, valid and invalid, by file and by the server.
#[test]
fn reloads_under_load_lose_nothing_and_never_mix_configs() {
    const RELOADS: usize = 200;

    let home = Home::new();
    let mut random = random();
    let receiver = Receiver::with_config(Some("{\"version\":1,\"revision\":\"r0\"}"));
    let toggles: Vec<Toggles> = Toggles::all().collect();
    let hash = |toggles: &Toggles| (toggles.hash(&home, &receiver.url()), *toggles);
    let hashes: BTreeMap<String, Toggles> = toggles.iter().map(hash).collect();
    assert_eq!(hashes.len(), 16);
    let hash_of =
        |toggles: Toggles| hashes.iter().find(|(_, known)| **known == toggles).unwrap().0.clone();
    let managed = receiver.data().join("config.json");
    let file = home.path().join("agent.toml");
    let mut by_file = toggles[0];
    let mut by_server: Option<Toggles> = None;
    let agent = home.agent(&["run"]).config(&by_file.toml()).ships_to(&receiver.url());
    let agent = agent.start_and_wait();
    let ended = Arc::new(AtomicBool::new(false));
    let growing: Vec<_> = (0..4).map(|file| grow(&home, file, &ended)).collect();

    let mut wrong = 0;
    let mut revision = "r0".to_owned();
    for n in 0..RELOADS {
        // Some lines are read under the current configuration.
        random_moment(&mut random, Duration::from_millis(80));
        let next = toggles[random.usize(..16)];
        match random.u32(..10) {
            0..=3 => {
                by_file = next;
                replace_file(&file, &by_file.toml());
            }
            4..=6 => {
                by_server = (random.u32(..4) > 0).then_some(next);
                let config = by_server.map(|toggles| toggles.managed(n));
                let config =
                    config.unwrap_or_else(|| json!({ "version": 1, "revision": n.to_string() }));
                revision = config["revision"].as_str().unwrap().to_owned();
                replace_file(&managed, &config.to_string());
            }
            7 | 8 => {
                wrong += 1;
                let test = format!(
                    "[[test]]\nname = \"w{n}\"\nlines = [{{ input = '{{}}', expect = \"drop\" }}]\n"
                );
                let name = format!("w{n}");
                let (text, word) = match random.u32(..3) {
                    0 => (format!("w{n} = ["), "TOML"),
                    1 => {
                        let filter = format!("filter.w{n}.type = 5\npipeline.filters = [\"w{n}\"]");
                        (next.toml() + &filter, &*name)
                    }
                    _ => (next.toml() + &test, &*name),
                };
                replace_and_be_refused(&agent, &home, &file, &text, word);
                replace_file(&file, &by_file.toml());
                continue;
            }
            _ => {
                wrong += 1;
                let mut config = next.managed(n);
                if random.bool() {
                    config["stages"] = json!({ "filter": { format!("w{n}"): {} } });
                } else {
                    let line = json!({ "input": "{}", "expect": "drop" });
                    config["tests"] = json!([{ "name": format!("w{n}"), "lines": [line] }]);
                }
                let config = config.to_string();
                replace_and_be_refused(&agent, &home, &managed, &config, &format!("w{n}"));
                continue;
            }
        }
        let expected = hash_of(by_server.unwrap_or(by_file));
        agent.signal(Signal::HUP);
        eventually("the configuration is in force", || {
            let applied = facts(&home)["applied"].clone();
            // The same settings with another revision are another configuration.
            let is_it = applied["hash"] == expected.as_str() && applied["revision"] == *revision;
            is_it.then_some(())
        });
    }
    ended.store(true, Ordering::Relaxed);
    let written: Vec<Lines> = growing.into_iter().map(|thread| thread.join().unwrap()).collect();
    wait_for(&receiver, "the last line of each file", |entries| {
        let arrived = |lines: &Lines| {
            let last = *lines.lines.last_key_value().unwrap().0;
            entries.iter().any(|entry| entry.path == lines.path && entry.offset == last)
        };
        written.iter().all(arrived).then_some(())
    });
    agent.stop();
    receiver.assert_complete();
    let stored = receiver.entries();
    let refusals = entries::events(&stored, "config_refused").len();
    assert_eq!(refusals, wrong, "each that is wrong is reported once");
    let batches = batches(&receiver);
    let used: BTreeSet<&str> = batches.iter().map(|(_, _, hash)| hash.as_str()).collect();
    assert!(used.len() > 8, "only {} configurations were ever in force", used.len());
    judged_by_one(&written, &stored, &batches, &hashes);
}

/// Replaces a file, and waits until the configuration is refused for a reason with `word` in it.
fn replace_and_be_refused(agent: &Agent, home: &Home, path: &Path, text: &str, word: &str) {
    let before = facts(home)["refused"].clone();
    replace_file(path, text);
    agent.signal(Signal::HUP);
    eventually(&format!("a refusal for {word}"), || {
        let refused = facts(home)["refused"].clone();
        let reason = refused["reason"].as_str().unwrap_or_default();
        (refused != before && reason.contains(word)).then_some(())
    });
}

/// Checks every written line against the stored entries: the configuration whose hash is in its
/// batch must explain it.
fn judged_by_one(
    written: &[Lines],
    stored: &[StoredEntry],
    batches: &[(u64, u64, String)],
    hashes: &BTreeMap<String, Toggles>,
) {
    let batch_of = |seq: u64| {
        let at = batches.partition_point(|(_, last, _)| *last < seq);
        let (first, last, hash) = &batches[at];
        assert!((*first..=*last).contains(&seq));
        (at, hashes[hash])
    };
    let mut arrived: BTreeMap<(&Path, u64), &StoredEntry> = BTreeMap::new();
    for entry in stored.iter().filter(|entry| entry.event.is_none()) {
        let twice = arrived.insert((&entry.path, entry.offset), entry);
        assert!(twice.is_none(), "{}:{} came twice", entry.path.display(), entry.offset);
    }
    for Lines { path, lines } in written {
        let mut before = 0;
        let mut missing: Vec<(u64, Nature)> = Vec::new();
        for (offset, nature) in lines {
            let Some(entry) = arrived.remove(&(path.as_path(), *offset)) else {
                missing.push((*offset, *nature));
                continue;
            };
            let (batch, toggles) = batch_of(entry.seq);
            assert!(!toggles.drops(*nature), "{nature:?} came under {toggles:?}");
            let is_cut = !entry.cut.is_empty();
            assert_eq!(is_cut, *nature == Nature::Call && toggles.tool_call, "under {toggles:?}");
            // A dropped line is between two stored ones, and so are the configurations that may
            // have dropped it.
            for (offset, nature) in missing.drain(..) {
                let could =
                    batches[before..=batch].iter().any(|(_, _, hash)| hashes[hash].drops(nature));
                assert!(could, "{nature:?} at {offset} of {} is lost", path.display());
            }
            before = batch;
        }
        assert!(missing.is_empty(), "the last line is one that is always kept");
    }
    assert!(arrived.is_empty(), "lines that were never written");
}

/// Otherwise the results of calls that run during a reload would lose the names of their tools.
#[test]
fn enricher_with_unchanged_table_keeps_its_memory() {
    let home = Home::new();
    let receiver = Receiver::start();
    let call = r#"{"type":"assistant","uuid":"u1","message":{"content":[{"type":"tool_use","id":"t","name":"Bash"}]}}"#;
    let result = r#"{"type":"user","uuid":"u2","message":{"content":[{"type":"tool_result","tool_use_id":"t"}]}}"#;
    let path = home.write("-work/a.jsonl", format!("{call}\n"));
    let config = "shipping.flush_interval = \"200ms\"\npipeline.enrichers = [\"activity\"]\n";
    let agent = home.agent(&["run"]).config(config).ships_to(&receiver.url()).start_and_wait();
    let activity_of = |line: &str| {
        wait_for(&receiver, line, |entries| {
            let entry = entries.iter().find(|entry| entry.bytes == line.as_bytes())?;
            Some(entry.whole["activity"].clone())
        })
    };
    assert_eq!(activity_of(call)["gen_ai.tool.name"], "Bash");
    let before = facts(&home)["applied"]["hash"].as_str().unwrap().to_owned();
    let next = format!("{config}filter.meta.enabled = true\n");
    replace_file(&home.path().join("agent.toml"), &next);
    agent.signal(Signal::HUP);
    eventually("another configuration", || {
        (facts(&home)["applied"]["hash"] != *before).then_some(())
    });
    crate::support::home::append_to(&path, format!("{result}\n"));
    assert_eq!(activity_of(result)["gen_ai.tool.name"], "Bash");
    agent.stop();
}
