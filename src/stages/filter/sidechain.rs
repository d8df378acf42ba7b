//! Drops the records of sub-agents.

use ai_agent_stage::{BuildError, Filter, FilterOptions, Plugin, Record, Verdict};
use schemars::JsonSchema;
use serde::Deserialize;

inventory::submit! {
    Plugin::filter::<Sidechain>(
        "sidechain",
        "Drops records of sub-agents (`isSidechain: true`).",
        "",
    )
}

/// Drops a record whose `isSidechain` is true.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Sidechain {}

impl FilterOptions for Sidechain {
    type Filter = Self;

    fn build(self) -> Result<Self, BuildError> {
        Ok(self)
    }
}

impl Filter for Sidechain {
    fn check(&mut self, record: &Record<'_>) -> Verdict {
        if record.is_sidechain() { Verdict::Drop("sidechain") } else { Verdict::Keep }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::filter::from_toml;

    fn check(line: &str) -> Verdict {
        from_toml::<Sidechain>("").unwrap().check(&Record::from_line(line.as_bytes()))
    }

    #[test]
    fn record_of_a_sub_agent_is_dropped() {
        let line = r#"{"type":"user","isSidechain":true}"#;
        assert_eq!(check(line), Verdict::Drop("sidechain"));
    }

    #[test]
    fn other_record_is_kept() {
        assert_eq!(check(r#"{"isSidechain":false}"#), Verdict::Keep);
        assert_eq!(check(r#"{"isSidechain":"true"}"#), Verdict::Keep);
        assert_eq!(check(r#"{"message":{"isSidechain":true}}"#), Verdict::Keep);
    }
}
