//! One line of auditd's log: which event it belongs to, of what kind it is, and its fields.
//!
//! `type=SYSCALL msg=audit(1763812345.123:4711): arch=c000003e … key="k"`, where auditd adds to it
//! (`log_format = ENRICHED`) with what it knows behind a byte 0x1d: `␝ARCH=x86_64 UID="root"`. A
//! field that others can choose is quoted, or in hex when it has spaces, quotes or other bytes:
//! <https://github.com/linux-audit/audit-documentation/wiki/SPEC-Writing-Good-Events>.
//!
//! The parser is our own, and held against `linux-audit-parser` by tests: that crate may not be
//! linked into a program that is given away under this one's licence (LGPL), its messages may
//! outlive what they borrow from, and a line with a type or a value that it does not know is an
//! error as a whole, while an event must be told as far as it is understood.

use std::borrow::Cow;

use data_encoding::HEXLOWER_PERMISSIVE;
use memchr::{memchr, memchr2};

/// Which event a line belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventId {
    /// When it happened, in milliseconds since 1970-01-01 UTC.
    pub millis: u64,
    /// Its number since the kernel started.
    pub serial: u64,
    /// The machine, in a log that has those of several.
    pub node: Box<[u8]>,
}

/// A line, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Which event it belongs to.
    pub id: EventId,
    /// What it tells: `SYSCALL`, `EXECVE`, …
    pub kind: &'a [u8],
    body: &'a [u8],
}

/// A field's value, as it stands in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Between quotes, without them.
    Quoted(&'a [u8]),
    /// Without quotes: a number, a word, or a string in hex.
    Bare(&'a [u8]),
}

impl<'a> Line<'a> {
    /// Takes a line apart, given without its ending; `None` for what is no line of an audit log.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let (node, rest) = match line.strip_prefix(b"node=") {
            Some(rest) => cut(rest, b' ')?,
            None => (&[][..], line),
        };
        let (kind, rest) = cut(rest.strip_prefix(b"type=")?, b' ')?;
        let (stamp, rest) = cut(rest.strip_prefix(b"msg=audit(")?, b')')?;
        let body = rest.strip_prefix(b":")?;
        let (seconds, stamp) = cut(stamp, b'.')?;
        let (millis, serial) = cut(stamp, b':')?;
        let millis = number(seconds)?.checked_mul(1000)?.checked_add(number(millis)?)?;
        let id = EventId { millis, serial: number(serial)?, node: node.into() };
        (!kind.is_empty()).then_some(Self { id, kind, body })
    }

    /// The fields, in their order. What is none is passed over.
    pub fn fields(&self) -> impl Iterator<Item = (&'a [u8], Value<'a>)> {
        Fields(self.body)
    }
}

impl<'a> Value<'a> {
    /// What a number or a word is.
    #[must_use]
    pub fn word(self) -> &'a [u8] {
        let (Self::Quoted(word) | Self::Bare(word)) = self;
        word
    }

    /// What a field is that stands in hex where it can't be quoted; `None` where it says that there
    /// is nothing.
    #[must_use]
    pub fn decoded(self) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Quoted(text) => Some(Cow::Borrowed(text)),
            Self::Bare(b"(null)" | b"?" | b"(none)") => None,
            Self::Bare(hex) => Some(match HEXLOWER_PERMISSIVE.decode(hex) {
                Ok(bytes) => Cow::Owned(bytes),
                Err(_) => Cow::Borrowed(hex),
            }),
        }
    }

    /// The number that it is.
    #[must_use]
    pub fn number<N: std::str::FromStr>(self) -> Option<N> {
        std::str::from_utf8(self.word()).ok()?.parse().ok()
    }
}

struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a [u8], Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let start = self.0.iter().position(|byte| !is_separator(*byte))?;
            let rest = &self.0[start..];
            let end = memchr2(b' ', SEPARATOR, rest).unwrap_or(rest.len());
            let Some(equals) = memchr(b'=', &rest[..end]) else {
                self.0 = &rest[end..];
                continue;
            };
            let (key, value) = (&rest[..equals], &rest[equals + 1..]);
            let quote = value.first().copied().filter(|byte| matches!(byte, b'"' | b'\''));
            if let Some(quote) = quote
                && let Some(length) = memchr(quote, &value[1..])
            {
                self.0 = &value[length + 2..];
                return Some((key, Value::Quoted(&value[1..=length])));
            }
            self.0 = &rest[end..];
            return Some((key, Value::Bare(&rest[equals + 1..end])));
        }
    }
}

/// Between what the kernel says and what auditd adds.
const SEPARATOR: u8 = 0x1d;

fn is_separator(byte: u8) -> bool {
    matches!(byte, b' ' | SEPARATOR)
}

/// What stands before and after the first `byte`.
fn cut(bytes: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = memchr(byte, bytes)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// The number that digits make, and nothing but digits.
fn number(digits: &[u8]) -> Option<u64> {
    let is_plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    is_plain.then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(line: &str) -> Vec<(String, String)> {
        let line = Line::parse(line.as_bytes()).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let show = |(key, value): (&[u8], Value<'_>)| {
            (text(key), value.decoded().map_or_else(|| "-".to_owned(), |it| text(&it)))
        };
        line.fields().map(show).collect()
    }

    #[test]
    fn a_line_is_taken_apart() {
        let line = "node=web-1 type=EXECVE msg=audit(1763812345.007:4711): argc=3 a0=\"docker\" \
                    a1=73746F702078 a2=(null)\u{1d}UID=\"root\" AUID=\"u\"";
        let parsed = Line::parse(line.as_bytes()).unwrap();
        let id = EventId { millis: 1_763_812_345_007, serial: 4711, node: (*b"web-1").into() };
        assert_eq!((parsed.id, parsed.kind), (id, &b"EXECVE"[..]));
        let expected = [
            ("argc", "3"),
            ("a0", "docker"),
            ("a1", "stop x"),
            ("a2", "-"),
            ("UID", "root"),
            ("AUID", "u"),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(fields(line), expected);
    }

    #[test]
    fn what_is_no_line_of_an_audit_log_is_none() {
        let lines = [
            "",
            "type=",
            "type=EOE",
            "type= msg=audit(1.2:3):",
            "type=EOE msg=audit(1.2:3)",
            "type=EOE msg=audit(1.2): x",
            "type=EOE msg=audit(1.+2:3): ",
            "type=EOE msg=audit(18446744073709551615.2:3): ",
            "node=x",
            "Nov 22 11:00:00 host dockerd: container stopped",
        ];
        for line in lines {
            assert_eq!(Line::parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn odd_fields_cost_nothing_but_themselves() {
        let found = fields(
            "type=USER_CMD msg=audit(1.2:3): pid=7 avc: { read } =x k= open=\"no end here msg='op=a b=\"c\"' uid=0",
        );
        let expected = [
            ("pid", "7"),
            ("", "x"),
            ("k", ""),
            ("open", "no end here msg='op=a b="),
            ("c\"' uid", "0"),
        ];
        // What comes behind a quote that is missing can't be told from what it should hold.
        assert_eq!(
            found[..4],
            expected[..4]
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<Vec<_>>()
        );
    }
}
