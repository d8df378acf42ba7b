//! The pages in `docs/siem`: configurations and queries are well-formed, and use names that exist.
//! `siem_queries` runs those for which there is a program.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use test_requires::requires;

use crate::support::files_below;

/// A fenced block of a page.
pub(crate) struct Block {
    pub(crate) page: String,
    /// Heading of its section; empty before the first one.
    pub(crate) section: String,
    pub(crate) language: String,
    pub(crate) text: String,
}

/// Languages of queries, and of the shell commands that some pages have in their place.
const QUERIES: [&str; 7] = ["console", "esql", "kusto", "logql", "logscale", "sh", "spl"];

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
}

fn read(page: &str) -> String {
    fs::read_to_string(docs().join(page)).unwrap().replace("\r\n", "\n")
}

/// Names of the pages for products.
fn pages() -> Vec<String> {
    let files = files_below(&docs().join("siem")).into_iter();
    let names = files.map(|file| file.file_name().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| !["README.md", "fields.md"].contains(&name.as_str())).collect()
}

/// Returns the fenced blocks of a page below `docs/siem`, without the indentation of their fences.
pub(crate) fn blocks(page: &str) -> Vec<Block> {
    let text = read(&format!("siem/{page}"));
    let (mut blocks, mut section) = (Vec::new(), String::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        section = line.strip_prefix("## ").map_or(section, str::to_owned);
        let Some(language) = line.trim_start().strip_prefix("```") else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let inside = lines.by_ref().take_while(|line| line.trim() != "```");
        let text = inside.map(|line| line.strip_prefix(indent).unwrap_or(line).to_owned() + "\n");
        let (page, text) = (page.to_owned(), text.collect());
        blocks.push(Block { page, section: section.clone(), language: language.to_owned(), text });
    }
    blocks
}

fn all_blocks() -> Vec<Block> {
    pages().iter().flat_map(|page| blocks(page)).collect()
}

/// Returns method, path and body of each request in a block for Elastic's console.
pub(crate) fn console_requests(block: &Block) -> Vec<(&str, &str, Value)> {
    let is_start = |line: &str| ["GET ", "POST ", "PUT "].iter().any(|it| line.starts_with(it));
    let mut requests: Vec<(&str, String)> = Vec::new();
    for line in block.text.lines() {
        if is_start(line) {
            requests.push((line, String::new()));
        } else {
            requests.last_mut().expect("the first line names a method").1 += line;
        }
    }
    let parse = |(line, body): (&'_ str, String)| {
        let body = serde_json::from_str(&body);
        body.unwrap_or_else(|error| panic!("{}: {line}: {error}", block.page))
    };
    let split = |(line, body): (_, String)| {
        let (method, path) = str::split_once(line, ' ').unwrap();
        (method, path, parse((line, body)))
    };
    requests.into_iter().map(split).collect()
}

/// Fails unless quotes are closed and brackets match outside of them.
fn assert_balanced(block: &Block) {
    let (mut open, mut characters) = (Vec::new(), block.text.chars());
    while let Some(character) = characters.next() {
        match character {
            '"' | '\'' => loop {
                match characters.next() {
                    Some('\\') => drop(characters.next()),
                    Some(end) if end == character => break,
                    Some('\n') | None => panic!("{}: open quote in\n{}", block.page, block.text),
                    Some(_) => {}
                }
            },
            '(' => open.push(')'),
            '[' => open.push(']'),
            '{' => open.push('}'),
            ')' | ']' | '}' => {
                assert_eq!(open.pop(), Some(character), "{}\n{}", block.page, block.text);
            }
            _ => {}
        }
    }
    assert!(open.is_empty(), "{}: no {open:?} in\n{}", block.page, block.text);
}

fn assert_is_shell(block: &Block) {
    let checked = std::process::Command::new("sh").args(["-n", "-c", &block.text]).output();
    let checked = checked.unwrap();
    let error = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{}: {error}\n{}", block.page, block.text);
}

/// A configuration file of Splunk: stanzas with settings.
fn stanzas(block: &Block) -> Vec<(&str, Vec<&str>)> {
    let mut stanzas: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in block.text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            stanzas.push((name, Vec::new()));
        } else {
            assert!(line.contains(" = "), "{}: {line}", block.page);
            stanzas.last_mut().unwrap().1.push(line);
        }
    }
    stanzas
}

/// The first three languages have tests of their own: `config`, `config_of_each_collector_is_consistent`,
/// and that of the sink in `siem-sinks`.
#[test]
fn blocks_of_each_language_are_well_formed() {
    for block in all_blocks() {
        match block.language.as_str() {
            "toml" | "yaml" | "rsyslog" => {}
            "console" => assert!(!console_requests(&block).is_empty(), "{}", block.text),
            "json" => block
                .text
                .lines()
                .for_each(|line| drop(serde_json::from_str::<Value>(line).unwrap())),
            "ini" => assert!(!stanzas(&block).is_empty()),
            "sh" if cfg!(unix) => assert_is_shell(&block),
            "sh" => {}
            "esql" | "kusto" | "logql" | "logscale" | "spl" => assert_balanced(&block),
            other => panic!("{}: a block of the language `{other}`:\n{}", block.page, block.text),
        }
    }
}

