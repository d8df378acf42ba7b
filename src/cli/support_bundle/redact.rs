//! Removes from a text what must not leave the machine: secrets, the names of sessions and projects,
//! answers of receivers, which may quote a record, and e-mail addresses.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use siem_protocol::Digest;

/// Replacement of what is left out.
const MASK: &str = "***";
/// Secrets that are shorter are not searched for: they would match any text. None of them is in a
/// value that the bundle shows.
const MIN_SECRET: usize = 6;
/// Fields of log lines, and members, that contain answers of a receiver.
const ANSWERS: [&str; 3] = ["answer", "said", "warning"];
/// Texts before the status of a receiver's answer. What follows the status may quote a record.
const STATUS_PREFIXES: [&str; 4] = ["responded with ", "response ", "with status ", " got "];
/// Quotes around a path in a message or a field.
const QUOTES: [char; 3] = ['`', '"', '\''];

/// Removes what must not leave the machine.
pub(super) struct Redactor {
    secrets: Vec<String>,
    home: String,
    /// Directories with sessions, the longest first.
    roots: Vec<String>,
    /// Makes the replacements of names unpredictable, so that names cannot be guessed from them.
    salt: [u8; 16],
}

impl Redactor {
    pub(super) fn new(
        secrets: Vec<String>,
        home: &Path,
        roots: &[PathBuf],
        salt: [u8; 16],
    ) -> Self {
        let mut secrets = secrets;
        secrets.retain(|secret| secret.len() >= MIN_SECRET);
        let text = |path: &Path| path.display().to_string();
        let mut roots: Vec<String> = roots.iter().map(|root| text(root)).collect();
        let longest_first = |text: &String| std::cmp::Reverse(text.len());
        roots.sort_by_key(longest_first);
        secrets.sort_by_key(longest_first);
        Self { secrets, home: text(home), roots, salt }
    }

    /// Redacts lines of the log, in either of its formats.
    pub(super) fn log(&self, text: &str) -> String {
        let mut redacted = String::new();
        for line in text.lines() {
            match serde_json::from_str(line) {
                Ok(value @ Value::Object(_)) => redacted += &self.value(value).to_string(),
                _ => redacted += &self.log_line(line),
            }
            redacted.push('\n');
        }
        redacted
    }

    /// Redacts every text in a value.
    pub(super) fn value(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(&text)),
            Value::Array(items) => items.into_iter().map(|item| self.value(item)).collect(),
            Value::Object(members) => {
                let member = |(name, value): (String, Value)| match value {
                    Value::Null => (name, Value::Null),
                    _ if ANSWERS.contains(&&*name) => (name, MASK.into()),
                    value => (name, self.value(value)),
                };
                Value::Object(members.into_iter().map(member).collect::<Map<_, _>>())
            }
            other => other,
        }
    }

    fn log_line(&self, line: &str) -> String {
        let fields = ANSWERS.iter().filter_map(|name| line.find(&format!(" {name}=")));
        match fields.min() {
            Some(at) => format!("{} {MASK}", self.text(&line[..at])),
            None => self.text(line),
        }
    }

    fn text(&self, text: &str) -> String {
        let mut text = without_answer(text);
        for secret in &self.secrets {
            text = text.replace(secret, MASK);
        }
        for root in &self.roots {
            text = self.without_names(&text, root);
        }
        if self.home.len() > 1 {
            text = text.replace(&self.home, "~");
        }
        without_addresses(&text)
    }

    /// Replaces the names behind `root` by a digest, which is the same wherever they occur. Without a
    /// quote in front of `root`, what follows the names is removed too: a name may contain any text.
    fn without_names(&self, text: &str, root: &str) -> String {
        let mut redacted = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(root) {
            let quote = rest[..at].chars().next_back().filter(|it| QUOTES.contains(it));
            let (before, behind) = rest.split_at(at + root.len());
            redacted += before;
            rest = behind;
            if !behind.starts_with(['/', '\\']) {
                continue;
            }
            let names = &behind[1..];
            let end = quote.map_or(names.len(), |quote| quoted_end(names, quote));
            let (names, after) = names.split_at(end);
            if !names.is_empty() {
                let path = &names[..likely_end(names)];
                let digest = Digest::of(&[&self.salt, path.as_bytes()].concat()).to_string();
                redacted += &format!("{}{MASK}{}", &behind[..1], &digest[..8]);
            }
            rest = after;
        }
        redacted + rest
    }
}

