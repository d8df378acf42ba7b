//! What a receiver's answer to a batch means. A pure function of the answer.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use siem_protocol::{Problem, Receipt};

use super::Delivery;
use crate::{platform::Timestamp, siem::RequestOutcome};

/// The longest that a receiver may put the agent off.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// How much of a refusal is kept.
const WORDS: usize = 4 << 10;

/// What acknowledges a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Acknowledgement {
    /// A 2xx answer whose JSON body has a `last_seq` that covers the batch. A captive portal
    /// answers 200 too.
    #[default]
    Receipt,
    /// Any 2xx answer: for receivers that are not made for this agent.
    Status,
}

/// What a receipt must cover.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owed<'a> {
    /// All up to this number.
    UpTo(u64),
    /// Each of these numbers: a redelivery.
    Each(&'a [u64]),
}

/// Says what `reply` means for a batch that owes this.
#[must_use]
pub(super) fn judge(
    reply: &RequestOutcome,
    acknowledgement: Acknowledgement,
    owed: Owed<'_>,
    now: Timestamp,
) -> Delivery {
    let (status, headers, body) = match reply {
        RequestOutcome::Answered { status, headers, body, .. } => (status, headers, body),
        RequestOutcome::Failed { reason, alarm: true, .. } => {
            return Delivery::Hold { after: None, reason: reason.clone() };
        }
        RequestOutcome::Failed { reason, waited: Some(waited), .. } => {
            return Delivery::Slow { waited: *waited, reason: reason.clone() };
        }
        RequestOutcome::Failed { reason, .. } => {
            return Delivery::Retry { after: None, reason: reason.clone() };
        }
    };
    let after = headers
        .get(reqwest::header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| retry_after(value, now));
    match status {
        200..=299 if covers(acknowledgement, body, owed) => Delivery::Acknowledged,
        200..=299 => Delivery::Hold {
            after,
            reason: format!(
                "the answer {status} carries no receipt that covers the batch: is something \
                 between the agent and the receiver, or is `acknowledgement = \"status\"` wanted?"
            ),
        },
        408 | 425 | 429 | 500..=599 => Delivery::Retry {
            after,
            reason: format!("the receiver answered {status}{}", said(body)),
        },
        409 => {
            Delivery::Conflict { expected: problem(body).and_then(|problem| problem.expected_seq) }
        }
        413 | 422 => Delivery::Refused { status: *status, answer: words(body) },
        _ => {
            let hint = match status {
                401 => ": is the token right?",
                403 => ": is the HMAC secret right?",
                404 => ": is the endpoint right?",
                300..=399 => ": redirects are not followed, give the endpoint itself",
                407 => {
                    ": the proxy wants credentials, or others: give `proxy_user` and \
                     `proxy_password_file`, or put them into the proxy's URL in the environment"
                }
                _ => "",
            };
            let reason = format!("the receiver answered {status}{hint}{}", said(body));
            Delivery::Hold { after, reason }
        }
    }
}

fn covers(acknowledgement: Acknowledgement, body: &[u8], owed: Owed<'_>) -> bool {
    if acknowledgement == Acknowledgement::Status {
        return true;
    }
    // Serde takes an array for a struct, member by member: `[10]` is no receipt.
    if !body.trim_ascii_start().starts_with(b"{") {
        return false;
    }
    let Ok(receipt) = serde_json::from_slice::<Receipt>(body) else { return false };
    match owed {
        Owed::UpTo(last_seq) => receipt.last_seq.is_some_and(|covered| covered >= last_seq),
        Owed::Each(seqs) => {
            let accepted = receipt.accepted_seqs.unwrap_or_default();
            seqs.iter().all(|seq| accepted.contains(seq))
        }
    }
}

/// Reads `Retry-After` (RFC 9110, 10.2.3): seconds or a date, an hour at most. What lies in the
/// past or can't be read is as if it were not there.
#[must_use]
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    let wait = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits beyond the range of a number are still a very long time.
        value.parse().map_or(LONGEST_RETRY_AFTER, Duration::from_secs)
    } else {
        Timestamp::from(httpdate::parse_http_date(value).ok()?).since(now)
    };
    (!wait.is_zero()).then(|| wait.min(LONGEST_RETRY_AFTER))
}

fn problem(body: &[u8]) -> Option<Problem> {
    serde_json::from_slice(body).ok()
}

/// The receiver's own words, if its answer is a problem document.
fn said(body: &[u8]) -> String {
    gist(body).map(|words| format!(" ({words})")).unwrap_or_default()
}

/// What a problem document says this time, short and plain.
pub(crate) fn gist(body: &[u8]) -> Option<String> {
    let Problem { detail, title, .. } = problem(body)?;
    let words = detail.unwrap_or(title);
    Some(words.chars().filter(|character| !character.is_control()).take(200).collect())
}

