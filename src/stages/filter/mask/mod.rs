//! Masks secrets in the text of records: keys of well-known services, private keys, and matches of
//! configured patterns.
//!
//! Only the values of strings are searched, with escapes decoded. Every other byte stays, and a
//! record stays valid JSON. The entry states how often each pattern matched and carries the hash of
//! the original line. A line that is not a JSON object is searched as a whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    ops::Range,
    str,
    sync::Arc,
};

use ai_agent_stage::{
    BuildError, Change, Fallback, Filter, FilterOptions, Match, Plugin, Record, Verdict,
};
use memchr::{memchr, memchr2};
use regex_automata::meta::Regex;
use schemars::JsonSchema;
use serde::Deserialize;
use siem_protocol::json;

use super::pattern;

inventory::submit! {
    Plugin::filter::<Options>(
        "mask",
        "Masks keys, tokens and matches of your own patterns in the text of records.",
        r#"
## Known secrets to mask; by default all of them.
patterns = ["anthropic-key", "openai-key", "aws-access-key", "aws-secret-key", "github-token", "slack-token", "private-key", "jwt"]
## Your own regular expressions, by name. A match becomes `[masked:NAME]`.
own = { employee-number = '\bE-[0-9]{6}\b' }
## Action for a record that is too large to be held in memory: "keep" or "drop".
on_oversize = "keep"
"#,
    )
}

/// After this number of matches in one string, the rest of it is masked: each search can read to the
/// end of the string, which would take hours for a long string built for this purpose.
const MAX_MATCHES: usize = 256;

/// Options of the filter.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Known secrets to mask; by default all of them.
    #[serde(default = "KnownSecret::all")]
    patterns: BTreeSet<KnownSecret>,
    /// Your own regular expressions, by name. A match becomes `[masked:NAME]`.
    #[serde(default)]
    own: BTreeMap<String, String>,
    /// Action for a record that is too large to be held in memory: "keep" or "drop".
    #[serde(default)]
    on_oversize: Fallback,
}

/// A secret with a known format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum KnownSecret {
    /// Keys of the Anthropic API.
    AnthropicKey,
    /// Keys of the OpenAI API.
    OpenaiKey,
    /// Ids of access keys of AWS.
    AwsAccessKey,
    /// Secrets of access keys of AWS, with the name before them.
    AwsSecretKey,
    /// Tokens of GitHub.
    GithubToken,
    /// Tokens and webhooks of Slack.
    SlackToken,
    /// Private keys in PEM, up to their end or the end of the text.
    PrivateKey,
    /// JSON web tokens.
    Jwt,
}

impl KnownSecret {
    const ALL: [Self; 8] = [
        Self::AnthropicKey,
        Self::OpenaiKey,
        Self::AwsAccessKey,
        Self::AwsSecretKey,
        Self::GithubToken,
        Self::SlackToken,
        Self::PrivateKey,
        Self::Jwt,
    ];

    fn all() -> BTreeSet<Self> {
        Self::ALL.into()
    }

    fn name(self) -> &'static str {
        self.form().0
    }

    fn regex(self) -> &'static str {
        self.form().1
    }

    fn form(self) -> (&'static str, &'static str) {
        match self {
            Self::AnthropicKey => ("anthropic-key", r"(?-u:\b)sk-ant-[A-Za-z0-9_-]{16,}"),
            Self::OpenaiKey => (
                "openai-key",
                r"(?-u:\b)sk-(?:(?:proj|svcacct|admin)-[A-Za-z0-9_-]{20,}|[A-Za-z0-9]{32,})",
            ),
            Self::AwsAccessKey => ("aws-access-key", r"(?-u:\b)A[KS]IA[A-Z0-9]{16}(?-u:\b)"),
            Self::AwsSecretKey => (
                "aws-secret-key",
                r#"(?i)(?-u:\w*)secret_?access_?key\\?["']?[ \t]*[:=][ \t]*\\?["']?[a-z0-9/+]{40,}"#,
            ),
            Self::GithubToken => (
                "github-token",
                r"(?-u:\b)(?:gh[oprsu]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})",
            ),
            Self::SlackToken => (
                "slack-token",
                r"(?-u:\b)(?:xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{10,}|hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_-]{10,})",
            ),
            // Without an end marker, the rest of the text is masked: the key may be truncated. The
            // character after the first line distinguishes a key from a text about keys.
            Self::PrivateKey => (
                "private-key",
                r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:\\[nr]|[\sA-Za-z0-9+/])(?s:.*?-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|.*)",
            ),
            Self::Jwt => {
                ("jwt", r"(?-u:\b)eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}")
            }
        }
    }
}

/// The filter.
struct Mask {
    regex: Regex,
    names: Vec<Arc<str>>,
    on_oversize: Fallback,
    decoded: DecodedText,
}

impl FilterOptions for Options {
    type Filter = Mask;

