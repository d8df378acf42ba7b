//! Device key that the epoch belongs to.
//!
//! A receiver assigns an epoch to the key that sealed its first batch, and refuses other keys. The
//! store names that key, so that a start after a crash at any moment finds out whether the epoch
//! belongs to the key at hand.

use siem_protocol::{AgentEvent, agent_event::EpochReason};

use super::{
    super::group::Group, EpochDevice, Outbox, OutboxError, append::append_group,
    renumber::start_epoch, unreported::UnreportedEvent,
};
use crate::{event::Event, platform::Timestamp};

impl Outbox {
    /// Returns the device key that the epoch belongs to; `None` if no agent with a key has opened
    /// the store.
    #[must_use]
    pub fn epoch_device(&self) -> Option<EpochDevice> {
        self.state().device.clone()
    }

    /// Returns events that were recorded with a change of the store and are not among its entries
    /// yet.
    #[must_use]
    pub fn unreported_events(&self) -> Vec<Event> {
        let events = self.state().unreported.clone();
        events.into_iter().map(Event::from).collect()
    }

    /// Returns true if the store existed before it was opened.
    #[must_use]
    pub fn existed(&self) -> bool {
        self.existed
    }

    /// Assigns the epoch to `device`, and records `event`, to be reported until an entry is stored.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed.
    pub fn assign_epoch(
        &self,
        device: EpochDevice,
        event: Option<AgentEvent>,
    ) -> Result<(), OutboxError> {
        self.write("assign the epoch of", |_, state| {
            state.device = Some(device);
            state.unreported.extend(event.map(UnreportedEvent::from));
            Ok(Ok(()))
        })
    }

    /// Assigns the epoch to `device` and appends the group that reports it, in one transaction.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed.
    pub fn assign_epoch_with(
        &self,
        device: EpochDevice,
        report: &Group,
    ) -> Result<(), OutboxError> {
        self.write("assign the epoch of", |transaction, state| {
            state.device = Some(device);
            append_group(transaction, state, report)
        })
    }

    /// Starts the epoch `new` for `device`, as [`renumber`](Self::renumber) does, and records `event`
    /// and the start, to be reported until an entry is stored.
    ///
    /// # Errors
    /// [`OutboxError`]: nothing has changed.
    pub fn start_epoch_for_device(
        &self,
        new: String,
        device: EpochDevice,
        event: AgentEvent,
        now: Timestamp,
    ) -> Result<(), OutboxError> {
        self.write("renumber the entries of", |transaction, state| {
            match start_epoch(transaction, state, new, EpochReason::DeviceKey, now)? {
                Ok(_) => state.device = Some(device),
                Err(what) => return Ok(Err(self.damaged(what))),
            }
            state.unreported.push(event.into());
            Ok(Ok(()))
        })?;
        self.backup().invalidate();
        Ok(())
    }
}
