//! Sigma rules in `config/detections`: the agent reads the records of their examples and sends them to a
//! sink, and a script converts the rules and evaluates them over what arrives.
#![cfg(unix)]

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use test_requires::requires;

use crate::support::{
    files_below,
    home::Home,
    http_server::{HttpServer, Reply},
};

const RULES: &str = "config/detections";
const PAGES: [&str; 4] =
    ["docs/activity.md", "docs/events.md", "docs/siem/fields.md", "docs/siem/elastic.md"];

/// Examples of a rule, in its file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Examples {
    r#match: Vec<Example>,
    no_match: Vec<Example>,
}

/// One of the members says where the event comes from.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Example {
    why: String,
    /// Command line of a call of the tool `Bash`.
    command: Option<String>,
    /// Name and input of a call of any tool.
    call: Option<Value>,
    /// A record of the client.
    record: Option<Box<RawValue>>,
    /// An event without a record: one of the agent, or of another product.
    event: Option<Value>,
}

/// Events of the examples of a rule.
#[derive(Serialize)]
struct Events {
    r#match: Vec<Event>,
    no_match: Vec<Event>,
}

#[derive(Serialize)]
struct Event {
    why: String,
    event: Value,
}

impl Example {
    /// Returns the line that the client writes, with a number that is unique in the file.
    fn line(&self, number: usize) -> Option<String> {
        match (&self.command, &self.call, &self.record, &self.event) {
            (Some(text), None, None, None) => {
                let input = serde_json::json!({ "command": text, "description": "Run it" });
                Some(tool_call(number, "Bash", &input))
            }
            (None, Some(call), None, None) => {
                Some(tool_call(number, call["name"].as_str().unwrap(), &call["input"]))
            }
            (None, None, Some(record), None) => Some(record.get().to_owned()),
            (None, None, None, Some(_)) => None,
            _ => panic!("`{}` has no event, or several", self.why),
        }
    }
}

/// Returns a record as the client writes it for a call of a tool.
fn tool_call(number: usize, tool: &str, input: &Value) -> String {
    format!(
        r#"{{"parentUuid":"7d9f0c1e-0000-4000-8000-000000000001","isSidechain":false,"userType":"external","cwd":"/home/dev/shop","sessionId":"6d1ae0eb-09ca-446a-a362-7b167b280f7a","version":"2.1.330","gitBranch":"main","type":"assistant","message":{{"id":"msg_{number}","type":"message","role":"assistant","model":"claude-opus-5-5","content":[{{"type":"tool_use","id":"toolu_{number}","name":"{tool}","input":{input}}}],"stop_reason":null,"usage":{{"input_tokens":12,"cache_read_input_tokens":12310,"output_tokens":65}}}},"requestId":"req_{number}","uuid":"00000000-0000-4000-8000-{number:012}","timestamp":"2026-11-21T20:00:00.000Z"}}"#
    )
}

/// Returns the examples of each rule.
fn examples() -> BTreeMap<String, Examples> {
    let files = files_below(&repository().join(RULES).join("examples"));
    let read = |file: PathBuf| {
        let examples = serde_json::from_str(&fs::read_to_string(&file).unwrap());
        let examples = examples.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        (file.file_stem().unwrap().to_str().unwrap().to_owned(), examples)
    };
    files.into_iter().map(read).collect()
}

/// Writes the records of the examples to session files, one for each rule, and returns what the agent sends
/// for each line: by name of the rule and offset of the line.
fn sent_events(lines: &BTreeMap<String, Vec<String>>) -> BTreeMap<(String, u64), Value> {
    let home = Home::new();
    for (rule, lines) in lines {
        home.write(&format!("-home-dev-shop/{rule}.jsonl"), lines.join("\n") + "\n");
    }
    let received = Arc::new(Mutex::new(Vec::new()));
    let server = HttpServer::start({
        let received = Arc::clone(&received);
        move |request| {
            received.lock().unwrap().extend_from_slice(&request.body);
            Reply::new(200, "")
        }
    });
    let config = format!(
        "pipeline.enrichers = [\"host\", \"activity\"]\npipeline.sinks = [\"intake\"]\n\
         [sink.intake]\ntype = \"http\"\nendpoint = \"{}\"\n",
        server.url()
    );
    home.agent(&["run", "--once"]).config(&config).succeed();
    let received = String::from_utf8(received.lock().unwrap().clone()).unwrap();
    let events = received.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let records = events.filter(|event| event["event.dataset"] == "claude_code.session");
    let key = |event: &Value| {
        let path = Path::new(event["log.file.path"].as_str().unwrap());
        let rule = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (rule, event["log.offset"].as_u64().unwrap())
    };
    records.map(|event| (key(&event), event)).collect()
}

