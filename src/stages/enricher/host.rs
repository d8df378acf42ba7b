//! Adds the machine and the user that a record or an event comes from.

use ai_agent_stage::{BuildError, Context};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

use super::{Enricher, EnricherOptions, Plugin, Record};
use crate::event::Event;

inventory::submit! {
    Plugin::enricher::<Options>(
        "host",
        "Adds machine id, hostname, user and operating system.",
        "",
    )
}

/// The enricher has no options.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {}

/// Adds the same object to every record and event.
struct Host(Box<RawValue>);

impl EnricherOptions for Options {
    type Enricher = Host;

    fn build(self, context: &Context) -> Result<Host, BuildError> {
        let who = context.identity();
        let object = json!({
            "machine_id": who.machine_id,
            "hostname": who.hostname,
            "user": who.user,
            "os": who.os,
        });
        Ok(Host(to_raw_value(&object).expect("an object of texts can be written as JSON")))
    }
}

impl Enricher for Host {
    fn enrich(&mut self, _record: &Record<'_>) -> Option<&RawValue> {
        Some(&self.0)
    }

    fn enrich_event(&mut self, _event: &Event) -> Option<&RawValue> {
        Some(&self.0)
    }
}
