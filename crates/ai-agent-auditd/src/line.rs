//! Parser of one line of the audit log: the event it belongs to, its kind, and its fields.
//!
//! `type=SYSCALL msg=audit(1763812345.123:4711): arch=c000003e … key="k"`. With `log_format =
//! ENRICHED` auditd appends what it knows after a byte 0x1d: `␝ARCH=x86_64 UID="root"`. A field
//! whose value others can choose is quoted, or in hex if it contains spaces, quotes or other bytes:
//! <https://github.com/linux-audit/audit-documentation/wiki/SPEC-Writing-Good-Events>.
//!
//! The crate `linux-audit-parser` is not used: its licence (LGPL) does not allow to link it into this
//! program, its messages can outlive the data they borrow, and it rejects a whole line with an
//! unknown type or value, while an event must be reported as far as it is understood. Tests compare
//! both parsers.

use std::borrow::Cow;

use data_encoding::HEXLOWER_PERMISSIVE;
use memchr::{memchr, memchr2};

/// Identity of an event.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventId {
    /// Time of the event in milliseconds since 1970-01-01 UTC.
    pub millis: u64,
    /// Number of the event since the kernel started.
    pub serial: u64,
    /// Name of the machine, in a log of several machines; otherwise empty.
    pub node: Box<[u8]>,
}

/// A parsed line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Event that the line belongs to.
    pub id: EventId,
    /// Kind of the line: `SYSCALL`, `EXECVE`, …
    pub kind: &'a [u8],
    body: &'a [u8],
}

/// Value of a field as written in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Value in quotes, without the quotes.
    Quoted(&'a [u8]),
    /// Value without quotes: a number, a word, or a string in hex.
    Bare(&'a [u8]),
}

impl<'a> Line<'a> {
    /// Parses a line without its ending. Returns `None` if it is not a line of an audit log.
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

    /// Fields in the order of the line. Anything that is not a field is skipped.
    pub fn fields(&self) -> impl Iterator<Item = (&'a [u8], Value<'a>)> {
        Fields(self.body)
    }
}

impl<'a> Value<'a> {
    /// The value of a number or a word.
    #[must_use]
    pub fn word(self) -> &'a [u8] {
        let (Self::Quoted(word) | Self::Bare(word)) = self;
        word
    }

    /// Decodes a value that is in hex if it cannot be quoted. Returns `None` for the placeholders of a
    /// missing value.
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

    /// The value parsed as a number.
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

/// Separates the fields of the kernel from those that auditd appends.
const SEPARATOR: u8 = 0x1d;

fn is_separator(byte: u8) -> bool {
    matches!(byte, b' ' | SEPARATOR)
}

/// Splits at the first `byte`.
fn cut(bytes: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = memchr(byte, bytes)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// Parses a number that consists of digits only.
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
    fn line_is_parsed() {
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
    fn other_lines_are_not_parsed() {
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
    fn malformed_fields_do_not_affect_others() {
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
        // After a missing quote, the rest of the line cannot be distinguished from the value.
        assert_eq!(
            found[..4],
            expected[..4]
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<Vec<_>>()
        );
    }
}
