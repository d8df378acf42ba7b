//! Interprets the response of a receiver to a batch: a pure function.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::Deserialize;
use siem_protocol::{Problem, Receipt};

use super::Delivery;
use siem_sinks::http::{Answer, NoAnswer, retry_after};

use crate::{platform::Timestamp, text::summary};

/// Maximum number of bytes kept of a refusal.
const MAX_REFUSAL: usize = 4 << 10;
/// Time that a receiver is taken to have waited for a batch before it responds with 408.
const WAITED: Duration = Duration::from_secs(60);

/// Kind of response that acknowledges a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Acknowledgement {
    /// A 2xx response whose JSON body has a `last_seq` that covers the batch. Captive portals respond
    /// with 200 too.
    #[default]
    Receipt,
    /// Any 2xx response: for receivers that do not implement the protocol.
    Status,
}

/// Entries that a receipt must cover.
#[derive(Clone, Copy, Debug)]
pub(super) enum RequiredReceipt<'a> {
    /// All entries up to this number.
    UpTo(u64),
    /// The entries with these numbers: a redelivery.
    Each(&'a [u64]),
}

/// Returns the result of a delivery to a receiver whose keys are not pinned: the status and the
/// unsigned body are believed.
#[must_use]
pub(super) fn interpret(
    reply: &Result<Answer, NoAnswer>,
    acknowledgement: Acknowledgement,
    required: RequiredReceipt<'_>,
    now: Timestamp,
) -> Delivery {
    let (status, headers, body) = match reply {
        Ok(Answer { status, headers, body, .. }) => (status, headers, body),
        Err(NoAnswer { reason, needs_person: true, .. }) => {
            return Delivery::Hold { after: None, reason: reason.clone() };
        }
        Err(NoAnswer { reason, waited: Some(waited), .. }) => {
            return Delivery::Slow { waited: *waited, reason: reason.clone() };
        }
        Err(NoAnswer { reason, .. }) => {
            return Delivery::Retry { after: None, reason: reason.clone() };
        }
    };
    let after = headers
        .get(reqwest::header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| retry_after(value, system_time(now)));
    match status {
        200..=299 if covers(acknowledgement, body, required) => Delivery::Acknowledged,
        200..=299 => Delivery::Hold {
            after,
            reason: format!(
                "the response {status} has no receipt that covers the batch: check whether a \
                 proxy responds in place of the receiver, or set `acknowledgement = \"status\"`"
            ),
        },
        // The same batch would take as long again.
        408 => Delivery::Slow { waited: WAITED, reason: status_reason(*status, body) },
        425 | 429 | 500..=599 => Delivery::Retry { after, reason: status_reason(*status, body) },
        409 => conflict(body),
        413 | 422 => Delivery::Refused { status: *status, answer: refusal(body) },
        _ => {
            let hint = match status {
                401 => ": check the token",
                403 => ": check the HMAC secret",
                404 => ": check the endpoint",
                300..=399 => ": redirects are not followed, configure the final URL as endpoint",
                407 => {
                    ": the proxy rejected the credentials or requires some: set `proxy_user` and \
                     `proxy_password_file`, or put them into the proxy URL of the environment"
                }
                _ => "",
            };
            let reason =
                format!("the receiver responded with {status}{hint}{}", quoted_summary(body));
            Delivery::Hold { after, reason }
        }
    }
}

fn status_reason(status: u16, body: &[u8]) -> String {
    format!("the receiver responded with {status}{}", quoted_summary(body))
}

/// Returns the result of a batch that conflicts with what the receiver holds.
pub(super) fn conflict(body: &[u8]) -> Delivery {
    Delivery::Conflict { expected: problem(body).and_then(|problem| problem.expected_seq) }
}

/// Returns whether the response to a redelivery lists all of `seqs`.
pub(super) fn accepts_each(body: &[u8], seqs: &[u64]) -> bool {
    covers(Acknowledgement::Receipt, body, RequiredReceipt::Each(seqs))
}

/// Returns whether the receiver asks for an enrollment.
pub(super) fn asks_for_enrollment(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Asks {
        #[serde(default)]
        enroll: bool,
    }
    serde_json::from_slice::<Asks>(body).is_ok_and(|asks| asks.enroll)
}

fn covers(acknowledgement: Acknowledgement, body: &[u8], required: RequiredReceipt<'_>) -> bool {
    if acknowledgement == Acknowledgement::Status {
        return true;
    }
    // Serde deserializes an array as a struct, but `[10]` is not a receipt.
    if !body.trim_ascii_start().starts_with(b"{") {
        return false;
    }
    let Ok(receipt) = serde_json::from_slice::<Receipt>(body) else { return false };
    match required {
        RequiredReceipt::UpTo(last_seq) => {
            receipt.last_seq.is_some_and(|covered| covered >= last_seq)
        }
        RequiredReceipt::Each(seqs) => {
            let accepted = receipt.accepted_seqs.unwrap_or_default();
            seqs.iter().all(|seq| accepted.contains(seq))
        }
    }
}

fn system_time(at: Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(at.0)
}

fn problem(body: &[u8]) -> Option<Problem> {
    serde_json::from_slice(body).ok()
}

/// Returns the summary of a problem document in parentheses; empty for other responses.
fn quoted_summary(body: &[u8]) -> String {
    problem_summary(body).map(|words| format!(" ({words})")).unwrap_or_default()
}

