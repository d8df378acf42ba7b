//! Interprets responses: a pure function of status and headers.

use std::{ops::RangeInclusive, time::SystemTime};

use siem_protocol::delivery::Rest;

use crate::{
    http::{Answer, NoAnswer, retry_after},
    problem::summary,
};

/// Outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All events were accepted.
    Accepted,
    /// The request is too large.
    TooLarge {
        /// Response of the receiver.
        answer: String,
    },
    /// No event was accepted.
    Failed(Rest),
}

/// Meaning of a status that is not configured as success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Retry,
    Refused,
    TooLarge,
    /// A person must act.
    Hold,
}

/// Meaning of each status, with a remedy. The first row that matches counts.
const STATUSES: &[(RangeInclusive<u16>, Meaning, &str)] = &[
    (200..=399, Meaning::Hold, "check `endpoint` and `success`"),
    (400..=400, Meaning::Refused, ""),
    (401..=401, Meaning::Hold, CHECK_KEY),
    (403..=403, Meaning::Hold, CHECK_KEY),
    (404..=404, Meaning::Hold, "check the path of `endpoint`"),
    (405..=405, Meaning::Hold, "check `endpoint` and `method`"),
    (407..=407, Meaning::Hold, "set `proxy_user` and `proxy_password_file`"),
    (408..=408, Meaning::Retry, ""),
    (413..=413, Meaning::TooLarge, ""),
    (415..=415, Meaning::Hold, "check `format`, or set `compression = \"none\"`"),
    (422..=422, Meaning::Refused, ""),
    (425..=425, Meaning::Retry, ""),
    (429..=429, Meaning::Retry, ""),
    (500..=599, Meaning::Retry, ""),
    (0..=u16::MAX, Meaning::Hold, ""),
];

const CHECK_KEY: &str = "check the key in `headers_file` or `endpoint`";

/// Interprets a response; `success` are the statuses that acknowledge a request.
pub(super) fn interpret(
    reply: &Result<Answer, NoAnswer>,
    success: &[RangeInclusive<u16>],
    now: SystemTime,
) -> Outcome {
    let answer = match reply {
        Ok(answer) => answer,
        Err(failed) => return Outcome::Failed(failed.into()),
    };
    let status = answer.status;
    if success.iter().any(|statuses| statuses.contains(&status)) {
        return Outcome::Accepted;
    }
    let row = STATUSES.iter().find(|(statuses, ..)| statuses.contains(&status));
    let (meaning, remedy) = row.map_or((Meaning::Hold, ""), |row| (row.1, row.2));
    let text = summary(&answer.body);
    let after = answer.headers.get("retry-after").and_then(|value| value.to_str().ok());
    let after = after.and_then(|value| retry_after(value, now));
    let reason = || {
        let text = text.as_deref().map(|text| format!(" ({text})")).unwrap_or_default();
        let remedy = if remedy.is_empty() { String::new() } else { format!(": {remedy}") };
        format!("response {status}{text}{remedy}")
    };
    match meaning {
        Meaning::Retry => Outcome::Failed(Rest::Retry { after, reason: reason() }),
        Meaning::Hold => Outcome::Failed(Rest::Hold { after, reason: reason() }),
        Meaning::Refused => {
            Outcome::Failed(Rest::Refused { status, answer: text.unwrap_or_default() })
        }
        Meaning::TooLarge => Outcome::TooLarge { answer: text.unwrap_or_default() },
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderMap;

    use super::*;

    fn outcome(status: u16, success: &[RangeInclusive<u16>]) -> Outcome {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "7".parse().unwrap());
        let answer = Answer { status, headers, body: b"some\ntext".to_vec(), is_whole: true };
        interpret(&Ok(answer), success, SystemTime::UNIX_EPOCH)
    }

    fn letter(status: u16) -> char {
        match outcome(status, &[200..=299]) {
            Outcome::Accepted => 'A',
            Outcome::TooLarge { .. } => 'L',
            Outcome::Failed(Rest::Retry { .. }) => 'R',
            Outcome::Failed(Rest::Hold { .. }) => 'H',
            Outcome::Failed(Rest::Refused { .. }) => 'S',
            Outcome::Failed(_) => '?',
        }
    }

    #[test]
    fn each_status_has_its_result() {
        let of = |statuses: &[u16]| statuses.iter().map(|it| letter(*it)).collect::<String>();
        assert_eq!(of(&[200, 201, 202, 204, 299]), "AAAAA");
        assert_eq!(of(&[301, 302, 304, 307]), "HHHH");
        assert_eq!(of(&[400, 401, 402, 403, 404, 405, 407]), "SHHHHHH");
        assert_eq!(of(&[408, 409, 410, 413, 415, 418, 422, 425, 429]), "RHHLHHSRR");
        assert_eq!(of(&[500, 501, 502, 503, 504, 507, 599]), "RRRRRRR");
        assert_eq!(of(&[100, 600, 999]), "HHH");
    }

    #[test]
    fn only_configured_statuses_are_successes() {
        assert_eq!(outcome(204, &[204..=204]), Outcome::Accepted);
        assert_eq!(outcome(409, &[200..=204, 409..=409]), Outcome::Accepted);
        let Outcome::Failed(Rest::Hold { after, reason }) = outcome(200, &[204..=204]) else {
            panic!()
        };
        assert_eq!(reason, "response 200 (some text): check `endpoint` and `success`");
        assert_eq!(after.unwrap().as_secs(), 7);
    }

    proptest::proptest! {
        #[test]
        fn no_other_status_acknowledges(status in 0_u16..1000, from in 0_u16..1000, length in 0_u16..50) {
            let success = from..=from + length;
            let is_accepted = outcome(status, std::slice::from_ref(&success)) == Outcome::Accepted;
            assert_eq!(is_accepted, success.contains(&status));
        }
    }
}
