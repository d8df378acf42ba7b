//! Lines that no client should write, and some did: each is filtered by the rules, shipped with the
//! bytes in the file, and never breaks the body that carries it.

use std::collections::BTreeMap;

use crate::support::{
    entries::{self, Carrier, Line, StoredEntry},
    home::Home,
    scripted_receiver::ScriptedReceiver,
};
use siem_protocol::{Digest, Kind};

/// Ships a file with these bytes. Returns its lines by offset, and all entries. The receiver checks
/// every line.
#[track_caller]
fn ship(bytes: &[u8], config: &str) -> (BTreeMap<u64, Line>, Vec<StoredEntry>) {
    let (home, receiver) = (Home::new(), ScriptedReceiver::start([]));
    let path = home.write("-work/odd.jsonl", bytes);
    home.agent(&["run", "--once"]).config(config).ships_to(&receiver.url()).succeed();
    let entries = receiver.entries();
    let mut lines = BTreeMap::new();
    for line in entries::lines(&entries) {
        assert_eq!(line.path, path);
        lines.insert(line.offset, line);
    }
    (lines, entries)
}

/// Ships one line, which must arrive unchanged. Returns the member that carries it.
#[track_caller]
fn arrives(line: impl AsRef<[u8]>) -> Carrier {
    let line = line.as_ref();
    let (lines, _) = ship(&[line, b"\n"].concat(), "");
    let show = String::from_utf8_lossy(line);
    assert_eq!(lines.len(), 1, "{show}");
    assert!(lines[&0].bytes == line, "{show}");
    assert_eq!(lines[&0].length, line.len() as u64, "{show}");
    lines[&0].carrier
}

/// Ships one line, which must be dropped.
#[track_caller]
fn stays(line: &str) {
    let (lines, _) = ship(format!("{line}\n").as_bytes(), "");
    assert!(lines.is_empty(), "{line}");
}

