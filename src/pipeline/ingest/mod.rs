//! Reads sources into the outbox, one group after the other: while one is stored, the next is read.

mod inbox;
mod intake;
mod reconfigure;
mod status;
#[cfg(test)]
mod tests;
mod writer;

use std::{cell::Cell, collections::HashSet, mem, sync::Arc, time::Duration};

pub use inbox::Inbox;
use intake::GroupIntake;
pub use reconfigure::Reconfiguration;
use siem_protocol::{AgentEvent, event::Heartbeat};
pub use status::IngestStatus;
use tracing::{debug, error, info, warn};
pub use writer::Writer;

use super::{
    accounting::Share,
    backpressure::{Backpressure, Change, Shortage},
    config_status::SharedConfigStatus,
    group_builder::GroupBuilder,
    orphaned_sinks,
    outbox::{Outbox, OutboxError},
    record_stages::RecordStages,
};
use crate::{
    event::Event,
    platform::{Clock, Timestamp, memory, priority::in_background},
    stages::{
        Named,
        source::{LONGEST_SLEEP, Progress, Source},
    },
    tail::{FileKey, Origin},
    text::causes,
};

/// How long a failed commit waits before it is tried again.
const COMMIT_RETRY: Duration = Duration::from_secs(5);
/// How often the acknowledged offsets are copied, and a drained store is made smaller.
const TIDY_UP: Duration = Duration::from_secs(60);
/// So many groups are stored before filters are told. A failure takes their memory back to where
/// that was.
const GROUPS: u32 = 8;
/// How long after much was read memory is given back: it is delivered by then, mostly.
const GIVE_BACK: Duration = Duration::from_secs(3);
/// How often it is said how far catching up is.
const TELL: Duration = Duration::from_millis(100);
/// How often a full outbox is looked at again.
const FULL_RETRY: Duration = Duration::from_millis(500);

/// When reading ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Never: it ends when it is told to.
    Stopped,
    /// When everything there is was read once.
    CaughtUp,
}

/// How far reading is, for a progress bar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Bytes read since the outbox began to count.
    pub read: u64,
    /// Bytes that are known and not read yet.
    pub unread: u64,
    /// Files known.
    pub files: usize,
}

/// Told now and then how far reading is.
pub type Report = Box<dyn FnMut(Read) + Send>;

/// What the ingest thread works with.
pub struct Ingest {
    /// Sources, under their instances' names.
    pub sources: Vec<Named<dyn Source>>,
    /// Filters and enrichers.
    pub stages: RecordStages,
    /// The group at hand.
    pub builder: GroupBuilder,
    /// Where groups go.
    pub outbox: Arc<Outbox>,
    /// Who brings them there.
    pub writer: Writer,
    /// Whether there is room to read on.
    pub backpressure: Backpressure,
    /// What wakes and stops it.
    pub inbox: Arc<Inbox>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How often a heartbeat is sent, spread by ±10 % so that a fleet does not beat as one.
    pub heartbeat: Duration,
    /// What became of configurations, for heartbeats.
    pub config_status: SharedConfigStatus,
    /// Random numbers from 0 to 1.
    pub jitter: Box<dyn FnMut() -> f64 + Send>,
    /// Told now and then how far catching up is.
    pub report: Report,
    /// What it knows of its own work. Begins as [`Default`] has it.
    pub state: IngestState,
}

/// What the ingest thread knows of its own work.
#[derive(Debug, Default)]
pub struct IngestState {
    /// The group that is being stored.
    storing: Option<Storing>,
    /// Groups that are stored, or being stored, of which filters do not know yet.
    untold: u32,
    /// Files that a stage failed on: not read until a reload or the next start.
    held: HashSet<FileKey>,
    /// The file that a stage failed on in this group.
    failed: Option<Origin>,
    /// Whether what is at hand is not what is stored.
    is_lost: bool,
    /// Whether there is a heartbeat in the group at hand.
    is_beat_unstored: bool,
    /// When the next heartbeat is due, by the time that the agent is up.
    beat: Duration,
    /// When the store is tidied up next.
    tidy: Duration,
    /// When it is said next how far reading is.
    tell: Duration,
    /// Whether the turn is of old files alone, and gives way to everything else on the machine.
    is_backfill: bool,
    /// Whether the next may be.
    only_backfill: bool,
    /// When memory is given back, after much was read.
    give_back: Option<Duration>,
    /// Why nothing can be stored at present, and since when.
    not_stored: Option<(String, Timestamp)>,
}

