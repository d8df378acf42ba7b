//! One line of the log, and its formats.

use std::{fmt, time::SystemTime};

use serde_json::{Map, Value, json};
use tracing::{
    Event, Level,
    field::{Field, Visit},
};

use crate::clock;

/// Format of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Text for a file or another program.
    Plain,
    /// Text for a terminal.
    Colored,
    /// One JSON object per line.
    Json,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) level: Level,
    target: String,
    message: String,
    /// Fields in the order in which they were given; a string with quotes is written with them as text.
    fields: Vec<(&'static str, Value, bool)>,
}

impl Line {
    pub(super) fn of(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let (level, target) = (*metadata.level(), metadata.target().to_owned());
        let mut line = Self { level, target, message: String::new(), fields: Vec::new() };
        event.record(&mut line);
        line
    }

    /// Adds the number of lines like this one that were not written.
    pub(super) fn with_suppressed(mut self, count: u64) -> Self {
        if count > 0 {
            self.fields.push(("suppressed", json!(count), false));
        }
        self
    }

    /// Returns what lines that repeat have in common: message and code.
    pub(super) fn kind(&self) -> (String, String) {
        let code = self.fields.iter().find(|(name, ..)| *name == "code");
        let code = code.map(|(_, code, _)| code.as_str().unwrap_or_default());
        (self.message.clone(), code.unwrap_or_default().to_owned())
    }

    /// Formats the line, with its end.
    pub(super) fn format(&self, format: Format, at: SystemTime) -> String {
        let at = clock::text(at);
        match format {
            Format::Json => self.json(&at),
            Format::Plain => self.text(format!("{at} {:>5} {}: ", self.level, self.target)),
            Format::Colored => {
                let color = match self.level {
                    Level::ERROR => 31,
                    Level::WARN => 33,
                    Level::INFO => 32,
                    _ => 34,
                };
                let level = format_args!("\x1b[{color}m{:>5}\x1b[0m", self.level).to_string();
                self.text(format!("\x1b[2m{at}\x1b[0m {level} \x1b[2m{}:\x1b[0m ", self.target))
            }
        }
    }

    fn text(&self, mut text: String) -> String {
        push_escaped(&mut text, &self.message);
        for (name, value, is_quoted) in &self.fields {
            text.push_str(&format!(" {name}="));
            match value {
                // The quoted form escapes control characters.
                Value::String(value) if *is_quoted => text.push_str(&format!("{value:?}")),
                Value::String(value) => push_escaped(&mut text, value),
                other => text.push_str(&other.to_string()),
            }
        }
        text.push('\n');
        text
    }

    fn json(&self, at: &str) -> String {
        let mut line = Map::new();
        line.insert("at".to_owned(), json!(at));
        line.insert("level".to_owned(), json!(self.level.as_str().to_ascii_lowercase()));
        line.insert("target".to_owned(), json!(self.target));
        line.insert("message".to_owned(), json!(self.message));
        let mut fields = Map::new();
        for (name, value, _) in &self.fields {
            let place = if *name == "code" { &mut line } else { &mut fields };
            place.insert((*name).to_owned(), value.clone());
        }
        line.insert("fields".to_owned(), Value::Object(fields));
        format!("{}\n", Value::Object(line))
    }

    fn add(&mut self, field: &Field, value: Value, is_quoted: bool) {
        match (field.name(), value) {
            ("message", Value::String(message)) => self.message = message,
            (name, value) => self.fields.push((name, value, is_quoted)),
        }
    }
}

impl Visit for Line {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, json!(value), false);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, json!(value), false);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, json!(value), false);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, json!(value), false);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, json!(value), true);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, json!(format!("{value:?}")), false);
    }
}

/// Appends text with its control characters escaped: a path or a name may contain line breaks and terminal
/// sequences.
fn push_escaped(text: &mut String, wild: &str) {
    for letter in wild.chars() {
        if letter.is_control() {
            text.extend(letter.escape_default());
        } else {
            text.push(letter);
        }
    }
}

#[cfg(test)]
pub(super) fn line(level: Level, message: &str, code: &'static str) -> Line {
    let fields = vec![("code", json!(code), true), ("path", json!("a\nb"), false)];
    Line { level, target: "siem_server".to_owned(), message: message.to_owned(), fields }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_break_a_line() {
        let line = line(Level::WARN, "cannot\u{1b}[2J", "a_code").with_suppressed(3);
        let text = line.format(Format::Plain, SystemTime::UNIX_EPOCH);
        let expected = "1970-01-01T00:00:00.000Z  WARN siem_server: cannot\\u{1b}[2J code=\"a_code\" \
                        path=a\\nb suppressed=3\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn json_line_has_the_code_at_its_top() {
        let line = line(Level::ERROR, "m\n", "a_code");
        let text = line.format(Format::Json, SystemTime::UNIX_EPOCH);
        assert_eq!(text.matches('\n').count(), 1);
        let expected = json!({
            "at": "1970-01-01T00:00:00.000Z", "level": "error", "target": "siem_server",
            "code": "a_code", "message": "m\n", "fields": { "path": "a\nb" },
        });
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
    }
}
