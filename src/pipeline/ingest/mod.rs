//! Reads sources into the outbox: one thread, one group after the other.

mod inbox;
mod intake;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, sync::Arc, time::Duration};

pub use inbox::Inbox;
use intake::GroupIntake;
use serde_json::json;
use siem_protocol::names::event;
use tracing::{error, info, warn};

use super::{
    group::{Filling, Stages},
    outbox::{Outbox, OutboxError},
    room::{Change, Room},
};
use crate::{
    event::Event,
    platform::Clock,
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
    pub stages: Stages,
    /// The group at hand.
    pub filling: Filling,
    /// Where groups go.
    pub outbox: Arc<Outbox>,
    /// Whether there is room to read on.
    pub room: Room,
    /// What wakes and stops it.
    pub inbox: Arc<Inbox>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How often a heartbeat is sent, spread by ±10 % so that a fleet does not beat as one.
    pub heartbeat: Duration,
    /// Random numbers from 0 to 1.
    pub jitter: Box<dyn FnMut() -> f64 + Send>,
    /// Told now and then what there is to read.
    pub report: Report,
    /// Events in the group at hand: kept until it is stored. Begins empty.
    pub unstored: Vec<Event>,
    /// Files that a stage failed on: not read until the next start. Begins empty.
    pub held: HashSet<FileKey>,
    /// The file that a stage failed on in this group. Begins empty.
    pub failed: Option<Origin>,
}

impl Ingest {
    /// Reads until told to stop, or as `until` says. Errors of the store are logged and tried
    /// again: the files are the buffer.
    pub fn run(mut self, until: Until) {
        let started = json!({ "version": env!("CARGO_PKG_VERSION"), "epoch": self.outbox.epoch() });
        self.restore();
        self.event(Event::info(event::AGENT_STARTED, started));
        let mut last_heartbeat = self.clock.now();
        let mut beat = self.next_beat();
        let mut last_tidy = last_heartbeat;
        loop {
            for event in self.inbox.take_events() {
                self.event(event);
            }
            let now = self.clock.now();
            if now.since(last_heartbeat) >= beat {
                (last_heartbeat, beat) = (now, self.next_beat());
                self.heartbeat();
            }
            if now.since(last_tidy) >= TIDY_UP {
                last_tidy = now;
                self.tidy_up();
            }
            self.look_for_room();
            let progress = if self.room.is_full() { None } else { Some(self.read()) };
            if let Some(failed) = self.failed.take() {
                self.hold(&failed);
                continue;
            }
            if !self.commit() {
                continue;
            }
            let read = self.progress();
            (self.report)(read);
            if self.inbox.is_stopped() || (until == Until::CaughtUp && is_idle(progress)) {
                break;
            }
            match progress {
                None => self.inbox.pause(FULL_RETRY),
                Some(Progress::More) => {}
                Some(Progress::Idle { next }) => {
                    let until_beat = beat.saturating_sub(self.clock.now().since(last_heartbeat));
                    self.inbox.wait(next.min(LONGEST_SLEEP).min(until_beat));
                }
            }
        }
        for event in self.inbox.take_events() {
            self.event(event);
        }
        self.heartbeat();
        self.event(Event::info(event::AGENT_STOPPED, json!({})));
        self.commit();
    }

    /// Copies the acknowledged offsets, so that a lost store costs little, and gives back what a
    /// backlog has taken of the disk.
    fn tidy_up(&self) {
        if let Err(failure) = self.outbox.back_up() {
            warn!(cause = causes(&failure), "acknowledged offsets could not be copied");
        }
        if let Err(failure) = self.outbox.shrink() {
            warn!(cause = causes(&failure), "the outbox could not be made smaller");
        }
    }

    /// Stops reading, or goes on, as outbox and disk have room, and reports it.
    fn look_for_room(&mut self) {
        let (stored, free) = (self.outbox.stored(), self.outbox.free_space());
        match self.room.look(stored, free) {
            Some(Change::Filled(lack)) => {
                let lack = lack.as_str();
                warn!(lack, stored, free, "no room: reading waits, the files are the buffer");
                let data = json!({ "lack": lack, "outbox_bytes": stored, "disk_free": free });
                self.event(Event::warning(event::OUTBOX_FULL, data));
            }
            Some(Change::Recovered) => {
                info!(stored, free, "there is room again: reading goes on");
                let data = json!({ "outbox_bytes": stored, "disk_free": free });
                self.event(Event::info(event::OUTBOX_RECOVERED, data));
            }
            None => {}
        }
    }

