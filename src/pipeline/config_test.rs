//! Runs the tests in a configuration: lines through filters, without files or a store.

use std::{
    fmt,
    panic::{self, AssertUnwindSafe},
    path::Path,
};

use serde::Serialize;

use super::filter_chain::{FilterChain, Outcome};
use crate::{
    config::{ExpectedOutcome, InlineTest, TestLine},
    stages::Record,
    tail::{FileKey, GenerationId, Origin},
};

/// Path of the lines of a test that names none.
const DEFAULT_PATH: &str = "/home/user/.claude/projects/-work/session.jsonl";

/// Outcome for a line, in the terms of a test.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LineOutcome {
    verdict: &'static str,
    by: Option<String>,
    reason: Option<String>,
    output: Option<String>,
}

/// A line whose outcome is not the expected one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Number of the line, from 1.
    pub line: usize,
    /// Expected outcome, as far as the test specifies it.
    pub expected: LineOutcome,
    /// Actual outcome.
    pub found: LineOutcome,
}

/// Runs the lines of a test through new filters, and returns the lines with an unexpected outcome.
pub fn run(test: &InlineTest, filters: &mut FilterChain) -> Vec<Mismatch> {
    let path = test.path.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
    let origin = Origin::new(FileKey(0), path, GenerationId("00".repeat(16)));
    let mut mismatches = Vec::new();
    let mut offset = 0;
    for (index, line) in test.lines.iter().enumerate() {
        let record = Record::new(&origin, offset, line.input.as_bytes());
        offset += line.input.len() as u64 + 1;
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| filters.check(&record)));
        let found = match outcome {
            Ok(outcome) => LineOutcome::of(outcome, filters),
            Err(_) => LineOutcome { verdict: "panic in a filter", ..LineOutcome::default() },
        };
        let expected = LineOutcome::expected(line);
        if !found.is(&expected) {
            mismatches.push(Mismatch { line: index + 1, expected, found });
        }
    }
    mismatches
}

impl LineOutcome {
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

    /// Returns the outcome without the edited line, which may be long.
    #[must_use]
    pub fn without_output(&self) -> Self {
        Self { output: None, ..self.clone() }
    }

    /// Returns the edited line.
    #[must_use]
    pub fn output(&self) -> Option<&str> {
        self.output.as_deref()
    }
}

impl fmt::Display for LineOutcome {
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
        let options: StageOptions = "".parse().unwrap();
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
    fn lines_run_in_order_through_filters_with_memory() {
        let again = r#"{"uuid":"u"}"#;
        let lines = vec![line(again, ExpectedOutcome::Keep), line(again, ExpectedOutcome::Drop)];
        assert_eq!(mismatches(lines), []);
    }

    #[test]
    fn unspecified_fields_match_anything() {
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
    fn mismatch_shows_expected_and_actual_outcome() {
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
