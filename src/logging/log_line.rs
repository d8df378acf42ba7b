//! One line of the log, and its formats.

use std::fmt;

use serde_json::{Map, Value, json};
use tracing::{
    Event, Level,
    field::{Field, Visit},
};

use crate::{platform::Timestamp, text::causes};

/// One line of the log.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) level: Level,
    pub(super) target: String,
    pub(super) message: String,
    /// Stable name of the line, as `docs/status.md` lists it.
    pub(super) code: Option<String>,
    fields: Vec<(&'static str, Value, Shown)>,
}

/// Format of a value in text lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Quoted,
    Bare,
}

/// Format of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// For a file, or another program.
    Plain,
    /// For a person at a terminal.
    Coloured,
    /// For the journal, which adds the time.
    Journal,
    /// For a program: one JSON object per line.
    Json,
}

impl Line {
    pub(super) fn of(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let mut line = Self::new(*metadata.level(), metadata.target(), String::new());
        event.record(&mut line);
        line
    }

    fn new(level: Level, target: &str, message: String) -> Self {
        Self { level, target: target.to_owned(), message, code: None, fields: Vec::new() }
    }

    /// Creates a warning of the log itself.
    pub(super) fn warning(
        target: &str,
        code: &str,
        message: &str,
        fields: &[(&'static str, String)],
    ) -> Self {
        let mut line = Self::new(Level::WARN, target, message.to_owned());
        line.code = Some(code.to_owned());
        let fields = fields.iter().map(|(name, value)| (*name, json!(value), Shown::Bare));
        line.fields.extend(fields);
        line
    }

    /// Creates a line that counts suppressed repeats. It has their code.
    pub(super) fn suppressed(
        level: Level,
        target: &str,
        code: Option<&str>,
        message: &str,
        count: u64,
    ) -> Self {
        let digits = count.to_string();
        let mut grouped = String::new();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                grouped.push(',');
            }
            grouped.push(digit);
        }
        let message = format!("{grouped} similar suppressed: {message}");
        Self { code: code.map(str::to_owned), ..Self::new(level, target, message) }
    }

    /// Formats the line, with its end.
    pub(super) fn format(&self, style: Style, at: Timestamp) -> String {
        let mut text = String::new();
        match style {
            Style::Plain => text.push_str(&format!("{at} {:>5} {}: ", self.level, self.target)),
            Style::Coloured => {
                let colour = match self.level {
                    Level::ERROR => 31,
                    Level::WARN => 33,
                    Level::INFO => 32,
                    _ => 34,
                };
                let level = format_args!("\x1b[{colour}m{:>5}\x1b[0m", self.level).to_string();
                text.push_str(&format!(
                    "\x1b[2m{at}\x1b[0m {level} \x1b[2m{}:\x1b[0m ",
                    self.target
                ));
            }
            Style::Journal => {
                let priority = match self.level {
                    Level::ERROR => 3,
                    Level::WARN => 4,
                    Level::INFO => 6,
                    _ => 7,
                };
                text.push_str(&format!("<{priority}>{}: ", self.target));
            }
            Style::Json => return self.json(at),
        }
        // Before the message, where a person sees it.
        if let Some(code) = &self.code {
            text.push_str(&format!("code={code:?} "));
        }
        push_escaped(&mut text, &self.message);
        for (name, value, shown) in &self.fields {
            text.push_str(&format!(" {name}="));
            match (value, shown) {
                (Value::String(bare), Shown::Bare) => push_escaped(&mut text, bare),
                // The quoted form escapes control characters.
                (Value::String(quoted), Shown::Quoted) => text.push_str(&format!("{quoted:?}")),
                (other, _) => text.push_str(&format!("{other}")),
            }
        }
        text.push('\n');
        text
    }

    fn json(&self, at: Timestamp) -> String {
        let fields = self.fields.iter();
        let mut fields: Map<_, _> =
            fields.map(|(name, value, _)| ((*name).to_owned(), value.clone())).collect();
        if let Some(code) = &self.code {
            fields.insert("code".to_owned(), json!(code));
        }
        let line = json!({
            "at": at.to_string(),
            "level": self.level.as_str().to_ascii_lowercase(),
            "target": self.target,
            "message": self.message,
            "fields": fields,
        });
        format!("{line}\n")
    }

    fn add(&mut self, field: &Field, value: Value, shown: Shown) {
        match (field.name(), value) {
            ("message", Value::String(message)) => self.message = message,
            ("message", other) => self.message = other.to_string(),
            ("code", Value::String(code)) => self.code = Some(code),
            (name, value) => self.fields.push((name, value, shown)),
        }
    }
}

impl Visit for Line {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, json!(value), Shown::Bare);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, json!(value), Shown::Bare);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, json!(value), Shown::Bare);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, json!(value), Shown::Bare);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, json!(value), Shown::Quoted);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.add(field, json!(causes(value)), Shown::Bare);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, json!(format!("{value:?}")), Shown::Bare);
    }
}

/// Appends text with its control characters escaped: a path or a server's response may contain line
/// breaks and terminal sequences.
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
mod tests {
    use super::*;

    fn line() -> Line {
        let mut line = Line::new(Level::WARN, "ai_agent::x", "server \u{1b}[2J\nsays".into());
        line.fields.push(("path", json!("a\nb"), Shown::Bare));
        line.fields.push(("reason", json!("no \"x\"\n"), Shown::Quoted));
        line.fields.push(("attempt", json!(3), Shown::Bare));
        line
    }

    const AT: Timestamp = Timestamp(1_795_291_200_120);

    #[test]
    fn control_characters_do_not_break_a_line() {
        let rest = "server \\u{1b}[2J\\nsays path=a\\nb reason=\"no \\\"x\\\"\\n\" attempt=3\n";
        let plain = format!("2026-11-21T20:00:00.120Z  WARN ai_agent::x: {rest}");
        assert_eq!(line().format(Style::Plain, AT), plain);
        assert_eq!(line().format(Style::Journal, AT), format!("<4>ai_agent::x: {rest}"));
    }

    #[test]
    fn json_lines_hold_fields_unchanged() {
        let written = line().format(Style::Json, AT);
        assert_eq!(written.matches('\n').count(), 1);
        let expected = json!({
            "at": "2026-11-21T20:00:00.120Z", "level": "warn", "target": "ai_agent::x",
            "message": "server \u{1b}[2J\nsays",
            "fields": { "path": "a\nb", "reason": "no \"x\"\n", "attempt": 3 },
        });
        assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), expected);
    }

    #[test]
    fn suppressed_repeats_are_counted_with_separators() {
        for (count, words) in [(7, "7 similar"), (12_000, "12,000 "), (1_234_567, "1,234,567 ")] {
            let line = Line::suppressed(Level::WARN, "t", Some("c"), "m", count);
            assert!(line.message.starts_with(words), "{}", line.message);
            assert!(line.format(Style::Plain, AT).contains("WARN t: code=\"c\" "));
        }
    }
}
