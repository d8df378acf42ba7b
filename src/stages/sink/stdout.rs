//! Writes entries to standard output, one line each: for shell pipelines and tests.

use std::io::{self, Write as _};

use ai_agent_stage::{BuildError, Context};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Batch, Delivery, DeliveryFuture, Plugin, Sink, SinkOptions};

inventory::submit! {
    Plugin::sink::<Stdout>(
        "stdout",
        "Writes entries to standard output as NDJSON.",
        "",
    )
}

/// Writes the lines of each batch and flushes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Stdout {}

impl SinkOptions for Stdout {
    type Sink = Self;

    fn build(self, _context: &Context) -> Result<Self, BuildError> {
        Ok(self)
    }
}

impl Sink for Stdout {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
        Box::pin(async move {
            let lines = match batch.body.lines() {
                Ok(lines) => lines,
                Err(error) => return Delivery::Hold { after: None, reason: error.to_string() },
            };
            // A slow or closed pipe must not block the other tasks.
            let written = tokio::task::spawn_blocking(move || write(&lines)).await;
            match written {
                Ok(Ok(())) => Delivery::Acknowledged,
                Ok(Err(error)) => Delivery::Retry {
                    after: None,
                    reason: format!("cannot write to standard output: {error}"),
                },
                Err(error) => Delivery::Retry { after: None, reason: error.to_string() },
            }
        })
    }
}

fn write(lines: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(lines)?;
    stdout.flush()
}
