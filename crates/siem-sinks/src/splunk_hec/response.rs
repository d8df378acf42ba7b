//! Interprets responses of the event endpoint.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use siem_protocol::delivery::Rest;

use super::Dialect;
use crate::{
    http::{Answer, NoAnswer, retry_after},
    problem::summary,
};

/// Body of a response.
#[derive(Debug, Default, Deserialize)]
struct Body {
    code: Option<i64>,
    #[serde(default)]
    text: String,
    #[serde(rename = "invalid-event-number")]
    event_number: Option<usize>,
    #[serde(rename = "ackId")]
    ack_id: Option<u64>,
}

/// Result of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Number of events that are stored: the first ones of the request.
    pub(super) stored: usize,
    /// Result for the events after them.
    pub(super) rest: RestOfRequest,
}

/// Result for the events of a request that are not stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RestOfRequest {
    /// All events are stored.
    None {
        /// Id by which the receiver reports that they are indexed.
        ack_id: Option<u64>,
    },
    /// The first one is refused permanently, and the others were not read.
    FirstRefused { status: u16, answer: String },
    /// The request is too large.
    TooLarge { status: u16, answer: String },
    /// None of them is decided.
    Undecided(Rest),
}

/// Meaning of a status and code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// All events are stored.
    Stored,
    /// The events before the number are stored, the one with the number is refused.
    EventRefused,
    /// The event before the number has an index that the token does not allow, and those before it are
    /// stored: the number is too large by 1.
    IndexRefused,
    /// The events before the number, if there is one, are stored; the others may be sent later.
    Busy,
    /// A person must act.
    Hold,
    TooLarge,
}

/// Meaning of each code, with its status and a remedy. Code and status must both match.
const CODES: &[(u16, i64, Meaning, &str)] = &[
    (200, 0, Meaning::Stored, ""),
    (403, 1, Meaning::Hold, "the token is disabled: enable it on the receiver"),
    (401, 2, Meaning::Hold, "the receiver got no token: does a proxy remove `Authorization`?"),
    (401, 3, Meaning::Hold, "the receiver does not accept the form of the token: check `dialect`"),
    (403, 4, Meaning::Hold, "the receiver does not know the token: check `token_file`"),
    (400, NO_DATA, Meaning::Hold, "the receiver found no event: does a proxy remove the body?"),
    (400, 6, Meaning::EventRefused, ""),
    (400, 7, Meaning::IndexRefused, "the token does not allow the index: check `index`"),
    (500, 8, Meaning::Busy, ""),
    (503, 9, Meaning::Busy, ""),
    (400, 10, Meaning::Hold, WANTS_CHANNEL),
    (400, 11, Meaning::Hold, WANTS_CHANNEL),
    (400, 12, Meaning::EventRefused, ""),
    (400, 13, Meaning::EventRefused, ""),
    (400, 14, Meaning::Hold, NO_ACKNOWLEDGEMENT),
    (400, 15, Meaning::EventRefused, ""),
    (400, 16, Meaning::Hold, "the receiver does not accept a token in the URL"),
    (503, 18, Meaning::Busy, ""),
    (503, 19, Meaning::Busy, ""),
    (503, 20, Meaning::Busy, ""),
    (400, 21, Meaning::Hold, "the token is not valid for this receiver"),
    (400, 22, Meaning::Hold, "the token is disabled on this receiver"),
    (400, 28, Meaning::Hold, WANTS_CHANNEL),
];

/// Code of a response to a request without an event.
pub(super) const NO_DATA: i64 = 5;
const WANTS_CHANNEL: &str =
    "the token has indexer acknowledgement enabled: set `acknowledgement = \"indexed\"`";
/// Remedy for code 14.
pub(super) const NO_ACKNOWLEDGEMENT: &str = "the token has no indexer acknowledgement: enable it \
     (`useACK`), or set `acknowledgement = \"received\"`";

