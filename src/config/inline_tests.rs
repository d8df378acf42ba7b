//! Tests inside a configuration (`[[test]]`): lines, and the expected outcome of each.

use std::path::PathBuf;

use figment::value::Value;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    error::{self, ConfigError},
    key::key_text,
    layer::Layer,
    origin::{LayerOrigin, Location},
};

/// Test of a configuration: lines that pass through the filters in order, and the expected outcome
/// of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineTest {
    /// Name of the test.
    pub name: String,
    /// Path of the session file that the lines come from.
    pub path: Option<PathBuf>,
    /// Lines, in order.
    pub lines: Vec<TestLine>,
    /// Layer and line of the test.
    pub location: Location,
}

/// `[[test]]` as written in a file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TestTable {
    /// Name of the test.
    name: String,
    /// Path of the session file that the lines come from, for filters that check it.
    path: Option<PathBuf>,
    /// Lines that pass through the filters in order.
    lines: Vec<TestLine>,
}

/// Line, and its expected outcome.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestLine {
    /// Line of the session file.
    pub input: String,
    /// Expected outcome.
    pub expect: ExpectedOutcome,
    /// Name of the filter that drops or edits the line; any filter if omitted.
    pub by: Option<String>,
    /// Reason given by the filter; any reason if omitted.
    pub reason: Option<String>,
    /// Line after the edit; any content if omitted.
    pub output: Option<String>,
}

/// Expected outcome of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExpectedOutcome {
    /// The line is shipped unchanged.
    Keep,
    /// The line is not shipped.
    Drop,
    /// The line is shipped with changed bytes.
    Edit,
}

impl ExpectedOutcome {
    /// Returns the name used in a configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Drop => "drop",
            Self::Edit => "edit",
        }
    }
}

/// Removes the tests from a layer and returns them. Tests are not merged: those of every layer
/// count.
pub(super) fn extract(layer: &mut Layer) -> Vec<Result<InlineTest, ConfigError>> {
    let Some(tests) = layer.values.remove("test") else { return Vec::new() };
    let Value::Array(_, tests) = tests else {
        let (key, location) = ("test".to_owned(), layer.location(&["test".to_owned()]));
        let problem = "must be a list of tables, `[[test]]`".to_owned();
        return vec![Err(ConfigError::Value { key, location, problem })];
    };
    tests.iter().enumerate().map(|(index, test)| read(layer, index, test)).collect()
}

fn read(layer: &Layer, index: usize, test: &Value) -> Result<InlineTest, ConfigError> {
    // In a managed configuration the list has another name.
    let list = if matches!(layer.origin, LayerOrigin::Managed(_)) { "tests" } else { "test" };
    let own = [list.to_owned(), index.to_string()];
    let TestTable { name, path, lines } = TestTable::deserialize(test).map_err(|error| {
        let path: Vec<String> = own.iter().cloned().chain(error.path).collect();
        error::explain(&path, layer.location(&path), None, error.kind)
    })?;
    let wrong = |path: &[String], problem: &str| ConfigError::Value {
        key: key_text(path),
        location: layer.location(path),
        problem: problem.to_owned(),
    };
    if lines.is_empty() {
        return Err(wrong(&own, "has no `lines`: at least one is required"));
    }
    for (at, line) in lines.iter().enumerate() {
        let path = |option: &str| {
            let below = ["lines".to_owned(), at.to_string(), option.to_owned()];
            own.iter().cloned().chain(below).collect::<Vec<_>>()
        };
        let TestLine { expect, by, reason, output, .. } = line;
        if *expect == ExpectedOutcome::Keep && by.is_some() {
            return Err(wrong(
                &path("by"),
                "has no effect here: a line that is kept has no deciding filter",
            ));
        }
        if *expect != ExpectedOutcome::Drop && reason.is_some() {
            return Err(wrong(&path("reason"), "has no effect here: only `drop` has a reason"));
        }
        if *expect != ExpectedOutcome::Edit && output.is_some() {
            return Err(wrong(&path("output"), "has no effect here: only `edit` has an output"));
        }
    }
    Ok(InlineTest { name, path, lines, location: layer.location(&own) })
}