/// Returns the index of the closing quote in the rest of a text behind an opening quote; the length of
/// the text if that is uncertain, since a name contains quotes too.
fn quoted_end(text: &str, quote: char) -> usize {
    let is_closing = |at: &usize| !text[at + 1..].starts_with(char::is_alphanumeric);
    let has_pairs = text.matches(quote).count() % 2 == 1;
    let mut quotes = text.match_indices(quote).map(|(at, _)| at);
    quotes.find(is_closing).filter(|_| has_pairs).unwrap_or(text.len())
}

/// Returns the likely length of the names at the start of a text: they end with a quote, or where
/// another field or sentence starts. Only the digest depends on it, so that it is the same with and
/// without quotes.
fn likely_end(text: &str) -> usize {
    let quote = text.find(QUOTES);
    let sentence = text.find(": ");
    let field = text.match_indices(' ').find(|(at, _)| {
        let next = &text[at + 1..];
        let name = next.find(|it: char| !it.is_ascii_alphanumeric() && it != '_');
        name.is_some_and(|end| end > 0 && next[end..].starts_with('='))
    });
    let ends = [quote, sentence, field.map(|(at, _)| at)];
    ends.into_iter().flatten().min().unwrap_or(text.len())
}

/// Removes what follows the status of a receiver's answer.
fn without_answer(text: &str) -> String {
    let status_end = |prefix: &&str| {
        text.match_indices(*prefix).find_map(|(at, _)| {
            let status = &text[at + prefix.len()..];
            let digits = status.bytes().take_while(u8::is_ascii_digit).count();
            (digits == 3 && status.len() > digits).then_some(at + prefix.len() + digits)
        })
    };
    match STATUS_PREFIXES.iter().filter_map(status_end).min() {
        Some(end) => format!("{} {MASK}", &text[..end]),
        None => text.to_owned(),
    }
}

