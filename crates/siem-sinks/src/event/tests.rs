use std::{collections::BTreeSet, fmt::Write as _, fs, path::PathBuf};

use proptest::prelude::*;
use siem_protocol::{Cut, Identity, Masked};

use super::{
    names::{ALL, Type},
    *,
};

const WHOLE: PartOf = PartOf { index: 1, total: 1 };

/// A line that read as JSON has an unescaped quote and a timestamp inside another object.
const RECORD: &str = r#"{"seq":7,"kind":"record","source":"claude-sessions","path":"/p/a.jsonl","generation":"01ab","offset":42,"length":90,"read_at":"2026-11-21T20:00:01.500Z","labels":{"team":"x","record":[1]},"record":{"message":{"timestamp":"2020-01-01T00:00:00Z"},"timestamp":"2026-11-21T20:00:00.250Z"}}"#;
const AGENT_EVENT: &str = r#"{"seq":8,"kind":"event","source":"agent","event":"agent_stopped","severity":"info","at":"2026-11-21T20:00:02.000Z","data":{"a": 1}}"#;

fn header(epoch: &str) -> BatchHeader {
    let identity = Identity {
        machine_id: "m".into(),
        hostname: "laptop-7".into(),
        user: "dev".into(),
        os: "macos".into(),
        arch: "aarch64".into(),
        agent_version: "1.4.0".into(),
    };
    BatchHeader::new(&identity, epoch.into(), Digest::ZERO, "2026-11-21T20:00:03Z".into())
}

fn event(line: &str) -> Event<'_> {
    Event::of(line.as_bytes(), &header("e1"), TimeOf::Record).unwrap()
}

