//! Checks of the crate against the test vectors of the specification.

use std::path::Path;

use siem_protocol::{
    BatchHeader, Content, Digest, Entry,
    entry::{EventLine, PathText, RecordLine},
    sign, sign_answer, verify, verify_answer,
};

/// Body of the specification's example, line by line.
const HEADER: &str = r#"{"kind":"batch","protocol":1,"epoch":"01930000-0000-7000-8000-000000000001","machine_id":"m-1","hostname":"laptop","user":"u","os":"linux","arch":"x86_64","agent_version":"0.1.0","first_seq":1,"last_seq":4,"count":3,"dead_lettered":[{"seq":3,"line_sha256":"a61b7a1f563d82b56475c1a4db0dd3b93ce4970c8bb0a30bd935d120699951da"}],"chain":{"before":"0000000000000000000000000000000000000000000000000000000000000000","after":"49cecf4e3424ff49958627bb425e5837223b43ce484ab06c9f2e09828a8bf4b2"},"config_hash":"0000000000000000000000000000000000000000000000000000000000000000","sent_at":"2026-11-21T20:00:02.000Z"}"#;
const EVENT: &str = r#"{"seq":1,"kind":"event","source":"agent","event":"agent_started","severity":"info","at":"2026-11-21T20:00:00.000Z","data":{"version":"0.1.0"}}"#;
const RECORD: &str = r#"{"seq":2,"kind":"record","source":"claude-sessions","path":"/home/u/.claude/projects/-home-u-app/4f.jsonl","generation":"9c41","offset":0,"length":54,"read_at":"2026-11-21T20:00:01.000Z","record":{"type":"user","uuid":"a" , "message":"h\u00e9 \"q\""}}"#;
const RAW: &str = r#"{"seq":4,"kind":"record","source":"claude-sessions","path":"/home/u/.claude/projects/-home-u-app/4f.jsonl","generation":"9c41","offset":55,"length":11,"read_at":"2026-11-21T20:00:01.000Z","raw":"{\"torn\": tr"}"#;
const SECRET: &[u8] = b"correct horse battery staple";

fn body() -> String {
    [HEADER, EVENT, RECORD, RAW].map(|line| format!("{line}\n")).concat()
}

#[test]
fn request_signatures_match_the_spec() {
    let signature = "fca65c3e90751d9bb9209e441fa4cfb984531f9060206f57d634ad98212804e8";
    assert_eq!(sign(SECRET, body().as_bytes()), signature);
    assert!(verify(SECRET, body().as_bytes(), signature));
    assert!(!verify(b"another", body().as_bytes(), signature));
}

#[test]
fn response_signatures_match_the_spec() {
    let body = br#"{"version":1,"filters":{"ignore_types":["progress"]}}"#;
    let nonce = "00112233445566778899aabbccddeeff";
    let signature = "7a398ff917bc5eb9c89ea9240580f87028883476a854b82b2251f7e3ecebabfd";
    assert_eq!(sign_answer(SECRET, nonce, body), signature);
    assert!(verify_answer(SECRET, nonce, body, signature));
    assert!(!verify_answer(SECRET, "00", body, signature));
}

#[test]
fn hash_chain_matches_the_spec() {
    let header: BatchHeader = serde_json::from_str(HEADER).unwrap();
    let lines = [
        Digest::of(EVENT.as_bytes()),
        Digest::of(RECORD.as_bytes()),
        header.dead_lettered[0].line_sha256,
        Digest::of(RAW.as_bytes()),
    ];
    let after = lines.into_iter().fold(Digest::ZERO, Digest::chain);
    assert_eq!(header.chain.unwrap().before, Digest::ZERO);
    assert_eq!(header.chain.unwrap().after, after);
    assert_eq!(
        after.to_string(),
        "49cecf4e3424ff49958627bb425e5837223b43ce484ab06c9f2e09828a8bf4b2"
    );
}

#[test]
fn batch_header_matches_the_spec() {
    let header: BatchHeader = serde_json::from_str(HEADER).unwrap();
    assert_eq!(serde_json::to_string(&header).unwrap(), HEADER);
    assert_eq!(header.id().to_string(), "01930000-0000-7000-8000-000000000001-1-4");
}

#[test]
fn entry_lines_match_the_spec() {
    let mut line = Vec::new();
    EventLine {
        source: "agent",
        event: "agent_started",
        severity: "info",
        at: "2026-11-21T20:00:00.000Z",
        enriched: "",
        data: r#"{"version":"0.1.0"}"#,
    }
    .write(1, &mut line);
    assert_eq!(String::from_utf8(line).unwrap(), EVENT);

    for (seq, offset, expected) in [(2, 0, RECORD), (4, 55, RAW)] {
        let entry = Entry::parse(expected.as_bytes()).unwrap();
        let content = entry.content().unwrap().unwrap();
        let path = PathText::new(Path::new("/home/u/.claude/projects/-home-u-app/4f.jsonl"));
        let mut line = Vec::new();
        RecordLine {
            source: "claude-sessions",
            path: &path,
            generation: "9c41",
            offset,
            length: entry.length.unwrap(),
            read_at: "2026-11-21T20:00:01.000Z",
            enriched: "",
            cut: &[],
            masked: &[],
            sha256: None,
            folded: None,
            incomplete: false,
            content: Content::of(&content),
        }
        .write(seq, &mut line);
        assert_eq!(String::from_utf8(line).unwrap(), expected);
    }
}