    fn build(self) -> Result<Mask, BuildError> {
        for name in self.own.keys() {
            let is_word =
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            if name.is_empty() || !is_word {
                let problem = "expected lower-case letters, digits and `-`";
                return Err(wrong(format!("names a pattern `{name}`, {problem}")));
            }
            if KnownSecret::ALL.iter().any(|known| known.name() == name) {
                return Err(wrong(format!(
                    "names a pattern `{name}`, which is the name of a known secret"
                )));
            }
        }
        let known = self.patterns.iter().map(|known| (known.name(), known.regex()));
        let own = self.own.iter().map(|(name, regex)| (name.as_str(), regex.as_str()));
        let (names, patterns): (Vec<&str>, Vec<&str>) = known.chain(own).unzip();
        let regex = pattern::compile(&patterns).map_err(|(index, problem)| {
            let name = names.get(index).copied().unwrap_or_default();
            wrong(format!("has the pattern `{name}`, which is wrong: {problem}"))
        })?;
        // A pattern that matches a mark would mask it again, for example in a second agent.
        for name in &names {
            if let Some(found) = regex.find(&mark(name)) {
                let pattern = names[found.pattern().as_usize()];
                return Err(wrong(format!(
                    "has the pattern `{pattern}`, which matches too much: `{}`, or nothing at all",
                    mark(name)
                )));
            }
        }
        let names = names.into_iter().map(Arc::from).collect();
        Ok(Mask { regex, names, on_oversize: self.on_oversize, decoded: DecodedText::default() })
    }
}

fn wrong(problem: String) -> BuildError {
    BuildError::invalid("own", problem)
}

fn mark(name: &str) -> String {
    format!("[masked:{name}]")
}

impl Filter for Mask {
    fn check(&mut self, record: &Record<'_>) -> Verdict {
        if record.is_partial() {
            return self.on_oversize.verdict("oversized");
        }
        let line = record.line();
        let mut found = Vec::new();
        match str::from_utf8(line) {
            Ok(text) if record.is_object() => {
                let mut decoded = mem::take(&mut self.decoded);
                let strings = JsonStrings { text, at: 0 }.filter(|it| !it.is_key);
                for span in strings.map(|it| it.inner) {
                    let inner = &text[span.clone()];
                    if memchr(b'\\', inner.as_bytes()).is_none() {
                        self.search(inner, |at| span.start + at, &mut found);
                    } else {
                        decoded.decode(inner);
                        let raw = |at| span.start + decoded.raw(at);
                        self.search(&decoded.text, raw, &mut found);
                    }
                }
                self.decoded = decoded;
            }
            Ok(text) => self.search(text, |at| at, &mut found),
            Err(_) => {
                let mut decoded = DecodedText::default();
                decoded.decode_bytes(line);
                self.search(&decoded.text, |at| decoded.raw(at), &mut found);
            }
        }
        if found.is_empty() { Verdict::Keep } else { Verdict::Mask(found) }
    }
}

impl Mask {
    /// Adds the matches in `text`; `position` converts an offset in `text` to one in the line.
    fn search(&self, text: &str, position: impl Fn(usize) -> usize, found: &mut Vec<Match>) {
        let matches = self.regex.find_iter(text).filter(|it| !it.is_empty());
        for (count, it) in matches.take(MAX_MATCHES).enumerate() {
            let end = if count + 1 == MAX_MATCHES { text.len() } else { it.end() };
            let pattern = Arc::clone(&self.names[it.pattern().as_usize()]);
            let range = position(it.start())..position(end);
            let change = Change { range, with: mark(&pattern).into() };
            found.push(Match { pattern, change });
        }
    }
}

/// Iterates over the strings of a valid JSON text.
struct JsonStrings<'a> {
    text: &'a str,
    at: usize,
}

/// A string of a JSON text.
struct StringSpan {
    /// Range between the quotes.
    inner: Range<usize>,
    /// True if the string is the name of a member.
    is_key: bool,
}

impl Iterator for JsonStrings<'_> {
    type Item = StringSpan;

    fn next(&mut self) -> Option<StringSpan> {
        let bytes = self.text.as_bytes();
        let start = self.at + memchr(b'"', bytes.get(self.at..)?)? + 1;
        let mut end = start;
        loop {
            end += memchr2(b'"', b'\\', bytes.get(end..)?)?;
            if bytes[end] == b'"' {
                break;
            }
            end += 2;
        }
        self.at = end + 1;
        let next = bytes[self.at..].iter().find(|byte| !byte.is_ascii_whitespace());
        Some(StringSpan { inner: start..end, is_key: next == Some(&b':') })
    }
}

/// Decoded text of a string, and the position of each part in the string.
#[derive(Default)]
struct DecodedText {
    text: String,
    /// End of each escape: its offset in the text and in the string.
    escapes: Vec<(usize, usize)>,
}

impl DecodedText {
    fn decode(&mut self, inner: &str) {
        self.text.clear();
        self.escapes.clear();
        let mut at = 0;
        while let Some(plain) = memchr(b'\\', &inner.as_bytes()[at..]) {
            self.text.push_str(&inner[at..at + plain]);
            at += plain;
            // A lone surrogate cannot be searched for; it becomes a replacement character.
            let (character, length) =
                json::escape(&inner[at..]).unwrap_or((char::REPLACEMENT_CHARACTER, 6));
            self.text.push(character);
            at += length;
            self.escapes.push((self.text.len(), at));
        }
        self.text.push_str(&inner[at..]);
    }

    /// Decodes a line that is not UTF-8. Invalid bytes become replacement characters.
    fn decode_bytes(&mut self, line: &[u8]) {
        let mut at = 0;
        for chunk in line.utf8_chunks() {
            self.text.push_str(chunk.valid());
            at += chunk.valid().len() + chunk.invalid().len();
            if !chunk.invalid().is_empty() {
                self.text.push(char::REPLACEMENT_CHARACTER);
                self.escapes.push((self.text.len(), at));
            }
        }
    }

    /// Returns the offset in the string of the character at offset `at` of the text.
    fn raw(&self, at: usize) -> usize {
        let before = self.escapes.partition_point(|(end, _)| *end <= at);
        let (end, raw) = before.checked_sub(1).map_or((0, 0), |last| self.escapes[last]);
        raw + (at - end)
    }
}

#[cfg(test)]
mod tests;
