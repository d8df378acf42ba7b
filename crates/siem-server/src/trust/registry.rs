//! Registry of devices, tokens, keys and events: the interface of the HTTP layer, the store and the
//! commands.

mod configs;
mod devices;
mod enrollment;
mod error;
mod event_log;
mod tokens;

use std::{
    collections::HashSet,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use siem_protocol::{
    Digest, Identity, KeysAnswer, managed::Audience, note::SigningKey, statement::TrustLevel,
};

pub(crate) use self::devices::{SenderFacts, Standings, StandingsVersion};
use self::enrollment::Evictions;
pub use self::{
    configs::{ConfigRefusal, HaltedRollout},
    enrollment::Enrollment,
    error::{EnrollError, RegistryError},
};
use super::{
    config_answers::ConfigAnswers,
    damage::DEVICES,
    devices::{DeviceKey, Devices},
    events::{EventCounts, EventLimiter},
    instances::Instances,
    journal::{DirectoryLock, Durability, Journal, JournalError},
    keys::{FormerKey, KeyStore, ReceiverKeys, ReceiverKeysView, Rotation},
    offered::{OfferedConfigs, OfferedLine},
    tokens::Tokens,
};
use crate::clock::{self, Clock, SystemClock};

/// Options of a [`Registry`].
#[derive(Clone)]
#[non_exhaustive]
pub struct RegistryOptions {
    /// Lowest level of trust that the receiver accepts.
    pub level: TrustLevel,
    /// Source of the current time.
    pub clock: Arc<dyn Clock>,
}

impl RegistryOptions {
    /// Options for a receiver that accepts `level` and above.
    #[must_use]
    pub fn new(level: TrustLevel) -> Self {
        Self { level, clock: Arc::new(SystemClock) }
    }

    /// Replaces the clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self::new(TrustLevel::Shared)
    }
}

impl fmt::Debug for RegistryOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryOptions").field("level", &self.level).finish_non_exhaustive()
    }
}

/// State of trust of a receiver, in files that the server and the commands share.
///
/// Reads include what other processes appended. If that cannot be read, the error is logged and
/// the state known before is used. Changes return after they are on stable storage, except those
/// by [`Registry::record`].
pub struct Registry {
    level: TrustLevel,
    clock: Arc<dyn Clock>,
    lock: Arc<DirectoryLock>,
    keys: KeyStore,
    devices: Journal<Devices>,
    tokens: Journal<Tokens>,
    events: Journal<EventCounts>,
    offered: Journal<OfferedConfigs>,
    answers: Journal<ConfigAnswers>,
    limiter: Mutex<EventLimiter>,
    instances: Mutex<Instances>,
    /// Keys that own epochs, as far as this process knows.
    owners: Mutex<HashSet<DeviceKey>>,
    evictions: Mutex<Evictions>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("level", &self.level).finish_non_exhaustive()
    }
}

impl Registry {
    /// Opens the registry in `directory`, and creates it if missing. Any number of processes may
    /// have it open.
    ///
    /// # Errors
    /// [`RegistryError`] if a file cannot be read or is damaged.
    pub fn open(directory: &Path, options: RegistryOptions) -> Result<Self, RegistryError> {
        let lock = DirectoryLock::open(directory)?;
        Ok(Self {
            level: options.level,
            clock: options.clock,
            keys: KeyStore::open(directory.join("keys"))?,
            devices: Journal::open(directory, DEVICES, lock.clone())?,
            tokens: Journal::open(directory, "tokens.ndjson", lock.clone())?,
            events: Journal::open(directory, "events.ndjson", lock.clone())?,
            offered: Journal::open(directory, "offered.ndjson", lock.clone())?,
            answers: Journal::open(directory, "config-answers.ndjson", lock.clone())?,
            limiter: Mutex::default(),
            instances: Mutex::default(),
            owners: Mutex::default(),
            evictions: Mutex::default(),
            lock,
        })
    }

    /// Replaces the lowest level of trust that the receiver accepts.
    pub(crate) fn with_level(mut self, level: TrustLevel) -> Self {
        self.level = level;
        self
    }

    /// Returns the lowest level of trust that the receiver accepts.
    #[must_use]
    pub fn level(&self) -> TrustLevel {
        self.level
    }

    fn now(&self) -> String {
        clock::text(self.clock.now())
    }
}

