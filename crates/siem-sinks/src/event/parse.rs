//! Parses the line of an entry, whose record is checked once even if it has megabytes.

use std::{borrow::Cow, time::Duration};

use serde::{
    Deserialize as _,
    de::{DeserializeSeed, MapAccess, value::BorrowedStrDeserializer},
};
use serde_json::value::RawValue;
use siem_protocol::{
    Entry, EntryError,
    json::{self, Member},
};

use super::{TimeOf, since_1970};
use crate::part::Content;

/// A parsed line.
pub(super) struct Parsed<'a> {
    /// The entry, without the members that became `content`.
    pub(super) entry: Entry<'a>,
    /// The record; for an event of the agent its data as JSON.
    pub(super) content: Content<'a>,
    /// Name and JSON text of each member that the protocol does not define.
    pub(super) enriched: Vec<(Cow<'a, str>, &'a str)>,
    /// `timestamp` of a record, if it is a time after 1970.
    pub(super) timestamp: Option<Duration>,
}

impl<'a> Parsed<'a> {
    /// Parses a line.
    pub(super) fn of(line: &'a [u8]) -> Result<Self, EntryError> {
        match std::str::from_utf8(line).ok().and_then(Self::with_record_last) {
            Some(parsed) => Ok(parsed),
            None => Self::with_any_order(line),
        }
    }

    /// Parses a line whose last member is `record`, as an agent writes it. Returns `None` for any
    /// other line.
    ///
    /// The search for the time of the record is the check of its grammar.
    fn with_record_last(line: &'a str) -> Option<Self> {
        let mut members = Members::default();
        let rest = json::members_before(line, "record", |member| members.add(member))?;
        let record = rest.strip_suffix('}')?;
        let (shape, timestamp) = timestamp(record);
        if shape?.padded {
            return None;
        }
        let entry = members.entry().ok()?;
        let content = Content::Text(Cow::Borrowed(record));
        Some(Self { entry, content, enriched: members.enriched, timestamp })
    }

    /// Parses any line.
    fn with_any_order(line: &'a [u8]) -> Result<Self, EntryError> {
        let mut entry = Entry::parse(line)?;
        let mut members = Members::default();
        if let Ok(text) = std::str::from_utf8(line) {
            json::members(text, |member| members.add(member));
        }
        let record = entry.record.map(RawValue::get);
        let timestamp = record.and_then(|record| timestamp(record).1);
        let content = content(&mut entry)?;
        Ok(Self { entry, content, enriched: members.enriched, timestamp })
    }
}

/// Takes the content out of `entry`, without a copy of a text.
fn content<'a>(entry: &mut Entry<'a>) -> Result<Content<'a>, EntryError> {
    if let Some(record) = entry.record.take() {
        return Ok(Content::Text(Cow::Borrowed(record.get())));
    }
    if let Some(raw) = entry.raw.take() {
        return Ok(Content::Text(raw));
    }
    let bytes = entry.content()?.map(Cow::into_owned);
    (entry.raw_lines, entry.raw_base64) = (Vec::new(), None);
    Ok(match bytes {
        Some(bytes) => Content::of(Cow::Owned(bytes)),
        None => Content::Text(Cow::Borrowed(entry.data.map_or("null", RawValue::get))),
    })
}

/// Returns the time of the event that a line is mapped to, without the line's content.
pub(crate) fn time_of(line: &str, time: TimeOf) -> Option<Duration> {
    let (mut read, mut record) = (None, None);
    let mut look = |member: Member<'_>| {
        if read.is_none() && (member.is("read_at") || member.is("at")) {
            read = json::string(member.value).and_then(|text| since_1970(&text));
        }
    };
    match json::members_before(line, "record", &mut look) {
        // The last member, as an agent writes it.
        Some(rest) => record = rest.strip_suffix('}'),
        None => drop(json::members(line, look)),
    }
    match time {
        TimeOf::Record => record.and_then(|record| timestamp(record).1).or(read),
        TimeOf::Read => read,
    }
}

/// Checks the grammar of a record, and returns its `timestamp`.
fn timestamp(record: &str) -> (Option<json::Shape>, Option<Duration>) {
    let mut found = None;
    let shape = json::members(record, |member| {
        if found.is_none() && member.is("timestamp") {
            found = json::string(member.value).and_then(|text| since_1970(&text));
        }
    });
    (shape, found)
}

