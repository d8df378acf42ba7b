//! Maps an entry to an event with the names of ECS or OpenTelemetry.
//!
//! The table is in `docs/siem/fields.md`. Sinks only encode the fields that this module names.

pub mod names;
mod parse;

use std::{
    borrow::Cow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use data_encoding::HEXLOWER;
use siem_protocol::{BatchHeader, Digest, Entry, EntryError, Kind, json};

pub(crate) use self::parse::time_of;
use self::{names::Field, parse::Parsed};
use crate::part::Content;

/// Naming of fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Elastic Common Schema.
    Ecs,
    /// OpenTelemetry semantic conventions.
    OpenTelemetry,
}

/// Time of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TimeOf {
    /// `timestamp` of the record; the time of reading if it has none.
    #[default]
    Record,
    /// Time at which the agent read the record.
    Read,
}

impl Names {
    fn of(self, field: &Field) -> Option<&'static str> {
        match self {
            Self::Ecs => field.ecs,
            Self::OpenTelemetry => field.otel,
        }
    }
}

/// Value of a field.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// A string.
    Text(&'a str),
    /// A number.
    Number(u64),
    /// True or false.
    Bool(bool),
    /// A value as JSON text.
    Json(&'a str),
}

/// An entry as an event.
#[derive(Debug)]
pub struct Event<'a> {
    /// Stable id: the same whenever the entry is sent again. That of a record is the same in any epoch
    /// too; an event of the agent has no identity but its number.
    pub id: String,
    /// The record, byte for byte; for an event of the agent its data as JSON.
    pub content: Content<'a>,
    /// SHA-256 of the content.
    pub hash: Digest,
    /// Time of the event, since 1970-01-01 UTC.
    pub time: Duration,
    /// Time at which the agent read or created it, since 1970-01-01 UTC.
    pub observed: Duration,
    /// The entry, without the members that became `content`.
    pub entry: Entry<'a>,
    /// Members that enrichers added: name and JSON text.
    pub enriched: Vec<(Cow<'a, str>, &'a str)>,
}

/// Position of a part in the content of an event that was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartOf {
    /// Number of the part, from 1.
    pub index: usize,
    /// Number of parts.
    pub total: usize,
}

impl<'a> Event<'a> {
    /// Maps the line of an entry.
    ///
    /// # Errors
    /// [`EntryError`] if `line` is not an entry.
    pub fn of(line: &'a [u8], header: &BatchHeader, time: TimeOf) -> Result<Self, EntryError> {
        let Parsed { entry, content, enriched, timestamp } = Parsed::of(line)?;
        let hash = Digest::of(content.as_bytes());
        let observed = entry.read_at.as_deref().or(entry.at.as_deref()).and_then(since_1970);
        let observed = observed.unwrap_or_default();
        let id = id(&entry, header);
        let time = match time {
            TimeOf::Record => timestamp.unwrap_or(observed),
            TimeOf::Read => observed,
        };
        Ok(Self { id, content, hash, time, observed, entry, enriched })
    }