/// Meaning of each status without a known code.
const STATUSES: &[(std::ops::RangeInclusive<u16>, Meaning, &str)] = &[
    (200..=200, Meaning::Hold, "the response is not from an event collector: check `endpoint`"),
    (401..=401, Meaning::Hold, "the token was refused: check `token_file` and `dialect`"),
    (403..=403, Meaning::Hold, "the token was refused: check `token_file` and `dialect`"),
    (404..=405, Meaning::Hold, "there is no event collector at this URL: check `endpoint`"),
    (408..=408, Meaning::Busy, ""),
    (413..=413, Meaning::TooLarge, ""),
    (415..=415, Meaning::Hold, "set `compression = \"none\"`"),
    (425..=425, Meaning::Busy, ""),
    (429..=429, Meaning::Busy, ""),
    (500..=599, Meaning::Busy, ""),
    (0..=999, Meaning::Hold, ""),
];

/// Size from which Splunk Cloud refuses a request with code 6 for its first event, which is valid,
/// instead of 413. The limit is between 5 and 6 MB; older versions had 1 MB.
const MAYBE_TOO_LARGE: usize = 1_000_000;

/// Interprets the response to a request with `count` events and a body of `length` bytes before
/// compression.
pub(super) fn interpret(
    reply: &Result<Answer, NoAnswer>,
    dialect: Dialect,
    (count, length): (usize, usize),
    now: SystemTime,
) -> Verdict {
    let answer = match reply {
        Ok(answer) => answer,
        Err(failed) => return Verdict::nothing(failed.into()),
    };
    let body: Option<Body> = serde_json::from_slice(&answer.body).ok();
    let after = answer.headers.get("retry-after").and_then(|value| value.to_str().ok());
    let after = after.and_then(|value| retry_after(value, now));
    if dialect == Dialect::LogScale {
        return logscale(answer, body.as_ref(), after, count);
    }
    let body = body.unwrap_or_default();
    let (meaning, remedy) = meaning(answer.status, body.code);
    let described = Described { answer, body: &body, after, remedy };
    described.verdict(meaning, count, length)
}

/// Returns true if the receiver's documentation has the code with this status.
fn is_known(status: u16, code: i64) -> bool {
    CODES.iter().any(|row| (row.0, row.1) == (status, code))
}

fn meaning(status: u16, code: Option<i64>) -> (Meaning, &'static str) {
    let by_code = CODES.iter().find(|row| (row.0, Some(row.1)) == (status, code));
    if let Some((_, _, meaning, remedy)) = by_code {
        return (*meaning, remedy);
    }
    let by_status = STATUSES.iter().find(|(statuses, ..)| statuses.contains(&status));
    by_status.map_or((Meaning::Hold, ""), |(_, meaning, remedy)| (*meaning, remedy))
}

struct Described<'a> {
    answer: &'a Answer,
    body: &'a Body,
    after: Option<Duration>,
    remedy: &'static str,
}

