//! The receiver's own log of events about its senders, `events.ndjson`.
//!
//! A sender can cause an event with each request, so repeats are counted instead of written: after
//! [`LINES_PER_MACHINE`] lines of a kind for a machine, or [`LINES_PER_KIND`] of a kind, the rest of
//! the hour becomes one line with their number.
//!
//! The id of a machine is a claim, so events about made-up machines must not use up the lines of
//! those that matter. Machines that have a confirmed key have lines of their own, the first event of
//! an hour about each is always written, and an address gets a part of the other lines only.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siem_protocol::names::receiver_event;

use super::{devices::DeviceKey, journal::Fold};

/// Lines of one kind for one machine in an hour.
const LINES_PER_MACHINE: u64 = 20;
/// Lines of one kind in an hour, of machines with a confirmed key and of others each.
const LINES_PER_KIND: u64 = 500;
/// Lines of one kind in an hour that one address can cause for machines without a confirmed key.
const LINES_PER_PEER: u64 = 100;
/// Time after which counting starts again.
const WINDOW: Duration = Duration::from_secs(3600);
/// Length of a claimed value that is kept, in characters.
const KEPT: usize = 256;

/// Kind of an event.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A batch without the right key for an epoch, or for a machine and user that has a key.
    Impersonation,
    /// The first batch of an unconfirmed key, of a machine and user that has another one; or a second
    /// key that a token confirms.
    SecondKey,
    /// A batch without a key that does not continue its epoch.
    ChainMismatch,
    /// Two instances of an agent use one key.
    Clone,
    /// A batch names a managed configuration that was never offered to its sender.
    ConfigUnknown,
    /// A batch over a quota of its token or device.
    QuotaExceeded,
}

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::Impersonation,
        Self::SecondKey,
        Self::ChainMismatch,
        Self::Clone,
        Self::ConfigUnknown,
        Self::QuotaExceeded,
    ];

    /// Returns the name, as in the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Impersonation => receiver_event::IMPERSONATION,
            Self::SecondKey => receiver_event::SECOND_KEY,
            Self::ChainMismatch => receiver_event::CHAIN_MISMATCH,
            Self::Clone => receiver_event::CLONE,
            Self::ConfigUnknown => receiver_event::CONFIG_UNKNOWN,
            Self::QuotaExceeded => receiver_event::QUOTA_EXCEEDED,
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An event. All but `kind`, `peer` and `device` are claims of the sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its kind.
    pub kind: EventKind,
    /// Address of the sender, or of the proxy before the receiver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<IpAddr>,
    /// Stable id of the machine.
    pub machine: String,
    /// Name of the user.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Name of the machine.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// Key of the device that signed the request; none without a valid signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceKey>,
    /// The epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
    /// Explanation for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Event {
    /// Creates an event about `machine`; the caller adds what is known besides.
    #[must_use]
    pub fn new(kind: EventKind, machine: impl Into<String>) -> Self {
        Self {
            kind,
            peer: None,
            machine: machine.into(),
            user: String::new(),
            host: String::new(),
            device: None,
            epoch: None,
            detail: None,
        }
    }

    /// Shortens the claims, of which a sender chooses the length.
    fn bounded(mut self) -> Self {
        let texts = [&mut self.machine, &mut self.user, &mut self.host].into_iter();
        for text in texts.chain(&mut self.epoch).chain(&mut self.detail) {
            if let Some((end, _)) = text.char_indices().nth(KEPT) {
                text.truncate(end);
                text.push('…');
            }
        }
        self
    }
}

/// Number of events since the data directory exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EventCounts {
    /// Batches without the right key.
    pub impersonation: u64,
    /// Keys of a machine and user that has another one: unconfirmed ones, and those that a token
    /// confirmed.
    pub second_key: u64,
    /// Batches without a key that do not continue their epoch.
    pub chain_mismatch: u64,
    /// Keys that two instances use.
    pub clone: u64,
    /// Batches that name a managed configuration that was never offered.
    pub config_unknown: u64,
    /// Batches over a quota.
    pub quota_exceeded: u64,
}

impl EventCounts {
    fn of(&mut self, kind: EventKind) -> &mut u64 {
        match kind {
            EventKind::Impersonation => &mut self.impersonation,
            EventKind::SecondKey => &mut self.second_key,
            EventKind::ChainMismatch => &mut self.chain_mismatch,
            EventKind::Clone => &mut self.clone,
            EventKind::ConfigUnknown => &mut self.config_unknown,
            EventKind::QuotaExceeded => &mut self.quota_exceeded,
        }
    }

