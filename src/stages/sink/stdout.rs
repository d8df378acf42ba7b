//! Writes entries to standard output, one line each: for shell pipelines and tests. The lines are those
//! of the sink `file`.

use std::io::{self, Write as _};

use ai_agent_stage::{BuildError, Context};
use schemars::JsonSchema;
use serde::Deserialize;
use siem_sinks::lines::SenderMembers;

use super::{Batch, Delivery, DeliveryFuture, Plugin, Sink, SinkOptions};

inventory::submit! {
    Plugin::sink::<Options>(
        "stdout",
        "Writes entries to standard output as NDJSON.",
        "",
    )
}

/// Writes the lines of each batch and flushes.
struct Stdout {
    /// Number of bytes written during the last delivery.
    sent: u64,
}

/// The sink has no options.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {}

impl SinkOptions for Options {
    type Sink = Stdout;

    fn build(self, _context: &Context) -> Result<Stdout, BuildError> {
        Ok(Stdout { sent: 0 })
    }
}

impl Sink for Stdout {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
        Box::pin(async move {
            self.sent = 0;
            let lines = match batch.body.lines() {
                Ok(lines) => lines,
                Err(error) => return Delivery::Hold { after: None, reason: error.to_string() },
            };
            let sender = SenderMembers::of(&batch.header);
            // A slow or closed pipe must not block the other tasks.
            let writing = move || write(&sender.add_to(&lines));
            match tokio::task::spawn_blocking(writing).await {
                Ok(Ok(bytes)) => {
                    self.sent = bytes;
                    Delivery::Acknowledged
                }
                Ok(Err(error)) => Delivery::Retry {
                    after: None,
                    reason: format!("cannot write to standard output: {error}"),
                },
                Err(error) => Delivery::Retry { after: None, reason: error.to_string() },
            }
        })
    }

    fn sent(&self, _batch: &Batch) -> u64 {
        self.sent
    }
}

/// Writes whole lines. Returns the number of bytes.
fn write(lines: &[u8]) -> io::Result<u64> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(lines)?;
    stdout.flush()?;
    Ok(lines.len() as u64)
}