/// Members of a line.
#[derive(Default)]
struct Members<'a> {
    known: Vec<(&'static str, &'a str)>,
    enriched: Vec<(Cow<'a, str>, &'a str)>,
}

impl<'a> Members<'a> {
    fn add(&mut self, member: Member<'a>) {
        if self.known.capacity() == 0 {
            self.known.reserve(16);
        }
        match Entry::MEMBERS.into_iter().find(|name| member.is(name)) {
            Some(name) => self.known.push((name, member.value)),
            // A name that is not valid Unicode names no field.
            None => {
                self.enriched.extend(json::unescape(member.key).map(|name| (name, member.value)));
            }
        }
    }

    /// Reads the entry of the known members.
    fn entry(&self) -> serde_json::Result<Entry<'a>> {
        let access = Access { members: self.known.iter(), value: "" };
        Entry::deserialize(serde::de::value::MapAccessDeserializer::new(access))
    }
}

/// Passes members to the deserializer of entries.
struct Access<'m, 'a> {
    members: std::slice::Iter<'m, (&'static str, &'a str)>,
    value: &'a str,
}

impl<'a> MapAccess<'a> for Access<'_, 'a> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'a>>(
        &mut self,
        seed: K,
    ) -> serde_json::Result<Option<K::Value>> {
        let Some((name, value)) = self.members.next() else { return Ok(None) };
        self.value = value;
        seed.deserialize(BorrowedStrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> serde_json::Result<V::Value> {
        let mut value = serde_json::Deserializer::from_str(self.value);
        let parsed = seed.deserialize(&mut value)?;
        value.end()?;
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn both(line: &str) -> (Option<Parsed<'_>>, Result<Parsed<'_>, EntryError>) {
        (Parsed::with_record_last(line), Parsed::with_any_order(line.as_bytes()))
    }

    fn text(parsed: &Parsed<'_>) -> String {
        let Parsed { entry, content, enriched, timestamp } = parsed;
        format!("{entry:?} {content:?} {enriched:?} {timestamp:?}")
    }

    /// Values of members, valid and not.
    const VALUES: [&str; 14] = [
        "1",
        "null",
        r#""2026-11-21T20:00:01.000Z""#,
        r#""record""#,
        r#"{"a":1,"record":{"timestamp":"2026-11-21T20:00:00Z"}}"#,
        r#"{"timestamp":"2026-11-21T20:00:00Z"}"#,
        "[]",
        r#""\ud800""#,
        "{",
        "1 ",
        r#""a\",\"record\":""#,
        r#"["x"]"#,
        "true",
        "",
    ];

    #[test]
    fn line_as_an_agent_writes_it_is_parsed_once() {
        let line = r#"{"seq":1,"kind":"record","source":"s","activity":{"a":1,"record":2},"record":{"timestamp":"2026-11-21T20:00:00Z"}}"#;
        let (quick, full) = both(line);
        assert_eq!(text(&quick.unwrap()), text(&full.unwrap()));
    }

    #[test]
    fn other_order_of_members_is_parsed_too() {
        let line = r#"{"record":[1],"seq":1,"kind":"record","source":"s"}"#;
        let (quick, full) = both(line);
        assert!(quick.is_none());
        assert_eq!(full.unwrap().content, Content::Text("[1]".into()));
    }

    proptest! {
        /// The quick way either gives the same as the full one, or leaves the line to it.
        #[test]
        fn quick_way_agrees_with_the_full_one(
            members in prop::collection::vec((0..Entry::MEMBERS.len() + 2, 0..VALUES.len()), 0..6),
            record in 0..VALUES.len(), end in "[} x]{0,2}",
        ) {
            let mut line = r#"{"seq":7,"kind":"record","source":"s""#.to_owned();
            for (name, value) in members {
                let name = Entry::MEMBERS.get(name).copied().unwrap_or("labels");
                line.push_str(&format!(",\"{name}\":{}", VALUES[value]));
            }
            line.push_str(&format!(",\"record\":{}{end}", VALUES[record]));
            if let (Some(quick), full) = both(&line) {
                prop_assert!(full.is_ok(), "{}", line);
                prop_assert_eq!(text(&quick), text(&full.unwrap()), "{}", line);
            }
        }
    }
}