    /// Returns the id of a part; of the whole event if it was not cut. It names the number of parts
    /// too, because the same entry is cut elsewhere after a change of the limit.
    #[must_use]
    pub fn part_id(&self, part: PartOf) -> Cow<'_, str> {
        match part.total {
            1 => Cow::Borrowed(&self.id),
            _ => Cow::Owned(format!("{}.{}-{}", self.id, part.index, part.total)),
        }
    }

    /// Passes the fields of the event, or of a part of it, to `visit`. Time and content are not
    /// among them; fields of the [sender](sender_fields) are not either.
    pub fn fields(&self, names: Names, part: PartOf, visit: &mut impl FnMut(&str, Value<'_>)) {
        self.own_fields(names, part, visit);
        self.enriched_fields(names, visit);
    }

    /// Passes the fields that do not come from enrichers to `visit`.
    pub fn own_fields(&self, names: Names, part: PartOf, visit: &mut impl FnMut(&str, Value<'_>)) {
        let mut add = |field: &Field, value: Value<'_>| {
            if let Some(name) = names.of(field) {
                visit(name, value);
            }
        };
        add(&names::ID, Value::Text(&self.part_id(part)));
        add(&names::HASH, Value::Text(hex(&self.hash, &mut [0; 64])));
        if names == Names::Ecs {
            add(&names::CREATED, Value::Text(&rfc3339(self.observed)));
        }
        add(&names::PROVIDER, Value::Text(&self.entry.source));
        add(&names::DATASET, Value::Text(self.dataset()));
        add(&names::SEQUENCE, Value::Number(self.entry.seq));
        if part.total > 1 {
            add(&names::PART_OF, Value::Text(&self.id));
            add(&names::PART_INDEX, Value::Number(part.index as u64));
            add(&names::PART_TOTAL, Value::Number(part.total as u64));
        }
        self.origin(&mut add);
        self.edits(&mut add);
        self.report(&mut add);
    }

    /// Passes the fields about the place of a record in its file.
    fn origin(&self, add: &mut impl FnMut(&Field, Value<'_>)) {
        let entry = &self.entry;
        if let Some(path) = &entry.path {
            add(&names::PATH, Value::Text(path));
        }
        if let Some(generation) = &entry.generation {
            add(&names::GENERATION, Value::Text(generation));
        }
        if let Some(offset) = entry.offset {
            add(&names::OFFSET, Value::Number(offset));
        }
        if let Some(length) = entry.length {
            add(&names::LENGTH, Value::Number(length));
        }
        if let Some(number) = entry.part {
            add(&names::LINE_PART, Value::Number(number.into()));
            add(&names::LINE_LAST, Value::Bool(entry.last));
        }
        if let Some(line) = &entry.sha256 {
            add(&names::LINE_HASH, Value::Text(hex(line, &mut [0; 64])));
        }
        if let Some(line) = &entry.folded_sha256 {
            add(&names::LINE_FOLDED_HASH, Value::Text(hex(line, &mut [0; 64])));
        }
        if !entry.nul_runs.is_empty() {
            add(&names::NUL_RUNS, Value::Text(&to_json(&entry.nul_runs)));
        }
        if entry.incomplete {
            add(&names::INCOMPLETE, Value::Bool(true));
        }
        if entry.altered {
            add(&names::ALTERED, Value::Bool(true));
        }
    }

    /// Passes the fields about what filters changed.
    fn edits(&self, add: &mut impl FnMut(&Field, Value<'_>)) {
        if !self.entry.cut.is_empty() {
            add(&names::CUT, Value::Json(&to_json(&self.entry.cut)));
        }
        if !self.entry.masked.is_empty() {
            add(&names::MASKED, Value::Json(&to_json(&self.entry.masked)));
        }
    }

    /// Passes the fields of an event of the agent or of the audit log.
    fn report(&self, add: &mut impl FnMut(&Field, Value<'_>)) {
        let entry = &self.entry;
        if let Some(name) = &entry.event {
            add(&names::ACTION, Value::Text(name));
        }
        if let Some(severity) = &entry.severity {
            add(&names::LEVEL, Value::Text(severity));
        }
        if let Some(audit) = entry.audit {
            add(&names::AUDIT, Value::Json(audit.get()));
        }
    }

    /// Passes the fields that come from enrichers to `visit`.
    pub fn enriched_fields(&self, names: Names, visit: &mut impl FnMut(&str, Value<'_>)) {
        for (name, value) in &self.enriched {
            enriched_fields(name, value, names, visit);
        }
    }

    /// Kind of the events: sessions of Claude Code, events of the agent, or another source.
    #[must_use]
    pub fn dataset(&self) -> &str {
        match (self.entry.kind, &*self.entry.source) {
            (Kind::Event, _) => "ai_agent.event",
            (_, "claude-sessions") => "claude_code.session",
            (_, "auditd") => "ai_agent.auditd",
            _ => "ai_agent.record",
        }
    }
}

/// Passes the fields that are the same for all events of a batch to `visit`.
pub fn sender_fields(header: &BatchHeader, names: Names, visit: &mut impl FnMut(&str, Value<'_>)) {
    let mut add = |field: &Field, value: &str| {
        if let Some(name) = names.of(field) {
            visit(name, Value::Text(value));
        }
    };
    add(&names::HOST_ID, &header.machine_id);
    add(&names::HOST_NAME, &header.hostname);
    add(&names::OS, os(&header.os, names));
    add(&names::ARCH, architecture(&header.arch, names));
    add(&names::USER, &header.user);
    add(&names::AGENT, "ai-agent");
    add(&names::AGENT_VERSION, &header.agent_version);
    add(&names::EPOCH, &header.epoch);
    add(&names::CONFIG_HASH, hex(&header.config_hash, &mut [0; 64]));
    add(&names::ECS_VERSION, names::VERSION);
}

/// Returns the name of an operating system in OpenTelemetry or ECS.
fn os(name: &str, names: Names) -> &str {
    match (names, name) {
        (Names::OpenTelemetry, "macos") => "darwin",
        _ => name,
    }
}

/// Returns the name of an architecture in OpenTelemetry; ECS has none of its own.
fn architecture(name: &str, names: Names) -> &str {
    match (names, name) {
        (Names::OpenTelemetry, "x86_64") => "amd64",
        (Names::OpenTelemetry, "aarch64") => "arm64",
        _ => name,
    }
}

/// Members of `activity` are fields by themselves; other enrichers' objects keep their name.
fn enriched_fields(name: &str, value: &str, names: Names, visit: &mut impl FnMut(&str, Value<'_>)) {
    if name == "activity" {
        json::members(value, |member| {
            if let Some(name) = json::unescape(member.key) {
                visit(&name, Value::Json(member.value));
            }
        });
    } else if name == "labels"
        && let Some(name) = names.of(&names::LABELS)
    {
        visit(name, Value::Json(value));
    } else {
        visit(&format!("ai_agent.enriched.{name}"), Value::Json(value));
    }
}

/// A record is identified by its place in its file, whose generation is unique; an event of the agent
/// by its number.
fn id(entry: &Entry<'_>, header: &BatchHeader) -> String {
    match (&entry.generation, entry.offset, entry.part) {
        (Some(generation), Some(offset), None) => format!("{generation}:{offset}"),
        (Some(generation), Some(offset), Some(part)) => format!("{generation}:{offset}:{part}"),
        _ => format!("{}:{}", header.epoch, entry.seq),
    }
}

/// Parses an RFC 3339 time after 1970, with `Z`, an offset, or without both, which is UTC.
fn since_1970(text: &str) -> Option<Duration> {
    const DATE: usize = "2026-11-29".len();

    let offset = text.rfind(['+', '-']).filter(|at| *at > DATE);
    let (time, offset) = text.split_at(offset.unwrap_or(text.len()));
    let time = humantime::parse_rfc3339_weak(time).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let Some((sign, offset)) = offset.split_at_checked(1) else { return Some(time) };
    let (hours, minutes) = offset.split_once(':')?;
    let minutes =
        u64::from(hours.parse::<u8>().ok()?) * 60 + u64::from(minutes.parse::<u8>().ok()?);
    let shift = Duration::from_secs(minutes * 60);
    if sign == "+" { time.checked_sub(shift) } else { time.checked_add(shift) }
}

/// Formats a time as RFC 3339 with milliseconds, such as `2026-11-21T20:00:00.000Z`.
#[must_use]
pub fn rfc3339(time: Duration) -> String {
    let latest = Duration::from_millis(253_402_300_799_999);
    let time: SystemTime = UNIX_EPOCH + time.min(latest);
    humantime::format_rfc3339_millis(time).to_string()
}

fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Formats a digest in `buffer`.
fn hex<'b>(digest: &Digest, buffer: &'b mut [u8; 64]) -> &'b str {
    HEXLOWER.encode_mut(digest.as_bytes(), buffer);
    std::str::from_utf8(buffer).unwrap_or_default()
}

#[cfg(test)]
mod tests;