fn words(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(WORDS)]).into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use reqwest::header::HeaderMap;

    use super::*;

    /// 2026-11-21T20:00:00Z.
    const NOW: Timestamp = Timestamp(1_795_291_200_000);

    fn answered(status: u16, body: &str, retry_after: Option<&str>) -> RequestOutcome {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert("retry-after", value.parse().unwrap());
        }
        RequestOutcome::Answered { status, headers, body: body.as_bytes().to_vec(), whole: true }
    }

    fn delivery(status: u16, body: &str) -> Delivery {
        judge(&answered(status, body, None), Acknowledgement::Receipt, Owed::UpTo(10), NOW)
    }

    #[test]
    fn only_a_receipt_that_covers_the_batch_acknowledges_it() {
        assert_eq!(delivery(200, r#"{"last_seq":10}"#), Delivery::Acknowledged);
        assert_eq!(delivery(200, r#"{"last_seq":99,"accepted":1}"#), Delivery::Acknowledged);
        for body in
            ["", "{}", "[10]", "<html>sign in</html>", r#"{"last_seq":9}"#, r#"{"last_seq":"10"}"#]
        {
            assert!(matches!(delivery(200, body), Delivery::Hold { .. }), "{body}");
        }
    }

    #[test]
    fn a_redelivery_is_acknowledged_number_by_number() {
        let judged = |body| {
            let owed = Owed::Each(&[3, 5]);
            judge(&answered(200, body, None), Acknowledgement::Receipt, owed, NOW)
        };
        assert_eq!(judged(r#"{"accepted":1,"accepted_seqs":[5,3]}"#), Delivery::Acknowledged);
        for body in [r#"{"last_seq":9}"#, r#"{"accepted_seqs":[3]}"#, r#"{"accepted_seqs":[]}"#] {
            assert!(matches!(judged(body), Delivery::Hold { .. }), "{body}");
        }
    }

    #[test]
    fn by_status_any_2xx_acknowledges() {
        let judged = |status| {
            judge(&answered(status, "", None), Acknowledgement::Status, Owed::UpTo(10), NOW)
        };
        assert_eq!(judged(200), Delivery::Acknowledged);
        assert_eq!(judged(204), Delivery::Acknowledged);
        assert!(matches!(judged(302), Delivery::Hold { .. }));
    }

    #[test]
    fn every_status_has_its_meaning() {
        for status in [408, 425, 429, 500, 502, 503, 504, 507, 599] {
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
    fn a_receiver_may_put_the_agent_off_for_an_hour_at_most() {
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
            let judged = judge(
                &answered(503, "", Some(value)),
                Acknowledgement::Receipt,
                Owed::UpTo(1),
                NOW,
            );
            let Delivery::Retry { after, .. } = judged else { panic!("{value}") };
            assert_eq!(after, expected.map(Duration::from_secs), "{value}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_receiver_wants_is_a_wait_of_an_hour_at_most(value in "\\PC{0,40}|[0-9 ]{0,30}") {
            if let Some(wait) = retry_after(&value, NOW) {
                assert!(!wait.is_zero() && wait <= LONGEST_RETRY_AFTER, "{wait:?}");
            }
        }

        #[test]
        fn a_wait_in_seconds_is_taken_as_it_is(seconds: u64) {
            let expected = Some(Duration::from_secs(seconds.min(3600))).filter(|w| !w.is_zero());
            assert_eq!(retry_after(&seconds.to_string(), NOW), expected);
        }

        #[test]
        fn a_date_is_waited_for(ahead in 1_u64..100_000_000) {
            let date = UNIX_EPOCH + Duration::from_millis(NOW.0) + Duration::from_secs(ahead);
            let expected = Duration::from_secs(ahead.min(3600));
            assert_eq!(retry_after(&httpdate::fmt_http_date(date), NOW), Some(expected));
        }
    }

    #[test]
    fn no_answer_is_retried() {
        let reason = "connection refused".to_owned();
        let judged = |alarm| {
            let reply = RequestOutcome::Failed { reason: reason.clone(), alarm, waited: None };
            judge(&reply, Acknowledgement::Status, Owed::UpTo(1), NOW)
        };
        assert_eq!(judged(false), Delivery::Retry { after: None, reason: reason.clone() });
        assert_eq!(judged(true), Delivery::Hold { after: None, reason: reason.clone() });
    }

    #[test]
    fn the_receivers_words_are_short_and_plain() {
        let long = "x\u{1b}[31m".repeat(1000);
        let problem = serde_json::json!({"type":"a","title":"t","status":400,"detail":long});
        let Delivery::Hold { reason, .. } = delivery(400, &problem.to_string()) else { panic!() };
        assert!(reason.len() < 300 && !reason.contains('\u{1b}'), "{reason}");
    }
}
