use std::time::UNIX_EPOCH;

use proptest::prelude::*;
use reqwest::header::HeaderMap;

use super::*;

const ACCEPTED: &str = r#"{"create":{"status":201}}"#;

fn answer(status: u16, body: impl Into<Vec<u8>>) -> Answer {
    Answer { status, headers: HeaderMap::new(), body: body.into(), is_whole: true }
}

fn interpreted(status: u16, body: &str, count: usize) -> Interpreted {
    interpret(&Ok(answer(status, body)), count, "target", UNIX_EPOCH)
}

fn items(items: &[&str]) -> Interpreted {
    let body = format!(r#"{{"errors":false,"items":[{}]}}"#, items.join(","));
    interpreted(200, &body, items.len())
}

/// Describes a result in one word.
fn word(interpreted: &Interpreted) -> &'static str {
    let item = match interpreted.items[..] {
        [EntryResult::Accepted] => "accepted",
        [EntryResult::Misfiled { .. }] => "misfiled",
        [EntryResult::Refused { .. }] => "refused",
        [EntryResult::Undecided] => "",
        _ => panic!("{interpreted:?}"),
    };
    match (item, &interpreted.rest) {
        ("", Some(Rest::Retry { .. })) => "retry",
        ("", Some(Rest::Hold { .. })) => "hold",
        ("", Some(Rest::Slow { .. })) => "slow",
        ("", Some(Rest::Refused { .. })) => "all refused",
        (item, None) if !item.is_empty() => item,
        _ => panic!("{interpreted:?}"),
    }
}

