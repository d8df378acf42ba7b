//! Interprets the response to a bulk request: a pure function over two tables.

use std::{
    borrow::Cow,
    fmt,
    ops::RangeInclusive,
    time::{Duration, SystemTime},
};

use reqwest::header::RETRY_AFTER;
use serde::{
    Deserialize, Deserializer as _,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use siem_protocol::delivery::{EntryResult, Rest};

use crate::{
    http::{Answer, NoAnswer, retry_after},
    problem::summary,
};

/// Results of the documents of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interpreted {
    /// Results in the order of the documents, one for each.
    pub(super) items: Vec<EntryResult>,
    /// Result for the undecided documents; `None` if there is none.
    pub(super) rest: Option<Rest>,
}

/// Meaning of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// Stored, by this request or an earlier one.
    Accepted,
    /// Stored, but searches do not find it; or not stored on purpose of the receiver.
    Misfiled,
    /// The content is refused.
    Refused,
    /// Not stored for now.
    Retry,
    /// A person must act.
    Hold,
}

/// A row of a table. The first one that matches counts.
struct Rule {
    statuses: RangeInclusive<u16>,
    /// Type of the error; empty for any, and for none.
    error: &'static str,
    /// Text in the reason of the error; empty for any.
    reason: &'static str,
    meaning: Meaning,
    /// Remedy for a person.
    remedy: &'static str,
}

const fn rule(
    statuses: RangeInclusive<u16>,
    error: &'static str,
    meaning: Meaning,
    remedy: &'static str,
) -> Rule {
    Rule { statuses, error, reason: "", meaning, remedy }
}

const NO_PIPELINE: Rule = Rule {
    statuses: 400..=400,
    error: "illegal_argument_exception",
    reason: "pipeline with id",
    meaning: Meaning::Hold,
    remedy: "check `pipeline`, and the default pipeline of the target",
};
const RIGHTS: &str = "give the credentials the privilege `create_doc`, and `auto_configure` if the \
                      target does not exist yet";

/// Meaning of the status of a document.
const ITEMS: &[Rule] = &[
    rule(201..=201, "", Meaning::Accepted, ""),
    // A document that is created has 201: a pipeline dropped it.
    rule(200..=200, "", Meaning::Misfiled, ""),
    rule(409..=409, "version_conflict_engine_exception", Meaning::Accepted, ""),
    rule(409..=409, "", Meaning::Retry, ""),
    NO_PIPELINE,
    rule(400..=400, "index_closed_exception", Meaning::Hold, "open the index"),
    rule(
        400..=400,
        "invalid_index_name_exception",
        Meaning::Hold,
        "check `data_stream` and `index`",
    ),
    rule(400..=400, "validation_exception", Meaning::Hold, "the cluster cannot create the index"),
    rule(400..=400, "", Meaning::Refused, ""),
    rule(413..=413, "", Meaning::Refused, ""),
    rule(401..=401, "", Meaning::Hold, "check the credentials"),
    rule(
        403..=403,
        "cluster_block_exception",
        Meaning::Hold,
        "the index is blocked: check its disk and life cycle",
    ),
    rule(403..=403, "", Meaning::Hold, RIGHTS),
    rule(404..=404, "", Meaning::Hold, "create the target, or check `data_stream` and `index`"),
    rule(408..=408, "", Meaning::Retry, ""),
    rule(429..=429, "", Meaning::Retry, ""),
    // Also permanent failures, such as of a processor of the pipeline.
    rule(500..=500, "", Meaning::Hold, "check the ingest pipeline, and the log of the cluster"),
    rule(501..=599, "", Meaning::Retry, ""),
    rule(0..=u16::MAX, "", Meaning::Hold, ""),
];

/// Meaning of the status of a response without results of documents.
const RESPONSES: &[Rule] = &[
    rule(
        300..=399,
        "",
        Meaning::Hold,
        "redirects are not followed, configure the final URL as `endpoint`",
    ),
    NO_PIPELINE,
    rule(
        400..=400,
        "illegal_argument_exception",
        Meaning::Hold,
        "the receiver does not accept this kind of request: check `endpoint`",
    ),
    rule(
        400..=400,
        "invalid_index_name_exception",
        Meaning::Hold,
        "check `data_stream` and `index`",
    ),
    rule(400..=400, "", Meaning::Refused, ""),
    rule(401..=401, "", Meaning::Hold, "check the credentials"),
    rule(403..=403, "", Meaning::Hold, RIGHTS),
    rule(404..=405, "", Meaning::Hold, "there is no bulk API at this URL: check `endpoint`"),
    rule(406..=406, "", Meaning::Hold, ""),
    rule(407..=407, "", Meaning::Hold, "set `proxy_user` and `proxy_password_file`"),
    rule(408..=408, "", Meaning::Retry, ""),
    rule(413..=413, "", Meaning::Refused, ""),
    rule(415..=415, "", Meaning::Hold, "set `compression = \"none\"`"),
    rule(425..=425, "", Meaning::Retry, ""),
    rule(429..=429, "", Meaning::Retry, ""),
    rule(500..=599, "", Meaning::Retry, ""),
    rule(0..=u16::MAX, "", Meaning::Hold, ""),
];

