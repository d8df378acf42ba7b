//! Reads sources into the outbox, one group after the other: while one group is stored, the next
//! one is read.

mod backfill_limit;
mod heartbeat;
mod inbox;
mod intake;
mod maintenance;
mod reconfigure;
mod status;
mod storing;
#[cfg(test)]
mod tests;
mod writer;

use std::{cell::OnceCell, collections::HashSet, mem, sync::Arc, time::Duration};

use backfill_limit::BackfillState;
use heartbeat::HeartbeatTimer;
pub use heartbeat::{TrustReporter, UpdateReporter};
pub use inbox::Inbox;
use intake::{GroupIntake, IntakeFailure};
pub use reconfigure::Reconfiguration;
use siem_protocol::AgentEvent;
pub use status::IngestStatus;
use storing::COMMIT_RETRY;
use tracing::{debug, error};
pub use writer::Writer;

use super::{
    accounting::Share, backpressure::Backpressure, config_status::SharedConfigStatus,
    group_builder::GroupBuilder, group_life_cycle::GroupLifeCycle, outbox::Outbox,
    record_stages::RecordStages,
};
use crate::{
    platform::{Clock, Timestamp, memory, priority::in_background},
    stages::{
        Named,
        enricher::Enricher,
        source::{LONGEST_SLEEP, Progress, Source},
    },
    tail::{FileKey, Origin},
};

/// Time after which memory is returned to the system once much was read: most of it has been
/// delivered by then.
const MEMORY_RELEASE: Duration = Duration::from_secs(3);
/// Interval at which the progress of catching up is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Pause before a full outbox is checked again.
const FULL_RETRY: Duration = Duration::from_millis(500);

/// Condition on which reading ends without a stop request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Never: it ends when the inbox is stopped.
    Stopped,
    /// Everything that there is has been read once.
    CaughtUp,
}

/// Progress of reading, for a progress bar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadProgress {
    /// Bytes read since the outbox started to count.
    pub read: u64,
    /// Known bytes that have not been read.
    pub unread: u64,
    /// Number of known files.
    pub files: usize,
}

/// A callback that regularly receives the progress of catching up.
pub type OnProgress = Box<dyn FnMut(ReadProgress) + Send>;

/// The ingest thread.
pub struct Ingest {
    /// Sources, under their instance names.
    pub sources: Vec<Named<dyn Source>>,
    /// Filters and enrichers.
    pub stages: RecordStages,
    /// Builds the open group.
    pub builder: GroupBuilder,
    /// The outbox in which groups are stored.
    pub outbox: Arc<Outbox>,
    /// Stores groups.
    pub writer: Writer,
    /// Stops reading while the outbox or its disk is full.
    pub backpressure: Backpressure,
    /// Receives everything that other threads send.
    pub inbox: Arc<Inbox>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Interval of heartbeats. Spread by ±10 %, so that the heartbeats of a fleet do not coincide.
    pub heartbeat: Duration,
    /// Status of the configuration, for heartbeats.
    pub config_status: SharedConfigStatus,
    /// Trust between device and receivers.
    pub trust: TrustReporter,
    /// State of updates.
    pub update: UpdateReporter,
    /// Returns random numbers from 0 to 1.
    pub jitter: Box<dyn FnMut() -> f64 + Send>,
    /// Receives the progress of catching up.
    pub on_progress: OnProgress,
    /// State of the thread; starts as its default.
    pub state: IngestState,
}

/// State of the ingest thread.
#[derive(Debug, Default)]
pub struct IngestState {
    groups: GroupLifeCycle,
    heartbeat: HeartbeatTimer,
    /// Files that are not read until a reload or the next start, since a stage failed on them.
    held_files: HashSet<FileKey>,
    /// Uptime of the next maintenance of the outbox.
    maintenance_due: Duration,
    /// Uptime of the next progress report.
    progress_due: Duration,
    /// True if steps run with low priority, since there is nothing to read but old files.
    is_backfill: bool,
    /// True if the last step had more to read of old files only.
    only_backfill: bool,
    /// Limit on reading backlogs.
    backfill: BackfillState,
    /// Uptime at which memory is returned to the system, after the start or after much was read.
    memory_release: Option<Duration>,
    /// True if the code that only the start needs was unmapped.
    is_start_unmapped: bool,
    /// Reason that nothing can be stored at present.
    store_failure: Option<StoreFailure>,
}

/// Reason that nothing can be stored, and the time since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFailure {
    /// Error and its causes.
    pub cause: String,
    /// Time of the first failure.
    pub since: Timestamp,
}