impl Described<'_> {
    fn verdict(&self, meaning: Meaning, count: usize, length: usize) -> Verdict {
        let status = self.answer.status;
        // A number beyond the request is no statement about it.
        let number = self.body.event_number;
        let stored = number.filter(|number| *number < count);
        match meaning {
            Meaning::Stored => {
                Verdict { stored: count, rest: RestOfRequest::None { ack_id: self.body.ack_id } }
            }
            Meaning::EventRefused => match stored {
                Some(0) if count > 1 && length > MAYBE_TOO_LARGE && self.body.code == Some(6) => {
                    Verdict { stored: 0, rest: self.too_large() }
                }
                Some(stored) => {
                    let answer = self.text();
                    Verdict { stored, rest: RestOfRequest::FirstRefused { status, answer } }
                }
                None => Verdict::nothing(Rest::Refused { status, answer: self.text() }),
            },
            Meaning::IndexRefused => {
                let stored = number.filter(|number| *number <= count).unwrap_or_default();
                Verdict::undecided(stored.saturating_sub(1), self.hold())
            }
            Meaning::Busy => {
                // The number of a response with an unknown code may count in another way.
                let is_known = self.body.code.is_some_and(|code| is_known(status, code));
                let stored = stored.filter(|_| is_known).unwrap_or_default();
                let reason = self.reason();
                Verdict::undecided(stored, Rest::Retry { after: self.after, reason })
            }
            // With an unknown code the number may be too large by 1, as with code 7.
            Meaning::Hold => {
                let stored = stored.filter(|_| status == 400).unwrap_or_default();
                Verdict::undecided(stored.saturating_sub(1), self.hold())
            }
            Meaning::TooLarge => Verdict { stored: 0, rest: self.too_large() },
        }
    }

    fn too_large(&self) -> RestOfRequest {
        RestOfRequest::TooLarge { status: 413, answer: self.text() }
    }

    fn hold(&self) -> Rest {
        Rest::Hold { after: self.after, reason: self.reason() }
    }

    fn text(&self) -> String {
        match (self.body.code, summary(self.body.text.as_bytes())) {
            (Some(code), Some(text)) => format!("code {code}: {text}"),
            _ => summary(&self.answer.body).unwrap_or_default(),
        }
    }

    fn reason(&self) -> String {
        let mut reason = format!("response {}", self.answer.status);
        let text = self.text();
        if !text.is_empty() {
            reason += &format!(" ({text})");
        }
        if !self.remedy.is_empty() {
            reason += &format!(": {}", self.remedy);
        }
        reason
    }
}

/// LogScale decides about the whole request, and has no codes.
fn logscale(
    answer: &Answer,
    body: Option<&Body>,
    after: Option<Duration>,
    count: usize,
) -> Verdict {
    let empty = Body::default();
    let (meaning, remedy) = match (answer.status, body) {
        (200, Some(body)) if body.code == Some(0) => (Meaning::Stored, ""),
        (200, _) if answer.is_whole && matches!(answer.body.trim_ascii(), b"" | b"{}") => {
            (Meaning::Stored, "")
        }
        (400 | 422, _) => {
            let described = Described { answer, body: body.unwrap_or(&empty), after, remedy: "" };
            let rest = Rest::Refused { status: answer.status, answer: described.text() };
            return Verdict::nothing(rest);
        }
        (status, _) => meaning(status, None),
    };
    let body = Body { event_number: None, ack_id: None, ..Body::default() };
    let described = Described { answer, body: &body, after, remedy };
    described.verdict(meaning, count, 0)
}

impl Verdict {
    fn nothing(rest: Rest) -> Self {
        Self::undecided(0, rest)
    }

    fn undecided(stored: usize, rest: Rest) -> Self {
        Self { stored, rest: RestOfRequest::Undecided(rest) }
    }
}

