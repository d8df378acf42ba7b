//! TOML text: its values, and the line of each.

use std::collections::BTreeMap;

use figment::value::{Dict, Value};
use toml::de::{DeTable, DeValue};

/// Line of each key and list item of a text.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines(BTreeMap<Vec<String>, usize>);

/// Position and reason of a syntax error. It does not quote the text, which may contain a secret.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) reason: String,
}

/// Parses TOML.
pub(super) fn parse(text: &str) -> Result<(Dict, Lines), SyntaxError> {
    let wrong = |error| SyntaxError::new(text, &error);
    let values = dict(text.parse().map_err(wrong)?);
    let spans = DeTable::parse(text).map_err(wrong)?;
    let mut starts = vec![0];
    starts.extend(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1));
    let mut lines = Lines::default();
    lines.add_table(spans.get_ref(), &mut Vec::new(), &starts);
    Ok((values, lines))
}

impl Lines {
    /// Returns the line of the value at `path`, or of the nearest existing value above it.
    pub(super) fn of(&self, path: &[String]) -> Option<usize> {
        (1..=path.len()).rev().find_map(|length| self.0.get(&path[..length]).copied())
    }

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

/// Converts a value.
pub(super) fn value(item: toml::Value) -> Value {
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

impl SyntaxError {
    fn new(text: &str, error: &toml::de::Error) -> Self {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let before = &text.as_bytes()[..start];
        let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let characters = before[line_start..].iter().filter(|b| (**b & 0xc0) != 0x80).count();
        Self {
            line: 1 + before.iter().filter(|b| **b == b'\n').count(),
            column: 1 + characters,
            reason: error.message().to_owned(),
        }
    }
}