/// Returns the detail or title of a problem document, shortened and without control characters.
pub(crate) fn problem_summary(body: &[u8]) -> Option<String> {
    let Problem { detail, title, .. } = problem(body)?;
    Some(summary(&detail.unwrap_or(title)))
}

/// Returns a response for people, shortened.
pub(super) fn refusal(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(MAX_REFUSAL)]).into_owned()
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderMap;

    use super::*;

    /// 2026-11-21T20:00:00Z.
    const NOW: Timestamp = Timestamp(1_795_291_200_000);

    fn answered(status: u16, body: &str, retry_after: Option<&str>) -> Result<Answer, NoAnswer> {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert("retry-after", value.parse().unwrap());
        }
        Ok(Answer { status, headers, body: body.as_bytes().to_vec(), is_whole: true })
    }

    fn delivery(status: u16, body: &str) -> Delivery {
        interpret(
            &answered(status, body, None),
            Acknowledgement::Receipt,
            RequiredReceipt::UpTo(10),
            NOW,
        )
    }

    #[test]
    fn only_a_receipt_that_covers_the_batch_acknowledges() {
        assert_eq!(delivery(200, r#"{"last_seq":10}"#), Delivery::Acknowledged);
        assert_eq!(delivery(200, r#"{"last_seq":99,"accepted":1}"#), Delivery::Acknowledged);
        for body in
            ["", "{}", "[10]", "<html>sign in</html>", r#"{"last_seq":9}"#, r#"{"last_seq":"10"}"#]
        {
            assert!(matches!(delivery(200, body), Delivery::Hold { .. }), "{body}");
        }
    }

    #[test]
    fn redelivery_is_acknowledged_by_numbers() {
        let result = |body| {
            let required = RequiredReceipt::Each(&[3, 5]);
            interpret(&answered(200, body, None), Acknowledgement::Receipt, required, NOW)
        };
        assert_eq!(result(r#"{"accepted":1,"accepted_seqs":[5,3]}"#), Delivery::Acknowledged);
        for body in [r#"{"last_seq":9}"#, r#"{"accepted_seqs":[3]}"#, r#"{"accepted_seqs":[]}"#] {
            assert!(matches!(result(body), Delivery::Hold { .. }), "{body}");
        }
    }

    #[test]
    fn with_status_any_2xx_acknowledges() {
        let result = |status| {
            interpret(
                &answered(status, "", None),
                Acknowledgement::Status,
                RequiredReceipt::UpTo(10),
                NOW,
            )
        };
        assert_eq!(result(200), Delivery::Acknowledged);
        assert_eq!(result(204), Delivery::Acknowledged);
        assert!(matches!(result(302), Delivery::Hold { .. }));
    }

    #[test]
    fn status_determines_the_result() {
        assert!(matches!(delivery(408, ""), Delivery::Slow { .. }));
        for status in [425, 429, 500, 502, 503, 504, 507, 599] {
            assert!(matches!(delivery(status, ""), Delivery::Retry { .. }), "{status}");
        }
        for status in [100, 301, 302, 307, 400, 401, 403, 404, 405, 407, 410, 415, 418, 451] {
            assert!(matches!(delivery(status, ""), Delivery::Hold { .. }), "{status}");
        }
        for status in [413, 422] {
            let answer = "too much".to_owned();
            assert_eq!(delivery(status, "too much"), Delivery::Refused { status, answer });
        }
        let problem = r#"{"type":"about:blank","title":"conflict","status":409,"expected_seq":7}"#;
        assert_eq!(delivery(409, problem), Delivery::Conflict { expected: Some(7) });
        assert_eq!(delivery(409, "?"), Delivery::Conflict { expected: None });
    }

    #[test]
    fn retry_after_is_at_most_an_hour() {
        let cases = [
            ("0", None),
            ("7", Some(7)),
            (" 7 ", Some(7)),
            ("999999", Some(3600)),
            ("99999999999999999999999999", Some(3600)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
            ("Sat, 21 Nov 2026 20:00:30 GMT", Some(30)),
            ("Sat, 21 Nov 2026 19:00:00 GMT", None),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(3600)),
        ];
        for (value, expected) in cases {
            let result = interpret(
                &answered(503, "", Some(value)),
                Acknowledgement::Receipt,
                RequiredReceipt::UpTo(1),
                NOW,
            );
            let Delivery::Retry { after, .. } = result else { panic!("{value}") };
            assert_eq!(after, expected.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn missing_response_is_retried() {
        let reason = "connection refused".to_owned();
        let result = |alarm| {
            let reply = Err(NoAnswer { reason: reason.clone(), needs_person: alarm, waited: None });
            interpret(&reply, Acknowledgement::Status, RequiredReceipt::UpTo(1), NOW)
        };
        assert_eq!(result(false), Delivery::Retry { after: None, reason: reason.clone() });
        assert_eq!(result(true), Delivery::Hold { after: None, reason: reason.clone() });
    }

    #[test]
    fn problem_summary_is_short_and_printable() {
        let long = "x\u{1b}[31m".repeat(1000);
        let problem = serde_json::json!({"type":"a","title":"t","status":400,"detail":long});
        let Delivery::Hold { reason, .. } = delivery(400, &problem.to_string()) else { panic!() };
        assert!(reason.len() < 300 && !reason.contains('\u{1b}'), "{reason}");
    }
}
