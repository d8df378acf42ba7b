//! Answers status requests between two steps.

use std::time::{Duration, Instant};

use siem_protocol::totals::Totals;

use super::{super::backpressure::Shortage, Ingest, StoreFailure};
use crate::stages::{
    Named,
    source::{Source, Survey},
};

/// Status of the ingest thread.
#[derive(Clone, Debug, Default)]
pub struct IngestStatus {
    /// Statistics of each source, under its instance name.
    pub sources: Vec<(String, Survey)>,
    /// Number of files that are not read because a stage failed on them.
    pub held: usize,
    /// Space that is short, if reading is paused.
    pub shortage: Option<Shortage>,
    /// Reason that nothing can be stored at present.
    pub store_failure: Option<StoreFailure>,
    /// Totals of the current epoch.
    pub totals: Totals,
    /// Time since the last heartbeat was added; `None` before the first one.
    pub heartbeat_age: Option<Duration>,
}

impl Ingest {
    /// Waits for `longest` and answers status requests meanwhile.
    pub(super) fn pause(&mut self, longest: Duration) {
        let end = Instant::now() + longest;
        loop {
            let rest = end.saturating_duration_since(Instant::now());
            if !self.inbox.pause(rest, self.clock.uptime()) {
                return;
            }
            self.answer_status_requests();
        }
    }

    /// Answers all pending status requests.
    pub(super) fn answer_status_requests(&self) {
        let requests = self.inbox.take_status_requests();
        if requests.is_empty() {
            return;
        }
        let survey = |(name, source): &Named<dyn Source>| (name.clone(), source.survey());
        let status = IngestStatus {
            sources: self.sources.iter().map(survey).collect(),
            held: self.state.held_files.len(),
            shortage: self.backpressure.shortage(),
            store_failure: self.state.store_failure.clone(),
            totals: self.builder.totals().clone(),
            heartbeat_age: self.state.heartbeat.age(self.clock.uptime()),
        };
        for request in requests {
            // Fails when the client no longer waits.
            request.send(status.clone()).ok();
        }
    }
}
