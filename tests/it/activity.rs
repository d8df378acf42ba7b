//! The enricher `activity` on real session files, compared with a second reading of the same lines
//! that shares no code with it and builds a tree of each record. And in the pipeline: beside the
//! record, and without what filters mask.

use std::{collections::HashMap, fs, path::Path};

use ai_agent::internals::stages::{Record, StageOptions};
use ai_agent_stage::{FileKey, Origin, testing::context};
use serde_json::{Map, Value, json};
use test_requires::requires;

use crate::support::{entries, files_below, home::Home, shared};

/// What the second reading remembers of a file.
#[derive(Default)]
struct Reference {
    /// Name and time of each call by id.
    calls: HashMap<String, (String, Option<u64>)>,
    turn: Option<u64>,
}

/// One value or several, as a field has them.
fn several(values: Vec<Value>) -> Value {
    match values.len() {
        0 => Value::Null,
        1 => values.into_iter().next().unwrap(),
        _ => Value::Array(values),
    }
}

fn starts_with_any(text: &str, starts: &[&str]) -> bool {
    starts.iter().any(|start| text.starts_with(start))
}

const NOTICES: [&str; 6] = [
    "<local-command-",
    "<bash-stdout>",
    "<bash-stderr>",
    "<task-notification>",
    "<system-reminder>",
    "Caveat: ",
];

impl Reference {
    /// Returns the object for a record at `offset`.
    fn read(&mut self, record: &Value, offset: u64) -> Value {
        let Some(kind) = record["type"].as_str() else { return Value::Null };
        let mut fields = match kind {
            "user" => self.user(record),
            "assistant" => self.assistant(record),
            "system" => system(record),
            "attachment" => attachment(record),
            "permission-mode" => {
                json!({ "event.action": "permission_mode", "ai_agent.actor": "system" })
            }
            _ => {
                return match &record["sessionId"] {
                    Value::String(session) => json!({
                        "event.action": "bookkeeping",
                        "ai_agent.actor": "system",
                        "gen_ai.conversation.id": session,
                    }),
                    _ => Value::Null,
                };
            }
        };
        for (field, member) in [
            ("gen_ai.conversation.id", "sessionId"),
            ("gen_ai.agent.version", "version"),
            ("gen_ai.agent.id", "agentId"),
            ("ai_agent.permission_mode", "permissionMode"),
            ("process.working_directory", "cwd"),
            ("vcs.ref.head.name", "gitBranch"),
        ] {
            if record[member].as_str().is_some_and(|text| !text.is_empty()) {
                fields[field] = record[member].clone();
            }
        }
        if record["version"].is_string() {
            fields["gen_ai.agent.name"] = json!("claude-code");
        }
        let turn = self.turn(record, &fields, offset);
        fields["ai_agent.turn"] = json!(turn);
        fields.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        fields
    }

    fn turn(&mut self, record: &Value, fields: &Value, offset: u64) -> Option<u64> {
        if record["isSidechain"] == true {
            return None;
        }
        let is_root = record.get("parentUuid").is_some_and(Value::is_null)
            && record["logicalParentUuid"].is_null();
        if is_root || offset == 0 {
            self.turn = Some(0);
        }
        let text = first_text(&record["message"]["content"]);
        let is_prompt = record["type"] == "user"
            && (fields["event.action"] == "prompt" || text.starts_with("<command-message>"));
        if let Some(turn) = record["turnPosition"]["turnIndex"].as_u64() {
            self.turn = Some(turn);
        } else if is_prompt {
            self.turn = self.turn.map(|turn| turn + 1);
        }
        self.turn.filter(|turn| *turn > 0)
    }

