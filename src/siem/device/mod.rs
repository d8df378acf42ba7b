//! The device's key, with which the agent signs what it sends.
//!
//! To a receiver, the holder of the key is this installation. A key that is kept elsewhere, as in a
//! TPM, needs another implementation of [`NoteSigner`] and nothing else.

mod key_file;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use key_file::{KeyFile, KeyFileError, StoreKeyError, StoredKeys};
use siem_protocol::{
    agent_event::{DeviceKeyReason, TrustSummary},
    note::NoteSigner,
};
use tokio::sync::watch;

use super::TrustStates;
use crate::{platform::Timestamp, text::causes};

/// Shortest time between two keys: each one starts an epoch.
pub const MIN_KEY_AGE: Duration = Duration::from_secs(3600);
/// Shortest time between two keys because of clones: two agents that copy each other's state would
/// replace their keys for ever.
const MIN_CLONED_KEY_AGE: Duration = Duration::from_secs(24 * 3600);

const NOT_LOADED: &str = "the device key is not loaded yet";
const DRY_RUN: &str = "a dry run has no device key";

/// The device as receivers know it: its key and the random name of this run. All clones see each
/// change.
#[derive(Clone)]
pub struct Device(Arc<Shared>);

struct Shared {
    instance: String,
    /// `None` in a dry run, which signs nothing.
    file: Option<KeyFile>,
    keys: Mutex<Result<StoredKeys, DeviceUnavailable>>,
    /// Held while the file is written, which takes long, so that no other change comes between.
    writes: Mutex<()>,
    /// Public key that the epoch of the outbox belongs to, as stored.
    owner: Mutex<Option<String>>,
    requested: watch::Sender<Option<DeviceKeyReason>>,
}

/// Keys that can sign now.
#[derive(Clone)]
pub struct DeviceKeys {
    /// Key in force.
    pub current: Arc<dyn NoteSigner>,
    /// Key before a rotation, until the receivers have confirmed the key in force.
    pub previous: Option<Arc<dyn NoteSigner>>,
}

/// The device cannot sign now. Its entries stay in the outbox, and the agent tries again by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct DeviceUnavailable {
    /// Reason, with the remedy.
    pub reason: String,
    /// Time at which that was found.
    pub at: Timestamp,
    /// Time from which another attempt may succeed; `None` if a person must act.
    pub until: Option<Timestamp>,
}

/// Result of [`Device::replace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replacement {
    /// The agent makes another key and starts another epoch.
    Requested,
    /// The key is too young.
    TooSoon {
        /// Time from which it may be replaced.
        until: Timestamp,
    },
}

/// Error of [`Device::rotate`].
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// There is no key in force.
    #[error("there is no key to rotate: {0}")]
    Unavailable(#[from] DeviceUnavailable),
    /// The last rotation is not complete.
    #[error(
        "the key before the last rotation is still in use, because a receiver has not confirmed the \
         new one: `ai-agent device show` lists the receivers"
    )]
    Unconfirmed,
    /// The key could not be stored.
    #[error(transparent)]
    Store(#[from] StoreKeyError),
}

/// Keys before and after a rotation.
#[derive(Clone, Debug)]
pub struct Rotated {
    /// Public key before.
    pub previous: String,
    /// Keys in force.
    pub keys: StoredKeys,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("instance", &self.0.instance).finish_non_exhaustive()
    }
}

impl fmt::Debug for DeviceKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceKeys").field("current", self.current.key()).finish_non_exhaustive()
    }
}

impl DeviceUnavailable {
    /// Creates the report that a person must act.
    #[must_use]
    pub fn permanent(reason: impl Into<String>, at: Timestamp) -> Self {
        Self { reason: reason.into(), at, until: None }
    }

    /// Creates the report that another attempt may succeed `after` some time.
    #[must_use]
    pub fn temporary(reason: impl Into<String>, at: Timestamp, until: Timestamp) -> Self {
        Self { reason: reason.into(), at, until: Some(until) }
    }
}

impl Device {
    /// Creates a device whose key is not loaded yet. `instance` is the random name of this run.
    #[must_use]
    pub fn new(file: KeyFile, instance: String) -> Self {
        Self::with(Some(file), instance, NOT_LOADED)
    }