/// Returns the events of all examples of each rule.
fn events() -> BTreeMap<String, Events> {
    let examples = examples();
    let lines_of = |examples: &Examples| {
        let all = examples.r#match.iter().chain(&examples.no_match).enumerate();
        all.filter_map(|(number, example)| example.line(number)).collect()
    };
    let lines: BTreeMap<String, Vec<String>> =
        examples.iter().map(|(rule, examples)| (rule.clone(), lines_of(examples))).collect();
    let mut sent = sent_events(&lines);
    let mut all = BTreeMap::new();
    for (rule, Examples { r#match, no_match }) in examples {
        let mut offset = 0;
        let mut lines = lines[&rule].iter();
        let mut event = |Example { why, event, .. }: Example| {
            let event = event.unwrap_or_else(|| {
                let event = sent.remove(&(rule.clone(), offset));
                offset += lines.next().unwrap().len() as u64 + 1;
                event.unwrap_or_else(|| panic!("{rule}: the record of `{why}` was not sent"))
            });
            Event { why, event }
        };
        let r#match = r#match.into_iter().map(&mut event).collect();
        let no_match = no_match.into_iter().map(&mut event).collect();
        all.insert(rule, Events { r#match, no_match });
    }
    assert!(sent.is_empty(), "{sent:?}");
    all
}

/// The Python environment that `cargo xtask test` installs.
fn python() -> PathBuf {
    let servers = env::var_os("AI_AGENT_SERVERS").map(PathBuf::from);
    let cache = || PathBuf::from(env::var_os("HOME").unwrap()).join(".cache/ai-agent-servers");
    servers.unwrap_or_else(cache).join("bin/python")
}

/// Runs the script. Returns whether the rules are good, and its output.
fn check(root: &Path, events: &Path) -> (bool, String) {
    let script = repository().join("tests/detections/check.py");
    // Without byte code, which would be written beside the script.
    let output =
        Command::new(python()).arg("-B").arg(script).args([root, events]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Copies what the script reads, with the condition of each rule replaced.
fn with_condition(condition: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let pages = PAGES.map(|page| repository().join(page));
    for file in files_below(&repository().join(RULES)).into_iter().chain(pages) {
        let mut text = fs::read_to_string(&file).unwrap();
        if file.extension().is_some_and(|it| it == "yml") {
            let start = text.find("    condition: ").unwrap();
            let end = start + text[start..].find('\n').unwrap();
            text.replace_range(start..end, &format!("    condition: {condition}"));
        }
        let target = copy.path().join(file.strip_prefix(repository()).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(target, text).unwrap();
    }
    copy
}

#[requires(servers)]
#[test]
fn rules_agree_with_what_the_agent_sends_for_examples() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("detections.json");
    fs::write(&file, serde_json::to_vec(&events()).unwrap()).unwrap();
    let (is_good, text) = check(repository(), &file);
    assert!(is_good, "{text}");
    assert!(text.contains("10 rules, "), "{text}");
}

#[requires(servers)]
#[test]
fn each_example_fails_if_its_rule_is_broken() {
    let events = events();
    for (condition, failure) in
        [("agent and not agent", "does not match"), ("agent or not agent", "matches")]
    {
        let copy = with_condition(condition);
        let file = copy.path().join("events.json");
        fs::write(&file, serde_json::to_vec(&events).unwrap()).unwrap();
        let (is_good, text) = check(copy.path(), &file);
        assert!(!is_good, "{text}");
        for (rule, examples) in &events {
            let broken = match failure {
                "matches" => &examples.no_match,
                _ => &examples.r#match,
            };
            for Event { why, .. } in broken {
                let line = format!("{rule}.yml: example `{why}` {failure}");
                assert!(text.contains(&line), "no `{line}` in:\n{text}");
            }
        }
    }
}
