//! Drops the summaries that the client writes when it compacts a conversation.
//!
//! A summary repeats, in the words of the model, records that have already been shipped. Always on.

use ai_agent_stage::{BuildError, Filter, FilterOptions, Plugin, Record, Verdict};
use schemars::JsonSchema;
use serde::Deserialize;

inventory::submit! {
    Plugin::filter::<Compact>(
        "compact",
        "Drops summaries of compacted conversations (`isCompactSummary: true`). Always on.",
        "",
    )
}

/// Drops a record whose `isCompactSummary` is true.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Compact {}

impl FilterOptions for Compact {
    type Filter = Self;

    fn build(self) -> Result<Self, BuildError> {
        Ok(self)
    }
}

impl Filter for Compact {
    fn check(&mut self, record: &Record<'_>) -> Verdict {
        if record.is_compact_summary() { Verdict::Drop("compact_summary") } else { Verdict::Keep }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::filter::from_toml;

    fn check(line: &str) -> Verdict {
        from_toml::<Compact>("").unwrap().check(&Record::from_line(line.as_bytes()))
    }

    #[test]
    fn summary_is_dropped() {
        let line = r#"{"type":"user","isCompactSummary":true}"#;
        assert_eq!(check(line), Verdict::Drop("compact_summary"));
    }

    #[test]
    fn other_record_is_kept() {
        assert_eq!(check(r#"{"isCompactSummary":false}"#), Verdict::Keep);
        assert_eq!(check(r#"{"isCompactSummary":"true"}"#), Verdict::Keep);
        assert_eq!(check(r#"{"message":{"isCompactSummary":true}}"#), Verdict::Keep);
    }
}