    fn user(&self, record: &Value) -> Value {
        let content = &record["message"]["content"];
        let blocks = content.as_array().cloned().unwrap_or_default();
        let results: Vec<Value> =
            blocks.iter().filter(|block| block["type"] == "tool_result").cloned().collect();
        if !results.is_empty() {
            return self.results(record, &results);
        }
        let text = first_text(content);
        let shell = text.strip_prefix("<bash-input>");
        let (action, is_by_user) = if record["isCompactSummary"] == true {
            ("compaction", false)
        } else if shell.is_some() {
            ("shell_command", true)
        } else if record["isMeta"] == true || starts_with_any(&text, &NOTICES) {
            ("notice", false)
        } else if text.starts_with("<command-") {
            ("command", true)
        } else if text.starts_with("[Request interrupted by user") {
            ("interrupt", true)
        } else {
            ("prompt", true)
        };
        let actor = match (is_by_user, record["isSidechain"] == true) {
            (false, _) => "system",
            (true, true) => "assistant",
            (true, false) => "user",
        };
        let mut fields = json!({ "event.action": action, "ai_agent.actor": actor });
        if action == "prompt" {
            let length: usize = match content {
                Value::String(text) => text.chars().count(),
                _ => blocks
                    .iter()
                    .filter(|block| block["type"] == "text")
                    .filter_map(|block| block["text"].as_str())
                    .map(|text| text.chars().count())
                    .sum(),
            };
            fields["ai_agent.prompt.length"] = json!(length);
        }
        if let Some(command) = shell {
            let end = command.find("</bash-input>").unwrap_or(command.len());
            fields["process.command_line"] = json!(command[..end]);
        }
        fields
    }

    fn assistant(&mut self, record: &Value) -> Value {
        let message = &record["message"];
        let blocks = message["content"].as_array().cloned().unwrap_or_default();
        let is = |kind: &str| blocks.iter().any(|block| block["type"] == kind);
        let is_error = record["isApiErrorMessage"] == true;
        let is_synthetic = message["model"] == "<synthetic>";
        let (action, actor) = match () {
            () if is_error => ("api_error", "system"),
            () if is_synthetic => ("notice", "system"),
            () if is("tool_use") => ("tool_call", "assistant"),
            () if !is("text") && is("thinking") => ("thinking", "assistant"),
            () => ("response", "assistant"),
        };
        let mut fields = json!({ "event.action": action, "ai_agent.actor": actor });
        if is_error {
            fields["event.outcome"] = json!("failure");
        }
        if is_synthetic {
            return fields;
        }
        fields["gen_ai.response.model"] = message["model"].clone();
        fields["gen_ai.response.id"] = message["id"].clone();
        let tokens = |name: &str| message["usage"][name].as_u64();
        let parts = ["input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"];
        let input: Vec<u64> = parts.iter().filter_map(|part| tokens(part)).collect();
        if !input.is_empty() {
            fields["gen_ai.usage.input_tokens"] = json!(input.iter().sum::<u64>());
        }
        fields["gen_ai.usage.cache_read.input_tokens"] = json!(tokens(parts[1]));
        fields["gen_ai.usage.cache_creation.input_tokens"] = json!(tokens(parts[2]));
        fields["gen_ai.usage.output_tokens"] = json!(tokens("output_tokens"));
        let calls: Vec<&Value> =
            blocks.iter().filter(|block| block["type"] == "tool_use").collect();
        let each = |read: &dyn Fn(&Value) -> Vec<Value>| {
            let values = calls.iter().flat_map(|call| read(call));
            several(
                values
                    .filter(|value| value.as_str().is_some_and(|text| !text.is_empty()))
                    .collect(),
            )
        };
        fields["gen_ai.tool.name"] = each(&|call| vec![call["name"].clone()]);
        fields["gen_ai.tool.call.id"] = each(&|call| vec![call["id"].clone()]);
        fields["ai_agent.tool.kind"] = each(&|call| vec![json!(kind(&call["name"]))]);
        fields["process.command_line"] = each(&|call| vec![call["input"]["command"].clone()]);
        fields["file.path"] = each(&|call| {
            let names = ["file_path", "notebook_path", "path"];
            names.iter().map(|name| call["input"][*name].clone()).collect()
        });
        let url = |call: &Value| vec![call["input"]["url"].clone(), call["input"]["uri"].clone()];
        fields["url.full"] = each(&url);
        fields["url.domain"] = each(&|call| url(call).iter().map(domain).collect());
        fields["ai_agent.mcp.server"] = each(&|call| match &call["input"]["server"] {
            Value::String(server) => vec![json!(server)],
            _ => vec![server(call["name"].as_str().unwrap_or_default())],
        });
        let at = millis(&record["timestamp"]);
        for call in calls {
            if let (Some(id), Some(name)) = (call["id"].as_str(), call["name"].as_str()) {
                self.calls.insert(id.to_owned(), (name.to_owned(), at));
            }
        }
        fields
    }

