//! Loads the device's key or makes one, and makes the outbox's epoch belong to it.
//!
//! A key is stored before anything is signed with it, and the store names the key that its epoch
//! belongs to. The pipeline starts only after both agree, so no entry of an epoch is ever signed with
//! the key of another, whatever the moment of a crash.

use std::time::Duration;

use siem_protocol::{AgentEvent, agent_event::DeviceKeyReason};
use tokio::time::sleep;
use tracing::{error, warn};

use super::error::AgentError;
use crate::{
    pipeline::{
        outbox::{EpochDevice, Outbox, OutboxError},
        runner::new_epoch,
    },
    platform::{Clock, Timestamp},
    siem::{
        Device,
        device::{DeviceUnavailable, KeyFile, KeyFileError, MIN_KEY_AGE, StoredKeys, not_before},
    },
    text::causes,
};

/// Interval at which a device without a usable key is inspected again.
const INSPECTION: Duration = Duration::from_secs(5);
/// Time after which the agent tries again to write the key: each attempt starts the pipeline again.
const WRITE_RETRY_MS: u64 = 60_000;

/// Loads the device's key or makes one, and makes the epoch of the outbox belong to it. Without a
/// usable key the agent reads and stores, and sinks that sign hold delivery.
///
/// # Errors
/// [`AgentError`] if the outbox cannot be written.
pub(super) fn prepare(
    device: &Device,
    outbox: &Outbox,
    clock: &dyn Clock,
) -> Result<(), AgentError> {
    let Some(file) = device.file() else { return Ok(()) };
    let now = clock.now();
    let keys = match obtain(file, outbox.epoch_device(), device.take_request(), now) {
        Ok(obtained) => match assign(outbox, &obtained, now) {
            Ok(()) => {
                device.set_owner(&obtained.keys.public());
                Ok(obtained.keys)
            }
            // The pipeline finds the damage too, and replaces the outbox.
            Err(error) if *outbox.watch_damage().borrow() => {
                Err(DeviceUnavailable::permanent(causes(&error), now))
            }
            Err(error) => return Err(error.into()),
        },
        Err(unavailable) => {
            error!(
                code = "device_key_unavailable",
                reason = unavailable.reason,
                "no device key: delivery that must be signed is held"
            );
            Err(unavailable)
        }
    };
    device.set(keys);
    Ok(())
}

/// Returns once the pipeline must be started again with another key: one was requested, or the
/// device had none and may have one now.
pub(super) async fn restart_wanted(device: &Device, clock: &dyn Clock) {
    // A key that is in force stays so until one is requested.
    let (Err(unavailable), Some(file)) = (device.stored_keys(), device.file()) else {
        return device.replacement_requested().await;
    };
    while !may_recover(&unavailable, file, clock.now()) {
        sleep(INSPECTION).await;
    }
}

/// Returns whether the reason for which there is no key may have passed.
fn may_recover(unavailable: &DeviceUnavailable, file: &KeyFile, now: Timestamp) -> bool {
    if let Some(until) = unavailable.until {
        // A clock that was set back tells nothing about the time that has passed.
        return now >= until || now < unavailable.at;
    }
    match file.load() {
        Ok(_) | Err(KeyFileError::Unusable(_)) => true,
        Err(error) => causes(&error) != unavailable.reason,
    }
}

/// A key to use.
#[derive(Debug)]
struct Obtained {
    keys: StoredKeys,
    /// True if it was made now.
    is_new: bool,
    /// Device key that the epoch belongs to, as stored.
    owner: Option<EpochDevice>,
}