    /// Creates a device that never signs, as for a dry run.
    #[must_use]
    pub fn without_key(instance: String) -> Self {
        Self::with(None, instance, DRY_RUN)
    }

    fn with(file: Option<KeyFile>, instance: String, reason: &str) -> Self {
        let keys = Mutex::new(Err(DeviceUnavailable::permanent(reason, Timestamp(0))));
        Self(Arc::new(Shared {
            instance,
            file,
            keys,
            writes: Mutex::default(),
            owner: Mutex::default(),
            requested: watch::Sender::default(),
        }))
    }

    /// Returns the random name of this run.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.0.instance
    }

    /// Returns the file of the key; `None` in a dry run.
    #[must_use]
    pub fn file(&self) -> Option<&KeyFile> {
        self.0.file.as_ref()
    }

    /// Returns the keys that sign now. They may change between two batches.
    ///
    /// # Errors
    /// [`DeviceUnavailable`]: the caller holds delivery.
    pub fn keys(&self) -> Result<DeviceKeys, DeviceUnavailable> {
        let StoredKeys { current, previous, .. } = self.stored_keys()?;
        let previous = previous.map(|key| key as Arc<dyn NoteSigner>);
        Ok(DeviceKeys { current, previous })
    }

    /// Returns the keys in force, as stored.
    ///
    /// # Errors
    /// [`DeviceUnavailable`].
    pub fn stored_keys(&self) -> Result<StoredKeys, DeviceUnavailable> {
        self.lock().clone()
    }

    /// Returns the trust between this device and its receivers, for heartbeats.
    #[must_use]
    pub fn trust_summary(&self, states: &TrustStates) -> TrustSummary {
        let keys = self.stored_keys();
        TrustSummary {
            device_key: keys.as_ref().ok().map(StoredKeys::public),
            device_problem: keys.err().map(|unavailable| unavailable.reason),
            receivers: states.all(),
        }
    }

    /// Puts keys in force, or reports that there are none.
    pub fn set(&self, keys: Result<StoredKeys, DeviceUnavailable>) {
        *self.lock() = keys;
    }

    /// Notes the public key that the epoch of the outbox belongs to by now.
    pub fn set_owner(&self, key: &str) {
        *self.0.owner.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.to_owned());
    }

    /// Requests another key, because the receiver said that one is needed. The agent stops delivery,
    /// makes the key, renumbers the outbox and starts delivery again; until then the caller holds
    /// delivery.
    #[must_use]
    pub fn replace(&self, reason: DeviceKeyReason, now: Timestamp) -> Replacement {
        if let Ok(keys) = &*self.lock()
            && let Some(until) = replaceable_at(keys, reason, now)
        {
            return Replacement::TooSoon { until };
        }
        self.0.requested.send_replace(Some(reason));
        Replacement::Requested
    }

    /// Returns once another key was requested.
    pub async fn replacement_requested(&self) {
        let mut requested = self.0.requested.subscribe();
        // The sender is in `self`.
        drop(requested.wait_for(Option::is_some).await);
    }

    /// Removes and returns the request for another key.
    #[must_use]
    pub fn take_request(&self) -> Option<DeviceKeyReason> {
        self.0.requested.send_replace(None)
    }

    /// Replaces the key by another of the same lineage. The epoch continues.
    ///
    /// # Errors
    /// [`RotateError`]: the key in force stays.
    pub fn rotate(&self, now: Timestamp) -> Result<Rotated, RotateError> {
        let _order = self.0.writes.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = self.stored_keys()?;
        let Some(file) = &self.0.file else {
            return Err(DeviceUnavailable::permanent(DRY_RUN, now).into());
        };
        if keys.previous.is_some() {
            return Err(RotateError::Unconfirmed);
        }
        let rotated = file.rotate(&keys, now)?;
        self.put_in_force(&keys, rotated.clone());
        Ok(Rotated { previous: keys.public(), keys: rotated })
    }

    /// Drops the key before a rotation if each receiver that enrolls devices has enrolled the key in
    /// force, and the outbox's epoch belongs to it: otherwise the next start would take the key for
    /// another one. Does nothing while a receiver has not answered. May block on the file.
    pub fn settle_rotation(&self, trust: &TrustStates) {
        let _order = self.0.writes.lock().unwrap_or_else(PoisonError::into_inner);
        let (Ok(keys), Some(file)) = (self.stored_keys(), &self.0.file) else { return };
        let current = keys.public();
        if keys.previous.is_none() || !self.is_owner(&current) {
            return;
        }
        let is_settled = trust.entries().iter().all(|entry| {
            let trust = entry.get();
            trust.is_some_and(|it| {
                it.receiver_keys.is_empty() || it.device_key.as_ref() == Some(&current)
            })
        });
        if !is_settled {
            return;
        }
        match file.drop_previous(&keys) {
            Ok(settled) => self.put_in_force(&keys, settled),
            Err(error) => tracing::warn!(
                code = "device_key_write_failed",
                cause = causes(&error),
                "cannot remove the key before the rotation from the key file"
            ),
        }
    }

    fn is_owner(&self, key: &str) -> bool {
        self.0.owner.lock().unwrap_or_else(PoisonError::into_inner).as_deref() == Some(key)
    }

    /// Puts keys in force that were written in place of `before`, unless others are by now.
    fn put_in_force(&self, before: &StoredKeys, keys: StoredKeys) {
        let mut in_force = self.lock();
        if in_force.as_ref().is_ok_and(|found| found.public() == before.public()) {
            *in_force = Ok(keys);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Result<StoredKeys, DeviceUnavailable>> {
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the time from which a key may be replaced, if that is in the future. If the clock was set
/// back, the age of the key is unknown and does not count.
fn replaceable_at(keys: &StoredKeys, reason: DeviceKeyReason, now: Timestamp) -> Option<Timestamp> {
    let age = match (reason, keys.reason) {
        (_, DeviceKeyReason::First) => return None,
        (DeviceKeyReason::Cloned, DeviceKeyReason::Cloned) => MIN_CLONED_KEY_AGE,
        _ => MIN_KEY_AGE,
    };
    not_before(keys.created_at, age, now)
}

/// Returns the end of `wait` after `since`, if `now` is within it.
#[must_use]
pub fn not_before(since: Timestamp, wait: Duration, now: Timestamp) -> Option<Timestamp> {
    let is_within = now >= since && now - since < wait;
    let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    is_within.then(|| Timestamp(since.0.saturating_add(wait)))
}

#[cfg(test)]
mod tests {
    use std::io;

    use siem_protocol::agent_event::{ReceiverTrust, TrustState};

    use super::*;

    const HOUR: u64 = 3_600_000;
    const NOW: Timestamp = Timestamp(1_795_291_200_000);

    fn at(hours: u64) -> Timestamp {
        Timestamp(NOW.0 + hours * HOUR)
    }

    fn device(dir: &tempfile::TempDir, reason: DeviceKeyReason) -> Device {
        let file = KeyFile::new(dir.path(), "m");
        let keys = file.create(reason, NOW).unwrap();
        let device = Device::new(file, "i".to_owned());
        device.set(Ok(keys));
        device
    }

    fn trust(receiver_keys: &[&str], device_key: Option<String>) -> ReceiverTrust {
        ReceiverTrust {
            endpoint: "https://a/".to_owned(),
            state: TrustState::Confirmed,
            level: None,
            receiver: None,
            receiver_keys: receiver_keys.iter().map(|key| (*key).to_owned()).collect(),
            device_key,
            problem: None,
        }
    }

    #[test]
    fn device_without_key_cannot_sign_or_rotate() {
        let device = Device::without_key("i".to_owned());
        assert!(device.keys().is_err());
        assert!(matches!(device.rotate(NOW), Err(RotateError::Unavailable(_))));
    }

    #[test]
    fn cloned_key_is_replaced_at_most_once_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let cloned = DeviceKeyReason::Cloned;
        let first = device(&dir, DeviceKeyReason::First);
        assert_eq!(first.replace(cloned, NOW), Replacement::Requested);
        assert_eq!(first.take_request(), Some(cloned));
        assert_eq!(first.take_request(), None);
        let lost = device(&dir, DeviceKeyReason::Missing);
        assert_eq!(lost.replace(cloned, NOW), Replacement::TooSoon { until: at(1) });
        assert_eq!(lost.replace(cloned, at(1)), Replacement::Requested);
        let again = device(&dir, cloned);
        assert_eq!(again.replace(cloned, at(23)), Replacement::TooSoon { until: at(24) });
        assert_eq!(again.take_request(), None);
        assert_eq!(again.replace(cloned, at(24)), Replacement::Requested);
        // A clock that was set back tells nothing about the age.
        assert_eq!(again.replace(cloned, Timestamp(1)), Replacement::Requested);
    }

    #[test]
    fn rotation_waits_for_every_receiver_that_enrolls() {
        let dir = tempfile::tempdir().unwrap();
        let device = device(&dir, DeviceKeyReason::First);
        let first = device.stored_keys().unwrap().public();
        let rotated = device.rotate(NOW).unwrap();
        assert_eq!(rotated.previous, first);
        let current = rotated.keys.public();
        let previous = || device.keys().unwrap().previous.map(|key| key.key().to_string());
        assert!(matches!(device.rotate(NOW), Err(RotateError::Unconfirmed)));
        device.set_owner(&current);

        let states = TrustStates::default();
        let (one, two) = (states.entry("https://a/"), states.entry("https://b/"));
        one.set(trust(&["k"], Some(current.clone())));
        device.settle_rotation(&states);
        assert_eq!(previous(), Some(first.clone()), "a receiver has not answered");
        two.set(trust(&["k"], Some(first.clone())));
        device.settle_rotation(&states);
        assert_eq!(previous(), Some(first), "a receiver has the key before");
        two.set(trust(&[], None));
        device.settle_rotation(&states);
        assert_eq!(previous(), None, "a receiver without keys enrolls no device");
        assert_eq!(device.stored_keys().unwrap().public(), current);
        device.rotate(NOW).unwrap();
    }

    /// The outbox could not be written after the rotation: the next start needs the key before.
    #[test]
    fn rotation_waits_for_the_outbox() {
        let dir = tempfile::tempdir().unwrap();
        let device = device(&dir, DeviceKeyReason::First);
        let first = device.stored_keys().unwrap().public();
        device.set_owner(&first);
        let current = device.rotate(NOW).unwrap().keys.public();
        let states = TrustStates::default();
        let entry = states.entry("https://a/");
        entry.set(trust(&["k"], Some(current.clone())));
        device.settle_rotation(&states);
        let stored = || device.file().unwrap().load().unwrap().previous_public();
        assert_eq!(stored(), Some(first));
        device.set_owner(&current);
        device.settle_rotation(&states);
        assert_eq!(stored(), None);
    }

    /// Batches are sealed meanwhile.
    #[test]
    fn keys_can_be_read_while_the_file_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path(), "m");
        let keys = file.create(DeviceKeyReason::First, NOW).unwrap();
        let read = Arc::new(Mutex::new(None::<Device>));
        let shared = Arc::clone(&read);
        let reading = file.with_replace(move |path, bytes| {
            let device = shared.lock().unwrap().take().unwrap();
            assert!(device.keys().is_ok());
            crate::platform::secure_file::replace(path, bytes)
        });
        let device = Device::new(reading, "i".to_owned());
        device.set(Ok(keys.clone()));
        *read.lock().unwrap() = Some(device.clone());
        let rotated = device.rotate(NOW).unwrap();
        assert_eq!(rotated.previous, keys.public());
        assert_eq!(device.stored_keys().unwrap().public(), rotated.keys.public());
    }

    #[test]
    fn failed_rotation_keeps_the_key_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path(), "m");
        let keys = file.create(DeviceKeyReason::First, NOW).unwrap();
        let failing = file.with_replace(|_, _| Err(io::Error::other("disk full")));
        let device = Device::new(failing, "i".to_owned());
        device.set(Ok(keys.clone()));
        assert!(matches!(device.rotate(NOW), Err(RotateError::Store(_))));
        assert_eq!(device.stored_keys().unwrap().public(), keys.public());
    }

    #[tokio::test]
    async fn request_is_seen_by_every_clone() {
        let device = Device::without_key("i".to_owned());
        let clone = device.clone();
        assert_eq!(device.replace(DeviceKeyReason::Cloned, NOW), Replacement::Requested);
        clone.replacement_requested().await;
        assert_eq!(clone.take_request(), Some(DeviceKeyReason::Cloned));
    }
}