    fn results(&self, record: &Value, results: &[Value]) -> Value {
        let call = |result: &Value| self.calls.get(result["tool_use_id"].as_str()?);
        let calls: Vec<&(String, Option<u64>)> = results.iter().filter_map(call).collect();
        let names = || calls.iter().map(|(name, _)| name);
        let outcome =
            |result: &Value| json!(if result["is_error"] == true { "failure" } else { "success" });
        let mut fields = json!({
            "event.action": "tool_result",
            "ai_agent.actor": "tool",
            "gen_ai.tool.name": several(names().map(|name| json!(name)).collect()),
            "gen_ai.tool.call.id":
                several(results.iter().map(|result| result["tool_use_id"].clone()).collect()),
            "ai_agent.tool.kind": several(names().map(|name| json!(kind(&json!(name)))).collect()),
            "ai_agent.mcp.server":
                several(names().map(|name| server(name)).filter(Value::is_string).collect()),
            "event.outcome": several(results.iter().map(outcome).collect()),
        });
        if let ([_], [(_, Some(start))]) = (results, calls.as_slice()) {
            let end = millis(&record["timestamp"]);
            fields["event.duration"] =
                json!(end.and_then(|end| end.checked_sub(*start)).map(|ms| ms * 1_000_000));
        }
        decision(
            record,
            results,
            names().any(|name| name.to_lowercase().contains("plan")),
            &mut fields,
        );
        fields
    }
}

fn decision(record: &Value, results: &[Value], is_plan: bool, fields: &mut Value) {
    let given = &record["permissionDecision"];
    let text = first_text(&results[0]["content"]);
    let refused = results[0]["is_error"] == true;
    let other = record["toolUseResult"].as_str().unwrap_or_default();
    let says = |start: &str| {
        refused
            && [text.as_str(), other]
                .iter()
                .any(|text| text.trim_start_matches("Error: ").starts_with(start))
    };
    let approved = is_plan && !refused && text.starts_with("User has approved your plan");
    let set = |fields: &mut Value, word: &str, source: Value, by_person: Option<bool>| {
        fields["ai_agent.tool.decision"] = json!(word);
        fields["ai_agent.tool.decision_source"] = source;
        fields["ai_agent.tool.person_approved"] = json!(by_person);
    };
    if let Some(word) = given["decision"].as_str() {
        let source = given["source"].clone();
        let by_person = match (word, source.as_str()) {
            ("accept", _) if approved => Some(true),
            ("accept", Some("user_temporary")) => Some(true),
            ("accept", Some("user_permanent")) => Some(given["reasonType"] != "rule"),
            ("accept", None) => None,
            _ => Some(false),
        };
        set(fields, word, source, by_person);
    } else if says("The user doesn't want to ") || says("User rejected tool use") {
        set(fields, "reject", json!("user_reject"), Some(false));
    } else if says("[Request interrupted by user") {
        set(fields, "reject", json!("user_abort"), Some(false));
    } else if record["toolDenialKind"].is_string() {
        set(fields, "reject", Value::Null, Some(false));
    } else if approved {
        set(fields, "accept", Value::Null, Some(true));
    }
}

fn system(record: &Value) -> Value {
    let subtype = record["subtype"].as_str().unwrap_or_default();
    let content = record["content"].as_str().unwrap_or_default();
    let (action, actor) = match subtype {
        "compact_boundary" | "microcompact_boundary" => ("compaction", "system"),
        "api_error" => ("api_error", "system"),
        "stop_hook_summary" => ("hook", "system"),
        "local_command" if content.starts_with("<command-name>") => ("command", "user"),
        "local_command" => ("notice", "system"),
        _ => ("system", "system"),
    };
    let hooks = record["hookInfos"].as_array().cloned().unwrap_or_default();
    let commands = hooks.iter().map(|hook| hook["command"].clone()).filter(Value::is_string);
    json!({
        "event.action": action,
        "ai_agent.actor": actor,
        "process.command_line": several(commands.collect()),
        "event.duration": record["durationMs"].as_u64().map(|ms| ms * 1_000_000),
        "event.outcome": (subtype == "api_error").then_some("failure"),
    })
}

