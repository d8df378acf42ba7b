//! Interprets responses to requests with log records: a pure function.

use std::time::SystemTime;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsPartialSuccess;
use prost::Message;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use serde_json::Value;
use siem_protocol::delivery::Rest;

use crate::http::{Answer, NoAnswer, retry_after};

/// Content type of requests and of most responses.
pub(super) const PROTOBUF: &str = "application/x-protobuf";
/// Maximum number of bytes kept of a refusal.
const MAX_REFUSAL: usize = 4 << 10;
/// Maximum number of characters of a response in a reason.
const MAX_REASON: usize = 200;

/// Outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All log records were accepted.
    Accepted {
        /// Message of the receiver for people.
        warning: Option<String>,
    },
    /// Some log records were refused, and the others accepted.
    Partial {
        /// Number of refused log records; at least 1 and less than the number sent.
        rejected: u64,
        /// Message of the receiver.
        message: String,
    },
    /// No log record was accepted.
    Failed(Rest),
}

/// Meaning of a status other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// The same request is sent again later.
    Retry,
    /// The content, or the size, of the request is refused.
    Refused,
    /// A person must act; with the remedy.
    Hold(&'static str),
}

use Meaning::{Hold, Refused, Retry};

const CHECK_PATH: &str = "check the path of `endpoint`";

/// Statuses and their meaning. The specification lets clients discard log records after any status but
/// 429, 502, 503 and 504; the data is kept instead, and delivery is held or the refused entry found.
const STATUSES: [(u16, Meaning); 15] = [
    (400, Refused),
    (401, Hold("check the API key in `headers`")),
    (403, Hold("check the rights of the API key in `headers`")),
    (404, Hold(CHECK_PATH)),
    (405, Hold(CHECK_PATH)),
    (
        407,
        Hold("the proxy requires (other) credentials: set `proxy_user` and `proxy_password_file`"),
    ),
    (408, Retry),
    (413, Refused),
    (415, Hold("the receiver accepts no protobuf, or no gzip: try `compression = \"none\"`")),
    (422, Refused),
    (425, Retry),
    (429, Retry),
    (502, Retry),
    (503, Retry),
    (504, Retry),
];

/// Returns the meaning of a status other than success.
fn meaning(status: u16) -> Meaning {
    match (STATUSES.iter().find(|(known, _)| *known == status), status) {
        (Some((_, meaning)), _) => *meaning,
        (None, 300..=399) => Hold("redirects are not followed: set the final URL as `endpoint`"),
        (None, 500..) => Hold("the receiver failed, check its log"),
        (None, _) => Hold(CHECK_PATH),
    }
}

/// Returns the outcome of a request with `records` log records, at the time `now`.
pub(super) fn interpret(
    reply: &Result<Answer, NoAnswer>,
    records: u64,
    now: SystemTime,
) -> Outcome {
    let answer = match reply {
        Ok(answer) => answer,
        Err(error) => return Outcome::Failed(error.into()),
    };
    let after = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let after = after.and_then(|value| retry_after(value, now));
    let status = answer.status;
    if (200..300).contains(&status) {
        return success(answer, records).unwrap_or_else(|| {
            let reason = format!(
                "the response {status} is not one of OTLP: check whether a proxy responds in place \
                 of the receiver, and the path of `endpoint`"
            );
            Outcome::Failed(Rest::Hold { after, reason })
        });
    }
    let message = message(answer);
    let said = |message: &str| match printable(message, MAX_REASON) {
        message if message.is_empty() => message,
        message => format!(" ({message})"),
    };
    Outcome::Failed(match meaning(status) {
        Retry => {
            let reason = format!("the receiver responded with {status}{}", said(&message));
            Rest::Retry { after, reason }
        }
        Refused => Rest::Refused { status, answer: printable(&message, MAX_REFUSAL) },
        Hold(remedy) => {
            let reason =
                format!("the receiver responded with {status}: {remedy}{}", said(&message));
            Rest::Hold { after, reason }
        }
    })
}

/// Interprets a response with a status of success; `None` if it is not one of OTLP.
fn success(answer: &Answer, records: u64) -> Option<Outcome> {
    let partial = partial_success(answer)?;
    let rejected = u64::try_from(partial.rejected_log_records).ok()?;
    let message = printable(&partial.error_message, MAX_REFUSAL);
    Some(match rejected {
        0 => Outcome::Accepted { warning: Some(message).filter(|message| !message.is_empty()) },
        _ if rejected < records => Outcome::Partial { rejected, message },
        _ if message.is_empty() => {
            let answer = format!("{rejected} log records rejected without a message");
            Outcome::Failed(Rest::Refused { status: 400, answer })
        }
        _ => Outcome::Failed(Rest::Refused { status: 400, answer: message }),
    })
}