fn find(table: &'static [Rule], status: u16, error: &Failure<'_>) -> &'static Rule {
    let matches = |rule: &&Rule| {
        rule.statuses.contains(&status)
            && (rule.error.is_empty() || rule.error == error.kind)
            && error.reason.starts_with(rule.reason)
    };
    table.iter().find(matches).unwrap_or(&table[table.len() - 1])
}

/// Body of a response.
#[derive(Default, Deserialize)]
struct Body<'a> {
    /// Array of [`Item`]s.
    #[serde(borrow)]
    items: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// Result of a document, under the name of its action.
#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    create: Option<Outcome<'a>>,
}

#[derive(Deserialize)]
struct Outcome<'a> {
    status: u16,
    #[serde(borrow)]
    failure_store: Option<Cow<'a, str>>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// Parses the results of at most this many documents, and counts the others: a result of two bytes
/// would take many times its size in memory.
struct Items(usize);

/// Results of a response.
#[derive(Default)]
struct Listed<'a> {
    items: Vec<Item<'a>>,
    /// Number of results, also of those that are not in `items`.
    total: usize,
}

impl<'a> Items {
    fn parse(self, items: Option<&'a RawValue>) -> serde_json::Result<Listed<'a>> {
        let Some(items) = items else { return Ok(Listed::default()) };
        serde_json::Deserializer::from_str(items.get()).deserialize_seq(self)
    }
}

impl<'a> Visitor<'a> for Items {
    type Value = Listed<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of results")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut results: A) -> Result<Self::Value, A::Error> {
        let mut listed = Listed::default();
        while listed.items.len() < self.0 {
            let Some(item) = results.next_element()? else { break };
            listed.items.push(item);
        }
        listed.total = listed.items.len();
        while results.next_element::<IgnoredAny>()?.is_some() {
            listed.total += 1;
        }
        Ok(listed)
    }
}

/// An error: its type and reason, which are empty if they are unknown.
#[derive(Default, Deserialize)]
struct Failure<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    reason: Cow<'a, str>,
}

impl<'a> Failure<'a> {
    fn of(error: Option<&'a RawValue>) -> Self {
        let Some(error) = error else { return Self::default() };
        serde_json::from_str(error.get())
            .or_else(|_| {
                let text = serde_json::from_str::<Cow<'a, str>>(error.get());
                text.map(|reason| Self { kind: Cow::Borrowed(""), reason })
            })
            .unwrap_or_default()
    }

    /// Returns type and reason, without what the receiver quotes from the document.
    fn text(&self) -> Option<String> {
        let reason = without_quotes(&self.reason);
        summary(format!("{}: {reason}", self.kind).trim_matches([':', ' ']).as_bytes())
    }
}

/// Returns the start of a reason up to the first quotation of the document: text in brackets or quotation
/// marks is kept only if it is an identifier.
fn without_quotes(reason: &str) -> &str {
    const MARKS: [(char, char); 4] = [('[', ']'), ('\'', '\''), ('"', '"'), ('`', '`')];
    const PHRASES: [&str; 5] = [
        "Preview of field's value",
        "The prefix of the first immense term",
        "For input string",
        "field value:",
        "against source:",
    ];
    let is_identifier = |text: &str| {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "_.@:-".contains(c);
        text.len() <= 128 && text.chars().all(is_part)
    };
    let mut end =
        PHRASES.iter().filter_map(|phrase| reason.find(phrase)).min().unwrap_or(reason.len());
    let mut rest = 0;
    while let Some((at, mark)) = reason[rest..end].char_indices().find_map(|(at, character)| {
        MARKS.iter().find(|(open, _)| *open == character).map(|mark| (rest + at, mark))
    }) {
        let inner = &reason[at + 1..];
        match inner.find(mark.1) {
            Some(length) if is_identifier(&inner[..length]) => rest = at + 1 + length + 1,
            _ => {
                end = at;
                break;
            }
        }
        if rest >= end {
            break;
        }
    }
    &reason[..end]
}

/// Returns the results of `count` documents that were sent to `target`.
pub(super) fn interpret(
    reply: &Result<Answer, NoAnswer>,
    count: usize,
    target: &str,
    now: SystemTime,
) -> Interpreted {
    let answer = match reply {
        Ok(answer) => answer,
        Err(no_answer) => return undecided(count, no_answer.into()),
    };
    let after = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let after = after.and_then(|value| retry_after(value, now));
    if answer.status == 200 {
        of_items(answer, count, target, after)
    } else {
        undecided(count, of_status(answer, after))
    }
}

