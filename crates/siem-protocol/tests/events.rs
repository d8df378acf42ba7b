//! The tables of `docs/events.md` list every event and every member of its `data`.
//!
//! After a change of the types: `UPDATE_EVENTS=1 cargo test -p siem-protocol --all-features --test
//! events`.
#![allow(clippy::unwrap_used, reason = "a test ends there")]

use std::{collections::BTreeSet, fmt::Write as _, fs, path::PathBuf};

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;
use siem_protocol::{AgentEvent, Totals, agent_event::Heartbeat};

const BEGIN: &str = "<!-- events: generated, do not edit -->\n";
const END: &str = "<!-- events: end -->\n";

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/events.md")
}

fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|it| it.inline_subschemas = true);
    serde_json::to_value(settings.for_serialize().into_generator().into_root_schema_for::<T>())
        .unwrap()
}

/// Returns the names of an object's members: those that are always there, and those that may be
/// absent.
fn members(object: &Value) -> (Vec<&str>, Vec<&str>) {
    let required = object["required"].as_array();
    let required: Vec<_> = required.into_iter().flatten().filter_map(Value::as_str).collect();
    let names = object["properties"].as_object().into_iter().flatten();
    names.map(|(name, _)| name.as_str()).partition(|name| required.contains(name))
}

/// Writes the names of members, each with the values that it may have if these are words.
fn list(object: &Value, names: &[&str]) -> String {
    let member = |name: &&str| {
        let values = object["properties"][name]["oneOf"].as_array();
        let values = values.into_iter().flatten().filter_map(|value| value["const"].as_str());
        let values: Vec<_> = values.map(|value| format!("`{value}`")).collect();
        if values.is_empty() {
            format!("`{name}`")
        } else {
            format!("`{name}` ({})", values.join(", "))
        }
    };
    names.iter().map(member).collect::<Vec<_>>().join(", ")
}

/// Makes the table of events from the documentation of the variants.
fn table() -> String {
    let schema = schema::<AgentEvent>();
    let mut table = String::from("| event | meaning | members of `data` |\n| --- | --- | --- |\n");
    for event in schema["oneOf"].as_array().unwrap() {
        let name = event["properties"]["event"]["const"].as_str().unwrap();
        let meaning = event["description"].as_str().unwrap();
        let meaning = meaning.split_whitespace().collect::<Vec<_>>().join(" ");
        let meaning = meaning.trim_end_matches('.');
        let object = &event["properties"]["data"];
        let (always, optional) = members(object);
        let mut data = list(object, &always);
        if !optional.is_empty() {
            let comma = if always.is_empty() { "" } else { "; " };
            write!(data, "{comma}optional: {}", list(object, &optional)).unwrap();
        }
        writeln!(table, "| `{name}` | {meaning} | {data} |").unwrap();
    }
    table
}

/// Returns the names in the first column of the table whose first header is `member` and that
/// follows `heading`.
fn first_column(docs: &str, heading: &str) -> BTreeSet<String> {
    let (_, rest) = docs.split_once(heading).unwrap_or_else(|| panic!("no `{heading}`"));
    let rows = rest.lines().skip_while(|line| !line.starts_with('|'));
    let rows = rows.take_while(|line| line.starts_with('|')).skip(2);
    let cells = rows.map(|row| row.split('|').nth(1).unwrap());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned)).collect()
}

fn all_members<T: JsonSchema>() -> BTreeSet<String> {
    let schema = schema::<T>();
    let (always, optional) = members(&schema);
    always.into_iter().chain(optional).map(str::to_owned).collect()
}

#[test]
fn docs_list_every_event() {
    let docs = fs::read_to_string(path()).unwrap().replace("\r\n", "\n");
    let (before, rest) = docs.split_once(BEGIN).unwrap();
    let (listed, after) = rest.split_once(END).unwrap();
    let table = table();
    if std::env::var_os("UPDATE_EVENTS").is_some() {
        fs::write(path(), format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(listed, table, "docs/events.md is out of date: run with UPDATE_EVENTS=1");
}

#[test]
fn docs_list_the_members_of_a_heartbeat() {
    let docs = fs::read_to_string(path()).unwrap();
    assert_eq!(first_column(&docs, "## Heartbeats"), all_members::<Heartbeat>());
    assert_eq!(first_column(&docs, "`totals` counts"), all_members::<Totals>());
}