/// What is remembered of a group until it is known to be stored.
#[derive(Debug)]
struct Storing {
    has_beat: bool,
    /// How many groups the store has had with it.
    number: u64,
}

/// What came of one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StepOutcome {
    /// How far reading is. What was read is stored, or being stored while there is more.
    Read(Progress),
    /// All is stored, and nothing was read: there is no room.
    Full,
    /// A stage failed: its file is left alone from now on.
    Held,
    /// A group could not be stored, and everything begins again from what is, after a pause.
    NotStored {
        /// How long.
        pause: Duration,
    },
}

impl Ingest {
    /// Reads until told to stop, or as `until` says. Errors of the store are logged and tried
    /// again: the files are the buffer.
    pub fn run(mut self, until: Until) {
        self.begin();
        loop {
            let is_over = match self.state.is_backfill {
                true => self.backfill(until),
                false => self.turns(until),
            };
            if is_over {
                break;
            }
        }
        self.end();
    }

    /// Takes turns that give way to everything else on the machine; whether reading is over.
    fn backfill(&mut self, until: Until) -> bool {
        if let Some(is_over) = in_background("backfill", || self.turns(until)) {
            return is_over;
        }
        // Without another thread this one does it.
        self.state.is_backfill = false;
        false
    }

    /// Takes turns until they are to be taken otherwise; whether reading is over.
    fn turns(&mut self, until: Until) -> bool {
        let is_backfill = self.state.is_backfill;
        loop {
            let turn = self.step();
            // Whoever waits for the end of it is not kept waiting.
            let is_more = turn == StepOutcome::Read(Progress::More) && until == Until::Stopped;
            self.state.is_backfill = is_more && self.state.only_backfill;
            if let StepOutcome::NotStored { pause } = turn {
                self.pause(pause);
            }
            let is_idle = matches!(turn, StepOutcome::Read(Progress::Idle { .. }));
            if until == Until::CaughtUp && !matches!(turn, StepOutcome::NotStored { .. }) {
                self.tell(is_idle);
            }
            let is_caught_up = until == Until::CaughtUp && is_idle && !self.is_settling();
            // What is not stored is not lost at the end: the files still have it.
            if self.inbox.is_stopped() || is_caught_up {
                return true;
            }
            match turn {
                StepOutcome::Full => self.pause(FULL_RETRY),
                StepOutcome::Held | StepOutcome::NotStored { .. } => {}
                StepOutcome::Read(Progress::More) => {
                    self.state.give_back = Some(self.clock.uptime() + GIVE_BACK);
                }
                StepOutcome::Read(Progress::Idle { next }) => self.wait(next),
            }
            if self.state.is_backfill != is_backfill {
                return false;
            }
        }
    }

    /// Whether a file that got shorter is given a moment before it is read.
    fn is_settling(&self) -> bool {
        self.sources.iter().any(|(_, source)| source.survey().files_settling > 0)
    }

    /// Waits for something to do.
    fn wait(&mut self, next: Duration) {
        let now = self.clock.uptime();
        if self.state.give_back.is_some_and(|due| now >= due) {
            self.state.give_back = None;
            memory::release_free();
        }
        let due = self.state.give_back.into_iter().chain([self.state.beat]).min();
        let rest = due.map_or(next, |due| due.saturating_sub(now));
        self.inbox.wait(next.min(LONGEST_SLEEP).min(rest));
    }

    /// Begins where the store says.
    pub(super) fn begin(&mut self) {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let started = AgentEvent::AgentStarted { version, epoch: self.outbox.epoch() };
        self.state.is_lost = true;
        self.inbox.keep(started.into());
        let now = self.clock.uptime();
        self.state.beat = now + self.next_beat();
        self.state.tidy = now + TIDY_UP;
    }

