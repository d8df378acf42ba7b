//! Runs the tests that a configuration carries: lines through filters, without a file or a store.

use std::{
    fmt,
    panic::{self, AssertUnwindSafe},
    path::Path,
};

use super::filter_chain::{FilterChain, Outcome};
use crate::{
    config::{ExpectedOutcome, InlineTest, TestLine},
    stages::Record,
    tail::{FileKey, GenerationId, Origin},
};

/// Where lines come from whose test does not say so.
const NOWHERE: &str = "/home/user/.claude/projects/-work/session.jsonl";

/// What became of a line, as a test says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    verdict: &'static str,
    by: Option<String>,
    reason: Option<String>,
    output: Option<String>,
}

/// A line that became something else than its test says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Which line, from 1.
    pub line: usize,
    /// What the test says; only what it says.
    pub expected: Verdict,
    /// What became of it, as far as the test says anything about that.
    pub found: Verdict,
}

/// Runs a test's lines through filters that have seen no others, and gives those that became
/// something else than it says.
pub fn run(test: &InlineTest, filters: &mut FilterChain) -> Vec<Mismatch> {
    let path = test.path.as_deref().unwrap_or(Path::new(NOWHERE));
    let origin = Origin::new(FileKey(0), path, GenerationId("00".repeat(16)));
    let mut mismatches = Vec::new();
    let mut offset = 0;
    for (index, line) in test.lines.iter().enumerate() {
        let record = Record::new(&origin, offset, line.input.as_bytes());
        offset += line.input.len() as u64 + 1;
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| filters.check(&record)));
        let found = match outcome {
            Ok(outcome) => Verdict::of(outcome, filters),
            Err(_) => Verdict { verdict: "panic in a filter", ..Verdict::default() },
        };
        let expected = Verdict::expected(line);
        if !found.is(&expected) {
            mismatches.push(Mismatch { line: index + 1, expected, found });
        }
    }
    mismatches
}

impl Verdict {
    fn expected(line: &TestLine) -> Self {
        let TestLine { expect, by, reason, output, .. } = line.clone();
        Self { verdict: expect.as_str(), by, reason, output }
    }

    fn of(outcome: Outcome, filters: &FilterChain) -> Self {
        match outcome {
            Outcome::Keep(None) => {
                Self { verdict: ExpectedOutcome::Keep.as_str(), ..Self::default() }
            }
            Outcome::Keep(Some(edited)) => Self {
                verdict: ExpectedOutcome::Edit.as_str(),
                by: Some(edited.by),
                reason: None,
                output: Some(String::from_utf8_lossy(&edited.line).into_owned()),
            },
            Outcome::Drop { stage, reason } => Self {
                verdict: ExpectedOutcome::Drop.as_str(),
                by: Some(filters.name(stage).to_owned()),
                reason: Some(reason.to_owned()),
                output: None,
            },
        }
    }

    fn is(&self, expected: &Self) -> bool {
        let same = |own: &Option<String>, other: &Option<String>| other.is_none() || own == other;
        self.verdict == expected.verdict
            && same(&self.by, &expected.by)
            && same(&self.reason, &expected.reason)
            && same(&self.output, &expected.output)
    }

    /// The verdict without the line that an edit made, which may be long.
    #[must_use]
    pub fn in_short(&self) -> Self {
        Self { output: None, ..self.clone() }
    }

    /// The line that an edit made.
    #[must_use]
    pub fn output(&self) -> Option<&str> {
        self.output.as_deref()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.verdict)?;
        if let Some(by) = &self.by {
            write!(f, " by {by}")?;
        }
        if let Some(reason) = &self.reason {
            write!(f, " ({reason})")?;
        }
        if let Some(output) = &self.output {
            write!(f, " to {output}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::LayerOrigin as Layer,
        stages::{StageOptions, filter},
    };

    fn line(input: &str, expect: ExpectedOutcome) -> TestLine {
        let input = input.to_owned();
        TestLine { input, expect, by: None, reason: None, output: None }
    }

    fn mismatches(lines: Vec<TestLine>) -> Vec<(usize, String, String)> {
        let options = StageOptions::from_toml("").unwrap();
        let filters = ["dedupe", "meta", "tool-call"];
        let filters = filters.map(|name| (name.to_owned(), filter::build(name, &options).unwrap()));
        let test =
            InlineTest { name: "t".into(), path: None, lines, location: Layer::Defaults.into() };
        let found = run(&test, &mut FilterChain::new(filters.into()));
        let text = |it: Mismatch| (it.line, it.expected.to_string(), it.found.to_string());
        found.into_iter().map(text).collect()
    }

    const CALL: &str = r#"{"message":{"content":[{"type":"tool_use"},{"type":"text"}]}}"#;

    #[test]
    fn lines_run_in_order_and_the_filters_remember_them() {
        let again = r#"{"uuid":"u"}"#;
        let lines = vec![line(again, ExpectedOutcome::Keep), line(again, ExpectedOutcome::Drop)];
        assert_eq!(mismatches(lines), []);
    }

    #[test]
    fn what_a_test_leaves_out_may_be_anything() {
        let output = Some(r#"{"message":{"content":[{"type":"text"}]}}"#.to_owned());
        let lines = vec![
            line(r#"{"isMeta":true}"#, ExpectedOutcome::Drop),
            TestLine {
                by: Some("meta".into()),
                ..line(r#"{"isMeta":true}"#, ExpectedOutcome::Drop)
            },
            TestLine { output, ..line(CALL, ExpectedOutcome::Edit) },
        ];
        assert_eq!(mismatches(lines), []);
    }

    #[test]
    fn a_mismatch_says_what_was_expected_and_what_came() {
        let by = |by: &str, line| TestLine { by: Some(by.to_owned()), ..line };
        let lines = vec![
            line("{}", ExpectedOutcome::Drop),
            by("sidechain", line(r#"{"isMeta":true}"#, ExpectedOutcome::Drop)),
            line(CALL, ExpectedOutcome::Keep),
            TestLine { output: Some("{}".into()), ..line(CALL, ExpectedOutcome::Edit) },
        ];
        let kept = r#"{"message":{"content":[{"type":"text"}]}}"#;
        let expected = [
            (1, "drop".to_owned(), "keep".to_owned()),
            (2, "drop by sidechain".to_owned(), "drop by meta (meta)".to_owned()),
            (3, "keep".to_owned(), format!("edit by tool-call to {kept}")),
            (4, "edit to {}".to_owned(), format!("edit by tool-call to {kept}")),
        ];
        assert_eq!(mismatches(lines), expected);
    }
}