fn undecided(count: usize, rest: Rest) -> Interpreted {
    Interpreted { items: vec![EntryResult::Undecided; count], rest: Some(rest) }
}

/// Interprets a response that is not 200.
fn of_status(answer: &Answer, after: Option<Duration>) -> Rest {
    let status = answer.status;
    let body = serde_json::from_slice::<Body<'_>>(&answer.body).unwrap_or_default();
    let failure = Failure::of(body.error);
    let rule = find(RESPONSES, status, &failure);
    let text = failure.text();
    match rule.meaning {
        Meaning::Refused => Rest::Refused { status, answer: text.unwrap_or_default() },
        Meaning::Retry => {
            Rest::Retry { after, reason: reason("the receiver responded with", status, "", text) }
        }
        _ => {
            let reason = reason("the receiver responded with", status, rule.remedy, text);
            Rest::Hold { after, reason }
        }
    }
}

fn reason(what: &str, status: u16, remedy: &str, text: Option<String>) -> String {
    let remedy = if remedy.is_empty() { String::new() } else { format!(": {remedy}") };
    let text = text.map(|text| format!(" ({text})")).unwrap_or_default();
    format!("{what} {status}{remedy}{text}")
}

/// Interprets a response with a result for each document.
fn of_items(answer: &Answer, count: usize, target: &str, after: Option<Duration>) -> Interpreted {
    if !answer.body.trim_ascii_start().starts_with(b"{")
        && answer.is_whole
        && !answer.body.is_empty()
    {
        let reason = "the response 200 is not from Elasticsearch or OpenSearch: check `endpoint`, and \
                      whether a proxy responds in place of the receiver";
        return undecided(count, Rest::Hold { after, reason: reason.to_owned() });
    }
    // Sending the documents again is harmless.
    let unusable = |problem: &str| {
        let reason = format!("the response 200 {problem}; the documents are sent again");
        undecided(count, Rest::Retry { after, reason })
    };
    // The same request is likely to have the same response: a person should know.
    let held = |problem: &str| {
        let reason = format!("the response 200 {problem}; the documents are sent again");
        undecided(count, Rest::Hold { after, reason })
    };
    if !answer.is_whole {
        return held("is too long");
    }
    let body = serde_json::from_slice::<Body<'_>>(&answer.body);
    let Ok(Listed { items, total }) = body.and_then(|body| Items(count).parse(body.items)) else {
        return unusable("is not complete");
    };
    if total != count {
        return held(&format!("has {total} results for {count} documents"));
    }
    let mut collected = Collected { target, after, items: Vec::with_capacity(count), rest: None };
    for item in items {
        collected.add(item);
    }
    Interpreted { items: collected.items, rest: collected.rest }
}

/// Results of documents so far.
struct Collected<'t> {
    target: &'t str,
    after: Option<Duration>,
    items: Vec<EntryResult>,
    rest: Option<Rest>,
}

impl Collected<'_> {
    fn add(&mut self, item: Item<'_>) {
        let result = match item.create {
            Some(outcome) => self.result(&outcome),
            None => {
                self.retry("the response has no result of a document".to_owned());
                EntryResult::Undecided
            }
        };
        self.items.push(result);
    }

    fn result(&mut self, outcome: &Outcome<'_>) -> EntryResult {
        let status = outcome.status;
        let failure = Failure::of(outcome.error);
        let rule = find(ITEMS, status, &failure);
        let what = || format!("a document for `{}` got", self.target);
        match rule.meaning {
            Meaning::Accepted if outcome.failure_store.as_deref() == Some("used") => {
                let answer = format!("stored in the failure store of `{}`", self.target);
                EntryResult::Misfiled { answer }
            }
            Meaning::Accepted => EntryResult::Accepted,
            Meaning::Misfiled => EntryResult::Misfiled {
                answer: format!(
                    "not created in `{}`, as if a pipeline dropped it ({status})",
                    self.target
                ),
            },
            Meaning::Refused => {
                EntryResult::Refused { status, answer: failure.text().unwrap_or_default() }
            }
            Meaning::Retry => {
                self.retry(reason(&what(), status, "", failure.text()));
                EntryResult::Undecided
            }
            Meaning::Hold => {
                let reason = reason(&what(), status, rule.remedy, failure.text());
                if !matches!(self.rest, Some(Rest::Hold { .. })) {
                    self.rest = Some(Rest::Hold { after: self.after, reason });
                }
                EntryResult::Undecided
            }
        }
    }

    /// Keeps the first reason. One that needs a person replaces it.
    fn retry(&mut self, reason: String) {
        let after = self.after;
        self.rest.get_or_insert(Rest::Retry { after, reason });
    }
}

#[cfg(test)]
mod tests;