    /// Lets every source read into the group.
    fn read(&mut self) -> Progress {
        let mut all = Progress::Idle { next: LONGEST_SLEEP };
        for (name, source) in &mut self.sources {
            let label = source.label();
            let mut intake = GroupIntake {
                filling: &mut self.filling,
                stages: &mut self.stages,
                outbox: &self.outbox,
                inbox: &self.inbox,
                instance: name,
                label,
                now: self.clock.now(),
                held: &self.held,
                failed: &mut self.failed,
            };
            all = match (all, source.read(&mut intake)) {
                (Progress::Idle { next: one }, Progress::Idle { next: other }) => {
                    Progress::Idle { next: one.min(other) }
                }
                _ => Progress::More,
            };
        }
        all
    }

    /// Holds a file that a stage failed on, and begins again without it. Its checkpoint stays, so
    /// that nothing of it is lost.
    fn hold(&mut self, failed: &Origin) {
        let (path, generation) = (failed.path.to_string_lossy(), &failed.generation.0);
        error!(%path, generation, "a stage failed: the file is held until the next start");
        let data = json!({ "path": path, "generation": generation });
        self.held.insert(failed.file);
        self.roll_back();
        self.event(Event::warning(event::STAGE_FAILED, data));
    }

    /// Begins again from what is stored, with the events that are not.
    fn roll_back(&mut self) {
        self.stages.judge.rollback();
        self.restore();
        for event in &self.unstored {
            self.filling.event(event, self.clock.now());
        }
    }

    /// Stores the group. After a failure everything begins again from what is stored; false then.
    fn commit(&mut self) -> bool {
        if self.filling.is_empty() {
            return true;
        }
        let group = self.filling.take(self.clock.now());
        match self.outbox.commit(&group) {
            Ok(()) => {
                self.unstored.clear();
                self.stages.judge.commit();
                self.sources.iter_mut().for_each(|(_, source)| source.committed());
                true
            }
            Err(failure) => {
                let cause = causes(&failure);
                error!(cause, "entries could not be stored, and will be read again");
                self.roll_back();
                if self.inbox.is_stopped() {
                    // Nothing is lost: the files still have it.
                    return true;
                }
                if !matches!(failure, OutboxError::Stale { .. }) {
                    self.inbox.pause(COMMIT_RETRY);
                }
                false
            }
        }
    }

    /// Begins again from what is stored.
    fn restore(&mut self) {
        while let Err(failure) = self.try_restore() {
            error!(cause = causes(&failure), "checkpoints could not be read");
            if self.inbox.is_stopped() {
                return;
            }
            self.inbox.pause(COMMIT_RETRY);
        }
    }

    fn try_restore(&mut self) -> Result<(), OutboxError> {
        self.stages.restore(self.outbox.dropping()?);
        for (name, source) in &mut self.sources {
            self.outbox.checkpoints(name, |rows| source.restore(rows))?;
        }
        self.filling.reset(self.outbox.end());
        Ok(())
    }

    fn event(&mut self, event: Event) {
        self.filling.event(&event, self.clock.now());
        self.unstored.push(event);
    }

    fn next_beat(&mut self) -> Duration {
        self.heartbeat.mul_f64(0.9 + 0.2 * (self.jitter)().clamp(0.0, 1.0))
    }

    /// Reports the totals of all numbers below the heartbeat's own.
    fn heartbeat(&mut self) {
        let Read { unread, files, .. } = self.progress();
        let data = json!({
            "epoch": self.outbox.epoch(),
            "totals": self.filling.totals(),
            "dead_lettered": self.outbox.dead_lettered(),
            "outbox_bytes": self.outbox.stored(),
            "files": files,
            "unread_bytes": unread,
        });
        self.event(Event::info(event::HEARTBEAT, data));
    }

    fn progress(&self) -> Read {
        let mut all = Read { read: self.filling.totals().share().read().bytes, ..Read::default() };
        for (_, source) in &self.sources {
            let survey = source.survey();
            all.unread += survey.bytes_unread;
            all.files += survey.files;
        }
        all
    }
}

fn is_idle(progress: Option<Progress>) -> bool {
    matches!(progress, Some(Progress::Idle { .. }))
}