    /// Fills one group and hands it over to be stored.
    pub(super) fn step(&mut self) -> StepOutcome {
        self.inbox.begins(self.clock.uptime());
        self.answer();
        let ready = self.restore().and_then(|()| self.follow()).and_then(|()| self.run_errands());
        if let Err(pause) = ready {
            return StepOutcome::NotStored { pause };
        }
        for event in self.inbox.take_events() {
            self.event(event);
        }
        // Not by the wall clock, which may jump: a heartbeat must not wait for a year.
        let now = self.clock.uptime();
        if now >= self.state.beat {
            self.state.beat = now + self.next_beat();
            self.heartbeat();
        }
        if now >= self.state.tidy {
            self.state.tidy = now + TIDY_UP;
            self.tidy_up();
        }
        self.look_for_room();
        let turn = if self.backpressure.is_full() {
            self.sources.iter_mut().for_each(|(_, source)| source.tend());
            StepOutcome::Full
        } else if let Some(progress) = self.read() {
            StepOutcome::Read(progress)
        } else {
            // A file without its checkpoint would be read from its beginning, as if it were new.
            self.state.failed = None;
            self.roll_back();
            return StepOutcome::NotStored { pause: COMMIT_RETRY };
        };
        if let Some(failed) = self.state.failed.take() {
            self.hold(&failed);
            return StepOutcome::Held;
        }
        // With more to read the group is stored meanwhile.
        let stored = match turn {
            StepOutcome::Read(Progress::More) => self.hand_over(),
            _ => self.commit(),
        };
        match stored {
            Ok(()) => turn,
            Err(pause) => StepOutcome::NotStored { pause },
        }
    }

    /// Stores what there is to say at the end.
    pub(super) fn end(mut self) {
        if self.restore().is_err() {
            return;
        }
        for event in self.inbox.take_events() {
            self.event(event);
        }
        self.heartbeat();
        self.event(AgentEvent::AgentStopped {}.into());
        if self.commit().is_err() {
            debug!("the end could not be stored: what was read will be read again");
        }
    }

    /// Copies the acknowledged offsets, so that a lost store costs little, gives back what a
    /// backlog has taken of the disk, and looks whether the store is still where it was.
    fn tidy_up(&self) {
        if let Err(failure) = self.outbox.back_up() {
            warn!(
                code = "offsets_backup_failed",
                cause = causes(&failure),
                "acknowledged offsets could not be copied"
            );
        }
        if let Err(failure) = self.outbox.check_file() {
            error!(
                code = "outbox_moved",
                cause = causes(&failure),
                "the outbox is not in its place any more"
            );
        } else if let Err(failure) = self.outbox.shrink(self.clock.uptime()) {
            warn!(
                code = "outbox_shrink_failed",
                cause = causes(&failure),
                "the outbox could not be made smaller"
            );
        }
    }

    /// Stops reading, or goes on, as outbox and disk have room, and reports it.
    fn look_for_room(&mut self) {
        let (mut stored, free) = (self.outbox.stored_bytes(), self.outbox.free_space());
        // What is acknowledged may leave, and nothing may be written any more that it leaves with.
        if self.backpressure.is_full() || self.backpressure.fills(stored) {
            if let Err(failure) = self.outbox.persist_acks() {
                warn!(
                    code = "outbox_cleanup_failed",
                    cause = causes(&failure),
                    "acknowledged entries could not be deleted"
                );
            }
            stored = self.outbox.stored_bytes();
        }
        if self.backpressure.has_half_filled(stored) {
            orphaned_sinks::report(&self.outbox, |event| self.inbox.report(event));
            if let Ok(Some(sink)) = self.outbox.slowest_sink() {
                warn!(
                    code = "sink_behind",
                    sink,
                    stored,
                    "one sink is behind: what it has not taken fills half of the outbox"
                );
            }
        }
        match self.backpressure.look(stored, free) {
            Some(Change::Filled(filled)) => {
                let lack = filled.as_str();
                let mend = match filled {
                    Shortage::Outbox => {
                        "it goes on as the receiver takes what is in the outbox; is it reached?"
                    }
                    Shortage::Disk => "make room on the disk that the state directory is on",
                };
                warn!(
                    code = "outbox_full",
                    lack, stored, free, mend, "no room: reading waits, the files are the buffer"
                );
                let full = AgentEvent::OutboxFull {
                    lack: filled.into(),
                    outbox_bytes: stored,
                    disk_free: free,
                };
                self.event(full.into());
            }
            Some(Change::Recovered) => {
                info!(
                    code = "outbox_recovered",
                    stored, free, "there is room again: reading goes on"
                );
                let recovered =
                    AgentEvent::OutboxRecovered { outbox_bytes: stored, disk_free: free };
                self.event(recovered.into());
            }
            None => {}
        }
    }