/// Loads a key that may be used now, or makes one.
fn obtain(
    file: &KeyFile,
    owner: Option<EpochDevice>,
    requested: Option<DeviceKeyReason>,
    now: Timestamp,
) -> Result<Obtained, DeviceUnavailable> {
    let too_soon = owner.as_ref().and_then(|owner| not_before(owner.since, MIN_KEY_AGE, now));
    let reason = match (file.load(), requested) {
        (Ok(_), Some(reason)) => {
            // Without this the pipeline would start with the same key, and be stopped by the next
            // request at once.
            if let Some(until) = too_soon {
                return Err(hold("a receiver found two agents with the device key", now, until));
            }
            reason
        }
        (Ok(keys), None) => {
            let is_owner = owner.as_ref().is_none_or(|owner| is_of_lineage(&keys, owner));
            if let (false, Some(until)) = (is_owner, too_soon) {
                return Err(hold("the device key was replaced by another", now, until));
            }
            return Ok(Obtained { keys, is_new: false, owner });
        }
        (Err(error @ KeyFileError::Unusable(reason)), _) => {
            if let Some(until) = too_soon {
                return Err(hold(&error.to_string(), now, until));
            }
            match (reason, &owner) {
                (DeviceKeyReason::Missing, None) => DeviceKeyReason::First,
                (reason, _) => reason,
            }
        }
        (Err(error), _) => return Err(DeviceUnavailable::permanent(causes(&error), now)),
    };
    let keys = file.create(reason, now).map_err(|error| {
        let until = Timestamp(now.0.saturating_add(WRITE_RETRY_MS));
        DeviceUnavailable::temporary(causes(&error), now, until)
    })?;
    warn_about(reason);
    Ok(Obtained { keys, is_new: true, owner })
}

fn hold(what: &str, now: Timestamp, until: Timestamp) -> DeviceUnavailable {
    let reason = format!(
        "{what}, and the last key was made less than an hour ago: another one is made at {until}; \
         find out what deletes, replaces or copies `device.key`"
    );
    DeviceUnavailable::temporary(reason, now, until)
}

fn warn_about(reason: DeviceKeyReason) {
    let what = match reason {
        DeviceKeyReason::First | DeviceKeyReason::Rotated => return,
        DeviceKeyReason::Missing => "the device key was deleted",
        DeviceKeyReason::Damaged => "the file of the device key was damaged",
        DeviceKeyReason::OtherMachine => "the device key was made on another machine",
        DeviceKeyReason::OtherUser => "the device key was made for another user",
        DeviceKeyReason::Cloned => "the receiver found two agents with the device key",
    };
    warn!(
        code = "device_key_replaced",
        what, "made another device key: unacknowledged entries are sent in a new epoch"
    );
}

fn is_of_lineage(keys: &StoredKeys, owner: &EpochDevice) -> bool {
    keys.public() == owner.key || keys.previous_public().as_ref() == Some(&owner.key)
}

/// Makes the epoch belong to the key: it continues if the key is its owner or replaced the owner by a
/// rotation, or if it has no owner; else a new one starts.
fn assign(outbox: &Outbox, obtained: &Obtained, now: Timestamp) -> Result<(), OutboxError> {
    let Obtained { keys, is_new, owner } = obtained;
    let key = keys.public();
    let created = |reason| AgentEvent::DeviceKeyCreated {
        key: key.clone(),
        reason,
        previous: owner.as_ref().map(|owner| owner.key.clone()),
    };
    match owner {
        Some(owner) if owner.key == key => Ok(()),
        Some(owner) if is_of_lineage(keys, owner) => {
            let device = EpochDevice { key: key.clone(), since: owner.since };
            outbox.assign_epoch(device, Some(created(DeviceKeyReason::Rotated)))
        }
        Some(_) => {
            let reason = match keys.reason {
                // The key file is from a backup or from another store.
                DeviceKeyReason::First | DeviceKeyReason::Rotated => DeviceKeyReason::Missing,
                reason => reason,
            };
            let device = EpochDevice { key: key.clone(), since: now };
            outbox.start_epoch_for_device(new_epoch(), device, created(reason), now)
        }
        None => {
            // A new store with an older key reports nothing: the key is known.
            let is_unreported = *is_new || outbox.existed();
            let event = is_unreported.then(|| created(keys.reason));
            outbox.assign_epoch(EpochDevice { key: key.clone(), since: Timestamp(0) }, event)
        }
    }
}

#[cfg(test)]
mod tests;