/// Returns the code in the body of a response.
pub(super) fn code(body: &[u8]) -> Option<i64> {
    serde_json::from_slice::<Body>(body).ok().and_then(|body| body.code)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::header::HeaderMap;

    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn answer(status: u16, body: &str) -> Result<Answer, NoAnswer> {
        let headers = HeaderMap::new();
        Ok(Answer { status, headers, body: body.as_bytes().to_vec(), is_whole: true })
    }

    fn splunk(status: u16, body: &str) -> Verdict {
        interpret(&answer(status, body), Dialect::Splunk, (10, 1000), NOW)
    }

    /// A letter for each result, and the number of stored events.
    fn summary_of(verdict: &Verdict) -> (char, usize) {
        let letter = match &verdict.rest {
            RestOfRequest::None { .. } => 'A',
            RestOfRequest::FirstRefused { .. } => 'P',
            RestOfRequest::TooLarge { .. } => 'L',
            RestOfRequest::Undecided(Rest::Retry { .. }) => 'R',
            RestOfRequest::Undecided(Rest::Hold { .. }) => 'H',
            RestOfRequest::Undecided(Rest::Refused { .. }) => 'S',
            RestOfRequest::Undecided(_) => '?',
        };
        (letter, verdict.stored)
    }

    /// The whole table: each code with event number 4 of 10, and without.
    #[test]
    fn each_code_has_its_result() {
        let rows = [
            (200, 0, ('A', 10), ('A', 10)),
            (403, 1, ('H', 0), ('H', 0)),
            (401, 2, ('H', 0), ('H', 0)),
            (401, 3, ('H', 0), ('H', 0)),
            (403, 4, ('H', 0), ('H', 0)),
            (400, 5, ('H', 3), ('H', 0)),
            (400, 6, ('P', 4), ('S', 0)),
            (400, 7, ('H', 3), ('H', 0)),
            (500, 8, ('R', 4), ('R', 0)),
            (503, 9, ('R', 4), ('R', 0)),
            (400, 10, ('H', 3), ('H', 0)),
            (400, 11, ('H', 3), ('H', 0)),
            (400, 12, ('P', 4), ('S', 0)),
            (400, 13, ('P', 4), ('S', 0)),
            (400, 14, ('H', 3), ('H', 0)),
            (400, 15, ('P', 4), ('S', 0)),
            (400, 16, ('H', 3), ('H', 0)),
            (503, 18, ('R', 4), ('R', 0)),
            (503, 19, ('R', 4), ('R', 0)),
            (503, 20, ('R', 4), ('R', 0)),
            (400, 21, ('H', 3), ('H', 0)),
            (400, 22, ('H', 3), ('H', 0)),
            (400, 28, ('H', 3), ('H', 0)),
        ];
        assert_eq!(rows.len(), CODES.len());
        for (status, code, numbered, plain) in rows {
            let body = format!(r#"{{"text":"t","code":{code},"invalid-event-number":4}}"#);
            assert_eq!(summary_of(&splunk(status, &body)), numbered, "{code}");
            let body = format!(r#"{{"text":"t","code":{code}}}"#);
            assert_eq!(summary_of(&splunk(status, &body)), plain, "{code}");
        }
    }

    #[test]
    fn each_status_without_a_code_has_its_result() {
        for (status, letter) in [
            (200, 'H'),
            (201, 'H'),
            (204, 'H'),
            (301, 'H'),
            (400, 'H'),
            (401, 'H'),
            (403, 'H'),
            (404, 'H'),
            (405, 'H'),
            (407, 'H'),
            (408, 'R'),
            (413, 'L'),
            (415, 'H'),
            (425, 'R'),
            (429, 'R'),
            (500, 'R'),
            (502, 'R'),
            (503, 'R'),
            (504, 'R'),
        ] {
            for body in ["", "<html>", r#"{"text":"t","code":999}"#] {
                assert_eq!(summary_of(&splunk(status, body)), (letter, 0), "{status} {body}");
            }
        }
        // The code of another status proves nothing.
        assert_eq!(summary_of(&splunk(400, r#"{"code":0}"#)), ('H', 0));
    }

    /// Code 7 numbers the event after the refused one: an unknown code may do so as well.
    #[test]
    fn number_with_an_unknown_code_stores_nothing() {
        for status in [408, 429, 500, 503, 599] {
            for code in [r#""code":23,"#, r#""code":7,"#, r#""code":6,"#, r#""code":0,"#, ""] {
                let body = format!(r#"{{{code}"text":"busy","invalid-event-number":4}}"#);
                assert_eq!(summary_of(&splunk(status, &body)), ('R', 0), "{status} {body}");
            }
        }
        // A code of another status is unknown.
        assert_eq!(summary_of(&splunk(503, r#"{"code":8,"invalid-event-number":4}"#)), ('R', 0));
        assert_eq!(summary_of(&splunk(503, r#"{"code":9,"invalid-event-number":4}"#)), ('R', 4));
    }

    #[test]
    fn number_of_no_event_of_the_request_decides_nothing() {
        for number in ["10", "11", "99999999999"] {
            let body = |code| format!(r#"{{"code":{code},"invalid-event-number":{number}}}"#);
            assert_eq!(summary_of(&splunk(400, &body(6))), ('S', 0));
            assert_eq!(summary_of(&splunk(503, &body(9))), ('R', 0));
            let last = if number == "10" { 9 } else { 0 };
            assert_eq!(summary_of(&splunk(400, &body(7))), ('H', last));
        }
    }

    #[test]
    fn valid_first_event_of_a_large_request_means_too_large() {
        let refused = answer(400, r#"{"code":6,"invalid-event-number":0}"#);
        let verdict = |size| summary_of(&interpret(&refused, Dialect::Splunk, size, NOW));
        assert_eq!(verdict((10, 6_000_000)), ('L', 0));
        assert_eq!(verdict((10, 900_000)), ('P', 0));
        assert_eq!(verdict((1, 6_000_000)), ('P', 0));
    }

    #[test]
    fn logscale_decides_about_the_whole_request() {
        let rows = [
            (200, r#"{"text":"Success","code":0}"#, ('A', 10)),
            (200, "{}", ('A', 10)),
            (200, "", ('A', 10)),
            (200, "<html>", ('H', 0)),
            (200, r#"{"code":6,"invalid-event-number":4}"#, ('H', 0)),
            (400, "no", ('S', 0)),
            (401, "no", ('H', 0)),
            (413, "no", ('L', 0)),
            (429, "no", ('R', 0)),
            (503, "no", ('R', 0)),
        ];
        for (status, body, expected) in rows {
            let verdict = interpret(&answer(status, body), Dialect::LogScale, (10, 1000), NOW);
            assert_eq!(summary_of(&verdict), expected, "{status} {body}");
        }
    }

    #[test]
    fn missing_response_is_retried() {
        let failed = |needs_person, waited| {
            let failed = NoAnswer { reason: "r".into(), needs_person, waited };
            interpret(&Err(failed), Dialect::Splunk, (10, 1000), NOW)
        };
        assert_eq!(summary_of(&failed(false, None)), ('R', 0));
        assert_eq!(summary_of(&failed(true, None)), ('H', 0));
        let slow = failed(false, Some(Duration::from_secs(1))).rest;
        assert!(matches!(slow, RestOfRequest::Undecided(Rest::Slow { .. })));
    }

    proptest! {
        /// Entries are stored only if the response says so.
        #[test]
        fn no_response_stores_more_than_it_says(
            status in prop_oneof![Just(200_u16), Just(400), Just(503), 100_u16..600],
            code in prop_oneof![Just(None), (0_i64..30).prop_map(Some)],
            number in prop_oneof![Just(None), (0_usize..14).prop_map(Some)],
            garbage in prop_oneof![Just(String::new()), "\\PC{0,20}"],
            is_logscale: bool,
        ) {
            let mut body = serde_json::json!({ "text": "t" });
            if let Some(code) = code {
                body["code"] = code.into();
            }
            if let Some(number) = number {
                body["invalid-event-number"] = number.into();
            }
            let text = body.to_string() + &garbage;
            let dialect = if is_logscale { Dialect::LogScale } else { Dialect::Splunk };
            let verdict = interpret(&answer(status, &text), dialect, (10, 1000), NOW);
            let is_complete = matches!(verdict.rest, RestOfRequest::None { .. });
            let says_success = status == 200
                && garbage.trim_ascii().is_empty()
                && code == Some(0);
            prop_assert_eq!(is_complete, says_success);
            if !is_complete {
                let most = number.filter(|number| *number <= 10 && garbage.trim_ascii().is_empty());
                prop_assert!(verdict.stored <= most.unwrap_or_default().min(9));
                prop_assert!(!is_logscale || verdict.stored == 0);
            }
            if let RestOfRequest::FirstRefused { .. } = verdict.rest {
                prop_assert!(status == 400 && matches!(code, Some(6 | 12 | 13 | 15)));
            }
        }
    }
}
