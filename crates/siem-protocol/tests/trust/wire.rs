//! Agents and receivers without keys understand those that have them, and the other way round.

use serde_json::{Value, json};
use siem_protocol::{BatchHeader, Digest, Identity, Problem, Receipt};

fn header() -> BatchHeader {
    let identity = Identity {
        machine_id: "m".into(),
        hostname: "h".into(),
        user: "u".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        agent_version: "0.1.0".into(),
    };
    BatchHeader::new(&identity, "e".into(), Digest::ZERO, "2026-01-01T00:00:00Z".into())
}

#[test]
fn header_without_key_has_the_members_of_release_0_1() {
    let json = serde_json::to_value(header()).unwrap();
    for member in ["seal", "instance", "managed_hash"] {
        assert_eq!(json.get(member), None);
    }
    assert_eq!(serde_json::from_value::<BatchHeader>(json).unwrap(), header());
}

#[test]
fn header_with_seal_reads_back() {
    let header = BatchHeader {
        seal: Some("text\n\n— name c2ln\n".into()),
        instance: Some("i".into()),
        managed_hash: Some(Digest::ZERO),
        ..header()
    };
    let json = serde_json::to_string(&header).unwrap();
    assert!(!json.contains('\n'));
    assert_eq!(serde_json::from_str::<BatchHeader>(&json).unwrap(), header);
}

#[test]
fn answers_of_release_0_1_are_read() {
    let receipt: Receipt =
        serde_json::from_value(json!({"last_seq": 3, "accepted": 2, "duplicates": 0})).unwrap();
    assert_eq!(receipt, Receipt { last_seq: Some(3), accepted: 2, ..Receipt::default() });
    let problem =
        json!({"type": "about:blank", "title": "conflict", "status": 409, "expected_seq": 7});
    let problem: Problem = serde_json::from_value(problem).unwrap();
    assert_eq!((problem.expected_seq, problem.verdict), (Some(7), None));
}

#[test]
fn answers_without_key_have_the_members_of_release_0_1() {
    let receipt = Receipt { last_seq: Some(3), ..Receipt::default() };
    let expected: Value = json!({"last_seq": 3, "accepted": 0, "duplicates": 0});
    assert_eq!(serde_json::to_value(receipt).unwrap(), expected);
}