fn attachment(record: &Value) -> Value {
    let it = &record["attachment"];
    let kind = it["type"].as_str().unwrap_or_default();
    let queued = it["prompt"].as_str().filter(|text| !starts_with_any(text, &NOTICES));
    let file = [&it["filename"], &it["path"]].into_iter().find(|file| file.is_string());
    let mut fields = json!({
        "event.action": "attachment", "ai_agent.actor": "system", "file.path": file,
    });
    if let Some(text) = queued.filter(|_| kind == "queued_command") {
        fields["event.action"] = json!("prompt");
        fields["ai_agent.actor"] = json!("user");
        fields["ai_agent.prompt.length"] = json!(text.chars().count());
    } else if kind == "mcp_instructions_delta" {
        fields["event.action"] = json!("mcp_servers");
        fields["ai_agent.mcp.server"] = several(it["addedNames"].as_array().unwrap().clone());
    } else if kind.starts_with("hook_") {
        fields["event.action"] = json!("hook");
        fields["process.command_line"] = it["command"].clone();
        fields["event.duration"] = json!(it["durationMs"].as_u64().map(|ms| ms * 1_000_000));
        fields["event.outcome"] = match kind {
            "hook_success" => json!("success"),
            "hook_non_blocking_error" | "hook_blocking_error" | "hook_cancelled" => {
                json!("failure")
            }
            _ => Value::Null,
        };
    }
    fields
}

/// Text of a content, or the first text in it.
fn first_text(content: &Value) -> String {
    let blocks = content.as_array().map(Vec::as_slice).unwrap_or_default();
    let first = blocks.iter().find_map(|block| block["text"].as_str());
    content.as_str().or(first).unwrap_or_default().to_owned()
}

fn kind(name: &Value) -> &'static str {
    let table = [
        ("execute", "Bash PowerShell Monitor KillShell KillBash TaskStop"),
        ("read", "Read NotebookRead LS BashOutput TaskOutput"),
        ("write", "Write Edit MultiEdit NotebookEdit"),
        ("search", "Glob Grep WebSearch web_search ToolSearch LSP"),
        ("fetch", "WebFetch web_fetch"),
        ("mcp", "ListMcpResourcesTool ReadMcpResourceTool"),
        ("agent", "Task Agent SendMessage Skill"),
    ];
    let name = name.as_str().unwrap();
    let found = table.iter().find(|(_, names)| names.split(' ').any(|known| known == name));
    found.map_or(if name.starts_with("mcp__") { "mcp" } else { "other" }, |(kind, _)| kind)
}

fn server(tool: &str) -> Value {
    let mut parts = tool.split("__");
    match (parts.next(), parts.next()) {
        (Some("mcp"), Some(server)) if !server.is_empty() => json!(server),
        _ => Value::Null,
    }
}

fn domain(url: &Value) -> Value {
    let Ok(url) = reqwest::Url::parse(url.as_str().unwrap_or_default()) else { return Value::Null };
    json!(url.host_str())
}

