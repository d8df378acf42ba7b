//! What others ask of the reading thread: how it stands, and to do something with the store.

use std::time::{Duration, Instant};

use super::{super::backpressure::Shortage, Ingest};
use crate::{
    platform::Timestamp,
    stages::{
        Named,
        source::{Source, Survey},
    },
};

/// How reading stands, for the status.
#[derive(Clone, Debug, Default)]
pub struct IngestStatus {
    /// What each source has before it, under its instance's name.
    pub sources: Vec<(String, Survey)>,
    /// Files that a stage failed on: left alone until a reload or the next start.
    pub held: usize,
    /// What there is no room in: reading waits.
    pub lack: Option<Shortage>,
    /// Why nothing can be stored at present, and since when.
    pub not_stored: Option<(String, Timestamp)>,
}

impl Ingest {
    /// Waits for `longest`, and answers meanwhile.
    pub(super) fn pause(&mut self, longest: Duration) {
        let end = Instant::now() + longest;
        while self.inbox.pause(end.saturating_duration_since(Instant::now())) {
            self.answer();
        }
    }

    /// Tells who asks how reading stands.
    pub(super) fn answer(&self) {
        let asking = self.inbox.turn();
        if asking.is_empty() {
            return;
        }
        let survey = |(name, source): &Named<dyn Source>| (name.clone(), source.survey());
        let reading = IngestStatus {
            sources: self.sources.iter().map(survey).collect(),
            held: self.state.held.len(),
            lack: self.backpressure.lack(),
            not_stored: self.state.not_stored.clone(),
        };
        for answer in asking {
            // Whoever no longer waits does not want to know.
            answer.send(reading.clone()).ok();
        }
    }

    /// Does what others have to do with the store, once nothing is on its way there.
    pub(super) fn run_errands(&mut self) -> Result<(), Duration> {
        if !self.inbox.has_jobs() {
            return Ok(());
        }
        self.commit()?;
        for job in self.inbox.take_jobs() {
            job(&self.outbox);
        }
        // The group at hand is empty, and begins behind what they have appended.
        self.builder.restart_at(self.outbox.end());
        Ok(())
    }
}