/// Outcome of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StepOutcome {
    /// Sources were read. The group is stored or, if there is more to read, being stored.
    Read(Progress),
    /// The outbox or its disk is full: nothing was read, and everything read before is stored.
    Full,
    /// A stage failed: its file is held from now on.
    Held,
    /// A group could not be stored. Everything continues from the store after a pause.
    NotStored {
        /// Length of the pause.
        pause: Duration,
    },
}

impl Ingest {
    /// Reads until the inbox is stopped, or according to `until`. Errors of the store are logged and the
    /// work is retried: the files are the buffer.
    pub fn run(mut self, until: Until) -> Vec<Named<dyn Enricher>> {
        self.begin();
        self.state.backfill.is_limited = until == Until::Stopped;
        loop {
            let is_over = match self.state.is_backfill {
                true => self.run_in_background(until),
                false => self.run_steps(until),
            };
            if is_over {
                return self.end();
            }
        }
    }

    /// Runs steps with low priority. Returns whether reading has ended.
    fn run_in_background(&mut self, until: Until) -> bool {
        if let Some(is_over) = in_background("backfill", || self.run_steps(until)) {
            return is_over;
        }
        // No background thread could be started.
        self.state.is_backfill = false;
        false
    }

    /// Runs steps until reading has ended, and then returns `true`, or until they are to run with
    /// another priority.
    fn run_steps(&mut self, until: Until) -> bool {
        let is_backfill = self.state.is_backfill;
        loop {
            let outcome = self.step();
            // A caller that waits until everything is read is not slowed down.
            let has_more = outcome == StepOutcome::Read(Progress::More) && until == Until::Stopped;
            self.state.is_backfill = has_more && self.state.only_backfill;
            if let StepOutcome::NotStored { pause } = outcome {
                self.pause(pause);
            }
            let is_idle = matches!(outcome, StepOutcome::Read(Progress::Idle { .. }));
            if until == Until::CaughtUp && !matches!(outcome, StepOutcome::NotStored { .. }) {
                self.report_progress(is_idle);
            }
            let is_caught_up = until == Until::CaughtUp && is_idle && !self.is_settling();
            // Lines that are not stored at the end are not lost: they are still in the files.
            if self.inbox.is_stopped() || is_caught_up {
                return true;
            }
            match outcome {
                StepOutcome::Full => self.pause(FULL_RETRY),
                StepOutcome::Held | StepOutcome::NotStored { .. } => {}
                StepOutcome::Read(Progress::More) => {
                    self.state.memory_release = Some(self.clock.uptime() + MEMORY_RELEASE);
                }
                StepOutcome::Read(Progress::Idle { next }) => self.wait(next),
            }
            if self.state.is_backfill != is_backfill {
                return false;
            }
        }
    }

    /// Returns whether a file that became shorter is given time before it is read.
    fn is_settling(&self) -> bool {
        self.sources.iter().any(|(_, source)| source.survey().files_settling > 0)
    }

    /// Waits until there is something to do, at most for `next`.
    fn wait(&mut self, next: Duration) {
        let now = self.clock.uptime();
        if self.state.memory_release.is_some_and(|due| now >= due) {
            self.state.memory_release = None;
            memory::release_free();
            if !mem::replace(&mut self.state.is_start_unmapped, true) {
                memory::release_code();
            }
        }
        let due = self.state.heartbeat.due();
        let due = self.state.memory_release.map_or(due, |release| release.min(due));
        self.inbox.wait(next.min(LONGEST_SLEEP).min(due.saturating_sub(now)), now);
    }

    /// Prepares the first step.
    pub(super) fn begin(&mut self) {
        let version = crate::version::version().to_owned();
        let started = AgentEvent::AgentStarted { version, epoch: self.outbox.epoch() };
        self.inbox.keep_open(started.into());
        let now = self.clock.uptime();
        let due = now + self.heartbeat_interval();
        self.state.heartbeat.schedule(due);
        self.state.memory_release = Some(now + MEMORY_RELEASE);
        self.schedule_maintenance();
    }

    /// Reads one group and hands it over to be stored.
    pub(super) fn step(&mut self) -> StepOutcome {
        self.inbox.start_step(self.clock.uptime());
        self.answer_status_requests();
        let ready = self
            .restore()
            .and_then(|()| self.apply_reconfiguration())
            .and_then(|()| self.run_jobs());
        if let Err(pause) = ready {
            return StepOutcome::NotStored { pause };
        }
        self.resume_after_sleep();
        self.add_reported_events();
        self.add_due_heartbeat();
        self.run_due_maintenance();
        self.update_backpressure();
        let outcome = if self.backpressure.is_full() {
            self.sources.iter_mut().for_each(|(_, source)| source.tend());
            StepOutcome::Full
        } else {
            match self.read_sources() {
                Ok(progress) => StepOutcome::Read(progress),
                Err(failure) => return self.discard_group(failure),
            }
        };
        // With more to read, the group is stored meanwhile.
        let stored = match outcome {
            StepOutcome::Read(Progress::More) => self.hand_over(),
            _ => self.commit(),
        };
        match stored {
            Ok(()) => self.after_storing(outcome),
            Err(pause) => StepOutcome::NotStored { pause },
        }
    }