/// Milliseconds of a time of the client, counted in days since the year 0.
fn millis(time: &Value) -> Option<u64> {
    let digits: Vec<u64> = time
        .as_str()?
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect();
    let &[year, month, day, hour, minute, second, millis] = digits.as_slice() else { return None };
    let is_leap = |year: u64| {
        (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
    };
    let years: u64 = (0..year).map(|year| 365 + u64::from(is_leap(year))).sum();
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let months: u64 = lengths.iter().take(usize::try_from(month - 1).unwrap()).sum();
    Some((((years + months + day) * 24 + hour) * 60 + minute) * 60_000 + second * 1000 + millis)
}

/// Fields that were cut, for which the rest is not compared.
fn without_cut(object: &Value) -> Map<String, Value> {
    let mut fields = object.as_object().cloned().unwrap_or_default();
    let cut = fields.remove("ai_agent.truncated").unwrap_or_default();
    let names = cut.as_array().cloned().unwrap_or_else(|| vec![cut]);
    names.iter().filter_map(Value::as_str).for_each(|name| drop(fields.remove(name)));
    fields
}

/// Compares both readings of a file; returns the numbers of records and of cut objects.
fn compare(path: &Path, number: u64) -> (usize, usize) {
    let mut enricher = ai_agent_stage::build_enricher(
        "activity",
        &"".parse::<StageOptions>().unwrap(),
        &context().into(),
    )
    .unwrap();
    let generation = Record::from_line(b"").origin().generation.clone();
    let origin = Origin::new(FileKey(number), path, generation);
    let (mut reference, mut offset, mut compared, mut cut) = (Reference::default(), 0, 0, 0);
    for line in fs::read(path).unwrap().split(|byte| *byte == b'\n') {
        let found = enricher.enrich(&Record::new(&origin, offset, line));
        let found: Value =
            found.map_or(Value::Null, |object| serde_json::from_str(object.get()).unwrap());
        if let Ok(record) = serde_json::from_slice::<Value>(line) {
            let mut expected = reference.read(&record, offset);
            if found.get("ai_agent.truncated").is_some() {
                cut += 1;
                let fields = without_cut(&found);
                let names: Vec<String> = expected.as_object().unwrap().keys().cloned().collect();
                for name in names.iter().filter(|name| !fields.contains_key(*name)) {
                    expected.as_object_mut().unwrap().remove(name);
                }
                assert_eq!(Value::Object(fields), expected, "{} at {offset}", path.display());
            } else {
                assert_eq!(found, expected, "{} at {offset}", path.display());
            }
            compared += 1;
        }
        offset += line.len() as u64 + 1;
    }
    (compared, cut)
}

#[requires(shared)]
#[test]
fn fields_of_the_corpus_match_a_second_reading() {
    let (mut compared, mut cut) = (0, 0);
    let files = files_below(&shared().join("corpus"));
    let sessions = files.iter().filter(|path| path.extension().is_some_and(|e| e == "jsonl"));
    for (number, path) in (0..).zip(sessions) {
        let (records, objects) = compare(path, number);
        compared += records;
        cut += objects;
    }
    eprintln!("{compared} records compared, {cut} objects have a cut field");
    assert!(compared > 10_000 && cut < compared / 100, "{compared} records, {cut} cut");
}

/// The object is beside the record, under the name of the instance, and the record is unchanged.
#[test]
fn object_is_beside_the_record() {
    let home = Home::new();
    let line = r#"{"type":"assistant","sessionId":"s","message":{"content":[{"type":"tool_use","id":"t","name":"Bash","input":{"command":"make"}}]}}"#;
    home.write("-work/a.jsonl", format!("{line}\n"));
    let config = "pipeline.enrichers = [\"host\", \"what\"]\n[enricher.what]\ntype = \"activity\"";
    let ended = home.agent(&["run", "--test"]).config(config).succeed();
    let entry = &entries::parse(&ended.stdout)[0];
    assert_eq!(entry.whole["what"]["process.command_line"], "make");
    assert_eq!(entry.bytes, line.as_bytes());
}

/// What a filter masks or cuts out would otherwise be shipped beside the record.
#[test]
fn masked_and_cut_text_is_not_in_the_object() {
    let home = Home::new();
    let line = r#"{"type":"assistant","message":{"content":[{"type":"text","text":"x"},{"type":"tool_use","id":"t","name":"Bash","input":{"command":"aws AKIAIOSFODNN7EXAMPLE"}}]}}"#;
    home.write("-work/a.jsonl", format!("{line}\n"));
    let shipped = |more: &str| {
        let config = format!("pipeline.enrichers = [\"activity\"]\n{more}");
        let ended = home.agent(&["run", "--test"]).config(&config).succeed();
        entries::parse(&ended.stdout)[0].whole["activity"].clone()
    };
    let masked = shipped("pipeline.filters = [\"mask\"]");
    assert_eq!(masked["process.command_line"], "aws [masked:aws-access-key]");
    let cut = shipped("[filter.tool-call]\nenabled = true");
    assert_eq!((&cut["event.action"], cut.get("process.command_line")), (&json!("response"), None));
}

/// A later part of a long line starts in the middle of it, where it could look like a record.
#[test]
fn later_part_of_a_line_says_nothing() {
    let home = Home::new();
    let start = r#"{"type":"user","sessionId":"first","message":{"content":""#;
    let inside = r#"{"type":"user","sessionId":"second","message":{"content":"x"}}"#;
    let filler = "a".repeat((1 << 20) - start.len());
    let line = format!("{start}{filler}{inside}");
    home.write("-work/a.jsonl", format!("{line}\n"));
    let config = "pipeline.enrichers = [\"activity\"]\n[source.claude-sessions]\nmax_record_bytes = \"1 MiB\"";
    let ended = home.agent(&["run", "--test"]).config(config).succeed();
    let parts = entries::parse(&ended.stdout);
    assert!(parts.len() > 1, "{} entries", parts.len());
    assert_eq!(parts[0].whole["activity"]["gen_ai.conversation.id"], "first");
    assert!(parts[1..].iter().all(|part| part.whole.get("activity").is_none()));
}