/// Keys of the receiver.
impl Registry {
    fn receiver_keys(&self) -> Option<Arc<ReceiverKeys>> {
        self.keys.keys()
    }

    /// Returns the name of the receiver; none without a key.
    #[must_use]
    pub fn receiver_name(&self) -> Option<String> {
        self.keys.private_keys().map(|keys| keys.name.clone())
    }

    /// Returns the current key of the receiver; none if no key was made.
    #[must_use]
    pub fn receiver_key(&self) -> Option<Arc<SigningKey>> {
        self.keys.private_keys().map(|keys| keys.current.clone())
    }

    /// Reports whether the receiver has a key, as of the last look at its file. Each request looks when its
    /// body is read, before its batch is stored.
    pub(crate) fn is_keyed(&self) -> bool {
        self.keys.known().is_some()
    }

    /// Returns the response to `GET /keys`; none if no key was made.
    #[must_use]
    pub fn keys_answer(&self) -> Option<KeysAnswer> {
        self.receiver_keys().map(|keys| keys.answer.clone())
    }

    /// Returns the public keys of the receiver; none if no key was made.
    #[must_use]
    pub fn receiver_keys_view(&self) -> Option<ReceiverKeysView> {
        self.receiver_keys().map(|keys| keys.view())
    }

    /// Returns the public keys of the receiver that sign no longer.
    ///
    /// # Errors
    /// If their file cannot be read or is damaged.
    pub fn former_receiver_keys(&self) -> Result<Vec<FormerKey>, RegistryError> {
        Ok(self.keys.former()?)
    }

    /// Returns the path of the list of keys as a text, which the organisation signs with minisign
    /// after the loss of a key.
    #[must_use]
    pub fn key_list_path(&self) -> PathBuf {
        self.keys.list_path()
    }

    /// Makes the first key of the receiver `name` from 32 random bytes.
    ///
    /// # Errors
    /// [`ReceiverKeyError::Exists`](super::ReceiverKeyError::Exists) if there is a key; [`ReceiverKeyError::Name`](super::ReceiverKeyError::Name) for an unusable
    /// name.
    pub fn create_receiver_key(&self, name: &str, seed: [u8; 32]) -> Result<(), RegistryError> {
        let _held = self.lock.lock()?;
        Ok(self.keys.create(name, seed)?)
    }

    /// Makes a next key from 32 random bytes, or if there is one, makes it the current key. With
    /// `discard` the keys before it no longer sign the list of keys.
    ///
    /// # Errors
    /// [`ReceiverKeyError::Missing`](super::ReceiverKeyError::Missing) if there is no key.
    pub fn rotate_receiver_key(
        &self,
        seed: [u8; 32],
        discard: bool,
    ) -> Result<Rotation, RegistryError> {
        let _held = self.lock.lock()?;
        Ok(self.keys.rotate(seed, discard)?)
    }
}

/// Managed configurations.
impl Registry {
    /// Notes that the managed configuration with this hash is offered to the agents of `audience`,
    /// or to all. Returns after that is on stable storage.
    ///
    /// # Errors
    /// [`RegistryError::Journal`].
    pub fn offer_config(
        &self,
        hash: &Digest,
        audience: Option<Audience>,
    ) -> Result<(), RegistryError> {
        if self.was_offered(hash) {
            return Ok(());
        }
        let line = OfferedLine { at: self.now(), hash: *hash, audience };
        let offer = |offered: &OfferedConfigs| {
            Ok::<_, JournalError>(((!offered.contains(hash)).then_some(line), ()))
        };
        Ok(self.offered.transact(Durability::Synced, offer)?)
    }

    /// Reports whether the managed configuration with this hash was ever offered.
    #[must_use]
    pub fn was_offered(&self, hash: &Digest) -> bool {
        self.offered.read(|offered| offered.contains(hash))
    }

    /// Reports whether the managed configuration with this hash was ever offered to a device; `None` if it was
    /// never offered at all.
    pub(crate) fn offer_to(&self, hash: &Digest, identity: &Identity) -> Option<bool> {
        self.offered
            .read(|offered| offered.contains(hash).then(|| offered.contains_for(hash, identity)))
    }

    /// Reports whether the managed configuration with this hash was ever offered to a device. The
    /// groups of its audience do not count, since the receiver does not know them.
    #[must_use]
    pub fn was_offered_to(&self, hash: &Digest, identity: &Identity) -> bool {
        self.offered.read(|offered| offered.contains_for(hash, identity))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