#[test]
fn duplicate_member_counts_with_its_last_value() {
    assert_eq!(arrives(r#"{"type":"progress","type":"user"}"#), Carrier::Record);
    assert_eq!(arrives(r#"{"type":"progress","type":null}"#), Carrier::Record);
    stays(r#"{"type":"user","type":"progress"}"#);
    stays(r#"{"isCompactSummary":false,"isCompactSummary":true}"#);
}

#[test]
fn keys_and_values_are_compared_unescaped() {
    stays(r#"{"type":"pro\u0067ress"}"#);
    stays(r#"{"t\u0079pe":"progress"}"#);
    stays(r#"{"\u0069sCompactSummary":true}"#);
    assert_eq!(arrives(r#"{"type":"pro\u0067res"}"#), Carrier::Record);
    let twice = "{\"uuid\":\"a\\u0062c\"}\n{\"uuid\":\"abc\"}\n";
    assert_eq!(ship(twice.as_bytes(), "").0.len(), 1);
}

#[test]
fn field_of_another_type_counts_as_absent() {
    let lines = [
        r#"{"type":5}"#,
        r#"{"type":["progress"]}"#,
        r#"{"isCompactSummary":"true"}"#,
        r#"{"isCompactSummary":1}"#,
        r#"{"uuid":{}}"#,
    ];
    for line in lines {
        assert_eq!(arrives(line), Carrier::Record);
    }
    // A record without a uuid is never a duplicate.
    assert_eq!(ship(b"{\"uuid\":5}\n{\"uuid\":5}\n", "").0.len(), 2);
}

#[test]
fn white_space_around_a_record_is_kept() {
    assert_eq!(arrives("  {\"type\":\"user\"}"), Carrier::Raw);
    assert_eq!(arrives("{\"type\":\"user\"}\t "), Carrier::Raw);
    assert_eq!(arrives("{ \"type\" :\t\"user\" }"), Carrier::Record);
    stays(" {\"type\":\"progress\"} ");
}

#[test]
fn deeply_nested_record_travels_as_raw_text() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(arrives(nested(200)), Carrier::Raw);
    assert_eq!(arrives(nested(101)), Carrier::Raw);
    assert_eq!(arrives(nested(100)), Carrier::Record);
    let object = format!(r#"{{"type":"progress","deep":{}}}"#, nested(200));
    stays(&object);
    assert_eq!(arrives(nested(100_000)), Carrier::Raw);
}

#[test]
fn line_without_json_travels_as_raw_text() {
    let lines: [&[u8]; 9] = [
        b"\0",
        b"\0\0\0\0{\"type\":\"progress\"}",
        b"{\"type\":\"progress\"}\0",
        b"{\"text\":\"a\0b\"}",
        b"{\"text\":\"tab\tinside\"}",
        "\u{feff}{\"type\":\"user\"}".as_bytes(),
        br#"{"type":"progress""#,
        br#"{"type":"progress"}{"type":"progress"}"#,
        br#"{"type":"user"},"#,
    ];
    for line in lines {
        assert_eq!(arrives(line), Carrier::Raw, "{}", String::from_utf8_lossy(line));
    }
}

/// A byte order mark hid a record from all filters.
#[test]
fn record_behind_a_byte_order_mark_is_filtered() {
    stays("\u{feff}{\"type\":\"progress\"}");
    stays("\u{feff}\u{feff} {\"type\":\"progress\"}");
}

#[test]
fn unusual_json_travels_unchanged() {
    let lines = [
        r#"{"text":"\ud800"}"#,
        r#"{"text":"\ude00\ud83d"}"#,
        r#"{"\udfff":1}"#,
        r#"{"text":"\u0000"}"#,
        r#"{"number":1e999999}"#,
        r#"{"number":-123456789012345678901234567890.000000000000000000000001}"#,
        "{\"text\":\"\u{2028}\u{7f}\u{ffff}\u{10ffff}\"}",
        r#""a text""#,
        "null",
        "[]",
        "-0.0e-7",
        "{}",
    ];
    for line in lines {
        assert_eq!(arrives(line), Carrier::Record, "{line}");
    }
}

#[test]
fn line_without_utf8_travels_as_base64() {
    let lines: [&[u8]; 4] = [
        b"\xff",
        b"{\"type\":\"progress\",\"text\":\"\xe4\"}",
        b"{\"text\":\"\xed\xa0\x80\"}",
        b"{\"text\":\"\xf0\x9f\x98\"}",
    ];
    for line in lines {
        assert_eq!(arrives(line), Carrier::Base64);
    }
}

#[test]
fn line_endings_of_both_kinds_are_not_part_of_a_line() {
    let file = b"{\"n\":1}\r\n{\"n\":2}\n{\"n\":3}\r\r\n{\"n\":4}\r\n";
    let (lines, _) = ship(file, "");
    let found: Vec<(u64, &[u8], Carrier)> =
        lines.values().map(|line| (line.offset, &*line.bytes, line.carrier)).collect();
    let expected: [(u64, &[u8], Carrier); 4] = [
        (0, b"{\"n\":1}", Carrier::Record),
        (9, b"{\"n\":2}", Carrier::Record),
        (17, b"{\"n\":3}\r", Carrier::Raw),
        (27, b"{\"n\":4}", Carrier::Record),
    ];
    assert_eq!(found, expected);
}

#[test]
fn blank_lines_are_counted_and_not_shipped() {
    let file = b"\n\n{\"n\":1}\n  \n\t\r\n\r\n{\"n\":2}\n\n";
    let (lines, entries) = ship(file, "");
    assert_eq!(lines.keys().copied().collect::<Vec<_>>(), [2, 18]);
    let heartbeats = entries::events(&entries, "heartbeat");
    let last = heartbeats.last().expect("an agent that ends sends a heartbeat");
    assert_eq!(last.data["totals"]["blank"], serde_json::json!({ "lines": 6, "bytes": 11 }));
}

#[test]
fn incomplete_line_waits_for_its_end() {
    let (home, receiver) = (Home::new(), ScriptedReceiver::start([]));
    home.write("-work/torn.jsonl", "{\"n\":1}\n{\"n\":\"ha");
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    assert_eq!(entries::lines(&receiver.entries()).len(), 1);
    home.append("-work/torn.jsonl", "lf\"}");
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    assert_eq!(entries::lines(&receiver.entries()).len(), 1);
    home.append("-work/torn.jsonl", "\n");
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    let lines = entries::lines(&receiver.entries());
    assert_eq!(lines.len(), 2);
    assert_eq!((lines[1].offset, &*lines[1].bytes), (8, &b"{\"n\":\"half\"}"[..]));
}

/// The line exceeds the buffer: it arrives in parts, which are the same when assembled.
#[test]
fn very_long_line_arrives_in_parts() {
    let mut long = br#"{"type":"user","text":""#.to_vec();
    let mut random = crate::support::random();
    // Incompressible characters of every length, so that parts end inside some.
    while long.len() < 9 << 20 {
        let character = random.char('\u{80}'..='\u{1ffff}');
        long.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    }
    long.extend_from_slice(br#""}"#);
    let file = [b"{\"n\":1}\n", &*long, b"\r\n{\"n\":2}\n"].concat();
    let (lines, entries) = ship(&file, "");
    assert_eq!(lines.len(), 3);
    let line = &lines[&8];
    assert!(line.bytes == long, "the parts do not make the line");
    assert!(line.parts > 1, "it came whole");
    assert_eq!(line.length, long.len() as u64);
    let parts: Vec<_> = entries.iter().filter(|entry| entry.kind == Kind::RecordPart).collect();
    assert!(parts.iter().all(|part| part.offset == 8 && part.carrier == Carrier::Base64));
    assert_eq!(parts.last().unwrap().sha256, Some(Digest::of(&long)));
    assert_eq!(lines[&(10 + long.len() as u64)].bytes, b"{\"n\":2}");
}

#[test]
fn very_long_line_is_filtered_by_its_first_part() {
    let text = "x".repeat(9 << 20);
    let ignored = format!("{{\"type\":\"progress\",\"text\":\"{text}\"}}\n{{\"n\":1}}\n");
    let (lines, entries) = ship(ignored.as_bytes(), "");
    assert_eq!(lines.len(), 1, "the record after it arrives, and no part of it");
    assert!(entries.iter().all(|entry| entry.kind != Kind::RecordPart));

    let call = format!(
        "{{\"message\":{{\"content\":[{{\"type\":\"tool_use\",\"input\":\"{text}\"}}]}}}}\n"
    );
    let (lines, _) = ship(call.as_bytes(), "[filter.tool-call]\nenabled = true");
    assert_eq!(lines.len(), 1, "on_oversize keeps by default");
    let drop = "[filter.tool-call]\nenabled = true\non_oversize = \"drop\"";
    let (lines, entries) = ship(call.as_bytes(), drop);
    assert!(lines.is_empty());
    assert!(entries.iter().all(|entry| entry.kind == Kind::Event));
}

/// All odd lines in one file, with every filter enabled.
#[test]
fn odd_lines_do_not_affect_their_neighbours() {
    let odd: [&[u8]; 8] = [
        b"\xff\xfe",
        b"\0\0",
        b"{\"type\":\"user\"",
        b"}",
        b"[[[[",
        b"{\"uuid\":\"\\ud800\"}",
        b"{\"message\":{\"content\":[{\"type\":\"tool_use\"},{\"type\":\"text\"}]}}{",
        b"{\"message\":{\"content\":[{\"type\":\"tool_use\"},",
    ];
    let mut file = Vec::new();
    let mut expected = Vec::new();
    for (number, line) in odd.iter().enumerate() {
        expected.push(line.to_vec());
        expected.push(format!("{{\"n\":{number}}}").into_bytes());
    }
    for line in &expected {
        file.extend_from_slice(line);
        file.push(b'\n');
    }
    let config = "[filter.sidechain]\nenabled = true\n[filter.meta]\nenabled = true\n\
                  [filter.tool-call]\nenabled = true";
    let (lines, _) = ship(&file, config);
    let arrived: Vec<_> = lines.into_values().map(|line| line.bytes).collect();
    assert_eq!(arrived, expected);
}

#[cfg(target_os = "linux")]
#[test]
fn path_without_utf8_is_percent_encoded() {
    use std::os::unix::ffi::OsStrExt as _;

    let (home, receiver) = (Home::new(), ScriptedReceiver::start([]));
    let folder = home.projects().join(std::ffi::OsStr::from_bytes(b"-b\xfcro-100%"));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("a.jsonl");
    std::fs::write(&path, "{}\n").unwrap();
    home.write("-b\u{fc}ro-100%/a.jsonl", "{}\n");
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    let entries = receiver.entries();
    let encoded = entries.iter().find(|entry| entry.path_encoded).expect("one is encoded");
    assert_eq!(encoded.path, path);
    assert!(encoded.path_text.ends_with("/-b%FCro-100%25/a.jsonl"), "{}", encoded.path_text);
    let plain = entries.iter().find(|entry| entry.path_text.ends_with("/-b\u{fc}ro-100%/a.jsonl"));
    assert!(!plain.expect("the other is there too").path_encoded);
}

/// The verdict on the first part was kept in memory only: after a restart the rest of a dropped
/// record was shipped.
#[test]
fn dropped_large_line_stays_dropped_after_a_restart() {
    let (home, receiver) = (Home::new(), ScriptedReceiver::start([]));
    let start = format!("{{\"type\":\"progress\",\"x\":\"{}", "x".repeat(20 << 20));
    home.write("-work/a.jsonl", start);
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    home.append("-work/a.jsonl", format!("{}\"}}\n{{\"n\":1}}\n", "x".repeat(10 << 20)));
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    let lines = entries::lines(&receiver.entries());
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0].bytes, br#"{"n":1}"#);
}

#[test]
fn large_entry_travels_in_a_batch_of_its_own() {
    let (home, receiver) = (Home::new(), ScriptedReceiver::start([]));
    let small: String = (0..10).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let large = format!("{{\"x\":\"{}\"}}\n", "x".repeat(5 << 20));
    home.write("-work/a.jsonl", small.clone() + &large + &small);
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    assert_eq!(entries::lines(&receiver.entries()).len(), 21);
    assert_eq!(receiver.headers().iter().filter(|header| header.count == 1).count(), 1);
}
