//! TOML text: its values, and the line of each.

use std::collections::BTreeMap;

use figment::value::{Dict, Value};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Values of a text, and their lines.
#[derive(Clone, Debug)]
pub struct ParsedToml {
    /// The values.
    pub values: Dict,
    /// The lines.
    pub lines: LineIndex,
}

/// Line of each key and list item of a text.
#[derive(Clone, Debug, Default)]
pub struct LineIndex(BTreeMap<Vec<String>, usize>);

impl LineIndex {
    /// Returns the line of the value at `path`, or of the nearest existing value above it.
    #[must_use]
    pub fn of(&self, path: &[String]) -> Option<usize> {
        (1..=path.len()).rev().find_map(|length| self.0.get(&path[..length]).copied())
    }
}

/// Parses TOML.
///
/// # Errors
/// [`SyntaxError`] if `text` is not TOML.
pub fn parse(text: &str) -> Result<ParsedToml, SyntaxError> {
    let spans = DeTable::parse(text).map_err(|error| SyntaxError::new(text, &error))?;
    let values = match text.parse() {
        Ok(table) => dict(table),
        Err(error) => return Err(SyntaxError::of_value(text, spans.get_ref(), &error)),
    };
    let mut starts = vec![0];
    starts.extend(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1));
    let mut lines = LineIndex::default();
    let mut path = Vec::new();
    lines.add_table(spans.get_ref(), &mut path, &starts);
    Ok(ParsedToml { values, lines })
}

/// Returns key and position of the first number in a table that does not fit into its type.
fn oversized_number(table: &DeTable<'_>) -> Option<(String, usize, &'static str)> {
    let value = |key: &str, value: &Spanned<DeValue<'_>>| {
        let start = value.span().start;
        oversized(value.get_ref(), start)
            .map(|(below, at, range)| (format!("{key}{below}"), at, range))
    };
    table.iter().find_map(|(key, item)| value(&quoted(key.get_ref()), item))
}

fn oversized(value: &DeValue<'_>, start: usize) -> Option<(String, usize, &'static str)> {
    match value {
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .is_err()
            .then(|| (String::new(), start, "-9223372036854775808 to 9223372036854775807")),
        DeValue::Float(number) if !number.as_str().contains("inf") => number
            .as_str()
            .parse()
            .is_ok_and(f64::is_infinite)
            .then(|| (String::new(), start, "-1.7e308 to 1.7e308")),
        DeValue::Table(table) => {
            oversized_number(table).map(|(below, at, range)| (format!(".{below}"), at, range))
        }
        DeValue::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
            let (below, at, range) = oversized(item.get_ref(), item.span().start)?;
            Some((format!(".{index}{below}"), at, range))
        }),
        _ => None,
    }
}

/// Returns a part of a key as it is written in a dotted key.
fn quoted(part: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !part.is_empty() && part.bytes().all(is_bare) {
        part.to_owned()
    } else {
        format!("{part:?}")
    }
}

impl LineIndex {
    fn add_table(&mut self, table: &DeTable<'_>, path: &mut Vec<String>, starts: &[usize]) {
        for (key, value) in table {
            path.push(key.get_ref().to_string());
            self.add(key.span().start, path, starts);
            self.add_below(value.get_ref(), path, starts);
            path.pop();
        }
    }

    fn add_below(&mut self, value: &DeValue<'_>, path: &mut Vec<String>, starts: &[usize]) {
        match value {
            DeValue::Table(table) => self.add_table(table, path, starts),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    path.push(index.to_string());
                    self.add(item.span().start, path, starts);
                    self.add_below(item.get_ref(), path, starts);
                    path.pop();
                }
            }
            _ => {}
        }
    }

    fn add(&mut self, at: usize, path: &[String], starts: &[usize]) {
        self.0.insert(path.to_owned(), starts.partition_point(|start| *start <= at));
    }
}

fn dict(table: toml::Table) -> Dict {
    table.into_iter().map(|(key, item)| (key, value(item))).collect()
}

