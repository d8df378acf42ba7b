//! Adds fixed labels from the configuration, such as a team, a site or a cost centre.

use std::collections::BTreeMap;

use ai_agent_stage::{BuildError, Context};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{Enricher, EnricherOptions, Plugin, Record};
use crate::event::Event;

inventory::submit! {
    Plugin::enricher::<Options>(
        "labels",
        "Adds fixed pairs of text from the configuration.",
        r#"
## Labels and their values. If empty, nothing is added.
labels = { team = "platform" }
"#,
    )
}

/// Options of the enricher.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Labels and their values. If empty, nothing is added.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// Adds the same object to every record and event.
struct Labels(Option<Box<RawValue>>);

impl EnricherOptions for Options {
    type Enricher = Labels;

    fn build(self, _context: &Context) -> Result<Labels, BuildError> {
        let written =
            || to_raw_value(&self.labels).expect("an object of texts can be written as JSON");
        Ok(Labels((!self.labels.is_empty()).then(written)))
    }
}

impl Enricher for Labels {
    fn enrich(&mut self, _record: &Record<'_>) -> Option<&RawValue> {
        self.0.as_deref()
    }

    fn enrich_event(&mut self, _event: &Event) -> Option<&RawValue> {
        self.0.as_deref()
    }
}
