use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest, common::v1::any_value::Value as Any,
};
use proptest::prelude::*;
use siem_protocol::Digest;

use super::*;
use crate::event::TimeOf;

fn header() -> BatchHeader {
    serde_json::from_value(serde_json::json!({
        "kind": "batch", "protocol": 1, "epoch": "E", "machine_id": "machine-7",
        "hostname": "laptop-7", "user": "ada", "os": "macos", "arch": "x86_64",
        "agent_version": "0.1.0", "count": 0, "config_hash": Digest::of(b"config"),
        "sent_at": "2026-11-21T20:00:05.000Z",
    }))
    .unwrap()
}

fn with_event<R>(line: &str, use_event: impl FnOnce(&Event<'_>) -> R) -> R {
    use_event(&Event::of(line.as_bytes(), &header(), TimeOf::Read).unwrap())
}

fn records(line: &str, max_bytes: usize) -> Vec<LogRecord> {
    let mut records = Vec::new();
    with_event(line, |event| {
        log_records(event, max_bytes, |record| records.push(record.clone()));
    });
    records
}

fn attributes(attributes: &[KeyValue]) -> Vec<(&str, Any)> {
    let value = |attribute: &KeyValue| attribute.value.clone().unwrap().value.unwrap();
    attributes.iter().map(|attribute| (&*attribute.key, value(attribute))).collect()
}

fn text(text: &str) -> Any {
    Any::StringValue(text.to_owned())
}

fn record_line(record: &str, more: &str) -> String {
    format!(
        r#"{{"seq":7,"kind":"record","source":"claude-sessions","path":"/s.jsonl","generation":"g","offset":40,"length":{},"read_at":"2026-11-21T20:00:01.250Z"{more},"record":{record}}}"#,
        record.len()
    )
}

#[test]
fn record_is_a_log_record_with_its_bytes_as_body() {
    let record = r#"{"timestamp":"2026-11-20T10:00:00Z","text":"a\u0000b"}"#;
    let activity = r#","activity":{"session.id":"s","gen_ai.usage.input_tokens":12,"ok":true,"files":["a","b"],"none":null}"#;
    let records = records(&record_line(record, activity), 1_000_000);
    let [log] = &records[..] else { panic!("{records:?}") };
    assert_eq!(log.body, Some(AnyValue { value: Some(text(record)) }));
    assert_eq!(log.time_unix_nano, 1_795_291_201_250_000_000);
    assert_eq!(log.observed_time_unix_nano, log.time_unix_nano);
    assert_eq!((log.severity_number, &*log.severity_text, &*log.event_name), (0, "", ""));
    let attributes = attributes(&log.attributes);
    let files = ["a", "b"].map(|file| AnyValue { value: Some(text(file)) }).to_vec();
    let files =
        Any::ArrayValue(opentelemetry_proto::tonic::common::v1::ArrayValue { values: files });
    for expected in [
        ("log.record.uid", text("g:40")),
        ("log.file.path", text("/s.jsonl")),
        ("ai_agent.sequence", Any::IntValue(7)),
        ("session.id", text("s")),
        ("gen_ai.usage.input_tokens", Any::IntValue(12)),
        ("ok", Any::BoolValue(true)),
        ("files", files),
    ] {
        assert!(attributes.contains(&expected), "{expected:?} in {attributes:#?}");
    }
    assert!(attributes.iter().all(|(name, _)| *name != "none"));
}

#[test]
fn event_of_the_agent_has_a_name_and_a_severity() {
    for (severity, number) in [("info", 9), ("warning", 13), ("high", 17), ("other", 0)] {
        let line = format!(
            r#"{{"seq":3,"kind":"event","source":"agent","event":"file_altered","severity":"{severity}","at":"2026-11-21T20:00:01Z","data":{{"n":1}}}}"#
        );
        let records = records(&line, 1_000_000);
        let [log] = &records[..] else { panic!("{records:?}") };
        assert_eq!(log.event_name, "file_altered");
        assert_eq!((log.severity_number, &*log.severity_text), (number, severity));
        assert_eq!(log.body, Some(AnyValue { value: Some(text(r#"{"n":1}"#)) }));
        assert!(attributes(&log.attributes).contains(&("log.record.uid", text("E:3"))));
    }
}

#[test]
fn bytes_that_are_not_text_are_bytes() {
    let line = r#"{"seq":1,"kind":"record","source":"claude-sessions","path":"/s","generation":"g","offset":0,"length":2,"read_at":"2026-11-21T20:00:01Z","raw_base64":"/wA="}"#;
    let records = records(line, 1_000_000);
    let body = AnyValue { value: Some(Any::BytesValue(vec![0xff, 0])) };
    assert_eq!(records[0].body, Some(body));
}

#[test]
fn request_has_the_sender_as_resource() {
    let sender = Sender::of(&header());
    let records = records(&record_line("{}", ""), 1_000_000);
    let mut encoded = Vec::new();
    records.iter().for_each(|record| append(record, &mut encoded));
    let body = sender.enclose(&encoded);
    assert!(body.len() <= encoded.len() + sender.size());

    let request = ExportLogsServiceRequest::decode(&*body).unwrap();
    assert_eq!(request.encode_to_vec(), body);
    let [resource_logs] = &request.resource_logs[..] else { panic!() };
    let resource = attributes(&resource_logs.resource.as_ref().unwrap().attributes);
    for (name, value) in [
        ("service.name", "ai-agent"),
        ("service.version", "0.1.0"),
        ("host.name", "laptop-7"),
        ("host.id", "machine-7"),
        ("host.arch", "amd64"),
        ("os.type", "darwin"),
        ("user.name", "ada"),
        ("ai_agent.epoch", "E"),
    ] {
        assert!(resource.contains(&(name, text(value))), "{name} in {resource:#?}");
    }
    let [scope_logs] = &resource_logs.scope_logs[..] else { panic!() };
    let scope = scope_logs.scope.as_ref().unwrap();
    assert_eq!((&*scope.name, &*scope.version), ("ai-agent", "0.1.0"));
    assert_eq!(scope_logs.log_records, records);

    let body = Sender::empty().enclose(&[]);
    let request = ExportLogsServiceRequest::decode(&*body).unwrap();
    assert!(request.resource_logs.iter().all(|logs| logs.resource.is_none()));
}

#[test]
fn attributes_larger_than_the_limit_leave_room_for_content() {
    let large = format!(r#","other":{{"text":"{}"}}"#, "x".repeat(3000));
    let records = records(&record_line(&format!("\"{}\"", "y".repeat(1000)), &large), 2000);
    assert_eq!(records.len(), 2);
}

proptest! {
    #[test]
    fn parts_are_within_the_limit_and_join_to_the_content(
        content in "[a-zä€🦀]{0,3000}", max_bytes in 1200_usize..5000,
    ) {
        let record = format!("\"{content}\"");
        let records = records(&record_line(&record, ""), max_bytes);
        let mut joined = String::new();
        for (index, log) in (1_i64..).zip(&records) {
            let mut encoded = Vec::new();
            append(log, &mut encoded);
            prop_assert!(encoded.len() <= max_bytes, "{} > {max_bytes}", encoded.len());
            let Some(Any::StringValue(text)) = &log.body.as_ref().unwrap().value else { panic!() };
            joined.push_str(text);
            let attributes = attributes(&log.attributes);
            let is_part = attributes.contains(&("ai_agent.part.index", Any::IntValue(index)));
            prop_assert_eq!(is_part, records.len() > 1);
            let hash = Digest::of(record.as_bytes()).to_string();
            prop_assert!(attributes.contains(&("ai_agent.sha256", tests::text(&hash))));
        }
        prop_assert_eq!(joined, record);
    }
}