#[test]
fn each_status_of_a_document_has_its_meaning() {
    let error = |kind: &str| format!(r#","error":{{"type":"{kind}","reason":"r"}}"#);
    let none = String::new;
    let cases = [
        (201, none(), "accepted"),
        (201, r#","failure_store":"used""#.into(), "misfiled"),
        (201, r#","failure_store":"not_applicable_or_unknown""#.into(), "accepted"),
        (200, none(), "misfiled"),
        (409, error("version_conflict_engine_exception"), "accepted"),
        (409, error("other"), "retry"),
        (409, none(), "retry"),
        (400, error("mapper_parsing_exception"), "refused"),
        (400, error("document_parsing_exception"), "refused"),
        (400, error("illegal_argument_exception"), "refused"),
        (400, r#","error":"text""#.into(), "refused"),
        (400, none(), "refused"),
        (400, error("index_closed_exception"), "hold"),
        (400, error("validation_exception"), "hold"),
        (400, error("invalid_index_name_exception"), "hold"),
        (
            400,
            r#","error":{"type":"illegal_argument_exception","reason":"pipeline with id [x] does not exist"}"#.into(),
            "hold",
        ),
        (
            400,
            r#","error":{"type":"illegal_argument_exception","reason":"no match: [pipeline with id]"}"#.into(),
            "refused",
        ),
        (413, none(), "refused"),
        (401, error("security_exception"), "hold"),
        (403, error("security_exception"), "hold"),
        (403, error("cluster_block_exception"), "hold"),
        (404, error("index_not_found_exception"), "hold"),
        (405, none(), "hold"),
        (429, error("es_rejected_execution_exception"), "retry"),
        (429, error("cluster_block_exception"), "retry"),
        (500, none(), "hold"),
        (502, none(), "retry"),
        (503, error("unavailable_shards_exception"), "retry"),
        (503, r#","failure_store":"failed""#.into(), "retry"),
        (0, none(), "hold"),
        (999, none(), "hold"),
    ];
    for (status, more, expected) in cases {
        let item = format!(r#"{{"create":{{"status":{status}{more}}}}}"#);
        assert_eq!(word(&items(&[&item])), expected, "{item}");
    }
}

#[test]
fn each_status_of_a_response_has_its_meaning() {
    let error = |kind: &str| format!(r#"{{"error":{{"type":"{kind}","reason":"r"}}}}"#);
    let cases = [
        (301, String::new(), "hold"),
        (400, String::new(), "all refused"),
        (400, error("illegal_argument_exception"), "hold"),
        (400, error("invalid_index_name_exception"), "hold"),
        (400, error("parse_exception"), "all refused"),
        (401, error("security_exception"), "hold"),
        (403, String::new(), "hold"),
        (404, r#"{"error":"no handler found"}"#.into(), "hold"),
        (405, String::new(), "hold"),
        (407, String::new(), "hold"),
        (408, String::new(), "retry"),
        (413, "<html>".into(), "all refused"),
        (415, String::new(), "hold"),
        (418, String::new(), "hold"),
        (425, String::new(), "retry"),
        (429, error("es_rejected_execution_exception"), "retry"),
        (500, String::new(), "retry"),
        (502, "<html>".into(), "retry"),
        (503, String::new(), "retry"),
        (504, String::new(), "retry"),
        (201, String::new(), "hold"),
        (202, ACCEPTED.into(), "hold"),
        (200, String::new(), "retry"),
        (200, "<html>".into(), "hold"),
        (200, "{}".into(), "hold"),
        (200, r#"{"errors":false}"#.into(), "hold"),
        (200, r#"{"items":[{"create":{"status":2"#.into(), "retry"),
        (200, r#"{"items":[{"index":{"status":201}}]}"#.into(), "retry"),
        (200, format!(r#"{{"items":[{ACCEPTED},{ACCEPTED}]}}"#), "hold"),
        (200, r#"{"items":[]}"#.into(), "hold"),
        (200, r#"{"items":[{"create":{"status":"201"}}]}"#.into(), "retry"),
    ];
    for (status, body, expected) in cases {
        assert_eq!(word(&interpreted(status, &body, 1)), expected, "{status} {body}");
    }
    let cut = Answer { is_whole: false, ..answer(200, format!(r#"{{"items":[{ACCEPTED}]}}"#)) };
    assert_eq!(word(&interpret(&Ok(cut), 1, "t", UNIX_EPOCH)), "hold");
}

#[test]
fn missing_response_is_retried() {
    let no_answer = |needs_person, waited| {
        let reply = Err(NoAnswer { reason: "r".into(), needs_person, waited });
        word(&interpret(&reply, 1, "t", UNIX_EPOCH))
    };
    assert_eq!(no_answer(false, None), "retry");
    assert_eq!(no_answer(true, None), "hold");
    assert_eq!(no_answer(false, Some(Duration::from_secs(1))), "slow");
}

#[test]
fn flag_errors_is_not_trusted() {
    let refused = r#"{"create":{"status":400,"error":{"type":"t","reason":"r"}}}"#;
    let body = format!(r#"{{"errors":false,"items":[{ACCEPTED},{refused}]}}"#);
    let refused = EntryResult::Refused { status: 400, answer: "t: r".into() };
    assert_eq!(interpreted(200, &body, 2).items, [EntryResult::Accepted, refused]);
    let body = format!(r#"{{"errors":true,"items":[{ACCEPTED}]}}"#);
    assert_eq!(interpreted(200, &body, 1).rest, None);
}

/// A response of `[{},{},...]` once took 16 times its size in memory.
#[test]
fn results_beyond_the_documents_are_counted_only() {
    let list = format!("[{}{{}}]", "{},".repeat(99_999));
    let list: &RawValue = serde_json::from_str(&list).unwrap();
    let Listed { items, total } = Items(3).parse(Some(list)).unwrap();
    assert_eq!((items.len(), total), (3, 100_000));
    assert!(items.capacity() < 100);
    let body = format!(r#"{{"items":{}}}"#, list.get());
    let Some(Rest::Hold { reason, .. }) = interpreted(200, &body, 3).rest else { panic!() };
    assert!(reason.contains("100000 results for 3 documents"), "{reason}");
    let damaged: &RawValue = serde_json::from_str(r#"[{"create":{"status":201}},7]"#).unwrap();
    assert_eq!(Items(1).parse(Some(damaged)).unwrap().total, 2);
    assert!(Items(2).parse(Some(damaged)).is_err());
}

#[test]
fn problem_for_a_person_overrides_a_retry() {
    let busy = r#"{"create":{"status":429}}"#;
    let forbidden = r#"{"create":{"status":403}}"#;
    for order in [[busy, forbidden, ACCEPTED], [forbidden, busy, ACCEPTED]] {
        let Interpreted { items, rest } = items(&order);
        assert!(matches!(rest, Some(Rest::Hold { .. })), "{rest:?}");
        assert_eq!(items[2], EntryResult::Accepted);
    }
}

#[test]
fn requested_delay_is_passed_on() {
    let mut answer = answer(429, "");
    answer.headers.insert(RETRY_AFTER, "17".parse().unwrap());
    let rest = interpret(&Ok(answer.clone()), 1, "t", UNIX_EPOCH).rest;
    let seventeen = Some(Duration::from_secs(17));
    assert!(matches!(rest, Some(Rest::Retry { after, .. }) if after == seventeen));
    (answer.status, answer.body) = (200, br#"{"items":[{"create":{"status":429}}]}"#.to_vec());
    let rest = interpret(&Ok(answer), 1, "t", UNIX_EPOCH).rest;
    assert!(matches!(rest, Some(Rest::Retry { after, .. }) if after == seventeen));
}

#[test]
fn text_of_the_receiver_quotes_no_document() {
    let reason = r"failed to parse field [a] of type [long] in document with id 'x'. Preview of field's value: 's3cr3t'";
    let item = format!(
        r#"{{"create":{{"status":400,"error":{{"type":"t","reason":"{reason}","caused_by":{{"reason":"s3cr3t"}}}}}}}}"#
    );
    let Interpreted { items, .. } = items(&[&item]);
    let [EntryResult::Refused { answer, .. }] = &items[..] else { panic!() };
    assert!(answer.starts_with("t: failed to parse field [a]"), "{answer}");
    assert!(!answer.contains("s3cr3t"));
    let long = format!(r#"{{"error":{{"type":"t","reason":"{}\u0007"}}}}"#, "x".repeat(5000));
    let Some(Rest::Retry { reason, .. }) = interpreted(503, &long, 1).rest else { panic!() };
    assert!(reason.len() < 500 && !reason.contains('\u{7}'), "{reason}");
}

#[test]
fn quotations_of_the_document_are_cut_out() {
    for (reason, expected) in [
        ("index [logs-a.b] is closed", "index [logs-a.b] is closed"),
        ("failed to parse field [a] of type [long]", "failed to parse field [a] of type [long]"),
        ("no match with field value: [s3cr3t]", "no match with "),
        ("cannot dissect against source: s3cr3t", "cannot dissect "),
        ("unable to parse date [my s3cr3t text]", "unable to parse date "),
        ("at [Source: (byte[])\"s3cr3t\"]", "at "),
        ("for 'abc' and \"s3 cr3t\"", "for 'abc' and "),
        ("open [s3cr3t", "open "),
        ("", ""),
    ] {
        assert_eq!(without_quotes(reason), expected);
    }
}

/// Items of responses, some of them damaged.
fn arbitrary_item() -> impl Strategy<Value = (u16, bool, String)> {
    let status =
        prop_oneof![Just(200_u16), Just(201), Just(400), Just(409), Just(429), any::<u16>()];
    let error = prop_oneof![
        Just(""),
        Just("version_conflict_engine_exception"),
        Just("mapper_parsing_exception"),
        Just("es_rejected_execution_exception"),
    ];
    (status, error, any::<bool>()).prop_map(|(status, error, used)| {
        let store = if used { r#","failure_store":"used""# } else { "" };
        let error_text = match error {
            "" => String::new(),
            error => format!(r#","error":{{"type":"{error}","reason":"r"}}"#),
        };
        let is_conflict = status == 409 && error == "version_conflict_engine_exception";
        let is_stored = !used && (status == 201 || is_conflict);
        (status, is_stored, format!(r#"{{"create":{{"status":{status}{store}{error_text}}}}}"#))
    })
}

proptest! {
    /// An entry counts as accepted exactly if the response says so, and no entry is forgotten.
    #[test]
    fn document_is_accepted_only_if_the_response_says_so(
        list in prop::collection::vec(arbitrary_item(), 1..6), extra in -1_i8..2, status in prop_oneof![Just(200_u16), any::<u16>()],
    ) {
        let texts: Vec<&str> = list.iter().map(|item| item.2.as_str()).collect();
        let body = format!(r#"{{"items":[{}]}}"#, texts.join(","));
        let count = usize::try_from(i8::try_from(list.len()).unwrap() + extra).unwrap();
        let Interpreted { items, rest } = interpreted(status, &body, count);
        prop_assert_eq!(items.len(), count);
        let is_read = status == 200 && extra == 0;
        for (item, (_, is_stored, _)) in items.iter().zip(&list) {
            prop_assert_eq!(*item == EntryResult::Accepted, is_read && *is_stored);
        }
        prop_assert_eq!(items.contains(&EntryResult::Undecided), rest.is_some() && count > 0);
    }

    #[test]
    fn no_response_panics_or_accepts(status: u16, body: Vec<u8>, is_whole: bool, text in "[{}\\[\\]\":, a-z0-9]{0,60}") {
        for body in [body, text.into_bytes()] {
            let reply = Ok(Answer { status, headers: HeaderMap::new(), body, is_whole });
            let Interpreted { items, rest } = interpret(&reply, 3, "t", UNIX_EPOCH);
            prop_assert!(items.iter().all(|item| *item == EntryResult::Undecided));
            prop_assert!(rest.is_some());
        }
    }

    #[test]
    fn damaged_response_accepts_no_other_document(at: prop::sample::Index, byte: u8) {
        let conflict = r#"{"create":{"status":429,"error":{"type":"es_rejected_execution_exception"}}}"#;
        let mut body = format!(r#"{{"items":[{conflict},{conflict}]}}"#).into_bytes();
        let at = at.index(body.len());
        body[at] = byte;
        let Interpreted { items, .. } = interpret(&Ok(answer(200, body)), 2, "t", UNIX_EPOCH);
        prop_assert!(!items.contains(&EntryResult::Accepted));
    }
}
