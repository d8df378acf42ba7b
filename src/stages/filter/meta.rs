//! Drops the records that the client marks as its own notes.

use ai_agent_stage::{BuildError, Filter, FilterOptions, Plugin, Record, Verdict};
use schemars::JsonSchema;
use serde::Deserialize;

inventory::submit! {
    Plugin::filter::<Meta>(
        "meta",
        "Drops records that the client marks as its own notes (`isMeta: true`).",
        "",
    )
}

/// Drops a record whose `isMeta` is true.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Meta {}

impl FilterOptions for Meta {
    type Filter = Self;

    fn build(self) -> Result<Self, BuildError> {
        Ok(self)
    }
}

impl Filter for Meta {
    fn check(&mut self, record: &Record<'_>) -> Verdict {
        if record.is_meta() { Verdict::Drop("meta") } else { Verdict::Keep }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::filter::from_toml;

    fn check(line: &str) -> Verdict {
        from_toml::<Meta>("").unwrap().check(&Record::from_line(line.as_bytes()))
    }

    #[test]
    fn note_is_dropped() {
        let line = r#"{"type":"user","isMeta":true}"#;
        assert_eq!(check(line), Verdict::Drop("meta"));
    }

    #[test]
    fn other_record_is_kept() {
        assert_eq!(check(r#"{"isMeta":false}"#), Verdict::Keep);
        assert_eq!(check(r#"{"isMeta":"true"}"#), Verdict::Keep);
        assert_eq!(check(r#"{"message":{"isMeta":true}}"#), Verdict::Keep);
    }
}
