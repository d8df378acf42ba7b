//! Encodes events as log records, and encloses log records in a request.

use std::time::Duration;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    logs::v1::{LogRecord, SeverityNumber},
    resource::v1::Resource,
};
use prost::{
    Message as _,
    encoding::{self, WireType},
};
use siem_protocol::{BatchHeader, names::severity};

use super::value;
use crate::{
    event::{Event, Names, PartOf, Value, sender_fields},
    part::{Part, Size},
};

/// Field numbers of `ExportLogsServiceRequest`, `ResourceLogs` and `ScopeLogs`.
const RESOURCE_LOGS: u32 = 1;
const RESOURCE: u32 = 1;
const SCOPE_LOGS: u32 = 2;
const SCOPE: u32 = 1;
const LOG_RECORDS: u32 = 2;

/// Maximum number of bytes that a body needs besides its content: two keys and two lengths.
const BODY_BYTES: usize = 12;
/// Maximum number of bytes that a field needs besides its content: a key and a length.
const FIELD_BYTES: usize = 11;
/// A larger number of parts than any event has.
const MANY: usize = 999_999_999;

/// Severity numbers of the agent's events.
const SEVERITIES: [(&str, SeverityNumber); 3] = [
    (severity::INFO, SeverityNumber::Info),
    (severity::WARNING, SeverityNumber::Warn),
    (severity::HIGH, SeverityNumber::Error),
];

/// Fields that enclose the log records of a request: they describe the sender.
#[derive(Debug)]
pub(super) struct Sender {
    resource: Vec<u8>,
    scope: Vec<u8>,
}

impl Sender {
    /// Encodes the fields of the sender of a batch.
    pub(super) fn of(header: &BatchHeader) -> Self {
        let mut attributes = Vec::new();
        sender_fields(header, Names::OpenTelemetry, &mut |name, value| {
            attributes.extend(attribute(name, value));
        });
        let resource = Resource { attributes, ..Resource::default() };
        let scope = InstrumentationScope {
            name: "ai-agent".to_owned(),
            version: header.agent_version.clone(),
            ..InstrumentationScope::default()
        };
        Self { resource: field(RESOURCE, &resource), scope: field(SCOPE, &scope) }
    }

    /// Describes no sender, for a request without log records.
    pub(super) fn empty() -> Self {
        Self { resource: Vec::new(), scope: Vec::new() }
    }

    /// Returns the maximum number of bytes that [`enclose`](Self::enclose) adds.
    pub(super) fn size(&self) -> usize {
        self.resource.len() + self.scope.len() + 2 * FIELD_BYTES
    }

    /// Returns a request with encoded log records.
    pub(super) fn enclose(&self, records: &[u8]) -> Vec<u8> {
        let scope_logs = start(SCOPE_LOGS, self.scope.len() + records.len());
        let inner = scope_logs.len() + self.scope.len() + records.len();
        let resource_logs = start(RESOURCE_LOGS, self.resource.len() + inner);
        [&resource_logs, &self.resource, &scope_logs, &self.scope, records].concat()
    }
}

/// Encodes a message as a field.
fn field(number: u32, message: &impl prost::Message) -> Vec<u8> {
    let mut out = Vec::new();
    encoding::message::encode(number, message, &mut out);
    out
}

/// Encodes the start of a field with a message of `len` bytes.
fn start(number: u32, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(FIELD_BYTES);
    encoding::encode_key(number, WireType::LengthDelimited, &mut out);
    encoding::encode_varint(len as u64, &mut out);
    out
}

/// Appends a log record to the log records of a request.
pub(super) fn append(record: &LogRecord, out: &mut Vec<u8>) {
    encoding::message::encode(LOG_RECORDS, record, out);
}

/// Passes the log records of an event to `visit`: one, or several parts of at most `max_bytes` each.
/// Attributes that need more than half of that leave the other half for the content.
pub(super) fn log_records(event: &Event<'_>, max_bytes: usize, mut visit: impl FnMut(&LogRecord)) {
    let mut record = log_record(event, PartOf { index: 1, total: 1 });
    let room = max_bytes.saturating_sub(record.encoded_len() + BODY_BYTES + FIELD_BYTES);
    let content = &event.content;
    if content.as_bytes().len() > room {
        let largest = log_record(event, PartOf { index: MANY, total: MANY });
        let fields = largest.encoded_len() + BODY_BYTES + FIELD_BYTES;
        let room = max_bytes.saturating_sub(fields).max(max_bytes / 2);
        let parts = content.parts(room, Size::Utf8);
        for (index, part) in (1..).zip(&parts) {
            let mut record = log_record(event, PartOf { index, total: parts.len() });
            record.body = Some(body(*part));
            visit(&record);
        }
        return;
    }
    for part in content.parts(usize::MAX, Size::Utf8) {
        record.body = Some(body(part));
        visit(&record);
    }
}

/// Creates the log record of a part, without body.
fn log_record(event: &Event<'_>, part: PartOf) -> LogRecord {
    let mut attributes = Vec::with_capacity(16);
    event.fields(Names::OpenTelemetry, part, &mut |name, value| {
        attributes.extend(attribute(name, value));
    });
    let severity = event.entry.severity.as_deref().unwrap_or_default();
    let number = SEVERITIES.iter().find(|(name, _)| *name == severity);
    LogRecord {
        time_unix_nano: nanos(event.time),
        observed_time_unix_nano: nanos(event.observed),
        severity_number: number.map_or(SeverityNumber::Unspecified, |(_, number)| *number).into(),
        severity_text: severity.to_owned(),
        event_name: event.entry.event.as_deref().unwrap_or_default().to_owned(),
        attributes,
        ..LogRecord::default()
    }
}

fn body(part: Part<'_>) -> AnyValue {
    let value = match part {
        Part::Text(text) => any_value::Value::StringValue(text.to_owned()),
        Part::Bytes(bytes) => any_value::Value::BytesValue(bytes.to_owned()),
    };
    AnyValue { value: Some(value) }
}

/// Encodes a field as an attribute; `None` if its value is null.
fn attribute(name: &str, value: Value<'_>) -> Option<KeyValue> {
    let value = Some(AnyValue { value: Some(value::encode(value)?) });
    Some(KeyValue { key: name.to_owned(), value, ..KeyValue::default() })
}

/// Returns nanoseconds since 1970, as far as the protocol can express them: up to the year 2554.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