    /// Returns the number of events of a kind.
    #[must_use]
    pub fn get(mut self, kind: EventKind) -> u64 {
        *self.of(kind)
    }

    pub(super) fn add(&mut self, kind: EventKind, number: u64) {
        let count = self.of(kind);
        *count = count.saturating_add(number);
    }
}

/// A line of `events.ndjson`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EventLine {
    /// Time of receipt.
    pub(super) at: String,
    /// For a line in place of others: their number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) repeated: Option<u64>,
    /// The event; of several, the first.
    pub(super) event: Event,
}

impl Fold for EventCounts {
    type Line = EventLine;

    fn apply(&mut self, line: EventLine) {
        self.add(line.event.kind, line.repeated.unwrap_or(1));
    }
}

/// Limits the lines of an hour.
#[derive(Debug, Default)]
pub(super) struct EventLimiter {
    window_start: Option<SystemTime>,
    kinds: HashMap<(EventKind, Standing), KindWindow>,
}

/// Standing of the machine that an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Standing {
    /// It has or had a confirmed key, which is not a claim.
    Confirmed,
    /// Anyone may have made it up.
    Claimed,
}

/// Events of a kind in the current hour.
#[derive(Debug, Default)]
struct KindWindow {
    lines: u64,
    /// Number of lines for each machine: one with a confirmed key, or at most [`LINES_PER_KIND`]
    /// others.
    machines: HashMap<String, u64>,
    /// Number of lines by each address.
    peers: HashMap<IpAddr, u64>,
    /// The first event that was not written, and their number.
    suppressed: Option<(Event, u64)>,
}

impl EventLimiter {
    /// Accepts an event at `now` and returns the lines to write: the event, or nothing if it was
    /// counted only, after those that stand for the events counted in the hour before.
    pub(super) fn accept(
        &mut self,
        event: Event,
        standing: Standing,
        now: SystemTime,
    ) -> Vec<EventLine> {
        let event = event.bounded();
        let mut lines = self.flush_if_over(now);
        let window = self.kinds.entry((event.kind, standing)).or_default();
        if !window.has_room(&event, standing) {
            window.suppressed.get_or_insert((event, 0)).1 += 1;
            return lines;
        }
        window.lines += 1;
        *window.machines.entry(event.machine.clone()).or_default() += 1;
        if let Some(peer) = event.peer {
            *window.peers.entry(peer).or_default() += 1;
        }
        lines.push(EventLine { at: crate::clock::text(now), repeated: None, event });
        lines
    }

    /// Adds the events that were counted and not written yet.
    pub(super) fn add_suppressed(&self, counts: &mut EventCounts) {
        for (event, number) in self.kinds.values().filter_map(|window| window.suppressed.as_ref()) {
            counts.add(event.kind, *number);
        }
    }

    fn flush_if_over(&mut self, now: SystemTime) -> Vec<EventLine> {
        let start = *self.window_start.get_or_insert(now);
        // A clock that was set back starts another window, too.
        if now.duration_since(start).is_ok_and(|since| since < WINDOW) {
            return Vec::new();
        }
        self.window_start = Some(now);
        self.flush(now)
    }

    /// Ends the hour and returns a line for each kind of which events were counted only.
    pub(super) fn flush(&mut self, now: SystemTime) -> Vec<EventLine> {
        let mut lines: Vec<_> = std::mem::take(&mut self.kinds)
            .into_values()
            .filter_map(|window| window.suppressed)
            .map(|(event, number)| EventLine {
                at: crate::clock::text(now),
                repeated: Some(number),
                event,
            })
            .collect();
        lines.sort_by_key(|line| line.event.kind);
        lines
    }
}

impl KindWindow {
    /// Reports whether an event is written.
    fn has_room(&self, event: &Event, standing: Standing) -> bool {
        let of_machine = self.machines.get(&event.machine).copied().unwrap_or_default();
        let of_peer = event.peer.and_then(|peer| self.peers.get(&peer).copied());
        let has_lines = self.lines < LINES_PER_KIND && of_machine < LINES_PER_MACHINE;
        match standing {
            Standing::Confirmed => has_lines || of_machine == 0,
            Standing::Claimed => has_lines && of_peer.unwrap_or_default() < LINES_PER_PEER,
        }
    }
}

#[cfg(test)]
mod tests;