#[test]
fn pages_end_with_a_session_and_its_gaps() {
    for page in pages() {
        let sections: Vec<String> = read(&format!("siem/{page}"))
            .lines()
            .filter_map(|line| line.strip_prefix("## "))
            .map(str::to_owned)
            .collect();
        assert!(sections.ends_with(&["A session in order".into(), "Gaps".into()]), "{page}");
        let blocks = blocks(&page);
        assert_eq!((blocks[0].language.as_str(), blocks[0].section.as_str()), ("toml", ""));
        for section in ["A session in order", "Gaps"] {
            let is_query = |block: &&Block| {
                block.section == section && QUERIES.contains(&block.language.as_str())
            };
            assert!(blocks.iter().any(|block| is_query(&block)), "{page}: no query in `{section}`");
        }
    }
}

/// Cells of the tables of a page that start with a header.
fn rows(page: &str, header: &str) -> Vec<Vec<String>> {
    let text = read(page);
    let (mut rows, mut is_inside) = (Vec::new(), false);
    for line in text.lines() {
        is_inside = line.starts_with(header) || (is_inside && line.starts_with('|'));
        if is_inside && line.starts_with("| `") {
            let cells = line.trim_matches('|').split(" | ");
            rows.push(cells.map(|cell| cell.trim().trim_matches('`').to_owned()).collect());
        }
    }
    rows
}

/// Names of fields in ECS or OpenTelemetry, and of those of the enricher `activity`.
fn documented(is_otel: bool) -> BTreeSet<String> {
    let activity = rows("activity.md", "| field |").into_iter().map(|row| row[0].clone());
    let fields = rows("siem/fields.md", "| ECS |").into_iter().map(|row| match row[1].as_str() {
        name if is_otel && name != "same" => name.to_owned(),
        _ => row[0].clone(),
    });
    activity.chain(fields).collect()
}

fn is_otel(page: &str) -> bool {
    matches!(page, "otel.md" | "sentinel.md")
}

/// Words of a text that look like a field: their first segment is that of a documented one.
fn fields_in<'a>(text: &'a str, separator: char, names: &BTreeSet<String>) -> BTreeSet<&'a str> {
    let roots: BTreeSet<&str> =
        names.iter().filter_map(|name| name.split_once('.')).map(|it| it.0).collect();
    let is_part = |it: char| it.is_ascii_alphanumeric() || it == '_' || it == separator;
    let words = text.split(|it| !is_part(it));
    let is_field = |word: &&str| {
        roots
            .iter()
            .any(|root| word.strip_prefix(root).is_some_and(|rest| rest.starts_with(separator)))
    };
    words.filter(is_field).collect()
}

#[test]
fn queries_use_only_documented_fields() {
    let mut count = 0;
    for block in all_blocks() {
        let names = documented(is_otel(&block.page));
        let fields = match block.language.as_str() {
            "toml" | "rsyslog" => continue,
            // Loki replaces the dots.
            "logql" => BTreeSet::new(),
            _ => fields_in(&block.text, '.', &names),
        };
        for field in &fields {
            // The pipeline on that page adds it.
            let is_added = block.page == "elastic.md" && *field == "event.ingested";
            assert!(
                is_added || names.contains(*field),
                "{}: `{field}` is not documented",
                block.page
            );
        }
        let loki = ["logql", "sh"].contains(&block.language.as_str()) && block.page == "otel.md";
        let underscored: BTreeSet<String> =
            names.iter().map(|name| name.replace('.', "_")).collect();
        let fields_of_loki =
            if loki { fields_in(&block.text, '_', &names) } else { BTreeSet::new() };
        for field in &fields_of_loki {
            assert!(underscored.contains(*field), "{}: `{field}` is not documented", block.page);
        }
        count += fields.len() + fields_of_loki.len();
    }
    assert!(count > 100, "only {count} fields were found");
}

/// Columns of the table in Sentinel are those that the collector fills and the queries read.
#[test]
fn columns_of_sentinel_are_filled_and_exist() {
    let is_column = |word: &&str| word.starts_with(|it: char| it.is_ascii_uppercase());
    let text = read("siem/sentinel.md");
    let table = text.lines().filter(|line| line.trim_start().starts_with("| `"));
    let columns: BTreeSet<&str> =
        table.flat_map(|line| line.split('`')).filter(is_column).collect();
    let blocks = blocks("sentinel.md");
    let collector = blocks.iter().find(|block| block.language == "yaml").unwrap();
    let rows = collector.text.split_once(". = {").unwrap().1.split_once("\n      }").unwrap().0;
    let mut filled: BTreeSet<&str> = rows.split('"').filter(is_column).collect();
    // From `timestamp`.
    assert!(filled.insert("TimeGenerated"));
    assert_eq!(filled, columns);
    for block in blocks.iter().filter(|block| block.language == "kusto") {
        let mut known = columns.clone();
        known.insert("ClaudeCode_CL");
        let outside = block.text.split('"').step_by(2);
        let words = outside
            .flat_map(|text| text.split(|it: char| !it.is_ascii_alphanumeric() && it != '_'));
        let words: BTreeSet<&str> = words.filter(is_column).collect();
        known.extend(words.iter().filter(|word| block.text.contains(&format!("{word} = "))));
        assert!(words.is_subset(&known), "{:?}", words.difference(&known));
    }
}

