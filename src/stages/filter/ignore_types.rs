//! Drops records by their `type` field.
//!
//! Session files contain bookkeeping (`progress`, `file-history-snapshot`) that an auditor never
//! reads. The server lists these types; this filter drops them before they reach the outbox.

use std::collections::BTreeSet;

use ai_agent_stage::{BuildError, Filter, FilterOptions, Plugin, Record, Verdict};
use schemars::JsonSchema;
use serde::Deserialize;

inventory::submit! {
    Plugin::filter::<IgnoreTypes>(
        "ignore-types",
        "Drops records whose `type` is in a list.",
        r#"
## Values of the record's `type` field to drop. Compared exactly, case matters.
types = ["file-history-snapshot", "progress"]
"#,
    )
}

/// Drops a record if its `type` is listed; keeps a record without a `type`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct IgnoreTypes {
    /// Values of the record's `type` field to drop. Compared exactly, case matters.
    #[serde(default)]
    types: BTreeSet<String>,
}

impl FilterOptions for IgnoreTypes {
    type Filter = Self;

    fn build(self) -> Result<Self, BuildError> {
        Ok(self)
    }
}

impl Filter for IgnoreTypes {
    fn check(&mut self, record: &Record<'_>) -> Verdict {
        match record.kind() {
            Some(kind) if self.types.contains(&*kind) => Verdict::Drop("ignored_type"),
            _ => Verdict::Keep,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::filter::from_toml;

    fn check(options: &str, line: &str) -> Verdict {
        let mut filter = from_toml::<IgnoreTypes>(options).unwrap();
        filter.check(&Record::from_line(line.as_bytes()))
    }

    #[test]
    fn listed_type_is_dropped() {
        let verdict = check(r#"types = ["progress"]"#, r#"{"type":"progress"}"#);
        assert_eq!(verdict, Verdict::Drop("ignored_type"));
    }

    #[test]
    fn listed_type_written_with_escapes_is_dropped() {
        let verdict = check(r#"types = ["progress"]"#, r#"{"\u0074ype":"pro\u0067ress"}"#);
        assert_eq!(verdict, Verdict::Drop("ignored_type"));
    }

    #[test]
    fn record_without_type_is_kept() {
        assert_eq!(check(r#"types = ["progress"]"#, r#"{"uuid":"a"}"#), Verdict::Keep);
    }

    #[test]
    fn other_case_and_other_json_type_are_kept() {
        assert_eq!(check(r#"types = ["progress", "5"]"#, r#"{"type":"Progress"}"#), Verdict::Keep);
        assert_eq!(check(r#"types = ["progress", "5"]"#, r#"{"type":5}"#), Verdict::Keep);
    }
}