/// Parses the response to a request that succeeded at least in part. A body that is empty means full
/// success, also with 204; captive portals respond with a page.
fn partial_success(answer: &Answer) -> Option<ExportLogsPartialSuccess> {
    let content_type = content_type(answer);
    if !answer.is_whole || content_type.starts_with("text/html") {
        return None;
    }
    let body = &*answer.body;
    if body.trim_ascii_start().starts_with(b"{") {
        return json_partial_success(body);
    }
    let response = Response::decode(body).ok()?;
    // Other bytes may happen to be valid protobuf, with fields that the message does not have.
    let is_known = response.encoded_len() == body.len();
    (is_known || content_type.starts_with(PROTOBUF)).then(|| {
        let partial = response.partial_success.unwrap_or_default();
        let error_message = String::from_utf8_lossy(&partial.error_message).into_owned();
        let rejected_log_records = partial.rejected_log_records;
        ExportLogsPartialSuccess { rejected_log_records, error_message }
    })
}

/// `ExportLogsServiceResponse`, with a message that need not be UTF-8: a server may have cut it inside a
/// character, and the number counts all the same.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_log_records: i64,
    #[prost(bytes = "vec", tag = "2")]
    error_message: Vec<u8>,
}

/// Returns a response with a shorter message in place of one that is too long to be kept, of which `start`
/// is the beginning and `length` the number of bytes. The message may name each log record.
///
/// `None` if it is not in protobuf, or if another field may follow the message: the last value of a field
/// counts, so that the number of rejected log records is known only if the message is the last field, as
/// encoders write it.
pub(super) fn shortened(start: &[u8], length: usize) -> Option<Vec<u8>> {
    /// Key of `partial_success`, and of `error_message` in it.
    const KEYS: [u8; 2] = [0x0a, 0x12];
    const REJECTED: u8 = 0x08;
    let ends_with_response =
        |rest: &[u8], size| (length - (start.len() - rest.len()) == size).then_some(());

    let mut rest = start.strip_prefix(&KEYS[..1])?;
    let size = prost::decode_length_delimiter(&mut rest).ok()?;
    ends_with_response(rest, size)?;
    let mut rejected_log_records = 0;
    if let Some(number) = rest.strip_prefix(&[REJECTED]) {
        rest = number;
        rejected_log_records =
            i64::try_from(prost::decode_length_delimiter(&mut rest).ok()?).ok()?;
    }
    rest = rest.strip_prefix(&KEYS[1..])?;
    let size = prost::decode_length_delimiter(&mut rest).ok()?;
    ends_with_response(rest, size)?;
    let error_message = rest[..rest.len().min(2 * MAX_REFUSAL)].to_vec();
    let partial_success = Some(PartialSuccess { rejected_log_records, error_message });
    Some(Response { partial_success }.encode_to_vec())
}

/// Parses a response in JSON: an object that is empty or has `partialSuccess`.
fn json_partial_success(body: &[u8]) -> Option<ExportLogsPartialSuccess> {
    let Value::Object(response) = serde_json::from_slice(body).ok()? else { return None };
    let partial = match member(&response, ["partialSuccess", "partial_success"]) {
        Some(Value::Object(partial)) => partial,
        Some(Value::Null) => return Some(ExportLogsPartialSuccess::default()),
        None if response.is_empty() => return Some(ExportLogsPartialSuccess::default()),
        _ => return None,
    };
    let rejected_log_records = match member(partial, ["rejectedLogRecords", "rejected_log_records"])
    {
        None | Some(Value::Null) => 0,
        Some(Value::Number(number)) => number.as_i64()?,
        Some(Value::String(number)) => number.parse().ok()?,
        Some(_) => return None,
    };
    let message = member(partial, ["errorMessage", "error_message"]);
    let error_message = message.and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(ExportLogsPartialSuccess { rejected_log_records, error_message })
}

/// Returns a member under either of its names.
fn member<'a>(object: &'a serde_json::Map<String, Value>, names: [&str; 2]) -> Option<&'a Value> {
    names.iter().find_map(|name| object.get(*name))
}

/// `google.rpc.Status`, the body of responses to failed requests.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
}

/// Returns the message of a response to a failed request.
fn message(answer: &Answer) -> String {
    if content_type(answer).starts_with(PROTOBUF)
        && let Ok(status) = Status::decode(&*answer.body)
    {
        return status.message;
    }
    let json: Option<Value> = serde_json::from_slice(&answer.body).ok();
    match json.as_ref().and_then(|json| json.get("message")).and_then(Value::as_str) {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(&answer.body).into_owned(),
    }
}

fn content_type(answer: &Answer) -> String {
    let value = answer.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().trim().to_ascii_lowercase()
}

/// Returns at most `max` bytes of a text, without control characters.
fn printable(text: &str, max: usize) -> String {
    let mut out = String::new();
    for character in text.trim().chars().filter(|character| !character.is_control()) {
        if out.len() + character.len_utf8() > max {
            break;
        }
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests;