/// Converts a value; a date becomes text.
#[must_use]
pub fn value(item: toml::Value) -> Value {
    match item {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(boolean) => boolean.into(),
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(items) => items.into_iter().map(value).collect::<Vec<_>>().into(),
        toml::Value::Table(table) => dict(table).into(),
    }
}

/// Position and reason of a TOML error. It does not quote the text, which may contain a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct SyntaxError {
    /// Line, starting at 1.
    pub line: usize,
    /// Column in characters, starting at 1.
    pub column: usize,
    /// Reason.
    pub problem: String,
}

impl SyntaxError {
    /// Locates an error of the parser in `text`. A number that is too large is not quoted, since digits
    /// without quotation marks may be a secret.
    #[must_use]
    pub fn new(text: &str, error: &toml::de::Error) -> Self {
        match DeTable::parse(text) {
            Ok(table) => Self::of_value(text, table.get_ref(), error),
            Err(_) => Self::at(text, error.span().map_or(0, |span| span.start), error.message()),
        }
    }

    /// Creates the error for a value of `table`, which is `text` without its syntax.
    fn of_value(text: &str, table: &DeTable<'_>, error: &toml::de::Error) -> Self {
        match oversized_number(table) {
            Some((key, start, range)) => {
                let problem =
                    format!("`{key}` is a number that is too large, must be from {range}");
                Self::at(text, start, &problem)
            }
            None => Self::at(text, error.span().map_or(0, |span| span.start), error.message()),
        }
    }

    fn at(text: &str, start: usize, problem: &str) -> Self {
        let start = start.min(text.len());
        let before = &text.as_bytes()[..start];
        let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let characters = before[line_start..].iter().filter(|b| (**b & 0xc0) != 0x80).count();
        Self {
            line: 1 + before.iter().filter(|b| **b == b'\n').count(),
            column: 1 + characters,
            problem: problem.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, path: &str) -> Option<usize> {
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        parse(text).unwrap().lines.of(&path)
    }

    #[test]
    fn parse_finds_the_line_of_each_key() {
        let text = "# first\na = 1\n[b]\nc = [\n  \"x\",\n  \"y\",\n]\n\n[d.e]\nf.g = { h = 1 }\n\
                    [[t]]\nn = 1\n[[t]]\nn = 2\n";
        for (path, expected) in [
            ("a", 2),
            ("b", 3),
            ("b.c", 4),
            ("b.c.1", 6),
            ("d", 9),
            ("d.e", 9),
            ("d.e.f.g.h", 10),
            ("t.0", 11),
            ("t.0.n", 12),
            ("t.1", 13),
            ("t.1.n", 14),
        ] {
            assert_eq!(line(text, path), Some(expected), "{path}");
        }
    }

    /// The number was quoted, and its key was not named: `token = 99999999999999999999999` showed a
    /// token in the log.
    #[test]
    fn number_that_is_too_large_is_named_and_not_quoted() {
        for (text, key, line, column) in [
            ("[a]\nb = 99999999999999999999999", "`a.b`", 2, 5),
            ("[a]\n\nb = 18446744073709551615", "`a.b`", 3, 5),
            ("a.b = 0xffffffffffffffffff", "`a.b`", 1, 7),
            ("[[t]]\nn = 1\n[[t]]\nn = -9223372036854775809", "`t.1.n`", 4, 5),
            ("\"a b\" = [1, [1e999]]", "`\"a b\".1.0`", 1, 14),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.problem.contains(key), "{text}: {error}");
            assert_eq!((error.line, error.column), (line, column), "{text}: {error}");
            for secret in ["99999999999", "18446744", "ffff", "775809", "e999"] {
                assert!(!error.problem.contains(secret), "{text}: {error}");
            }
            let of_type = toml::from_str::<toml::Table>(text).unwrap_err();
            assert_eq!(SyntaxError::new(text, &of_type), error);
        }
        parse("a = [9223372036854775807, -9223372036854775808, inf, -inf, nan]").unwrap();
    }

    #[test]
    fn line_of_a_missing_key_is_that_of_its_table() {
        assert_eq!(line("\n[a]\nb = 1", "a.c"), Some(2));
        assert_eq!(line("\n[a]\nb = 1", "x"), None);
    }
}
