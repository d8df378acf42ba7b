//! Drops records of listed types.
//!
//! TODO: describe what the filter drops or changes, and why.

use std::collections::BTreeSet;

use ai_agent_stage::{BuildError, Filter, FilterOptions, Plugin, Record, Verdict};
use schemars::JsonSchema;
use serde::Deserialize;

inventory::submit! {
    Plugin::filter::<Options>(
        "example-filter",
        "Drops records of listed types.",
        r#"
## Values of the record's `type` field to drop.
types = ["progress"]
"#,
    )
}

/// Types of records to drop.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Values of the record's `type` field to drop.
    #[serde(default)]
    types: BTreeSet<String>,
}

/// Drops a record whose `type` is listed; keeps a record without a `type`.
struct ExampleFilter {
    types: BTreeSet<String>,
}

impl FilterOptions for Options {
    type Filter = ExampleFilter;

    // Expensive work, such as compiling patterns, is done here, once.
    fn build(self) -> Result<ExampleFilter, BuildError> {
        Ok(ExampleFilter { types: self.types })
    }
}

impl Filter for ExampleFilter {
    // A filter is pure: no I/O, no clock, no panic.
    fn check(&mut self, record: &Record<'_>) -> Verdict {
        match record.kind() {
            Some(kind) if self.types.contains(&*kind) => Verdict::Drop("example_filter"),
            _ => Verdict::Keep,
        }
    }
}

#[cfg(test)]
mod tests {
    use ai_agent_stage::testing::{FilterTest, Filtered};

    fn check(line: &str) -> Filtered {
        FilterTest::new("example-filter", r#"types = ["progress"]"#).unwrap().line(line)
    }

    #[test]
    fn record_of_a_listed_type_is_dropped() {
        assert_eq!(check(r#"{"type":"progress"}"#), Filtered::Dropped("example_filter"));
    }

    #[test]
    fn other_records_are_kept() {
        for line in [r#"{"type":"user"}"#, r#"{"uuid":"a"}"#, r#"{"type":["progress"]}"#, "no JSON"]
        {
            assert_eq!(check(line), Filtered::Kept, "{line}");
        }
    }

    #[test]
    fn unknown_option_is_an_error() {
        assert!(FilterTest::new("example-filter", "tpyes = []").is_err());
    }
}
