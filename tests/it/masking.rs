//! Changes of records by filters, as the SIEM and a dry run show them.
#![cfg(unix)]

use crate::support::{entries, home::Home};
use serde_json::{Value, json};
use siem_protocol::Digest;

/// An investigator who looks for a masked key must find how often it occurred, and in which line.
#[test]
fn masked_record_has_the_hash_of_the_original() {
    let home = Home::new();
    let line = r#"{"a":"AKIAIOSFODNN7EXAMPLE","b":["AKIAIOSFODNN7EXAMPLE"]}"#;
    home.write("-work/a.jsonl", format!("{line}\n"));
    let config = "pipeline.filters = [\"mask\"]";
    let ended = home.agent(&["run", "--test"]).config(config).succeed();
    assert!(!ended.text().contains("AKIA"), "{}", ended.text());
    let entry = &entries::parse(&ended.stdout)[0];
    let mark = "[masked:aws-access-key]";
    assert_eq!(entry.whole["record"], json!({ "a": mark, "b": [mark] }));
    let masked = json!([{ "by": "mask", "pattern": "aws-access-key", "count": 2 }]);
    assert_eq!(entry.whole["masked"], masked);
    assert_eq!(entry.sha256, Some(Digest::of(line.as_bytes())));
    assert!(entry.cut.is_empty());
    let ended = home.agent(&["run", "--test", "--json"]).config(config).succeed();
    let edit: Value = serde_json::from_str(ended.text().lines().next().unwrap()).unwrap();
    assert_eq!((&edit["verdict"], &edit["stage"]), (&json!("edit"), &json!("mask")));
    assert_eq!((&edit["masked"], &edit["cut_bytes"]), (&json!(2), &json!(0)));
}
