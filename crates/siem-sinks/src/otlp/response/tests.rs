use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use reqwest::header::{HeaderMap, HeaderValue};

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;

use super::*;

const NOW: SystemTime = UNIX_EPOCH;

fn answer(status: u16, content_type: &str, body: &[u8]) -> Answer {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(content_type) {
        headers.insert(CONTENT_TYPE, value);
    }
    Answer { status, headers, body: body.to_vec(), is_whole: true }
}

fn outcome(status: u16, content_type: &str, body: &[u8]) -> Outcome {
    interpret(&Ok(answer(status, content_type, body)), 10, NOW)
}

fn partial(rejected_log_records: i64, error_message: &str) -> Vec<u8> {
    let error_message = error_message.to_owned();
    let partial_success = Some(ExportLogsPartialSuccess { rejected_log_records, error_message });
    ExportLogsServiceResponse { partial_success }.encode_to_vec()
}

fn accepted() -> Outcome {
    Outcome::Accepted { warning: None }
}

fn is_held(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed(Rest::Hold { .. }))
}

#[test]
fn only_an_otlp_response_acknowledges() {
    let rows: [(u16, &str, &[u8]); 9] = [
        (200, PROTOBUF, b""),
        (200, "", b""),
        (202, "application/json", b""),
        (204, "", b""),
        (200, PROTOBUF, &partial(0, "")),
        (200, "application/json", b"{}"),
        (200, "application/json; charset=utf-8", br#"{"partialSuccess":null}"#),
        (200, "", br#" {"partialSuccess":{}}"#),
        (200, "", br#"{"partial_success":{"rejected_log_records":"0"}}"#),
    ];
    for (status, content_type, body) in rows {
        let text = String::from_utf8_lossy(body);
        assert_eq!(outcome(status, content_type, body), accepted(), "{content_type} {text}");
    }
    let rows: [(&str, &[u8]); 14] = [
        ("text/html", b""),
        ("text/html; charset=utf-8", b"<html>sign in</html>"),
        ("", b"<!DOCTYPE html><title>sign in</title>"),
        ("text/plain", b"OK"),
        ("text/plain", b"(1"),
        (PROTOBUF, b"ok"),
        (PROTOBUF, &partial(-1, "")),
        ("application/json", b"[]"),
        ("application/json", b"{"),
        ("application/json", br#"{"error":"sign in"}"#),
        ("application/json", br#"{"partialSuccess":true}"#),
        ("application/json", br#"{"partialSuccess":{"rejectedLogRecords":"many"}}"#),
        ("application/json", br#"{"partialSuccess":{"rejectedLogRecords":-1}}"#),
        ("application/json", br#"{"partialSuccess":{"rejectedLogRecords":1.5}}"#),
    ];
    for (content_type, body) in rows {
        let outcome = outcome(200, content_type, body);
        let text = String::from_utf8_lossy(body);
        assert!(is_held(&outcome), "{content_type} {text}: {outcome:?}");
    }
    let cut = Answer { is_whole: false, ..answer(200, PROTOBUF, b"") };
    assert!(is_held(&interpret(&Ok(cut), 10, NOW)));
}

#[test]
fn response_with_other_fields_is_accepted_as_protobuf_only() {
    // Field 5 with the number 1, of a later version.
    assert_eq!(outcome(200, PROTOBUF, &[0x28, 1]), accepted());
    assert!(is_held(&outcome(200, "text/plain", &[0x28, 1])));
}

#[test]
fn rejected_log_records_are_counted() {
    let some = |rejected, message: &str| Outcome::Partial { rejected, message: message.to_owned() };
    assert_eq!(outcome(200, PROTOBUF, &partial(3, "too\nold")), some(3, "tooold"));
    let json = br#"{"partialSuccess":{"rejectedLogRecords":"9","errorMessage":"old"}}"#;
    assert_eq!(outcome(200, "application/json", json), some(9, "old"));
    let json = br#"{"partialSuccess":{"rejectedLogRecords":1}}"#;
    assert_eq!(outcome(200, "application/json", json), some(1, ""));
    for rejected in [10, 11, i64::MAX] {
        let all = Outcome::Failed(Rest::Refused { status: 400, answer: "old".into() });
        assert_eq!(outcome(200, PROTOBUF, &partial(rejected, "old")), all);
    }
    let answer = "10 log records rejected without a message".to_owned();
    let all = Outcome::Failed(Rest::Refused { status: 400, answer });
    assert_eq!(outcome(200, PROTOBUF, &partial(10, "")), all);
    let warning = Outcome::Accepted { warning: Some("slow".into()) };
    assert_eq!(outcome(200, PROTOBUF, &partial(0, "slow")), warning);
}

/// A message that named each record held the batch for ever.
#[test]
fn long_message_does_not_hide_the_number() {
    for rejected in [0, 3, 300, i64::MAX] {
        let whole = partial(rejected, &"ä".repeat(100_000));
        let body = shortened(&whole[..5001], whole.len()).unwrap();
        assert!(body.len() < 5100);
        let short = Response::decode(&*body).unwrap().partial_success.unwrap();
        assert_eq!(short.rejected_log_records, rejected);
        assert!(short.error_message.starts_with("ää".as_bytes()));
    }
    let whole = partial(3, &"x".repeat(100_000));
    let negative = partial(-1, &"x".repeat(100_000));
    let mut damaged = whole.clone();
    damaged[1] ^= 1;
    let start = &whole[..5000];
    // Another length; a number that is not a number of log records.
    let wrong = [
        (start, whole.len() + 1),
        (start, whole.len() - 1),
        (&negative[..5000], negative.len()),
        (&damaged[..5000], damaged.len()),
    ];
    for (start, length) in wrong {
        assert_eq!(shortened(start, length), None);
    }
    // The number after the message.
    let reversed = [&whole[..4], &whole[6..], &whole[4..6]].concat();
    let partial = Response::decode(&*reversed).unwrap().partial_success.unwrap();
    assert_eq!(partial.rejected_log_records, 3);
    assert_eq!(shortened(&reversed[..5000], reversed.len()), None);
}

#[test]
fn status_determines_the_outcome() {
    for status in 100..200_u16 {
        assert!(is_held(&outcome(status, "", b"")), "{status}");
    }
    for status in 300..600 {
        let outcome = outcome(status, "", b"");
        let Outcome::Failed(rest) = outcome else { panic!("{status}: {outcome:?}") };
        let is_expected = match status {
            400 | 413 | 422 => matches!(rest, Rest::Refused { status: s, .. } if s == status),
            408 | 425 | 429 | 502 | 503 | 504 => matches!(rest, Rest::Retry { .. }),
            _ => matches!(rest, Rest::Hold { .. }),
        };
        assert!(is_expected, "{status}: {rest:?}");
    }
}

#[test]
fn requested_delay_is_kept() {
    let after = |status, value: &str| {
        let mut answer = answer(status, "", b"");
        answer.headers.insert(RETRY_AFTER, value.parse().unwrap());
        match interpret(&Ok(answer), 10, NOW) {
            Outcome::Failed(Rest::Retry { after, .. } | Rest::Hold { after, .. }) => after,
            outcome => panic!("{outcome:?}"),
        }
    };
    assert_eq!(after(429, "7"), Some(Duration::from_secs(7)));
    assert_eq!(after(503, "Thu, 01 Jan 1970 00:00:30 GMT"), Some(Duration::from_secs(30)));
    assert_eq!(after(401, "5"), Some(Duration::from_secs(5)));
    assert_eq!(after(503, "soon"), None);
}

#[test]
fn missing_response_is_retried() {
    let failed = |needs_person, waited| {
        let error = NoAnswer { reason: "no".into(), needs_person, waited };
        interpret(&Err(error), 10, NOW)
    };
    let (after, reason, waited) = (None, "no".to_owned(), Duration::from_secs(60));
    let retry = Rest::Retry { after, reason: reason.clone() };
    assert_eq!(failed(false, None), Outcome::Failed(retry));
    let slow = Rest::Slow { waited, reason: reason.clone() };
    assert_eq!(failed(false, Some(waited)), Outcome::Failed(slow));
    assert_eq!(failed(true, None), Outcome::Failed(Rest::Hold { after, reason }));
}

#[test]
fn message_of_a_failure_is_found_and_shortened() {
    let message = "bad\u{1b}[31m data".to_owned();
    let protobuf = [&[0x08, 3][..], &Status { message }.encode_to_vec()].concat();
    let rows = [
        (PROTOBUF, protobuf),
        ("application/json", br#"{"code":3,"message":"bad\u001b[31m data"}"#.to_vec()),
        ("text/plain", b" bad\x1b[31m data\n".to_vec()),
    ];
    for (content_type, body) in rows {
        let expected = Rest::Refused { status: 400, answer: "bad[31m data".into() };
        assert_eq!(outcome(400, content_type, &body), Outcome::Failed(expected));
        let Outcome::Failed(Rest::Retry { reason, .. }) = outcome(503, content_type, &body) else {
            panic!()
        };
        assert_eq!(reason, "the receiver responded with 503 (bad[31m data)");
    }
    let long = "ä".repeat(100_000);
    let Outcome::Failed(Rest::Refused { answer, .. }) = outcome(400, "", long.as_bytes()) else {
        panic!()
    };
    assert_eq!(answer.len(), MAX_REFUSAL);
}

fn any_body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        any::<Vec<u8>>(),
        (any::<i64>(), ".{0,20}").prop_map(|(rejected, message)| partial(rejected, &message)),
        (-2_i64..14, ".{0,20}").prop_map(|(rejected, message)| partial(rejected, &message)),
        (-2_i64..14).prop_map(|rejected| {
            let partial = serde_json::json!({ "rejectedLogRecords": rejected });
            serde_json::json!({ "partialSuccess": partial }).to_string().into_bytes()
        }),
        ".{0,30}|\\{.{0,30}\\}|<html>.{0,30}".prop_map(String::into_bytes),
    ]
}

/// Reads a varint.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Returns the last value of field 1 of a message, and calls `nested` with each of its values that has a
/// length. Fields of groups do not count.
fn field_1(mut bytes: &[u8], mut nested: impl FnMut(&[u8]) -> Option<()>) -> Option<u64> {
    let (mut last, mut depth) = (0, 0_u32);
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let is_first = tag >> 3 == 1 && depth == 0;
        match tag & 7 {
            0 => {
                let value = varint(&mut bytes)?;
                last = if is_first { value } else { last };
            }
            1 => bytes = bytes.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                if is_first {
                    nested(value)?;
                }
            }
            3 => depth += 1,
            4 => depth = depth.checked_sub(1)?,
            5 => bytes = bytes.get(4..)?,
            _ => return None,
        }
    }
    Some(last)
}

/// Reads the number of rejected log records without the library.
fn rejected_by_hand(body: &[u8]) -> Option<i64> {
    let mut rejected = 0;
    field_1(body, |partial| {
        let value = field_1(partial, |_| Some(()))?;
        rejected = if value == 0 { rejected } else { value };
        Some(())
    })?;
    Some(rejected as i64)
}

#[test]
fn message_that_is_not_utf8_does_not_hide_the_number() {
    let mut body = partial(3, "too olx");
    let end = body.len() - 1;
    body[end] = 0xc3;
    assert_eq!(rejected_by_hand(&body), Some(3));
    let Outcome::Partial { rejected, .. } = outcome(200, "application/x-protobuf", &body) else {
        panic!()
    };
    assert_eq!(rejected, 3);
}

proptest! {
    #[test]
    fn shortened_response_has_the_number_of_the_whole(
        rejected in 0_i64..300, length in 0_usize..300, more in any_body(), at in any::<prop::sample::Index>(),
    ) {
        let whole = [partial(rejected, &"x".repeat(length)), more].concat();
        let start = &whole[..at.index(whole.len() + 1)];
        if let Some(body) = shortened(start, whole.len()) {
            prop_assert_eq!(rejected_by_hand(&body), rejected_by_hand(&whole));
        }
    }

    #[test]
    fn random_response_accepts_only_what_it_says(
        status in prop_oneof![Just(200_u16), 100_u16..600],
        content_type in "|application/x-protobuf|application/json|text/html|[a-z/]{0,9}",
        body in any_body(), records in 1_u64..12, is_whole in proptest::bool::weighted(0.9),
    ) {
        let answer = Answer { is_whole, ..answer(status, &content_type, &body) };
        let outcome = interpret(&Ok(answer), records, NOW);
        // The rejected log records by a reading of its own; `None` if the response does not say.
        let protobuf = rejected_by_hand(&body);
        let json = serde_json::from_slice::<Value>(&body).ok().filter(Value::is_object);
        let json = json.map(|json| json["partialSuccess"]["rejectedLogRecords"].as_i64().unwrap_or(0));
        let said = [protobuf, json];
        match outcome {
            Outcome::Accepted { .. } => {
                prop_assert!((200..300).contains(&status) && is_whole);
                prop_assert!(said.contains(&Some(0)));
            }
            Outcome::Partial { rejected, .. } => {
                prop_assert!((200..300).contains(&status) && is_whole);
                prop_assert!(rejected >= 1 && rejected < records);
                prop_assert!(said.contains(&Some(rejected as i64)));
            }
            Outcome::Failed(_) => {}
        }
    }
}
