//! `[[test]]`: lines, and what must become of them. A configuration carries its tests with it.

use std::path::PathBuf;

use figment::value::Value;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{ConfigError, LayerOrigin, Location, error, layer::Layer};

/// LineIndex that run through the filters in order, and what must become of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineTest {
    /// What it shows.
    pub name: String,
    /// The session file that the lines come from.
    pub path: Option<PathBuf>,
    /// The lines, in order.
    pub lines: Vec<TestLine>,
    /// Where it stands.
    pub location: Location,
}

/// A `[[test]]` as a file has it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TestTable {
    /// What it shows.
    name: String,
    /// The session file that the lines come from; for filters that look at it.
    path: Option<PathBuf>,
    /// The lines, which run through the filters in order.
    lines: Vec<TestLine>,
}

/// A line, and what must become of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestLine {
    /// The line of the session file.
    pub input: String,
    /// What becomes of it.
    pub expect: ExpectedOutcome,
    /// The filter that drops or edits it, by its table's name; any, where it is left out.
    pub by: Option<String>,
    /// The reason that the filter gives; any, where it is left out.
    pub reason: Option<String>,
    /// The line after the edit; any, where it is left out.
    pub output: Option<String>,
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExpectedOutcome {
    /// It is shipped as it is.
    Keep,
    /// It is not shipped.
    Drop,
    /// It is shipped with other bytes.
    Edit,
}

impl ExpectedOutcome {
    /// The word for it, as a test writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Drop => "drop",
            Self::Edit => "edit",
        }
    }
}

/// Takes the tests out of a layer: those of all layers count, so they are not merged.
pub(super) fn extract(layer: &mut Layer) -> Result<Vec<InlineTest>, ConfigError> {
    let Some(tests) = layer.values.remove("test") else { return Ok(Vec::new()) };
    let Value::Array(_, tests) = tests else {
        let (key, location) = ("test".to_owned(), layer.location(&["test".to_owned()]));
        let problem = "must be a list of tables, `[[test]]`".to_owned();
        return Err(ConfigError::Value { key, location, problem });
    };
    tests.iter().enumerate().map(|(index, test)| read(layer, index, test)).collect()
}

fn read(layer: &Layer, index: usize, test: &Value) -> Result<InlineTest, ConfigError> {
    // As the server's JSON calls it, so that its author finds it.
    let list = if matches!(layer.origin, LayerOrigin::Managed(_)) { "tests" } else { "test" };
    let own = [list.to_owned(), index.to_string()];
    let TestTable { name, path, lines } = TestTable::deserialize(test).map_err(|error| {
        let path: Vec<String> = own.iter().cloned().chain(error.path).collect();
        error::explain(&path, layer.location(&path), None, error.kind)
    })?;
    let wrong = |path: &[String], problem: &str| ConfigError::Value {
        key: error::key_text(path),
        location: layer.location(path),
        problem: problem.to_owned(),
    };
    if lines.is_empty() {
        return Err(wrong(&own, "has no `lines`: one at least is needed"));
    }
    for (at, line) in lines.iter().enumerate() {
        let path = |option: &str| {
            let below = ["lines".to_owned(), at.to_string(), option.to_owned()];
            own.iter().cloned().chain(below).collect::<Vec<_>>()
        };
        let TestLine { expect, by, reason, output, .. } = line;
        if *expect == ExpectedOutcome::Keep && by.is_some() {
            return Err(wrong(&path("by"), "is of no use here: no filter decides what is kept"));
        }
        if *expect != ExpectedOutcome::Drop && reason.is_some() {
            return Err(wrong(&path("reason"), "is of no use here: only a drop has one"));
        }
        if *expect != ExpectedOutcome::Edit && output.is_some() {
            return Err(wrong(&path("output"), "is of no use here: only an edit has one"));
        }
    }
    Ok(InlineTest { name, path, lines, location: layer.location(&own) })
}