    /// Lets every source read into the group; `None` when a checkpoint could not be read, and the
    /// group is good for nothing.
    fn read(&mut self) -> Option<Progress> {
        let mut all = Progress::Idle { next: LONGEST_SLEEP };
        let is_spoilt = Cell::new(false);
        self.state.only_backfill = true;
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
                held: &self.state.held,
                failed: &mut self.state.failed,
                is_spoilt: &is_spoilt,
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
        if is_spoilt.get() { None } else { Some(all) }
    }

    /// Holds a file that a stage failed on, and begins again without it. Its checkpoint stays, so
    /// that nothing of it is lost.
    fn hold(&mut self, failed: &Origin) {
        let (path, generation) = (failed.path.to_string_lossy(), &failed.generation.0);
        error!(code = "stage_failed", %path, generation, "a stage failed: the file is held until a reload or the next start");
        let failure = AgentEvent::StageFailed {
            path: Some(path.into_owned()),
            generation: Some(generation.clone()),
            stage: None,
            problem: None,
        };
        self.state.held.insert(failed.file);
        self.roll_back();
        self.event(failure.into());
    }

    /// Takes back what filters remember of the group; the next turn begins with what is stored.
    fn roll_back(&mut self) {
        self.stages.filters.rollback();
        self.state.untold = 0;
        self.state.is_lost = true;
        if mem::take(&mut self.state.is_beat_unstored) {
            self.state.beat = Duration::ZERO;
        }
    }

    /// Stores the group, and all before it. After a failure everything begins again from what is
    /// stored: after the pause that is returned.
    fn commit(&mut self) -> Result<(), Duration> {
        self.hand_over()?;
        self.settle()?;
        self.state.not_stored = None;
        if mem::take(&mut self.state.untold) > 0 {
            self.stages.filters.commit();
        }
        Ok(())
    }

    /// Lets the group be stored once the one before it is. Filters hear of it later: what they
    /// remember since they last did is of the group that is read meanwhile, too.
    fn hand_over(&mut self) -> Result<(), Duration> {
        self.settle()?;
        if self.builder.is_empty() {
            return Ok(());
        }
        self.state.storing = Some(Storing {
            has_beat: mem::take(&mut self.state.is_beat_unstored),
            number: self.outbox.group_count() + 1,
        });
        self.writer.begin(self.builder.finish_unencoded(self.clock.now()), self.state.is_backfill);
        self.inbox.storing();
        self.sources.iter_mut().for_each(|(_, source)| source.sealed());
        self.state.untold += 1;
        if self.state.untold >= GROUPS { self.commit() } else { Ok(()) }
    }

    /// Waits for the group that is being stored.
    fn settle(&mut self) -> Result<(), Duration> {
        let Some(stored) = self.writer.finish() else { return Ok(()) };
        match stored {
            Ok(()) => {
                self.state.storing = None;
                self.stored();
                Ok(())
            }
            Err(failure) => {
                let cause = causes(&failure);
                error!(
                    code = "commit_failed",
                    cause, "entries could not be stored, and will be read again"
                );
                let is_stale = matches!(failure, OutboxError::Stale { .. });
                if !is_stale {
                    self.fails(cause);
                }
                self.roll_back();
                Err(if is_stale { Duration::ZERO } else { COMMIT_RETRY })
            }
        }
    }