/// Splunk cuts events of a source type without these settings.
#[test]
fn props_conf_has_a_stanza_for_each_source_type() {
    let rows = rows("siem/fields.md", "| ECS |");
    let dataset = rows.iter().find(|row| row[0] == "event.dataset").unwrap();
    let datasets: BTreeSet<String> = dataset[3]
        .split('`')
        .filter(|it| it.contains('.'))
        .map(|it| it.replace('.', ":"))
        .collect();
    assert_eq!(datasets.len(), 4, "{datasets:?}");
    let blocks = blocks("splunk.md");
    let props = stanzas(blocks.iter().find(|block| block.language == "ini").unwrap());
    for (_, settings) in &props {
        assert_eq!(settings, &["TRUNCATE = 0", "SHOULD_LINEMERGE = false", "KV_MODE = none"]);
    }
    assert_eq!(props.iter().map(|(name, _)| (*name).to_owned()).collect::<BTreeSet<_>>(), datasets);
}

/// Returns the fields of a mapping with their types.
fn mapped(properties: &Value, prefix: &str, fields: &mut Vec<(String, String)>) {
    for (name, mapping) in properties.as_object().unwrap() {
        match mapping["type"].as_str() {
            Some(kind) => fields.push((format!("{prefix}{name}"), kind.to_owned())),
            None => mapped(&mapping["properties"], &format!("{prefix}{name}."), fields),
        }
    }
}

#[test]
fn index_template_maps_fields_to_their_types() {
    let blocks = blocks("elastic.md");
    let requests =
        blocks.iter().filter(|block| block.language == "console").flat_map(console_requests);
    let template = requests.into_iter().find(|it| it.1.starts_with("_index_template")).unwrap().2;
    let mut fields = Vec::new();
    mapped(&template["template"]["mappings"]["properties"], "", &mut fields);
    assert!(fields.len() > 8, "{fields:?}");
    let table = rows("siem/fields.md", "| ECS |");
    let activity = rows("activity.md", "| field |");
    for (name, kind) in fields {
        let documented = table.iter().find(|row| row[0] == name).map(|row| row[2].as_str());
        let documented = documented.or(activity.iter().any(|row| row[0] == name).then_some("text"));
        let types: &[&str] = match kind.as_str() {
            "long" => &["number"],
            "date" => &["date"],
            "keyword" => &["keyword", "text"],
            other => panic!("{name}: {other}"),
        };
        let is_right = documented.is_some_and(|documented| types.contains(&documented));
        assert!(is_right || name == "event.ingested", "{name}: {kind}, not {documented:?}");
    }
}

/// Parses YAML with the Python environment that `cargo xtask test` installs.
fn yaml(text: &str) -> Value {
    let servers = std::env::var_os("AI_AGENT_SERVERS").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/ai-agent-servers");
    let python = servers.unwrap_or_else(home).join("bin/python");
    let script = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.argv[1])))";
    let output = std::process::Command::new(python).args(["-c", script, text]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}

#[requires(servers)]
#[test]
fn config_of_each_collector_is_consistent() {
    let yaml_of = |page| {
        let mut found = blocks(page).into_iter().filter(|block| block.language == "yaml");
        yaml(&found.next().unwrap().text)
    };
    let collector = yaml_of("otel.md");
    let logs = &collector["service"]["pipelines"]["logs"];
    for kind in ["receivers", "exporters"] {
        assert!(!names(&logs[kind]).is_empty());
        names(&logs[kind])
            .iter()
            .for_each(|name| assert!(collector[kind][name].is_object(), "{name}"));
    }
    let extensions = names(&collector["service"]["extensions"]);
    extensions.iter().for_each(|name| assert!(collector["extensions"][name].is_object(), "{name}"));
    let http = &collector["receivers"]["otlp"]["protocols"]["http"];
    assert!(extensions.contains(&http["auth"]["authenticator"].as_str().unwrap()));
    for exporter in collector["exporters"].as_object().unwrap().values() {
        assert!(extensions.contains(&exporter["sending_queue"]["storage"].as_str().unwrap()));
        assert_eq!(exporter["retry_on_failure"]["max_elapsed_time"], 0);
    }
    let vector = yaml_of("sentinel.md");
    // The source `opentelemetry` has an output for each signal.
    assert_eq!(names(&vector["transforms"]["rows"]["inputs"]), ["agents.logs"]);
    assert!(vector["sources"]["agents"].is_object());
    for sink in vector["sinks"].as_object().unwrap().values() {
        names(&sink["inputs"])
            .iter()
            .for_each(|name| assert!(vector["transforms"][name].is_object()));
        assert_eq!(sink["acknowledgements"]["enabled"], true);
    }
}