    /// Continues with a backlog that was refused if it has become acceptable.
    fn after_storing(&mut self, outcome: StepOutcome) -> StepOutcome {
        match outcome {
            StepOutcome::Read(Progress::Idle { next }) if self.state.backfill.is_waiting => {
                StepOutcome::Read(self.wait_for_delivery(next))
            }
            outcome => outcome,
        }
    }

    /// Makes sources, heartbeat and maintenance due if the machine has slept.
    fn resume_after_sleep(&mut self) {
        if self.inbox.take_has_slept() {
            self.sources.iter_mut().for_each(|(_, source)| source.resume());
            self.state.heartbeat.schedule(Duration::ZERO);
            self.state.maintenance_due = Duration::ZERO;
        }
    }

    fn add_reported_events(&mut self) {
        for event in self.inbox.take_reported_events() {
            self.add_event(event);
        }
    }

    /// Stores the last events and the last heartbeat. Returns the enrichers, for events that are
    /// reported later.
    pub(super) fn end(mut self) -> Vec<Named<dyn Enricher>> {
        if self.restore().is_ok() {
            self.add_last_events();
        }
        self.stages.enrichers
    }

    fn add_last_events(&mut self) {
        self.add_reported_events();
        self.add_heartbeat();
        self.add_event(AgentEvent::AgentStopped {}.into());
        if self.commit().is_err() {
            debug!("cannot store the last group: its records will be read again");
        }
    }

    /// Lets every source read into the open group.
    fn read_sources(&mut self) -> Result<Progress, IntakeFailure> {
        let mut all = Progress::Idle { next: LONGEST_SLEEP };
        let failure = OnceCell::new();
        self.state.only_backfill = true;
        let backfill = self.state.backfill.limit(self.clock.uptime(), &self.outbox);
        for (name, source) in &mut self.sources {
            let label = source.label();
            let mut intake = GroupIntake {
                builder: &mut self.builder,
                stages: &mut self.stages,
                outbox: &self.outbox,
                inbox: &self.inbox,
                instance: name,
                label,
                now: self.clock.now(),
                held_files: &self.state.held_files,
                backfill: &backfill,
                failure: &failure,
            };
            let progress = source.read(&mut intake);
            if progress == Progress::More {
                self.state.only_backfill &= source.is_backfill();
            }
            all = match (all, progress) {
                (Progress::Idle { next: one }, Progress::Idle { next: other }) => {
                    Progress::Idle { next: one.min(other) }
                }
                _ => Progress::More,
            };
        }
        self.state.backfill.is_waiting = backfill.is_reached();
        failure.into_inner().map_or(Ok(all), Err)
    }

    /// Discards the open group. A file on which a stage failed is held; its checkpoint stays where
    /// it is, so that nothing of the file is lost.
    fn discard_group(&mut self, failure: IntakeFailure) -> StepOutcome {
        self.state.groups.lose();
        match failure {
            IntakeFailure::Checkpoint => StepOutcome::NotStored { pause: COMMIT_RETRY },
            IntakeFailure::Stage(origin) => {
                self.hold_file(&origin);
                StepOutcome::Held
            }
        }
    }

    fn hold_file(&mut self, origin: &Origin) {
        let (path, generation) = (origin.path.to_string_lossy(), &origin.generation.0);
        error!(
            code = "stage_failed",
            %path,
            generation,
            "a stage failed: the file is not read until a reload or the next start"
        );
        self.state.held_files.insert(origin.file);
        let failure = AgentEvent::StageFailed {
            path: Some(path.into_owned()),
            generation: Some(generation.clone()),
            stage: None,
            problem: None,
        };
        // The group is lost: the event is added to the next one.
        self.inbox.keep_open(failure.into());
    }

    /// Reports the progress of catching up, not too often, since it inspects every file.
    fn report_progress(&mut self, is_done: bool) {
        let now = self.clock.uptime();
        if is_done || now >= self.state.progress_due {
            self.state.progress_due = now + PROGRESS_INTERVAL;
            let progress = self.progress();
            (self.on_progress)(progress);
        }
    }

    fn progress(&self) -> ReadProgress {
        let read = Share::from(self.builder.totals()).read().bytes;
        let mut all = ReadProgress { read, ..ReadProgress::default() };
        for (_, source) in &self.sources {
            let survey = source.survey();
            all.unread = all.unread.saturating_add(survey.bytes_unread);
            all.files += survey.files;
        }
        all
    }
}
