//! Maps an entry to an event with the names of ECS or OpenTelemetry.
//!
//! The table is in `docs/siem/fields.md`. Sinks only encode the fields that this module names.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use siem_protocol::{BatchHeader, Digest, Entry, EntryError, Kind, json};

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeOf {
    /// `timestamp` of the record; the time of reading if it has none.
    #[default]
    Record,
    /// Time at which the agent read the record.
    Read,
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
    /// Stable id: the same whenever the entry is sent again, in any epoch.
    pub id: String,
    /// The record, byte for byte; for an event of the agent its data as JSON.
    pub content: Content<'a>,
    /// SHA-256 of the content.
    pub hash: Digest,
    /// Time of the event, since 1970-01-01 UTC.
    pub time: Duration,
    /// Time at which the agent read or created it, since 1970-01-01 UTC.
    pub observed: Duration,
    /// The entry.
    pub entry: Entry<'a>,
    /// Members that enrichers added: name and JSON text.
    pub enriched: Vec<(Cow<'a, str>, &'a RawValue)>,
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
        let entry = Entry::parse(line)?;
        let enriched = enriched(line)?;
        let content = match content(&entry)? {
            Some(content) => Content::of(content),
            None => Content::Text(Cow::Borrowed(entry.data.map_or("null", RawValue::get))),
        };
        let hash = Digest::of(content.as_bytes());
        let observed = entry.read_at.as_deref().or(entry.at.as_deref()).and_then(since_1970);
        let observed = observed.unwrap_or_default();
        let stated = match time {
            TimeOf::Record => entry.record.and_then(|record| record_time(record.get())),
            TimeOf::Read => None,
        };
        let id = id(&entry, header);
        let time = stated.unwrap_or(observed);
        Ok(Self { id, content, hash, time, observed, entry, enriched })
    }

    /// Returns the id of a part; of the whole event if it was not cut.
    #[must_use]
    pub fn part_id(&self, part: PartOf) -> Cow<'_, str> {
        match part.total {
            1 => Cow::Borrowed(&self.id),
            _ => Cow::Owned(format!("{}.{}", self.id, part.index)),
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
        let entry = &self.entry;
        let ecs = names == Names::Ecs;
        let mut add = |name: [&str; 2], value: Value<'_>| visit(name[usize::from(!ecs)], value);
        add(["event.id", "log.record.uid"], Value::Text(&self.part_id(part)));
        add(["event.hash", "ai_agent.sha256"], Value::Text(&self.hash.to_string()));
        add(["event.sequence", "ai_agent.sequence"], Value::Number(entry.seq));
        add(["event.provider", "ai_agent.source"], Value::Text(&entry.source));
        add(["event.dataset", "ai_agent.dataset"], Value::Text(self.dataset()));
        if part.total > 1 {
            add(["ai_agent.part.of"; 2], Value::Text(&self.id));
            add(["ai_agent.part.index"; 2], Value::Number(part.index as u64));
            add(["ai_agent.part.total"; 2], Value::Number(part.total as u64));
        }
        if let Some(path) = &entry.path {
            add(["log.file.path"; 2], Value::Text(path));
        }
        if let Some(generation) = &entry.generation {
            add(["ai_agent.generation"; 2], Value::Text(generation));
        }
        if let Some(offset) = entry.offset {
            add(["log.offset", "ai_agent.offset"], Value::Number(offset));
        }
        if let Some(number) = entry.part {
            add(["ai_agent.line.part"; 2], Value::Number(number.into()));
            add(["ai_agent.line.last"; 2], Value::Bool(entry.last));
        }
        if let Some(line) = entry.sha256 {
            add(["ai_agent.line.sha256"; 2], Value::Text(&line.to_string()));
        }
        if entry.incomplete {
            add(["ai_agent.incomplete"; 2], Value::Bool(true));
        }
        if !entry.cut.is_empty() {
            add(["ai_agent.cut"; 2], Value::Json(&to_json(&entry.cut)));
        }
        if !entry.masked.is_empty() {
            add(["ai_agent.masked"; 2], Value::Json(&to_json(&entry.masked)));
        }
        if let Some(name) = &entry.event {
            add(["event.action", "event.name"], Value::Text(name));
        }
        if let Some(severity) = &entry.severity {
            add(["log.level"; 2], Value::Text(severity));
        }
        if let Some(audit) = entry.audit {
            add(["ai_agent.audit"; 2], Value::Json(audit.get()));
        }
    }

    /// Passes the fields that come from enrichers to `visit`.
    pub fn enriched_fields(&self, names: Names, visit: &mut impl FnMut(&str, Value<'_>)) {
        for (name, value) in &self.enriched {
            enriched_fields(name, value.get(), names, visit);
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
    let ecs = names == Names::Ecs;
    let mut add = |name: [&str; 2], value: &str| visit(name[usize::from(!ecs)], Value::Text(value));
    add(["host.id"; 2], &header.machine_id);
    add(["host.name"; 2], &header.hostname);
    add(["host.os.type", "os.type"], &header.os);
    add(["host.architecture", "host.arch"], &header.arch);
    add(["user.name"; 2], &header.user);
    add(["agent.type", "service.name"], "ai-agent");
    add(["agent.version", "service.version"], &header.agent_version);
    add(["ai_agent.epoch"; 2], &header.epoch);
    add(["ai_agent.config_hash"; 2], &header.config_hash.to_string());
}

/// Members of `activity` are fields by themselves; other enrichers' objects keep their name.
fn enriched_fields(name: &str, value: &str, names: Names, visit: &mut impl FnMut(&str, Value<'_>)) {
    if name == "activity" {
        json::members(value, |member| {
            if let Some(name) = json::unescape(member.key) {
                visit(&name, Value::Json(member.value));
            }
        });
    } else if name == "labels" && names == Names::Ecs {
        visit(name, Value::Json(value));
    } else {
        visit(&format!("ai_agent.{name}"), Value::Json(value));
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

fn content<'a>(entry: &Entry<'a>) -> Result<Option<Cow<'a, [u8]>>, EntryError> {
    if let Some(record) = entry.record {
        return Ok(Some(Cow::Borrowed(record.get().as_bytes())));
    }
    Ok(entry.content()?.map(|content| Cow::Owned(content.into_owned())))
}

/// Returns `timestamp` of a record, if it is a time after 1970.
fn record_time(record: &str) -> Option<Duration> {
    let mut time = None;
    json::members(record, |member| {
        if time.is_none() && member.is("timestamp") {
            time = json::string(member.value).and_then(|text| since_1970(&text));
        }
    });
    time
}

/// Parses an RFC 3339 time.
fn since_1970(text: &str) -> Option<Duration> {
    humantime::parse_rfc3339_weak(text).ok()?.duration_since(UNIX_EPOCH).ok()
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

/// Members of an entry that the protocol defines.
const KNOWN: [&str; 25] = [
    "seq",
    "kind",
    "source",
    "path",
    "path_encoded",
    "generation",
    "offset",
    "length",
    "read_at",
    "record",
    "raw",
    "raw_base64",
    "raw_lines",
    "audit",
    "cut",
    "masked",
    "sha256",
    "part",
    "last",
    "incomplete",
    "event",
    "severity",
    "at",
    "data",
    "total",
];

/// Returns the members that the protocol does not define.
fn enriched(line: &[u8]) -> Result<Vec<(Cow<'_, str>, &RawValue)>, EntryError> {
    /// Members in their order.
    struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

    impl<'de> Deserialize<'de> for Members<'de> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Map;
            impl<'de> Visitor<'de> for Map {
                type Value = Members<'de>;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an entry")
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                    let mut members = Vec::new();
                    while let Some((name, value)) = map.next_entry::<Cow<'de, str>, &RawValue>()? {
                        if !KNOWN.contains(&&*name) {
                            members.push((name, value));
                        }
                    }
                    Ok(Members(members))
                }
            }
            deserializer.deserialize_map(Map)
        }
    }
    Ok(serde_json::from_slice::<Members<'_>>(line)?.0)
}