/// Removes the names in front of the domains of e-mail addresses.
fn without_addresses(text: &str) -> String {
    let is_name = |it: char| it.is_alphanumeric() || "._%+-".contains(it);
    let mut redacted = String::new();
    for (at, part) in text.split('@').enumerate() {
        if at > 0 {
            if part.starts_with(|first: char| first.is_alphanumeric()) {
                let kept = redacted.trim_end_matches(is_name).len();
                if kept < redacted.len() {
                    redacted.truncate(kept);
                    redacted += MASK;
                }
            }
            redacted.push('@');
        }
        redacted += part;
    }
    redacted
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn redactor() -> Redactor {
        let roots = ["/home/al/.claude/projects".into(), "/srv/sessions".into()];
        let secrets = vec!["t0ken-of-the-siem".to_owned(), "short".to_owned()];
        Redactor::new(secrets, Path::new("/home/al"), &roots, [7; 16])
    }

    #[test]
    fn secrets_and_addresses_are_masked() {
        let text = |text| redactor().text(text);
        assert_eq!(text("token t0ken-of-the-siem refused"), "token *** refused");
        assert_eq!(text("by jo.doe@example.com (in short)"), "by ***@example.com (in short)");
        assert_eq!(text("a @ b"), "a @ b");
    }

    /// The rest of the longer one would be left.
    #[test]
    fn secret_that_begins_with_another_one_is_masked() {
        let secrets = ["s3cret", "s3cret-and-more"].map(str::to_owned).to_vec();
        let redactor = Redactor::new(secrets, Path::new("/home/al"), &[], [7; 16]);
        assert_eq!(redactor.text("s3cret-and-more, s3cret"), "***, ***");
    }

    /// As of a service without a home directory: every path would begin with `~`.
    #[test]
    fn home_that_is_the_root_directory_is_not_replaced() {
        let redactor = Redactor::new(Vec::new(), Path::new("/"), &[], [7; 16]);
        assert_eq!(redactor.text("in `/etc/ai-agent`"), "in `/etc/ai-agent`");
    }

    #[test]
    fn names_of_sessions_and_projects_are_replaced() {
        let text = |text| redactor().text(text);
        let hidden = text("cannot read `/home/al/.claude/projects/-work-secret/a b.jsonl`: denied");
        assert!(hidden.starts_with("cannot read `~/.claude/projects/***"), "{hidden}");
        assert!(hidden.ends_with("`: denied") && !hidden.contains("secret"), "{hidden}");
        let line = "path=/srv/sessions/-work-secret/a b.jsonl error=denied";
        let hidden = text(line);
        assert!(!hidden.contains("secret") && !hidden.contains("b.jsonl"), "{hidden}");
        let digest = hidden.rsplit('/').next().unwrap();
        let quoted = text("path=\"/srv/sessions/-work-secret/a b.jsonl\" error=\"denied\"");
        assert_eq!(quoted, format!("path=\"/srv/sessions/{digest}\" error=\"denied\""));
        assert_eq!(hidden, text(line), "the same name has the same replacement");
        let other = Redactor { salt: [8; 16], ..redactor() };
        assert_ne!(hidden, other.text(line), "and another one in another bundle");
        assert_eq!(text("in `/home/al/.claude/projects`"), "in `~/.claude/projects`");
        assert_eq!(text("/home/al/x"), "~/x");
    }

    #[test]
    fn names_with_quotes_and_fields_are_replaced_as_a_whole() {
        let redactor = redactor();
        for name in ["it's secret", "a: secret", "a x=secret", "a\"b secret", "a` secret"] {
            for quote in ["", "`", "\"", "'"] {
                let line = format!("cannot read {quote}/srv/sessions/{name}{quote}: denied");
                let value = json!({ "message": line }).to_string();
                for line in [line, value] {
                    let hidden = redactor.log(&line);
                    assert!(!hidden.contains("secret"), "{line}: {hidden}");
                    assert!(hidden.contains("/srv/sessions/***"), "{line}: {hidden}");
                }
            }
        }
    }

    #[test]
    fn answers_of_receivers_are_left_out() {
        let text = "sink `siem` delivers nothing: the receiver responded with 400 (a record)";
        let expected = "sink `siem` delivers nothing: the receiver responded with 400 ***";
        assert_eq!(redactor().text(text), expected);
        assert_eq!(redactor().text("the document got 400: a record"), "the document got 400 ***");
        assert_eq!(redactor().text("response 503, a record"), "response 503 ***");
        assert_eq!(redactor().text("ended with status 422: a record"), "ended with status 422 ***");
        let log = "t WARN x: code=\"receiver_warning\" warning=\"a record\"";
        assert_eq!(redactor().log(log), "t WARN x: code=\"receiver_warning\" ***\n");
        let value = json!({ "answer": "a record", "said": null, "list": [{ "answer": 7 }] });
        let expected = json!({ "answer": "***", "said": null, "list": [{ "answer": "***" }] });
        assert_eq!(redactor().value(value), expected);
        let log = "t WARN x: code=\"c\" refused seq=7 said=\"a record\" more=1\n\
                   {\"fields\":{\"said\":\"a record\"},\"message\":\"m\"}\n";
        let expected = "t WARN x: code=\"c\" refused seq=7 ***\n\
                        {\"fields\":{\"said\":\"***\"},\"message\":\"m\"}\n";
        assert_eq!(redactor().log(log), expected);
    }
}