fn text(value: Value<'_>) -> String {
    match value {
        Value::Text(text) => format!("{text:?}"),
        Value::Number(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Json(json) => json.to_owned(),
    }
}

fn fields(event: &Event<'_>, names: Names, part: PartOf) -> Vec<(String, String)> {
    let mut all = Vec::new();
    event.fields(names, part, &mut |name, value| all.push((name.to_owned(), text(value))));
    all
}

fn field(line: &str, name: &str) -> Option<String> {
    let all = fields(&event(line), Names::Ecs, WHOLE);
    all.into_iter().find(|field| field.0 == name).map(|field| field.1)
}

fn millis(text: &str) -> Duration {
    since_1970(text).unwrap()
}

#[test]
fn record_is_its_own_content() {
    let event = event(RECORD);
    let record = RECORD.split_once(r#","record":{"#).unwrap().1;
    let record = format!("{{{}", record.strip_suffix('}').unwrap());
    assert_eq!(event.content.as_bytes(), record.as_bytes());
    assert_eq!(event.hash, Digest::of(record.as_bytes()));
    assert_eq!(event.id, "01ab:42");
    assert_eq!(event.dataset(), "claude_code.session");
    assert_eq!(event.time, millis("2026-11-21T20:00:00.250Z"));
    assert_eq!(event.observed, millis("2026-11-21T20:00:01.500Z"));
    assert_eq!(event.enriched, [("labels".into(), r#"{"team":"x","record":[1]}"#)]);
}

#[test]
fn time_of_reading_is_used_if_asked_for_or_needed() {
    let read = millis("2026-11-21T20:00:01.500Z");
    let asked = Event::of(RECORD.as_bytes(), &header("e"), TimeOf::Read).unwrap();
    assert_eq!(asked.time, read);
    for other in ["null", "17", "\"yesterday\"", "\"1969-01-01T00:00:00Z\"", "{}"] {
        let line = RECORD.replace("\"2026-11-21T20:00:00.250Z\"", other);
        assert_eq!(event(&line).time, read, "{other}");
    }
}

#[test]
fn content_of_each_kind_is_its_bytes() {
    let with = |members: &str| {
        RECORD.split_once(r#","record":{"#).unwrap().0.to_owned() + "," + members + "}"
    };
    let cases: [(&str, &[u8]); 7] = [
        (r#""raw":"{\"a\":\u0000 \u00e9"}"#.trim_end_matches('}'), b"{\"a\":\0 \xc3\xa9"),
        (r#""raw_base64":"/wA=""#, b"\xff\0"),
        (r#""raw_base64":"YQ==""#, b"a"),
        (r#""raw_lines":["a","b"],"audit":{"exe":"x"}"#, b"a\nb"),
        (r#""record":null"#, b"null"),
        (r#""raw":"""#, b""),
        (r#""part":2,"last":true,"raw_base64":"YWI=""#, b"ab"),
    ];
    for (members, bytes) in cases {
        let line = with(members);
        assert_eq!(event(&line).content.as_bytes(), bytes, "{members}");
        assert_eq!(event(&line).hash, Digest::of(bytes), "{members}");
    }
    assert!(matches!(event(&with(r#""raw_base64":"/w==""#)).content, Content::Bytes(_)));
    let part = with(r#""part":2,"last":true,"raw_base64":"YWI=""#);
    assert_eq!(event(&part).id, "01ab:42:2");
    let audit =
        with(r#""raw_lines":["a"],"audit":{"exe":"x"}"#).replace("claude-sessions", "auditd");
    assert_eq!(event(&audit).dataset(), "ai_agent.auditd");
    assert_eq!(field(&audit, "ai_agent.audit").unwrap(), r#"{"exe":"x"}"#);
}

#[test]
fn folded_line_is_its_data_with_the_runs_in_a_field() {
    let before = RECORD.split_once(r#","record":{"#).unwrap().0;
    let runs = r#""nul_runs":[[0,4096],[4098,9223372036854771709]]"#;
    let line =
        format!(r#"{before},"folded_sha256":"{}",{runs},"raw_base64":"YWI="}}"#, Digest::ZERO);
    assert_eq!(event(&line).content.as_bytes(), b"ab");
    let field = |name| field(&line, name);
    assert_eq!(
        field("ai_agent.line.nul_runs").unwrap(),
        r#""[[0,4096],[4098,9223372036854771709]]""#
    );
    assert!(field("ai_agent.line.folded_sha256").is_some());
    assert_eq!(field("ai_agent.line.sha256"), None);
    assert!(event(&line).enriched.iter().all(|(name, _)| name == "labels"));
}

#[test]
fn event_of_the_agent_has_its_data_as_content() {
    let event = event(AGENT_EVENT);
    assert_eq!(event.content.as_bytes(), br#"{"a": 1}"#);
    assert_eq!((event.id.as_str(), event.dataset()), ("e1:8", "ai_agent.event"));
    assert_eq!(event.time, millis("2026-11-21T20:00:02Z"));
    assert_eq!(field(AGENT_EVENT, "event.action").unwrap(), "\"agent_stopped\"");
    assert_eq!(field(AGENT_EVENT, "log.level").unwrap(), "\"info\"");
    let without = AGENT_EVENT.replace(r#","data":{"a": 1}"#, "");
    assert_eq!(
        Event::of(without.as_bytes(), &header("e"), TimeOf::Read).unwrap().content.as_bytes(),
        b"null"
    );
}

#[test]
fn id_of_a_record_survives_renumbering() {
    let renumbered = RECORD.replace("\"seq\":7", "\"seq\":1");
    let event = Event::of(renumbered.as_bytes(), &header("e2"), TimeOf::Record).unwrap();
    assert_eq!(event.id, self::event(RECORD).id);
}

/// `docs/siem` says by what such duplicates are found.
#[test]
fn event_of_the_agent_keeps_its_hash_if_renumbered() {
    let line = AGENT_EVENT.replace("\"seq\":8", "\"seq\":1");
    let renumbered = Event::of(line.as_bytes(), &header("e2"), TimeOf::Record).unwrap();
    let event = event(AGENT_EVENT);
    assert_ne!(renumbered.id, event.id);
    assert_eq!((renumbered.hash, renumbered.observed), (event.hash, event.observed));
}

#[test]
fn parts_have_ids_of_their_own() {
    let event = event(RECORD);
    let id = |index, total| event.part_id(PartOf { index, total }).into_owned();
    let all = BTreeSet::from([id(1, 1), id(1, 2), id(2, 2), id(1, 3), id(2, 3), id(3, 3)]);
    assert_eq!(all.len(), 6);
    let fields = fields(&event, Names::Ecs, PartOf { index: 2, total: 3 });
    let value = |name: &str| fields.iter().find(|field| field.0 == name).unwrap().1.clone();
    assert_eq!(value("event.id"), "\"01ab:42.2-3\"");
    assert_eq!(value("ai_agent.part.of"), "\"01ab:42\"");
    assert_eq!(
        (value("ai_agent.part.index"), value("ai_agent.part.total")),
        ("2".into(), "3".into())
    );
}

#[test]
fn members_of_activity_are_fields() {
    let line = RECORD.replace("\"labels\":", r#""activity":{"event.action":"prompt","gen_ai.usage.output_tokens":4},"host":{"a":1},"labels":"#);
    assert_eq!(field(&line, "event.action").unwrap(), "\"prompt\"");
    assert_eq!(field(&line, "gen_ai.usage.output_tokens").unwrap(), "4");
    assert_eq!(field(&line, "ai_agent.enriched.host").unwrap(), r#"{"a":1}"#);
    assert_eq!(field(&line, "labels").unwrap(), r#"{"team":"x","record":[1]}"#);
}

#[test]
fn each_naming_has_its_own_values() {
    let sender = |names| {
        let mut all = Vec::new();
        sender_fields(&header("e1"), names, &mut |name, value| {
            all.push(format!("{name}={}", text(value)));
        });
        all
    };
    let (ecs, otel) = (sender(Names::Ecs), sender(Names::OpenTelemetry));
    assert!(ecs.contains(&"host.os.type=\"macos\"".into()));
    assert!(ecs.contains(&"ecs.version=\"8.17.0\"".into()));
    assert!(otel.contains(&"os.type=\"darwin\"".into()));
    assert!(otel.contains(&"host.arch=\"arm64\"".into()));
    assert!(!otel.iter().any(|field| field.starts_with("ecs.")));
}

#[test]
fn damaged_lines_are_errors() {
    for line in [&b""[..], b"{}", b"null", b"\xff", br#"{"seq":1,"kind":"record"}"#] {
        assert!(Event::of(line, &header("e"), TimeOf::Record).is_err());
    }
    let twice = RECORD.replace("\"record\":{", "\"record\":1,\"record\":{");
    assert!(Event::of(twice.as_bytes(), &header("e"), TimeOf::Record).is_err());
    let base64 = r#"{"seq":1,"kind":"record","source":"s","raw_base64":"?"}"#;
    assert!(Event::of(base64.as_bytes(), &header("e"), TimeOf::Record).is_err());
}

/// Entries that together have every field.
fn samples() -> [String; 4] {
    let cut = [Cut { by: "tool-call".into(), bytes: 12 }];
    let masked = [Masked { by: "mask".into(), pattern: "p".into(), count: 1 }];
    let digest = Digest::ZERO;
    let more = format!(
        r#""cut":{},"masked":{},"sha256":"{digest}","folded_sha256":"{digest}","nul_runs":[[0,4096]],"incomplete":true,"altered":true,"part":1,"host":{{}},"labels":"#,
        to_json(&cut),
        to_json(&masked)
    );
    let audit = RECORD.replace(
        "\"record\":{\"message\"",
        "\"audit\":{},\"raw_lines\":[\"a\"],\"x\":{\"message\"",
    );
    [RECORD.replace("\"labels\":", &more), AGENT_EVENT.into(), audit, RECORD.into()]
}

#[test]
fn every_field_of_an_event_is_in_the_table() {
    for names in [Names::Ecs, Names::OpenTelemetry] {
        // The sinks add time and content.
        let mut seen: BTreeSet<String> =
            ["@timestamp", "event.original", "ai_agent.encoding", "ai_agent.omitted_fields"]
                .into_iter()
                .chain(["timeUnixNano", "observedTimeUnixNano", "body"])
                .filter(|name| ALL.iter().any(|field| names.of(field) == Some(name)))
                .map(str::to_owned)
                .collect();
        let mut see = |name: &str, value: Value<'_>| {
            let name =
                if name.starts_with("ai_agent.enriched.") && name != "ai_agent.enriched.labels" {
                    "ai_agent.enriched.*"
                } else {
                    name
                };
            let found = ALL.iter().find(|field| names.of(field) == Some(name));
            let kind = found.unwrap_or_else(|| panic!("`{name}` is not in the table")).kind;
            let fits = match value {
                Value::Text(_) => matches!(kind, Type::Keyword | Type::Time | Type::Text),
                Value::Number(_) => kind == Type::Number,
                Value::Bool(_) => kind == Type::Bool,
                Value::Json(_) => kind == Type::Json,
            };
            assert!(fits, "{name}: {value:?} is not {kind:?}");
            seen.insert(name.to_owned());
        };
        for line in samples() {
            event(&line).fields(names, PartOf { index: 1, total: 2 }, &mut see);
        }
        sender_fields(&header("e1"), names, &mut see);
        let table = ALL.iter().filter_map(|field| names.of(field)).map(str::to_owned);
        assert_eq!(seen, table.collect());
    }
}

/// Elasticsearch reads dots as nesting: `a` cannot have a value if there is a field `a.b`.
#[test]
fn no_name_is_the_parent_of_another() {
    for names in [Names::Ecs, Names::OpenTelemetry] {
        let all: Vec<_> = ALL.iter().filter_map(|field| names.of(field)).collect();
        for name in &all {
            let parent = all
                .iter()
                .find(|other| other.strip_prefix(name).is_some_and(|it| it.starts_with('.')));
            assert_eq!(parent, None, "{name}");
            assert_eq!(all.iter().filter(|other| *other == name).count(), 1, "{name}");
        }
    }
}

const BEGIN: &str = "<!-- fields: generated, do not edit -->\n";
const END: &str = "<!-- fields: end -->\n";

fn table() -> String {
    let mut table = String::from(
        "| ECS | OpenTelemetry | type | meaning | example |\n| --- | --- | --- | --- | --- |\n",
    );
    let name = |name: Option<&str>| name.map_or_else(String::new, |name| format!("`{name}`"));
    for field in ALL {
        let kind = match field.kind {
            Type::Keyword => "keyword",
            Type::Text => "text",
            Type::Number => "number",
            Type::Bool => "boolean",
            Type::Time => "date",
            Type::Json => "object",
        };
        let (ecs, otel) = (name(field.ecs), name(field.otel));
        let otel = if ecs == otel { "same".to_owned() } else { otel };
        let (meaning, example) = (field.meaning, field.example);
        writeln!(table, "| {ecs} | {otel} | {kind} | {meaning} | `{example}` |").unwrap();
    }
    table
}

#[test]
fn docs_list_every_field() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/siem/fields.md");
    let docs = fs::read_to_string(&path).unwrap().replace("\r\n", "\n");
    let (before, rest) = docs.split_once(BEGIN).unwrap();
    let (listed, after) = rest.split_once(END).unwrap();
    let table = table();
    if std::env::var_os("UPDATE_FIELDS").is_some() {
        fs::write(path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(listed, table, "docs/siem/fields.md is out of date: run with UPDATE_FIELDS=1");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes: Vec<u8>, names in prop_oneof![Just(Names::Ecs), Just(Names::OpenTelemetry)]) {
        if let Ok(event) = Event::of(&bytes, &header("e"), TimeOf::Record) {
            fields(&event, names, WHOLE);
        }
    }

    /// Lines near those of an agent.
    #[test]
    fn no_damaged_line_panics(line in prop::sample::select(samples().to_vec()), at: prop::sample::Index, byte: u8) {
        let mut bytes = line.into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let event = Event::of(&bytes, &header("e"), TimeOf::Record);
        prop_assert_eq!(event.is_ok(), Entry::parse(&bytes).and_then(|it| it.content().map(drop)).is_ok());
        if let Ok(event) = event {
            fields(&event, Names::Ecs, WHOLE);
        }
    }

    #[test]
    fn content_is_that_of_the_entry(bytes: Vec<u8>, text in ".{0,40}") {
        for bytes in [bytes.as_slice(), text.as_bytes(), br#"{"timestamp":"2026-01-01T00:00:00Z","a":[]}"#] {
            let path = siem_protocol::entry::PathText::new("/p".as_ref());
            let mut line = Vec::new();
            siem_protocol::entry::RecordLine {
                source: "s", path: &path, generation: "g", offset: 1, length: 1,
                read_at: "2026-11-21T20:00:01Z", enriched: r#","labels":{"record":1}"#, cut: &[],
                masked: &[], sha256: None, folded: None, incomplete: false,
                content: siem_protocol::Content::of(bytes),
            }.write(3, &mut line);
            let event = Event::of(&line, &header("e"), TimeOf::Record).unwrap();
            prop_assert_eq!(event.content.as_bytes(), bytes);
            let entry = Entry::parse(&line).unwrap();
            prop_assert_eq!(entry.content().unwrap().unwrap(), bytes);
        }
    }
}

#[test]
fn time_with_an_offset_is_converted() {
    let utc = since_1970("2026-11-21T20:00:01.250Z");
    assert!(utc.is_some());
    for text in [
        "2026-11-21T20:00:01.250",
        "2026-11-21T20:00:01.250+00:00",
        "2026-11-21T22:00:01.250+02:00",
        "2026-11-21T14:30:01.250-05:30",
    ] {
        assert_eq!(since_1970(text), utc, "{text}");
    }
    for text in
        ["", "soon", "2026-11-21T20:00:01+2", "2026-11-21T20:00:01+aa:00", "1960-01-01T00:00:00Z"]
    {
        assert_eq!(since_1970(text), None, "{text}");
    }
}
