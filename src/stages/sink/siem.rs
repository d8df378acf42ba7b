//! Sinks of `siem-sinks` as stages.
//!
//! A file for one of them declares the options and builds the sink; [`Adapter`] does the rest:
//!
//! ```ignore
//! inventory::submit! {
//!     Plugin::sink::<Options>("my-siem", "Ships records to My SIEM.", concat!(r#"
//! ## Base URL of the SIEM, http or https.
//! endpoint = "https://siem.example.com"
//! "#, connection_sample!()))
//! }
//!
//! with_connection_options! {
//!     /// Options of the sink.
//!     struct Options {
//!         /// Base URL of the SIEM, http or https.
//!         endpoint: String,
//!     }
//! }
//!
//! impl SinkOptions for Options {
//!     type Sink = Adapter<MySiem>;
//!
//!     fn build(self, context: &Context) -> Result<Self::Sink, BuildError> {
//!         let context = AgentContext::of(context)?;
//!         let url = url("endpoint", &self.endpoint)?;
//!         let client = self.connection().client("endpoint", &url, context)?;
//!         let timeout = self.connection().timeout;
//!         Ok(Adapter::new(MySiem::new(client, Settings { url, timeout })))
//!     }
//! }
//! ```

use std::time::Duration;

use ai_agent_stage::Acknowledged;
use siem_sinks::SiemSink;

use super::{Batch, Delivery, DeliveryFuture, ProbeFuture, Sink};

/// Delivers batches of the outbox through a sink of `siem-sinks`.
pub(super) struct Adapter<S> {
    sink: S,
    /// Number of bytes sent during the last delivery.
    sent: u64,
}

impl<S: SiemSink> Adapter<S> {
    /// Wraps a sink.
    pub(super) fn new(sink: S) -> Self {
        Self { sink, sent: 0 }
    }
}

impl<S: SiemSink> Sink for Adapter<S> {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
        Box::pin(async move {
            self.sent = 0;
            let lines = match batch.body.lines() {
                Ok(lines) => lines,
                Err(error) => return Delivery::Hold { after: None, reason: error.to_string() },
            };
            if lines.is_empty() {
                // The batch only names dead letters, of which SIEMs know nothing.
                return Delivery::Acknowledged;
            }
            let (header, patience) = (&batch.header, batch.patience);
            let delivery =
                self.sink.deliver(siem_sinks::Batch { header, lines: &lines, patience }).await;
            self.sent = self.sink.bytes_sent();
            delivery
        })
    }

    fn destination(&self) -> Option<String> {
        Some(self.sink.destination())
    }

    fn sent(&self, _batch: &Batch) -> u64 {
        self.sent
    }

    fn acknowledged(&self) -> Acknowledged {
        self.sink.acknowledged()
    }

    fn probe<'a>(&'a mut self, within: Duration) -> Option<ProbeFuture<'a>> {
        Some(Box::pin(self.sink.probe(within)))
    }

    fn probe_is_proof(&self) -> bool {
        self.sink.probe_is_proof()
    }
}

#[cfg(test)]
mod tests {
    use ai_agent_stage::protocol::Identity;
    use siem_protocol::{BatchHeader, Digest};

    use super::*;
    use crate::{
        frame::FrameBuilder,
        platform::Timestamp,
        stages::sink::{Custody, StoredFrames},
    };

    /// Accepts everything and counts entries as bytes.
    #[derive(Default)]
    struct Counting {
        entries: u64,
    }

    impl SiemSink for Counting {
        async fn deliver(&mut self, batch: siem_sinks::Batch<'_>) -> Delivery {
            assert_eq!(batch.header.machine_id, "m");
            self.entries = batch.entries().count() as u64;
            Delivery::Acknowledged
        }

        fn destination(&self) -> String {
            "https://siem.test/".to_owned()
        }

        fn bytes_sent(&self) -> u64 {
            self.entries
        }

        fn acknowledged(&self) -> Acknowledged {
            Acknowledged::Indexed
        }

        async fn probe(&mut self, _: Duration) -> Result<String, String> {
            Ok("Counting 1".to_owned())
        }
    }

    fn batch(lines: &[&str]) -> Batch {
        let identity = Identity {
            machine_id: "m".into(),
            hostname: "h".into(),
            user: "u".into(),
            os: "linux".into(),
            arch: "x86_64".into(),
            agent_version: "0".into(),
        };
        let mut builder = FrameBuilder::default();
        let mut chain = Digest::ZERO;
        for line in lines {
            let digest = Digest::of(line.as_bytes());
            chain = builder.push(digest, false, |raw| raw.extend_from_slice(line.as_bytes()));
        }
        let frame = builder.seal(1 + lines.len() as u64, chain, Digest::ZERO, Timestamp(0));
        let header = BatchHeader::new(&identity, "e".into(), Digest::ZERO, String::new());
        let frames = frame.into_iter().collect();
        Batch::new(header, StoredFrames::new(frames, Custody::default()))
    }

    #[tokio::test]
    async fn batch_without_entries_is_acknowledged_without_a_request() {
        let mut sink = Adapter::new(Counting::default());
        let full = batch(&["{}", "{}"]);
        assert_eq!(sink.deliver(&full).await, Delivery::Acknowledged);
        assert_eq!(sink.sent(&full), 2);
        let empty = batch(&[]);
        assert_eq!(sink.deliver(&empty).await, Delivery::Acknowledged);
        assert_eq!(sink.sent(&empty), 0);
    }

    #[tokio::test]
    async fn adapter_forwards_what_the_sink_says() {
        let mut sink = Adapter::new(Counting::default());
        assert_eq!(sink.destination().unwrap(), "https://siem.test/");
        assert_eq!(sink.acknowledged(), Acknowledged::Indexed);
        let probed = sink.probe(Duration::from_secs(1)).unwrap().await;
        assert_eq!(probed.unwrap(), "Counting 1");
    }
}