    /// Notes why nothing can be stored.
    fn fails(&mut self, cause: String) {
        let since = self.state.not_stored.take().map_or_else(|| self.clock.now(), |(_, at)| at);
        self.state.not_stored = Some((cause, since));
    }

    /// The group that was handed over is in the store.
    fn stored(&mut self) {
        self.inbox.stored();
        self.sources.iter_mut().for_each(|(_, source)| source.committed());
    }

    /// Begins again from what is stored, if that is not what is at hand, with the events that are
    /// not stored yet.
    fn restore(&mut self) -> Result<(), Duration> {
        if !self.state.is_lost {
            return Ok(());
        }
        // What is on its way may still be stored, and is where all begins again then.
        self.settle()?;
        if let Err(failure) = self.try_restore() {
            let cause = causes(&failure);
            error!(code = "checkpoints_read_failed", cause, "checkpoints could not be read");
            self.fails(cause);
            return Err(COMMIT_RETRY);
        }
        for event in self.inbox.unstored() {
            self.builder.add_event(&event, self.clock.now());
        }
        self.state.is_lost = false;
        Ok(())
    }

    fn try_restore(&mut self) -> Result<(), OutboxError> {
        self.stages.restore(self.outbox.dropped_parts()?);
        // After an error of the disk the group may be in the store after all, which says so once
        // it is open again. A file that ended in it must not be read again then.
        if let Some(failed) = self.state.storing.take() {
            if failed.number <= self.outbox.group_count() {
                self.stored();
            } else {
                self.inbox.take_back();
                if failed.has_beat {
                    self.state.beat = Duration::ZERO;
                }
            }
        }
        for (name, source) in &mut self.sources {
            let restored = self.outbox.checkpoints(name, |rows| source.restore(rows))?;
            restored.map_err(|row| self.outbox.report_bad_checkpoint(&row))?;
        }
        self.builder.restart_at(self.outbox.end());
        Ok(())
    }

    fn event(&mut self, event: Event) {
        self.builder.add_event(&event, self.clock.now());
        self.inbox.keep(event);
    }

    fn next_beat(&mut self) -> Duration {
        self.heartbeat.mul_f64(0.9 + 0.2 * (self.jitter)().clamp(0.0, 1.0))
    }

    /// Reports the totals of all numbers below the heartbeat's own.
    fn heartbeat(&mut self) {
        let (mut files, mut unread, mut unreadable) = (0, 0, 0);
        for (_, source) in &self.sources {
            let survey = source.survey();
            files += survey.files;
            unread += survey.bytes_unread;
            unreadable += survey.unreadable.len();
        }
        let heartbeat = Heartbeat {
            epoch: self.outbox.epoch(),
            totals: self.builder.totals().clone(),
            dead_lettered: self.outbox.dead_lettered(),
            outbox_bytes: self.outbox.stored_bytes(),
            files: files as u64,
            unread_bytes: unread,
            unreadable: unreadable as u64,
            config: self.config_status.for_heartbeat(self.clock.now()),
        };
        // It counts the entries before it: one of a group that is not stored is not kept for the
        // next, where it would stand before others.
        let heartbeat = AgentEvent::Heartbeat(Box::new(heartbeat));
        self.builder.add_event(&heartbeat.into(), self.clock.now());
        self.state.is_beat_unstored = true;
    }

    /// Says how far reading is, now and then: it asks every file.
    fn tell(&mut self, is_done: bool) {
        let now = self.clock.uptime();
        if is_done || now >= self.state.tell {
            self.state.tell = now + TELL;
            let read = self.progress();
            (self.report)(read);
        }
    }

    fn progress(&self) -> Read {
        let mut all =
            Read { read: Share::from(self.builder.totals()).read().bytes, ..Read::default() };
        for (_, source) in &self.sources {
            let survey = source.survey();
            all.unread += survey.bytes_unread;
            all.files += survey.files;
        }
        all
    }
}
