//! Enrollment of device keys.

use std::time::{Duration, SystemTime};

use siem_protocol::{
    KeysAnswer,
    note::{SignError, VerifierKey},
    statement::{Device as DeviceStatement, Enroll, Statement as _},
};

use super::{
    super::{
        devices::{
            DEVICE_KEY_NAME, DeviceKey, DeviceLine, DeviceView, Devices, EnrollDecision,
            EnrollRefusal, Moment,
        },
        journal::Durability,
        keys::ReceiverKeys,
        tokens::Grant,
    },
    EnrollError, Registry, lock,
};
use crate::clock;

const HOUR: Duration = Duration::from_secs(3600);
/// Number of keys that are evicted in an hour.
const EVICTIONS_IN_HOUR: u64 = 1000;

/// An enrolled device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrollment {
    /// The device.
    pub device: DeviceView,
    /// Note of the statement about the device.
    pub statement: String,
    /// The receiver's keys.
    pub keys: KeysAnswer,
    /// True if the previous key of the device was already replaced or is cloned: two agents hold
    /// it, and the new key does not continue it.
    pub forked: bool,
    /// Confirmed key of another device of the machine and user, if the token has confirmed this one.
    pub besides: Option<DeviceKey>,
}

/// Keys that were evicted in the current hour.
#[derive(Debug, Default)]
pub(super) struct Evictions {
    window_start: Option<SystemTime>,
    number: u64,
}

impl Evictions {
    fn has_room(&mut self, now: SystemTime) -> bool {
        let start = *self.window_start.get_or_insert(now);
        // A clock that was set back starts another hour, too.
        if now.duration_since(start).map_or(true, |since| since >= HOUR) {
            (self.window_start, self.number) = (Some(now), 0);
        }
        self.number < EVICTIONS_IN_HOUR
    }
}

impl Registry {
    /// Enrolls a key that `enroll` presents. `enroll` must have been opened by
    /// [`Enroll::open_self_signed`]. The same key again changes nothing, except that a token that
    /// confirms does so.
    ///
    /// # Errors
    /// [`EnrollError`].
    pub fn enroll(&self, enroll: &Enroll, grant: &Grant) -> Result<Enrollment, EnrollError> {
        let receiver = self.receiver_keys().ok_or(EnrollError::NoReceiverKey)?;
        if enroll.receiver != receiver.name {
            let (named, own) = (enroll.receiver.clone(), receiver.name.clone());
            return Err(EnrollError::OtherReceiver { named, own });
        }
        let names_device = |key: &VerifierKey| key.name() == DEVICE_KEY_NAME;
        if !names_device(&enroll.key) || !enroll.previous.as_ref().is_none_or(names_device) {
            return Err(EnrollError::KeyName);
        }
        if grant.machine().is_some_and(|machine| machine != enroll.machine) {
            return Err(EnrollError::OtherMachine);
        }
        let (key, confirms) = (DeviceKey::from(&enroll.key), grant.confirms_since());
        let now = self.clock.now();
        let moment = Moment {
            at: clock::text(now),
            hour_ago: clock::text(now.checked_sub(HOUR).unwrap_or(SystemTime::UNIX_EPOCH)),
            may_evict: lock(&self.evictions).has_room(now),
        };
        let owns = |key: &DeviceKey| lock(&self.owners).contains(key);
        let decide = |devices: &Devices| devices.enroll(enroll, confirms, &moment, &owns);
        if let Some(token) = grant.single_use() {
            // A refusal must not use up the token.
            self.devices.read(decide)?;
            self.use_token(token, key)?;
        }
        let (forked, besides, evicted) = self.devices.transact(Durability::Synced, |devices| {
            let EnrollDecision { line, forked } = decide(devices)?;
            let is_confirmed = line.as_ref().is_some_and(DeviceLine::is_confirmation);
            let besides = is_confirmed.then(|| devices.confirmed_besides(enroll)).flatten();
            let evicted = matches!(&line, Some(DeviceLine::Enroll(it)) if it.evicts.is_some());
            Ok::<_, EnrollError>((line, (forked, besides, evicted)))
        })?;
        if evicted {
            lock(&self.evictions).number += 1;
        }
        let device = self.device(&key).ok_or(EnrollRefusal::Revoked)?;
        let statement = self.statement(&receiver, &enroll.key, &device)?;
        Ok(Enrollment { device, statement, keys: receiver.answer.clone(), forked, besides })
    }

    fn statement(
        &self,
        receiver: &ReceiverKeys,
        key: &VerifierKey,
        device: &DeviceView,
    ) -> Result<String, SignError> {
        let statement = DeviceStatement {
            receiver: receiver.name.clone(),
            key: key.clone(),
            state: device.state,
            level: self.level,
            confirmed_by: device.confirmed_by,
        };
        statement.sign(&[&*receiver.current])
    }
}
